"""Numbers: steps with sizes, positions or groups written out, and what they become when channels go."""

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx.node import map_aggregate

from channelscope.network.operations.step import Step

if TYPE_CHECKING:
    from channelscope.network.removal.narrowing import Removal


@dataclass(frozen=True)
class Number:
    """A number in the arguments of a step that has to be another one."""

    given: Any
    """as recorded: a number, or the step that computes it"""
    now: int | float
    """what it is"""
    want: int | float
    """what it has to be"""


@dataclass(frozen=True, eq=False)
class Edit:
    """The arguments of a step with `Number`s in the place of those that have to change."""

    args: tuple
    kwargs: dict[str, Any]
    factor: float = 1.0
    """what the value has to be multiplied by"""
    places: tuple[int, Tensor] | None = None
    """an axis of the value, and what of it is left along that axis"""
    target: Any = None
    """the function or method that takes the place of the step's own; None for that"""

    @property
    def told(self) -> bool:
        """Whether other numbers in the arguments are all that has to change."""
        return self.factor == 1 and self.places is None and self.target is None

    def finished(self, value: Tensor) -> Tensor:
        """The value that is left of what the step gives on these arguments."""
        if self.places is not None:
            axis, left = self.places
            value = value.index_select(axis, left.to(value.device))
        return value if self.factor == 1 else value * self.factor

    def numbers(self) -> list[Number]:
        """All numbers that change."""
        found: list[Number] = []

        def look(part: Any) -> Any:
            if isinstance(part, Number):
                found.append(part)
            elif isinstance(part, slice):
                for each in (part.start, part.stop):
                    look(each)
            return part

        map_aggregate((self.args, self.kwargs), look)
        return found


Now = Callable[[Any], Any]
"""an argument as recorded → its value in the smaller network"""


def edit(step: Step, removal: "Removal", now: Now) -> Edit | None:
    """The arguments that make a step fit what is left; None where nothing is known that would.

    Examples
    --------
    >>> from torch import nn
    >>> from channelscope.network.removal.narrowing import Removal
    >>> from channelscope.network.removal.trial import labeled_graph
    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(3, 1)).eval()
    >>> walk = labeled_graph(net, torch.ones(1, 1, 1, 1))
    >>> step = walk.step(next(iter(walk.steps.find_nodes(op="call_module", target="1"))))
    >>> edit(step, Removal(walk, walk.gone([0])), lambda part: part) is None  # an activation has no sizes
    True
    """
    name = step.spelled
    for spellings, function in EDITS.items():
        if name in spellings:
            return function(step, removal, now)
    return None


def _number(given: Any, now: Now, want: int) -> Any:
    value = now(given)
    return given if value == want or value == -1 else Number(given, value, want)


def _shapes(step: Step, removal: "Removal") -> tuple[int, ...]:
    return removal.shape(step.walk.labels[step.node])


def _sizes(step: Step, removal: "Removal", now: Now) -> Edit | None:
    """view, reshape, expand: one size for each axis."""
    first, *rest = step.node.args
    sizes = rest[0] if len(rest) == 1 and isinstance(rest[0], tuple | list) else rest
    if not rest or any(not isinstance(now(size), int) for size in sizes):
        return None
    want = _shapes(step, removal)
    offset = len(want) - len(sizes)
    new = [_number(size, now, want[axis + offset]) for axis, size in enumerate(sizes)]
    return Edit((first, tuple(new)) if sizes is rest[0] else (first, *new), dict(step.node.kwargs))


def _unflattened(step: Step, removal: "Removal", now: Now) -> Edit:
    first, axis, sizes = step.node.args
    start = int(now(axis)) % step.labels().dim()
    want = _shapes(step, removal)[start : start + len(sizes)]  # type: ignore[arg-type]
    return Edit((first, axis, tuple(_number(size, now, wish) for size, wish in zip(sizes, want, strict=True))), {})  # type: ignore[arg-type]


