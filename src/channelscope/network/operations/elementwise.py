"""Elementwise: activations, which treat each element on its own, and tensors combined element by element, whose channels go together."""

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from channelscope.network.operations.operation import Operation, names, register
from channelscope.network.operations.step import Step
from channelscope.network.removal.labels import FIXED, FREE, PARAMETERS, channels_in, compact, full

if TYPE_CHECKING:
    from channelscope.network.removal.labeled_graph import LabeledGraph


ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU,
    nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.Tanhshrink, nn.Hardshrink, nn.Softshrink, nn.Threshold, nn.LogSigmoid, nn.RReLU,
)  # fmt: skip
"""Activations without parameters."""
IDLE = (
    nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout,
)  # fmt: skip
"""Modules that do nothing in evaluation mode."""


def pairs_of(a: Tensor, b: Tensor) -> Tensor:
    """The different pairs of numbers at the same places of two label tensors, int64 (2, pairs).

    Examples
    --------
    >>> pairs_of(torch.tensor([1, 1, 2]), torch.tensor([5, 5, 6])).tolist()
    [[1, 2], [5, 6]]
    """
    first, one = a.flatten().unique(return_inverse=True)
    second, other = b.flatten().unique(return_inverse=True)
    keys = (one * len(second) + other).unique()
    return torch.stack([first[keys // len(second)], second[keys % len(second)]])


def met(walk: "LabeledGraph", a: Tensor, b: Tensor, step: Step) -> Tensor:
    """Labels of two tensors combined element by element.

    Channels that meet are united. Elements of a parameter follow the channels they meet. A channel that is spread over
    several others (a gate of one channel) is kept. What meets something FIXED of its own extent is kept.

    Examples
    --------
    >>> from torch import nn
    >>> from channelscope.network.removal.trial import labeled_graph
    >>> net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(3, 1)).eval()
    >>> walk = labeled_graph(net, torch.ones(1, 1, 1, 1))
    >>> step = walk.step(next(iter(walk.steps.find_nodes(op="call_module", target="1"))))
    >>> met(walk, torch.tensor([0, 1]), torch.tensor([1, 2]), step).tolist()  # channel 0 meets 1, and 1 meets 2
    [0, 1]
    >>> walk.union.root(0) == walk.union.root(1) == walk.union.root(2)
    True
    """
    shape = torch.broadcast_shapes(a.shape, b.shape)
    a, b = (part.reshape((1,) * (len(shape) - part.dim()) + tuple(part.shape)) if part.dim() < len(shape) else part for part in (a, b))
    short = compact(a), compact(b)
    x, y = torch.broadcast_tensors(*short)
    pairs = pairs_of(x, y)
    for own, other, wide in ((0, 1, b), (1, 0, a)):
        if any(wide.shape[axis] > 1 for axis, size in enumerate(short[own].shape) if size > 1):
            against = channels_in(pairs[own]) & (pairs[other] == FIXED)
            walk.hold(pairs[own][against], f"{step.place} combines it with something that cannot be removed")
    narrow = _unite(walk, pairs, short, (a, b), step)
    for own, other in ((0, 1), (1, 0)):
        follows = (pairs[own] >= PARAMETERS) & channels_in(pairs[other])
        walk.sources.tie(pairs[own][follows], pairs[other][follows], step.node.name)
    if short[0].numel() < short[1].numel() or narrow == 0:
        x, y, pairs = y, x, pairs.flip(0)
    both = (pairs[0] >= PARAMETERS) & (pairs[1] >= PARAMETERS) & (pairs[0] != pairs[1])
    walk.sources.tie(pairs[1][both], pairs[0][both], step.node.name)
    return _merged(x, y, step.static).expand(shape)


def _merged(x: Tensor, y: Tensor, static: bool) -> Tensor:
    """The number that stays at each place: a channel, then an element of a parameter; the first of two."""
    result = torch.where((x == FREE) & (y == FREE), FREE, FIXED)
    for part, other in ((y, x), (x, y)):
        keeps = (part >= PARAMETERS) & ((other != FIXED) | static | (other.numel() == 1))
        result = torch.where(keeps, part, result)
    for part in (y, x):
        result = torch.where(channels_in(part), part, result)
    return result


def _unite(walk: "LabeledGraph", pairs: Tensor, short: tuple[Tensor, Tensor], whole: tuple[Tensor, Tensor], step: Step) -> int | None:
    """Unite the channels that meet; returns which side is spread over several channels of the other, None if neither is."""
    both = channels_in(pairs[0]) & channels_in(pairs[1])
    roots = torch.stack([walk.union.roots(part) for part in pairs[:, both]]).unique(dim=1)
    roots = roots[:, roots[0] != roots[1]]
    if not roots.shape[1]:
        return None
    counts = [part.unique(return_counts=True)[1] for part in roots]
    side = 1 if len(counts[0]) > len(counts[1]) else 0
    spread = any(size == 1 < short[1 - side].shape[axis] for axis, size in enumerate(short[side].shape))
    if int(counts[side].max()) > 1 and spread:
        for own, other in ((0, 1), (1, 0)):
            wide = any(whole[other].shape[axis] > 1 for axis, size in enumerate(short[own].shape) if size > 1)
            if int(counts[own].max()) > 1 or (wide and not walk.removable(roots[other])):
                walk.hold(roots[own], f"{step.place} spreads it over several channels")
        return side
    for one, other in roots.T.tolist():
        walk.union.unite(one, other, f"{step.place} combines them")
    return None


def _together(step: Step) -> Tensor:
    """All tensors among the arguments meet."""
    walk = step.walk
    parts = [walk.labels[node] for node in step.node.all_input_nodes if isinstance(walk.values[node.name], Tensor)]
    if len(parts) == 1:
        return parts[0].expand(step.value.shape)
    parts.sort(key=lambda part: not step.carries(part))
    result = parts[0]
    for part in parts[1:]:
        result = met(walk, result, part, step)
    return result.expand(step.value.shape)


def _glu(step: Step) -> Tensor:
    """Two halves along an axis meet."""
    axis = step.number("dim", -1)
    first, second = step.labels().chunk(2, axis)
    return met(step.walk, first, second, step)


def _compared(step: Step) -> Tensor:
    """The answer for an element belongs to its channel; what follows, such as `torch.where`, goes with it or in a trial keeps it."""
    return _together(step) if any(step.carries(part) for part in step.inputs()) else full(tuple(step.value.shape))


def _sought(step: Step) -> Tensor:
    """Channels that a search or a question about all elements looks at stay."""
    if any(step.carries(part) for part in step.inputs()):
        step.hold(f"{step.place} looks at several of its values at once")
    return full(tuple(step.value.shape))


def _each(step: Step) -> Tensor:
    labels, *others = step.inputs()
    for other in others:
        labels = met(step.walk, labels, other, step)
    return labels.expand(step.value.shape)


def _constant(step: Step) -> Tensor:
    return full(tuple(step.value.shape))


def _formed(step: Step) -> Tensor:
    """A constant in the form of a tensor: it has as many channels."""
    labels = step.labels()
    return labels if labels.shape == step.value.shape else full(tuple(step.value.shape))


MEETING = Operation("meet", _together, functions=names(
    "sub div truediv true_divide divide subtract maximum minimum fmax fmin isub itruediv rsub rtruediv addcmul addcdiv lerp where and or "
    "fmod remainder atan2 logical_and logical_or floor_divide floordiv polar xlogy copysign mod dropout_add"),
    arguments=("input", "other"), pointwise=True, local=True, traces=True)  # fmt: skip
register(MEETING)
register(replace(MEETING, name="add", functions=names("add iadd radd"), arithmetic="sum"))
register(replace(MEETING, name="multiply", functions=names("mul multiply imul rmul"), arithmetic="product"))
register(
    Operation("glu", _glu, modules=(nn.GLU,), functions=names("glu"), arguments=("input", "dim")),
)
register(
    Operation(
        "compare",
        _compared,
        functions=names("eq ne lt gt le ge isnan isinf isfinite logical_not invert sign"),
        arguments=("input", "other"),
        local=True,
    )
)
register(Operation("search", _sought, functions=names("argmax argmin any all"), local=True))
register(Operation("idle", _each, modules=IDLE, functions=names("dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout "
    "stochastic_depth drop_path"), pointwise=True, local=True, traces=True, keeps="apart", identity=True))  # fmt: skip
register(Operation("cast", _each, functions=names("clone contiguous detach alias requires_grad to float double half bfloat16 type_as type "
    "cpu cuda _to_copy"), pointwise=True, local=True, traces=True, keeps="apart", copies=True))  # fmt: skip
register(Operation("elementwise", _each, modules=ACTIVATIONS, functions=names(
    "relu relu6 gelu silu mish hardswish hardsigmoid hardtanh leaky_relu elu celu selu sigmoid tanh softplus softsign tanhshrink "
    "hardshrink softshrink threshold logsigmoid rrelu clamp clip clamp_min clamp_max neg square sqrt rsqrt abs exp exp2 expm1 log "
    "log2 log10 log1p pow reciprocal sin cos erf erfinv round floor ceil trunc masked_fill nan_to_num bool int long bernoulli tril triu "
    "rpow positive float_power"),
    pointwise=True, local=True, traces=True, keeps="apart"))  # fmt: skip
register(Operation("constant", _constant, functions=names(
    "arange linspace zeros ones empty full new_zeros new_full "
    "new_ones new_empty new_tensor tensor as_tensor rand randn eye triu_indices tril_indices meshgrid_ normal_"), local=True))  # fmt: skip
register(
    Operation(
        "form",
        _formed,
        functions=names("zeros_like ones_like full_like empty_like rand_like randn_like zero fill"),
        local=True,
    )
)
