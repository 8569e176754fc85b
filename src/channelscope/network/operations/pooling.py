"""Norms, pooling, resizing, reductions over axes, softmax and padding: values are combined over positions or over groups of channels."""

from typing import Any

import torch
from torch import Tensor, nn

from channelscope.network.operations.elementwise import met
from channelscope.network.operations.operation import Operation, Window, names, register
from channelscope.network.operations.step import Call, Step
from channelscope.network.removal.labels import FIXED, FREE, channels_in, compact, fixed, full

WINDOWS = (nn.modules.pooling._AvgPoolNd, nn.modules.pooling._MaxPoolNd)
ADAPTIVE = (nn.modules.pooling._AdaptiveAvgPoolNd, nn.modules.pooling._AdaptiveMaxPoolNd)
EXACT = ("sum", "norm", "vector_norm", "count_nonzero")
"""Reductions to which a channel that is zero adds nothing."""


def _pooled(step: Step) -> Any:
    value = step.value
    labels = step.labels()
    first = value[0] if isinstance(value, tuple) else value
    axis = first.dim() - _spatial(step, first) - 1
    numbers = step.channels(axis=axis, why=f"{step.place} pools several channels into one") if step.carries(labels) else None
    result = full(tuple(first.shape)) if numbers is None else step.spread(numbers, axis, tuple(first.shape))
    return tuple(result for _ in value) if isinstance(value, tuple) else result


def _spatial(step: Step, value: Tensor) -> int:
    """Number of spatial axes: what the name says, else all behind batch and channel."""
    digits = [int(character) for character in step.spelled if character in "123"]
    return digits[-1] if digits else value.dim() - 2


def _both(value: Any) -> tuple[int, int]:
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[-1]))


def _pool_window(call: Call) -> Window | None:
    """Size, stride, padding and dilation of a two-dimensional pool; None where its size is computed in the pass."""
    size = call.number("kernel_size")
    if size is None:
        return None
    stride = call.number("stride")
    dilation = call.number("dilation", 1) if "max" in call.spelled.lower() else 1  # what stands there is ceil_mode for the others
    values = size, size if stride in (None, [], ()) else stride, call.number("padding", 0), dilation
    return tuple(zip(*map(_both, values), strict=True))  # type: ignore[return-value]