def _repeated(step: Step, removal: "Removal", now: Now) -> Edit | None:
    first, *rest = step.node.args
    times = rest[0] if len(rest) == 1 and isinstance(rest[0], tuple | list) else rest
    want, have = _shapes(step, removal), removal.shape(step.labels())
    have = (1,) * (len(want) - len(have)) + have
    if any(wish % size for wish, size in zip(want, have, strict=True)):
        return None
    new = [_number(number, now, wish // size) for number, wish, size in zip(times, want, have, strict=True)]
    return Edit((first, tuple(new)) if times is rest[0] else (first, *new), {})


def _split(step: Step, removal: "Removal", now: Now) -> Edit | None:
    parts = step.walk.labels[step.node]
    axis = int(step.number("dim", 0))
    want = [removal.shape(part)[axis] for part in parts]
    if step.spelled == "chunk":
        each = [Number(None, part.shape[axis], wish) for part, wish in zip(parts, want, strict=True)]
        target = "split" if step.node.op == "call_method" else torch.split
        return Edit((step.argument("input"), each), {"dim": step.argument("dim", 0)}, target=target)
    first, sizes, *rest = step.node.args if len(step.node.args) > 1 else (*step.node.args, step.argument("sizes", step.argument("indices")))
    if step.spelled == "tensor_split":
        ends = [sum(want[: index + 1]) for index in range(len(want) - 1)]
        if not isinstance(sizes, tuple | list):
            return None
        return Edit((first, tuple(_number(end, now, wish) for end, wish in zip(sizes, ends, strict=True)), *rest), dict(step.node.kwargs))
    if isinstance(sizes, tuple | list):
        new: Any = [_number(size, now, wish) for size, wish in zip(sizes, want, strict=True)]
    elif len(set(want[:-1])) <= 1 and want[-1] <= want[0]:
        new = _number(sizes, now, want[0])
    else:
        new = [Number(None, part.shape[axis], wish) for part, wish in zip(parts, want, strict=True)]
    return Edit((first, new, *rest), dict(step.node.kwargs))


def _indexed(step: Step, removal: "Removal", now: Now) -> Edit | None:
    """Slices and single positions along axes from which something goes."""
    first, index = step.node.args
    if not isinstance(step.walk.labels[first], Tensor):
        return None
    labels: Tensor = step.walk.labels[first]
    kept = removal.indices(labels)
    parts = index if isinstance(index, tuple) else (index,)
    taken = sum(part is not None and part is not Ellipsis for part in parts)
    new, axis = [], 0
    for part in parts:
        if part is None or part is Ellipsis:
            axis = labels.dim() - (taken - axis) if part is Ellipsis else axis
            new.append(part)
            continue
        size = labels.shape[axis]
        if len(kept[axis]) < size:
            changed = _position(part, kept[axis], size, now)
            if changed is None:
                return None
            part = changed
        new.append(part)
        axis += 1
    return Edit((first, tuple(new) if isinstance(index, tuple) else new[0]), {})


def _position(part: Any, kept: Tensor, size: int, now: Now) -> Any:
    if isinstance(part, slice):
        start, stop, stride = (None if each is None else now(each) for each in (part.start, part.stop, part.step))
        inside = torch.isin(kept, torch.arange(size)[slice(start, stop, stride)]).nonzero().flatten()
        if not len(inside):
            return None
        first = part.start if part.start is None else _number(part.start, now, int(inside[0]))
        last = part.stop if part.stop is None else _number(part.stop, now, int(inside[-1]) + 1)
        return slice(first, last, part.step)
    value = now(part)
    if not isinstance(value, int):
        return None
    place = (kept == value % size).nonzero().flatten()
    return _number(part, now, int(place[0])) if len(place) else None


def _narrowed(step: Step, removal: "Removal", now: Now) -> Edit:
    first, axis, start, length = step.node.args
    kept = removal.indices(step.labels())[int(now(axis))]
    before, inside = kept < now(start), (kept >= now(start)) & (kept < now(start) + now(length))
    return Edit((first, axis, _number(start, now, int(before.sum())), _number(length, now, int(inside.sum()))), {})


def _replaced(step: Step, name: str, new: Any) -> Edit:
    """The arguments with one of them another."""
    place = step.entry.arguments.index(name)
    args, kwargs = list(step.node.args), dict(step.node.kwargs)
    if place < len(args):
        args[place] = new
    else:
        kwargs[name] = new
    return Edit(tuple(args), kwargs)


def _groups(step: Step, removal: "Removal", now: Now) -> Edit | None:
    inputs = removal.shape(step.labels())
    layer = next((layer for layer in step.walk.layers if layer.node == step.node.name), None)
    if layer is None:  # its kernels are computed, as in a mixture of experts: it runs as it is, or its channels are kept
        return None
    groups = layer.groups * inputs[layer.axis] // len(layer.inputs)
    return _replaced(step, "groups", _number(step.argument("groups", 1), now, groups))


def _norm_groups(step: Step, removal: "Removal", now: Now) -> Edit:
    channels = step.walk.reads[step.node.name]
    kept = int((~removal.removed(channels)).sum())
    want = int(step.number("num_groups")) * kept // len(channels)
    return _replaced(step, "num_groups", _number(step.argument("num_groups"), now, want))


def _normalized_shape(step: Step, removal: "Removal", now: Now) -> Edit | None:
    sizes = step.argument("normalized_shape")
    if not isinstance(sizes, tuple | list):
        return None
    want = removal.shape(step.labels())[-len(sizes) :]
    return _replaced(step, "normalized_shape", tuple(_number(size, now, wish) for size, wish in zip(sizes, want, strict=True)))


def always(step: Step, removal: "Removal", now: Now) -> Edit | None:
    """What has to change even though every shape fits: a mean over channels, the scale of attention, groups; or what norms leave out.

    Examples
    --------
    >>> from torch import nn
    >>> from channelscope.network.removal.narrowing import Removal
    >>> from channelscope.network.removal.trial import labeled_graph
    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(3, 1)).eval()
    >>> walk = labeled_graph(net, torch.ones(1, 1, 1, 1))
    >>> step = walk.step(next(iter(walk.steps.find_nodes(op="call_module", target="1"))))
    >>> always(step, Removal(walk, walk.gone([0])), lambda part: part) is None
    True
    """
    node, walk = step.node, step.walk
    if node in walk.counted:
        kept = _count(step, removal)
        return None if kept == walk.counted[node] else Edit(tuple(node.args), dict(node.kwargs), kept / walk.counted[node])
    if node in walk.scaled and step.number("scale") is None:
        width = walk.scaled[node]
        if removal.shape(step.labels())[-1] != width:
            return _replaced(step, "scale", Number(None, 0, 1 / sqrt(width)))
    if node in walk.factors:
        kept = removal.indices(walk.labels[node])[-1]
        return Edit(tuple(node.args), dict(node.kwargs), places=(-1, kept)) if len(kept) < step.value.shape[-1] else None
    if node.op == "call_module":
        return None
    if step.entry.name == "group norm":
        changed = _norm_groups(step, removal, now)
        return changed if changed.numbers() else None
    if step.entry.name == "convolution" and step.number("groups", 1) != 1:
        grouped = _groups(step, removal, now)
        return grouped if grouped is not None and grouped.numbers() else None
    return None


def _count(step: Step, removal: "Removal") -> int:
    """How many channels a mean is taken over."""
    labels, value = step.labels(), step.value
    return int(torch.tensor(removal.shape(labels)).prod() * step.walk.counted[step.node] // labels.numel()) if value.numel() else 0


EDITS: dict[tuple[str, ...], Callable[[Step, "Removal", Now], Edit | None]] = {
    ("view", "reshape", "expand", "broadcast_to"): _sizes,
    ("unflatten",): _unflattened,
    ("repeat", "tile"): _repeated,
    ("split", "chunk", "tensor_split", "split_with_sizes"): _split,
    ("getitem",): _indexed,
    ("narrow",): _narrowed,
    ("conv1d", "conv2d", "conv3d"): _groups,
    ("group_norm",): _norm_groups,
    ("layer_norm", "rms_norm"): _normalized_shape,
}
"""Spellings → how their numbers are corrected."""
