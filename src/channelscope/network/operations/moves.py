"""Moves: reshaping, permuting, joining, splitting, indexing. They are carried out on the labels themselves."""

from collections.abc import Callable
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate, map_arg

from channelscope.network.nest import replaced, tensors
from channelscope.network.operations.operation import Operation, names, register
from channelscope.network.operations.step import Call, Step, execute, kept_whole
from channelscope.network.removal.labels import channels_in, compact, fixed


def labelled(labels: Any) -> bool:
    """Whether a channel or an element of a parameter occurs in a nested value of labels.

    Examples
    --------
    >>> labelled(torch.tensor([4, 7])), labelled({"a": torch.tensor([-1])})
    (True, False)
    """
    return any(bool((compact(part) >= 0).any()) for part in tensors(labels))


def moved(step: Step) -> Any:
    """The labels of the first argument, moved as the values are.

    Examples
    --------
    >>> from channelscope.network.removal.trial import labeled_graph
    >>> net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(3, 1)).eval()
    >>> walk = labeled_graph(net, torch.ones(1, 1, 1, 1))
    >>> step = walk.step(next(iter(walk.steps.find_nodes(op="call_module", target="2"))))
    >>> moved(step).tolist()  # flattened, three channels of one position
    [[0, 1, 2]]
    """
    walk, node = step.walk, step.node
    if not any(labelled(walk.labels[parent]) for parent in node.all_input_nodes):
        return fixed(step.value)
    if _index_table(step):
        return kept_whole(step)
    try:
        result = run(step, lambda parent: given(step, parent))
    except (RuntimeError, TypeError, NotImplementedError):
        try:  # some moves exist for floating point only; numbers of channels are exact there
            result = run(step, lambda parent: replaced(given(step, parent), Tensor.double))
        except (RuntimeError, TypeError, NotImplementedError):
            return kept_whole(step)
        result = replaced(result, Tensor.long)
    if step.entry.name == "split" and not _sizes_given(step) and not any(map(_normalized_gate, step.node.users, repeat(step))):
        _keep_equal(step, result)
    return result


def _shuffled(step: Step) -> Any:
    """Channels dealt out in turn: those at the same place of every group go together, so that as many groups stay."""
    groups = int(step.number("groups"))
    for row in step.channels().view(groups, -1).T:
        step.walk.union.unite_all(row, f"{step.place} deals them out to {groups} groups")
    return moved(step)


def given(step: Step, parent: fx.Node) -> Any:
    """What a move is carried out on: labels, but the values of indices.

    Examples
    --------
    >>> from channelscope.network.removal.trial import labeled_graph
    >>> net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(3, 1)).eval()
    >>> walk = labeled_graph(net, torch.ones(1, 1, 1, 1))
    >>> step = walk.step(next(iter(walk.steps.find_nodes(op="call_module", target="2"))))
    >>> given(step, step.node.args[0]).flatten().tolist()
    [0, 1, 2]
    """
    value = step.walk.values[parent.name]
    index = isinstance(value, Tensor) and not (value.is_floating_point() or value.is_complex()) and parent is not step.argument("input")
    return value.cpu() if index else step.walk.labels[parent]


def run(step: Step, take: Callable[[fx.Node], Any]) -> Any:
    """A step carried out with other things in the place of its arguments.

    Examples
    --------
    >>> from channelscope.network.removal.trial import labeled_graph
    >>> net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(3, 1)).eval()
    >>> walk = labeled_graph(net, torch.ones(1, 1, 1, 1))
    >>> step = walk.step(next(iter(walk.steps.find_nodes(op="call_module", target="2"))))
    >>> run(step, lambda node: torch.zeros(1, 2, 2, 2)).shape
    torch.Size([1, 8])
    """
    args: Any = map_arg(step.node.args, take)
    kwargs: Any = map_arg(step.node.kwargs, take)
    if step.spelled == "view":
        return args[0].reshape(*args[1:], **kwargs)
    return execute(step.walk.model, step.node.op, step.node.target, args, kwargs)


def _index_table(step: Step) -> bool:
    """Whether channels are picked by a tensor of positions, which would have to change with them."""
    walk = step.walk
    first = step.argument("input")
    tables = [each for each in step.node.all_input_nodes if each is not first and _positions(walk.values[each.name])]
    carries = isinstance(first, fx.Node) and any(step.carries(part) for part in tensors(walk.labels[first]))
    return bool(tables) and carries and _varies_where_indexed(step, first)


def _positions(value: Any) -> bool:
    return isinstance(value, Tensor) and not value.is_floating_point() and not value.is_complex()


