"""The channels of a traced network followed from step to step, as the nodes and edges of a ChannelGraph.

Each element of each step's value carries the number of the node it comes from. Steps that only move elements (reshaping,
concatenating, shuffling) are carried out on these numbers; element-wise steps join the numbers that meet; pooling keeps a
channel's number; what is not known to do any of these mixes everything with everything.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate, map_arg

from channelscope.errors import ShapeError
from channelscope.network import nest
from channelscope.network.channel_graph import ChannelGraph, KernelEdges, Merge
from channelscope.network.graph import Graph
from channelscope.network.module_state import eval_mode
from channelscope.network.operations import Call, call_of, execute, has_separate_kernels, layer_of
from channelscope.network.removal.labels import compact


def upstream(graph: Graph, target: str) -> list[fx.Node]:
    """The steps that `target` depends on, itself included, in execution order.

    Examples
    --------
    >>> from torch import nn
    >>> from channelscope.network.graph import trace
    >>> graph = trace(nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Flatten()), torch.zeros(1, 3, 4, 4))
    >>> [node.name for node in upstream(graph, "_1")]
    ['input_1', '_0', '_1']

    References
    ----------
    Reachability in the traced graph.
    """
    found, stack = set(), [graph.nodes[target]]
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            stack += node.all_input_nodes
    return [node for node in graph.steps.nodes if node in found]


def channel_graph(graph: Graph, target: str, axis: int | None = None) -> ChannelGraph:
    """The wiring of a traced network from its images up to step `target`.

    Parameters
    ----------
    graph
        The traced network.
    target
        Name of the step whose channels the wiring leads to.
    axis
        Which axis of the step's value holds the channels, counted without the batch; by default the one that tracing finds.

    Returns
    -------
    ChannelGraph
        Channels as nodes, kernels as edges between them.

    Raises
    ------
    ShapeError
        If no axis is given and tracing finds none.

    Examples
    --------
    >>> from channelscope.network.graph import trace
    >>> from channelscope.zoo.toys import residual_pair
    >>> toy = residual_pair()
    >>> found = channel_graph(trace(toy.model, toy.batches[0][0][:1]), "add")
    >>> found.layers, found.names()[found.output_nodes[0]]
    (('stem', 'inner', 'outer'), 'stem:0 + outer:0')

    References
    ----------
    Hamblin, Konkle, Alvarez 2022 (relevant kernels: those on a path from the input to the feature), for any traced graph.
    """
    trail = ChannelTracer(graph, upstream(graph, target))
    if axis is None:
        axis = _channel_axis(graph, graph.nodes[target], trail.labels)
    labels = {name: node_per_channel(label) for name, label in trail.labels.items() if isinstance(label, Tensor)}
    outputs = trail.one_each(graph.nodes[target], trail.labels[target][:1].movedim(axis + 1, 0))
    return ChannelGraph(tuple(trail.parts), trail.size, trail.images, labels, outputs, trail.skipped, axis)


def _channel_axis(graph: Graph, node: fx.Node, labels: Mapping[str, Any]) -> int:
    """The axis, counted without the batch, along which a step's value goes from channel to channel.

    It is the only one along which the nodes change. Where a step mixes all channels (a normalization over them, a softmax),
    it is that of the nearest step before it with a value of the same shape.
    """
    first = node
    while isinstance(label := labels[node.name], Tensor):
        if label.dim() < 3:
            return 0
        call = call_of(node, graph.modules)
        layer = layer_of(call.module) if call.module is not None else None
        if layer is not None and has_separate_kernels(graph.modules[str(node.target)]):
            return layer.channel_axis(label.dim()) - 1
        changing = [place for place in range(1, label.dim()) if not bool((label == label.narrow(place, 0, 1)).all())]
        if len(changing) == 1:
            return changing[0] - 1
        parents = [each for each in node.all_input_nodes if graph.shapes.get(each.name) == graph.shapes[node.name]]
        if changing or not parents or call.entry.moves:
            break
        node = parents[0]
    shape = tuple(graph.shapes[first.name][1:])
    raise ShapeError(
        f"at {first.name}: expected values whose channels lie on one axis, received shape {shape} in which no axis goes from channel "
        "to channel: name a convolution or linear layer"
    )


def node_per_channel(label: Tensor) -> np.ndarray | None:
    """Node of each channel on axis 1, or None where positions of a channel come from different nodes.

    Examples
    --------
    >>> node_per_channel(torch.tensor([[4.0, 7.0]])[..., None].expand(1, 2, 5)).tolist()
    [4, 7]

    References
    ----------
    Definition.
    """
    if label.dim() < 2:
        return None
    flat = label[:1].flatten(2) if label.dim() > 2 else label[:1, :, None]
    return flat[0, :, 0].long().numpy() if bool((flat == flat[..., :1]).all()) else None


class ChannelTracer:
    """Labels of some steps of a traced network, in execution order.

    Parameters
    ----------
    graph
        The traced network.
    nodes
        Steps to follow, with all that they depend on.
    own_layers
        Whether every convolution and linear layer makes new channels, whether or not its kernels can be told apart; these have no edges.
    structural
        Whether a normalization passes every channel on as it is.

    Attributes
    ----------
    labels
        Step → float64 tensor of node numbers, shaped like the step's value; 0 where it does not depend on the images.
    reads
        Step of a layer → node of each of its inputs.
    """

    def __init__(self, graph: Graph, nodes: list[fx.Node], own_layers: bool = False, structural: bool = False):
        self.graph, self.own_layers, self.structural = graph, own_layers, structural
        self.labels: dict[str, Any] = {}
        self.reads: dict[str, np.ndarray] = {}
        self.parts: list[KernelEdges | Merge] = []
        self.size = 1
        self.images = np.zeros(0, dtype=np.int64)
        self.skipped: dict[str, str] = {}
        like = next(graph.model.parameters(), torch.zeros(()))
        shapes = [graph.shapes[name][1:] for name in graph.inputs if name in graph.shapes]
        blank = [torch.zeros(1, *shape, device=like.device, dtype=like.dtype) for shape in shapes]
        names = tuple(node.name for node in nodes)
        with eval_mode(graph.model), torch.no_grad():
            values = graph.run(*blank, outputs=names, out_of_place=True)
            self.values = dict(zip(names, values, strict=True))
            for node in nodes:
                self.labels[node.name] = self._follow(node)

    def _follow(self, node: fx.Node) -> Any:
        value = self.values[node.name]
        if node.op == "placeholder":
            return self._image(value)
        if node.op == "get_attr":
            return _constant(value)
        known = [self.labels[parent.name] for parent in node.all_input_nodes]
        inputs = [label for label in known if isinstance(label, Tensor)]
        if not nest.holds_tensor(value):
            return value
        if not any(nest.holds_tensor(label) for label in known):
            return _constant(value)
        if node.op == "output" or not isinstance(value, Tensor) or not inputs:
            moves = node.op != "output" and call_of(node, self.graph.modules).entry.moves
            return self._moved(node) if moves else self._mixed(node, value, known)
        return self._by_entry(node, value, inputs, known)

    def _by_entry(self, node: fx.Node, value: Tensor, inputs: list[Tensor], known: list[Any]) -> Any:
        call = call_of(node, self.graph.modules)
        entry, module = call.entry, call.module
        layer = None if module is None else layer_of(module)
        if layer is not None and (self.own_layers or (len(inputs) == 1 and has_separate_kernels(module))):  # type: ignore[arg-type]
            return self._layer(node, value, inputs[0], layer.channel_axis(value.dim()))
        if module is not None and not entry.normalizes and any(part.dim() > 1 for part in module.parameters()):
            self.skipped[str(node.target)] = f"a {type(module).__name__} has no kernels that can be told apart: it counts as a mixture"
        if entry.normalizes and (self.structural or entry.keeps == "apart"):
            return inputs[0] if inputs[0].shape == value.shape else self._mixed(node, value, known)
        if entry.reduces is not None:
            return self._reduced(call, value, inputs)
        if entry.moves:
            return self._moved(node)
        if entry.pointwise:
            return self._met(node, value, inputs)
        if entry.name in PRODUCTS and len(inputs) >= 2:
            return PRODUCTS[entry.name](self, call, value, known)
        if entry.keeps == "together" and call.number("dim") is not None and inputs[0].shape == value.shape:
            return self._joined(node, inputs[0], int(call.number("dim")))
        if entry.keeps == "apart":
            return self._kept_apart(call, value, inputs[0])
        return self._mixed(node, value, known)

    def _image(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        count = value.shape[1] if value.dim() > 1 else 1
        ids = self._new(count)
        self.images = np.concatenate([self.images, ids])
        shape = [1, count] + [1] * (value.dim() - 2) if value.dim() > 1 else [1]
        return torch.from_numpy(ids).double().view(shape).expand(value.shape)

    def _new(self, count: int) -> np.ndarray:
        self.size += count
        return np.arange(self.size - count, self.size)

    def _layer(self, node: fx.Node, value: Tensor, label: Tensor, axis: int) -> Tensor:
        module = self.graph.modules[str(node.target)]
        layer = layer_of(module)
        assert layer is not None
        feeding = self.reads[node.name] = self.one_each(node, label.movedim(layer.channel_axis(label.dim()), 0))
        ids = self._new(layer.out_channels)
        if not self.own_layers:
            sources = np.repeat(feeding.reshape(layer.groups, -1), layer.out_channels // layer.groups, axis=0)
            self.parts.append(KernelEdges(str(node.target), node.name, sources, ids))
        shape = [1] * value.dim()
        shape[axis] = layer.out_channels
        return torch.from_numpy(ids).double().view(shape).expand(value.shape)

    def one_each(self, node: fx.Node, rows: Tensor) -> np.ndarray:
        """One node for each entry along the first axis of labels; those that lie behind one another are joined."""
        short = compact(rows, tuple(range(1, rows.dim()))).flatten(1) if rows.dim() > 1 else rows[:, None]
        first = short[:, 0].long().numpy().copy()
        mixed = torch.nonzero((short != short[:, :1]).any(1)).flatten()
        if len(mixed):
            first[mixed.numpy()] = self._join_rows(node, short[mixed].long().numpy())
        return first

    def _join_rows(self, node: fx.Node, rows: np.ndarray) -> np.ndarray:
        """For each row a node that depends on all of the row's, or the only one there is beside 0."""
        rows = np.sort(rows, axis=1)
        distinct = rows != 0
        distinct[:, 1:] &= rows[:, 1:] != rows[:, :-1]
        counts = distinct.sum(1)
        joined = rows[:, -1].copy()
        joined[counts > 1] = self._new(int((counts > 1).sum()))
        for count in np.unique(counts[counts > 1]):
            chosen = counts == count
            self.parts.append(Merge(node.name, rows[chosen][distinct[chosen]].reshape(-1, count), joined[chosen]))
        return joined

    def _kept_apart(self, call: Call, value: Tensor, label: Tensor) -> Any:
        """Pooling and padding in space keep each channel's node; padding beside the channels adds constants."""
        if value.dim() > 2 and value.shape[:2] == label.shape[:2]:
            ids = torch.from_numpy(self.one_each(call.node, label[:1].movedim(1, 0))).double()
            return ids.view(1, -1, *[1] * (value.dim() - 2)).expand(value.shape)
        padded = "pad" in call.entry.arguments and call.module is None
        if padded and call.number("mode", "constant") == "constant" and not call.number("value", 0):
            return self._moved(call.node)
        return self._mixed(call.node, value, [label])

    def _reduced(self, call: Call, value: Tensor, inputs: list[Tensor]) -> Any:
        label = inputs[0]
        assert call.entry.reduces is not None
        axes = call.entry.reduces(call, label.dim()) if len(inputs) == 1 else ()
        short = compact(label)
        if not axes or any(short.shape[axis] > 1 for axis in axes):
            return self._mixed(call.node, value, inputs)
        sizes = [1 if axis in axes else size for axis, size in enumerate(label.shape)]
        return short.expand(sizes).reshape(value.shape)

    def _moved(self, node: fx.Node) -> Any:
        args: Any = map_arg(node.args, self._label_or_index)
        kwargs: Any = map_arg(node.kwargs, self._label_or_index)
        return execute(self.graph.model, node.op, node.target, args, kwargs)

    def _label_or_index(self, node: fx.Node) -> Any:
        value = self.values[node.name]
        if isinstance(value, Tensor) and not value.is_floating_point():
            return value.cpu()
        label = self.labels[node.name]
        return label.contiguous() if isinstance(label, Tensor) else label  # a view is allowed where it was on the value

    def _met(self, node: fx.Node, value: Tensor, inputs: list[Tensor]) -> Tensor:
        """Labels that meet element by element: constants give way, two different nodes are joined."""
        carrying = [label for label in inputs if bool((compact(label) != 0).any())] or inputs[:1]
        try:
            wide = [label.expand(value.shape) for label in carrying]
        except RuntimeError:
            return self._mixed(node, value, inputs)
        merged = wide[0]
        for label in wide[1:]:
            merged = self._meet(node, merged, label)
        return merged

    def _meet(self, node: fx.Node, a: Tensor, b: Tensor) -> Tensor:
        shape = a.shape
        one, other = torch.broadcast_tensors(compact(a), compact(b))
        left, right = one.long().numpy().ravel(), other.long().numpy().ravel()
        out = np.where(left == 0, right, left)
        pairs = (left != right) & (left != 0) & (right != 0)
        if pairs.any():
            keys, place = np.unique(left[pairs] * self.size + right[pairs], return_inverse=True)
            members = np.stack([keys // self.size, keys % self.size], axis=1)
            ids = self._new(len(keys))
            self.parts.append(Merge(node.name, members, ids))
            out[pairs] = ids[place.ravel()]
        return torch.from_numpy(out).double().view(one.shape).expand(shape)

    def _joined(self, node: fx.Node, label: Tensor, axis: int) -> Tensor:
        """What lies along an axis depends on one another."""
        rest = compact(label.movedim(axis, -1))
        ids = torch.from_numpy(self.one_each(node, rest.reshape(-1, rest.shape[-1]))).double()
        return ids.view(*rest.shape[:-1], 1).expand(*label.movedim(axis, -1).shape).movedim(-1, axis)

    def contracted(self, node: fx.Node, a: Tensor, b: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Labels of the matrix product of (…, m, k) and (…, k, n): each element depends on a row and a column."""
        rows, columns = (compact(part) for part in (self._joined(node, a, -1), self._joined(node, b, -2)))
        return self._meet(node, rows[..., :1].expand(shape), columns[..., :1, :].expand(shape))

    def _mixed(self, node: fx.Node, value: Any, inputs: list[Any]) -> Any:
        """One node for everything: what the step does with its inputs is not known."""
        found: list[Tensor] = []
        map_aggregate(inputs, lambda part: found.append(compact(part).unique()) if isinstance(part, Tensor) else None)
        name = float(self._join_rows(node, torch.cat(found).long().numpy()[None])[0])
        return map_aggregate(value, lambda part: _filled(part.shape, name) if isinstance(part, Tensor) else part)


def _filled(shape: tuple[int, ...], number: float) -> Tensor:
    return torch.full((1,) * len(shape), number, dtype=torch.float64).expand(shape)


def _constant(value: Any) -> Any:
    """Labels of what does not depend on the images."""
    return map_aggregate(value, lambda part: _filled(part.shape, 0.0) if isinstance(part, Tensor) else part)


def _product(trail: ChannelTracer, call: Call, value: Tensor, known: list[Any]) -> Any:
    first, second = known[:2]
    if min(first.dim(), second.dim()) < 2 or value.dim() < 2:
        return trail._mixed(call.node, value, known)
    return trail.contracted(call.node, first, second, tuple(value.shape))


def _attention(trail: ChannelTracer, call: Call, value: Tensor, known: list[Any]) -> Any:
    queries, keys, values = (trail.labels[call.argument(name).name] for name in call.entry.arguments[:3])
    grid = (*torch.broadcast_shapes(queries.shape[:-2], keys.shape[:-2]), queries.shape[-2], keys.shape[-2])
    weights = trail._joined(call.node, trail.contracted(call.node, queries, keys.transpose(-1, -2), grid), -1)
    return trail.contracted(call.node, weights, values, tuple(value.shape))


PRODUCTS = {"product": _product, "attention": _attention}
"""Entries of the table whose values depend on rows of one argument and columns of another."""
