"""Norms: those that treat each channel on its own, and those that take statistics over several channels."""

from torch import Tensor, nn

from channelscope.network.labeling.labels import compact
from channelscope.network.operations.operation import Operation, names, register
from channelscope.network.operations.step import Step

AFFINE = ("weight", "bias", "running_mean", "running_var")
BATCH_NORMS = (nn.modules.batchnorm._BatchNorm, nn.SyncBatchNorm)
SLOPES = (nn.PReLU,)
INSTANCE_NORMS = (nn.modules.instancenorm._InstanceNorm,)


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
    """Statistics over the last axes: whatever lies along them is kept whole."""
    labels = step.labels()
    sizes = step.number("normalized_shape")
    count = len(sizes) if isinstance(sizes, tuple | list) else 1
    short = compact(labels)
    if any(size > 1 for size in short.shape[-count:]):
        step.hold(f"{step.place} ({step.spelled}) takes its statistics over all of them", labels)
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
    if kept is not None:
        module.num_features = int(kept.sum())  # type: ignore[assignment]


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