def _varies_where_indexed(step: Step, first: fx.Node) -> bool:
    labels = compact(step.walk.labels[first])
    index = step.node.args[1] if step.spelled == "getitem" else None
    if step.spelled in ("index_select", "gather", "take_along_dim"):
        return labels.shape[int(step.number("dim", 0)) % labels.dim()] > 1
    if not isinstance(index, tuple):
        index = (index,)
    axis = 0
    for position, each in enumerate(index):
        if each is Ellipsis:
            axis = labels.dim() - (len(index) - position - 1)
            continue
        if each is None:
            continue
        if isinstance(each, fx.Node) and _positions(step.walk.values[each.name]) and axis < labels.dim() and labels.shape[axis] > 1:
            return True
        axis += 1
    return False


def _sizes_given(step: Step) -> bool:
    sizes = next((size for size in map(step.number, ("sizes", "split_size", "split_size_or_sections")) if size is not None), None)
    return isinstance(sizes, tuple | list)


def _normalized_gate(part: fx.Node, step: Step) -> bool:
    """Whether a part is normalized and then scales other channels: it is kept whole, and the parts need not be equal."""
    norms = [step.walk.step(user) for user in part.users]
    return any(norm.entry.normalizes and norm.entry.keeps == "together" and norm.scales for norm in norms)


def _keep_equal(step: Step, parts: Any) -> None:
    """Parts of equal length have to stay so: channels at the same place of each part go together."""
    shapes = {tuple(part.shape) for part in parts}
    if len(shapes) != 1 or not any(bool(channels_in(compact(part)).any()) for part in parts):
        return
    axis = int(step.number("dim", 0))
    if all(compact(part).shape[axis] == 1 for part in parts):
        return
    walk = step.walk
    rows = torch.stack([walk.along(part, axis, f"{step.place} treats several channels as one") for part in parts], 1)
    for row in rows:
        channels = row[channels_in(row)]
        if len(channels) == len(row):
            walk.union.unite_all(row, f"{step.place} makes parts of equal length")
        else:
            walk.hold(channels, f"{step.place} makes parts of equal length")


def _written(step: Step) -> Any:
    """A tensor written over a part of another: put(x, index, value)."""
    walk, node = step.walk, step.node
    if not any(labelled(walk.labels[parent]) for parent in node.all_input_nodes):
        return fixed(step.value)
    target, index, source = node.args[:3]
    labels = walk.labels[target].clone()
    if not isinstance(source, fx.Node) or not isinstance(walk.values[source.name], Tensor):
        return walk.labels[target]
    labels[map_aggregate(step.of(index), lambda part: part.cpu() if isinstance(part, Tensor) else part)] = walk.labels[source].long()
    return labels


def _size_like(step: Step) -> Any:
    """A move whose second tensor only says the shape."""
    return step.labels().reshape(step.value.shape) if step.spelled.endswith("_as") and step.spelled != "expand_as" else (
        step.labels().expand(step.value.shape)
    )  # fmt: skip


def _flattens(call: Call) -> bool:
    """flatten(x, 1), or a view of as many numbers as there are, an image a row."""
    if call.spelled.lower() == "flatten":
        start, end = call.number("dim", call.number("start_dim", 0)), call.number("end_dim", -1)
        return (start, end) == (1, -1) and len(call.node.args) <= 2
    sizes = call.node.args[1:] if call.spelled in ("view", "reshape") else ()
    sizes = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], tuple | list) else sizes
    return len(sizes) == 2 and isinstance(sizes[1], int) and sizes[1] == -1


register(Operation("move", moved, modules=(nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.Unfold),
    functions=names("view reshape flatten unflatten permute transpose movedim moveaxis swapaxes swapdims t T mT adjoint "
    "unbind getitem squeeze unsqueeze expand repeat "
    "repeat_interleave tile roll flip rot90 narrow select unfold pixel_shuffle pixel_unshuffle "
    "getattr broadcast_to rearrange diagonal real imag ravel meshgrid"),
    arguments=("input", "dim"), traces=True, moves=True, keeps="apart", flattens=_flattens))  # fmt: skip
register(Operation("join", moved, functions=names("cat concat concatenate stack hstack vstack dstack"), arguments=("input", "dim"),
    traces=True, moves=True, local=True, keeps="apart", joins=True))  # fmt: skip
register(Operation("split", moved, functions=names("chunk split split_with_sizes tensor_split unsafe_chunk unsafe_split"),
    arguments=("input", "sizes", "dim"), traces=True, moves=True, keeps="apart"))  # fmt: skip
register(
    Operation(
        "pick",
        moved,
        functions=names("index_select gather take_along_dim"),
        arguments=("input", "dim", "index"),
        traces=True,
        moves=True,
        keeps="apart",
    )
)
register(Operation("like", _size_like, functions=names("view_as reshape_as expand_as"), traces=True, moves=True, keeps="apart"))
register(Operation("put", _written, functions=names("put setitem"), traces=True))
register(
    Operation(
        "channel shuffle",
        _shuffled,
        modules=(nn.ChannelShuffle,),
        functions=names("channel_shuffle native_channel_shuffle"),
        arguments=("input", "groups"),
        traces=True,
        moves=True,
        keeps="apart",
    )
)