def _padded(step: Step) -> Tensor:
    """Padding adds zeros that follow any removal; along the channels it is FIXED, and what is copied repeats its labels."""
    labels, value = step.labels(), step.value
    if labels.shape == value.shape:
        return labels
    amounts = step.number("pad", step.number("padding"))
    amounts = [int(amount) for amount in (amounts if isinstance(amounts, tuple | list) else [amounts] * 2 * (labels.dim() - 2))]
    mode, fill = step.number("mode", "constant"), step.number("value", 0)
    short = compact(labels)
    padded = [labels.dim() - 1 - index for index in range(len(amounts) // 2) if amounts[2 * index] or amounts[2 * index + 1]]
    if all(short.shape[axis] == 1 for axis in padded):
        return short.expand([value.shape[axis] if size == 1 else size for axis, size in enumerate(short.shape)])
    if mode != "constant" or (step.module is not None and not isinstance(step.module, nn.modules.padding._ConstantPadNd)):
        step.hold(f"{step.place} copies some of its channels")
        return full(tuple(value.shape))
    number = FREE if fill in (0, None) and not _beside(short, padded) else FIXED
    return nn.functional.pad(labels, amounts, value=number)


def _adds_zeros(call: Call) -> bool:
    constant = call.module is None or isinstance(call.module, nn.modules.padding._ConstantPadNd)
    return constant and call.number("mode", "constant") == "constant" and call.number("value", 0) in (0, None)


def _beside(short: Tensor, padded: list[int]) -> bool:
    """Whether zeros are put beside the channels, as new channels."""
    return any(short.shape[axis] > 1 for axis in padded)


def _axes(call: Call, count: int) -> tuple[int, ...]:
    dims = call.number("dim", call.node.kwargs.get("axis"))
    if call.spelled in ("norm", "vector_norm"):
        dims = call.number("axes", call.node.kwargs.get("dim"))
    chosen = range(count) if dims is None or dims == () or dims == [] else [dims] if isinstance(dims, int) else dims
    return tuple(int(axis) % count for axis in chosen)


def _reduced(step: Step) -> Any:
    """Reductions: over positions the channels stay; over channels a sum of squares or of values stays exact without them."""
    value = step.value
    if len(step.inputs()) > 1 and isinstance(value, Tensor) and step.spelled in ("max", "min"):
        first, second = step.inputs()
        return met(step.walk, first, second, step).expand(value.shape)
    labels = step.labels()
    axes = _axes(step, labels.dim())
    short = compact(labels)
    outside = [axis for axis, size in enumerate(short.shape) if size > 1 and axis not in axes]
    if any(short.shape[axis] > 1 for axis in axes) and step.carries(short):
        if outside:
            step.walk.together(labels, list(axes), f"{step.place} combines them")
            short = torch.where(channels_in(short), step.walk.union.roots(short), short)
        else:
            if step.spelled == "mean":
                step.walk.counted[step.node] = int(torch.tensor([labels.shape[axis] for axis in axes]).prod())
            elif step.spelled not in EXACT:
                step.hold(f"{step.place} reduces over its channels")
            return fixed(value)
    result = short
    for axis in axes:
        result = result.amax(axis, keepdim=True)
    sizes = [1 if axis in axes else size for axis, size in enumerate(labels.shape)]
    first = value if isinstance(value, Tensor) else value[0]
    result = result.expand(sizes).reshape(first.shape)
    return result if isinstance(value, Tensor) else tuple(result for _ in value)


def _scanned(step: Step) -> Tensor:
    step.walk.together(step.labels(), [int(step.number("dim", 0))], f"{step.place} adds them up one after the other")
    return step.labels()


def _softmax(step: Step) -> Tensor:
    labels = step.labels()
    axis = step.number("dim")
    axis = (0 if labels.dim() in (0, 1, 3) else 1) if axis is None else axis
    step.walk.together(labels, [int(axis)], f"{step.place} makes them compete")
    return labels


def _normalized(step: Step) -> Tensor:
    """Division by a norm: zeros add nothing to it."""
    return step.labels()


register(Operation("pool", _pooled, modules=WINDOWS, functions=names("avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d"),
    arguments=("input", "kernel_size", "stride", "padding", "dilation"), window=_pool_window, keeps="apart"))  # fmt: skip
register(Operation("adaptive pool", _pooled, modules=ADAPTIVE, functions=names("adaptive_avg_pool1d adaptive_avg_pool2d "
    "adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d"), arguments=("input", "output_size"),
    keeps="apart"))  # fmt: skip
register(Operation("power pool", _pooled, modules=(nn.modules.pooling._LPPoolNd,), functions=names("lp_pool1d lp_pool2d lp_pool3d"),
    arguments=("input", "norm_type", "kernel_size", "stride"), window=_pool_window, keeps="apart"))  # fmt: skip
register(Operation("resize", _pooled, modules=(nn.Upsample,), functions=names("interpolate upsample grid_sample"), keeps="apart"))
register(Operation("pad", _padded, modules=(nn.modules.padding._ConstantPadNd, nn.modules.padding._ReflectionPadNd,
    nn.modules.padding._ReplicationPadNd, nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d), functions=names("pad"),
    arguments=("input", "pad", "mode", "value"), traces=True, keeps="apart", adds_zeros=_adds_zeros))  # fmt: skip
register(
    Operation(
        "reduce",
        _reduced,
        functions=names("mean sum amax amin max min prod logsumexp var std std_mean var_mean median nanmean count_nonzero"),
        arguments=("input", "dim"),
        keeps="apart",
        reduces=_axes,
    )
)
register(Operation("norm", _reduced, functions=names("norm vector_norm linalg_norm linalg_vector_norm"), arguments=("input", "p", "axes"),
    reduces=_axes))  # fmt: skip
register(Operation("scan", _scanned, functions=names("cumsum cumprod cummax cummin logcumsumexp"), arguments=("input", "dim"),
    keeps="together"))  # fmt: skip
register(Operation("softmax", _softmax, modules=(nn.Softmax, nn.LogSoftmax, nn.Softmin, nn.Softmax2d),
    functions=names("softmax log_softmax softmin _softmax"), arguments=("input", "dim"), keeps="together"))  # fmt: skip
register(Operation("normalize", _normalized, functions=names("normalize"), arguments=("input", "p", "dim", "eps"), traces=True,
    keeps="together"))  # fmt: skip


AFFINE = ("weight", "bias", "running_mean", "running_var")
BATCH_NORMS = (nn.modules.batchnorm._BatchNorm, nn.SyncBatchNorm)
SLOPES = (nn.PReLU,)
INSTANCE_NORMS = (nn.modules.instancenorm._InstanceNorm,)


def tracking_norms(model: nn.Module) -> list[Any]:
    """The BatchNorms of a network that keep running statistics; not the synchronized ones, which cannot train in a process alone.

    Parameters
    ----------
    model
        The network.

    Returns
    -------
    list of Module
        In the order of `modules()`.

    Examples
    --------
    >>> [norm.num_features for norm in tracking_norms(nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(3, track_running_stats=False)))]
    [2]
    """
    found = [each for each in model.modules() if isinstance(each, BATCH_NORMS) and not isinstance(each, nn.SyncBatchNorm)]
    return [each for each in found if each.running_mean is not None]


def _per_channel(step: Step) -> Tensor:
    """Each channel is normalized with statistics of its own; its parameters go with it."""
    channels = step.channels(axis=1, why=f"{step.place} has one weight for several channels")
    for name in AFFINE:
        step.follow(name, 0, channels)
    if step.module is not None:
        step.walk.reads[step.node.name] = channels
    return step.labels()


def _slopes(step: Step) -> Tensor:
    """PReLU: one slope for each channel, or one for all."""
    weight = step.operand("weight")
    if weight is not None and weight.value.numel() > 1:
        step.follow("weight", 0, step.channels(axis=1, why=f"{step.place} has one slope for several channels"))
    return step.labels()


def _layer_norm(step: Step) -> Tensor:
    """Statistics over the last axes: whatever lies along them is kept whole; a value that only scales channels goes with these."""
    labels = step.labels()
    sizes = step.number("normalized_shape")
    count = len(sizes) if isinstance(sizes, tuple | list) else 1
    short = compact(labels)
    if any(size > 1 for size in short.shape[-count:]):
        step.hold(f"{step.place} ({step.spelled}) takes its statistics over all of them", labels)
    if count == 1 and short.shape[-1] == short.numel() > 1 and step.scales:
        return step.spread(step.walk.factors_of(step.node, labels.shape[-1]), labels.dim() - 1, tuple(labels.shape))
    return labels


def _group_norm(step: Step) -> Tensor:
    """Statistics over groups of channels: a group goes as a whole."""
    groups = int(step.number("num_groups"))
    channels = step.channels(axis=1, why=f"{step.place} has one weight for several channels")
    why = f"{step.place} ({step.spelled}) takes its statistics over all of them"
    for row in channels.view(groups, -1):
        step.walk.union.unite_all(row, why)
    if groups == 1:
        step.hold(why, channels)
    for name in AFFINE[:2]:
        step.follow(name, 0, channels)
    step.walk.reads[step.node.name] = channels
    return step.labels()


def _adjust_batch_norm(module: nn.Module, kept: Tensor | None) -> None:
    known = [len(part) for name in AFFINE if isinstance(part := {**module._parameters, **module._buffers}.get(name), Tensor)]
    if kept is not None or known:
        module.num_features = known[0] if kept is None else int(kept.sum())  # type: ignore[assignment,union-attr]


def _adjust_group_norm(module: nn.Module, kept: Tensor | None) -> None:
    assert isinstance(module, nn.GroupNorm)
    count = len(module.weight) if isinstance(module.weight, Tensor) else None if kept is None else int(kept.sum())
    if count is not None:
        module.num_groups = count * module.num_groups // module.num_channels
        module.num_channels = count


def _adjust_slopes(module: nn.Module, kept: Tensor | None) -> None:
    module.num_parameters = len(module.weight)  # type: ignore[assignment,arg-type]


def _scale_shift(norm: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Factor and shift of each channel in evaluation mode."""
    assert isinstance(norm, nn.modules.batchnorm._NormBase)
    if norm.running_mean is None or norm.running_var is None:
        return None
    deviation = (norm.running_var.double() + norm.eps).sqrt()
    factor = 1 / deviation if norm.weight is None else norm.weight.detach().double() / deviation
    shift = -norm.running_mean.double() * factor
    return factor, shift if norm.bias is None else shift + norm.bias.detach().double()


register(Operation("batch norm", _per_channel, modules=BATCH_NORMS, functions=names("batch_norm"),
    arguments=("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"), adjust=_adjust_batch_norm,
    local=True, keeps="apart", normalizes=True, whole=True, scale_shift=_scale_shift))  # fmt: skip
register(Operation("instance norm", _per_channel, modules=INSTANCE_NORMS, functions=names("instance_norm"),
    arguments=("input", "running_mean", "running_var", "weight", "bias"), adjust=_adjust_batch_norm, keeps="apart",
    normalizes=True, whole=True))  # fmt: skip
register(Operation("layer norm", _layer_norm, modules=(nn.LayerNorm,), functions=names("layer_norm"),
    arguments=("input", "normalized_shape", "weight", "bias", "eps"), keeps="together", normalizes=True, whole=True))  # fmt: skip
register(Operation("rms norm", _layer_norm, modules=(nn.RMSNorm,), functions=names("rms_norm"),
    arguments=("input", "normalized_shape", "weight", "eps"), keeps="together", normalizes=True))  # fmt: skip
register(Operation("group norm", _group_norm, modules=(nn.GroupNorm,), functions=names("group_norm"),
    arguments=("input", "num_groups", "weight", "bias", "eps"), adjust=_adjust_group_norm, keeps="together",
    normalizes=True, whole=True))  # fmt: skip
register(Operation("prelu", _slopes, modules=SLOPES, functions=names("prelu"), arguments=("input", "weight"),
    adjust=_adjust_slopes, pointwise=True, local=True, keeps="apart"))  # fmt: skip
