"""ChannelGraph: which channels feed which kernels of a traced network, whatever lies between the layers.

Channels are numbered as nodes in execution order, so that every node is fed by smaller numbers only: 0 is what does not
depend on the input, then the channels of the images, then each layer's outputs and the sums and mixtures in between.

They are followed from step to step: each element of each step's value carries the number of the node it comes from. Steps that
only move elements are carried out on these numbers, element-wise steps join the numbers that meet, pooling keeps a channel's
number, and what the table of operations does not know mixes everything with everything.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.fx.node import map_aggregate, map_arg

from channelscope.errors import ShapeError
from channelscope.network.graph import Graph
from channelscope.network.module_state import eval_mode
from channelscope.network.nest import holds_tensor
from channelscope.network.operations import Call, call_of, execute, has_separate_kernels, layer_of
from channelscope.types import Bool, Tensor

KernelMask = Mapping[str, Tensor]
"""layer → bool (outputs, inputs per group), on the CPU: which kernels are there"""

SHOWN = 4
"""Channels of a sum or mixture that are named."""


@dataclass(frozen=True)
class KernelEdges:
    """One use of a layer with kernels: kernel (o, i) leads from node `sources[o, i]` to node `outputs[o]`."""

    layer: str
    """module path"""
    step: str
    """the step of the graph"""
    sources: np.ndarray
    """int (outputs, inputs per group)"""
    outputs: np.ndarray
    """int (outputs,)"""


@dataclass(frozen=True)
class Merge:
    """Nodes that depend on several others, because they are their sum, product or mixture."""

    step: str
    """the step of the graph"""
    members: np.ndarray
    """int (nodes, members)"""
    outputs: np.ndarray
    """int (nodes,)"""


@dataclass(frozen=True)
class ChannelGraph:
    """The channels between the images and one step of a network, and the kernels between the channels."""

    operations: tuple[KernelEdges | Merge, ...]
    """in execution order"""
    node_count: int
    """number of nodes"""
    image_nodes: np.ndarray
    """int: nodes of the images' channels"""
    channel_nodes: Mapping[str, np.ndarray | None]
    """step → node of each of its channels (axis 1), or None where positions of a channel differ or there is no such axis"""
    output_nodes: np.ndarray
    """int: nodes of the last step's channels"""
    opaque: Mapping[str, str]
    """layers with weights whose kernels cannot be told apart, and why; they count as one mixture"""
    axis: int = 0
    """which axis of the last step's value holds the channels, counted without the batch"""

    @property
    def calls(self) -> Iterator[KernelEdges]:
        """The uses of layers with kernels, in execution order."""
        return (part for part in self.operations if isinstance(part, KernelEdges))

    @property
    def layers(self) -> tuple[str, ...]:
        """Layers with kernels, in execution order."""
        return tuple(dict.fromkeys(call.layer for call in self.calls))

    def names(self) -> list[str]:
        """What each node is called: layer:channel, image:channel, or the channels it joins."""
        names = ["constant"] * self.node_count
        for channel, node in enumerate(self.image_nodes.tolist()):
            names[node] = f"image:{channel}"
        for part in self.operations:
            for row, node in enumerate(part.outputs.tolist()):
                names[node] = (
                    f"{part.layer}:{row}" if isinstance(part, KernelEdges) else _joined([names[each] for each in part.members[row]])
                )
        return names

    def full_mask(self) -> dict[str, Bool[Tensor, "outputs inputs"]]:
        """Marks of all kernels."""
        return {call.layer: torch.ones(call.sources.shape, dtype=torch.bool) for call in self.calls}

    def ancestors(self, marks: KernelMask, seeds: np.ndarray) -> np.ndarray:
        """Nodes from which a way of marked kernels leads to one of the `seeds`: bool (nodes,)."""
        need = np.zeros(self.node_count, dtype=bool)
        need[seeds] = True
        for part in reversed(self.operations):
            rows = need[part.outputs]
            if isinstance(part, Merge):
                need[part.members[rows]] = True
            else:
                need[part.sources[rows][marks[part.layer].numpy()[rows]]] = True
        return need

    def reached(self, marks: KernelMask) -> np.ndarray:
        """Nodes to which a way of marked kernels leads from the images: bool (nodes,)."""
        fed = np.zeros(self.node_count, dtype=bool)
        fed[self.image_nodes] = True
        for part in self.operations:
            if isinstance(part, Merge):
                fed[part.outputs] = fed[part.members].any(1)
            else:
                fed[part.outputs] = (fed[part.sources] & marks[part.layer].numpy()).any(1)
        return fed

    def leading_to(self, marks: KernelMask, seeds: np.ndarray) -> dict[str, Bool[Tensor, "outputs inputs"]]:
        """Marked kernels with a way to one of the `seeds`."""
        need = self.ancestors(marks, seeds)
        return self._kernels(marks, lambda call: np.broadcast_to(need[call.outputs][:, None], call.sources.shape))

    def on_paths_to(self, marks: KernelMask, seeds: np.ndarray) -> dict[str, Bool[Tensor, "outputs inputs"]]:
        """Marked kernels on a way from the images to one of the `seeds`."""
        need, fed = self.ancestors(marks, seeds), self.reached(marks)
        return self._kernels(marks, lambda call: need[call.outputs][:, None] & fed[call.sources])

    def _kernels(self, marks: KernelMask, alive) -> dict[str, Tensor]:
        found = {call.layer: torch.zeros(call.sources.shape, dtype=torch.bool) for call in self.calls}
        for call in self.calls:
            found[call.layer] |= torch.from_numpy(np.array(alive(call)))
        return {layer: kernels & marks[layer] for layer, kernels in found.items()}

    def distances(self, marks: KernelMask | None = None) -> np.ndarray:
        """Fewest kernels on a way from the images to each node: float (nodes,), inf where there is none."""
        hops = np.full(self.node_count, np.inf)
        hops[self.image_nodes] = 0
        for part in self.operations:
            if isinstance(part, Merge):
                hops[part.outputs] = hops[part.members].min(1)
            else:
                before = hops[part.sources]
                if marks is not None:
                    before = np.where(marks[part.layer].numpy(), before, np.inf) if part.layer in marks else np.full_like(before, np.inf)
                hops[part.outputs] = 1 + before.min(1)
        return hops


def _joined(names: list[str]) -> str:
    shown = list(dict.fromkeys(names))
    return " + ".join(shown) if len(shown) <= SHOWN else f"{' + '.join(shown[:SHOWN])} + … ({len(shown)} channels)"


def upstream(graph: Graph, target: str) -> list[fx.Node]:
    """The steps that `target` depends on, itself included, in execution order.

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
    Wiring
        Channels as nodes, kernels as edges between them.

    Raises
    ------
    ShapeError
        If no axis is given and tracing finds none.

    References
    ----------
    Hamblin, Konkle, Alvarez 2022 (relevant kernels: those on a path from the input to the feature), for any traced graph.
    """
    nodes = upstream(graph, target)
    names = tuple(node.name for node in nodes)
    like = next(graph.model.parameters(), torch.zeros(()))
    blank = [torch.zeros(1, *graph.shapes[name][1:], device=like.device, dtype=like.dtype) for name in graph.inputs if name in graph.shapes]
    with eval_mode(graph.model), torch.no_grad():
        values = graph.run(*blank, outputs=names, out_of_place=True)
        trail = _ChannelTracer(graph, {name: _cpu(value) for name, value in zip(names, values, strict=True)})
        for node in nodes:
            trail.labels[node.name] = trail.follow(node)
    if axis is None:
        axis = _channel_axis(graph, graph.nodes[target], trail.labels)
    labels = {name: node_per_channel(label) for name, label in trail.labels.items() if isinstance(label, Tensor)}
    outputs = trail.one_each(graph.nodes[target], trail.labels[target][:1].movedim(axis + 1, 0).flatten(1))
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
        if call.module is not None and has_separate_kernels(call.module):
            layer = layer_of(call.module)
            assert layer is not None
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

    References
    ----------
    Definition.
    """
    if label.dim() < 2:
        return None
    flat = label[:1].flatten(2) if label.dim() > 2 else label[:1, :, None]
    return flat[0, :, 0].long().numpy() if bool((flat == flat[..., :1]).all()) else None


def _cpu(value: Any) -> Any:
    return map_aggregate(value, lambda part: part.cpu() if isinstance(part, Tensor) else part)


class _ChannelTracer:
    """Labels of the steps followed so far. A label is a float64 tensor of node numbers, shaped like the step's value."""

    def __init__(self, graph: Graph, values: dict[str, Any]):
        self.graph, self.values = graph, values
        self.labels: dict[str, Any] = {}
        self.parts: list[KernelEdges | Merge] = []
        self.size = 1
        self.images = np.zeros(0, dtype=np.int64)
        self.skipped: dict[str, str] = {}

    def follow(self, node: fx.Node) -> Any:
        value = self.values[node.name]
        if node.op == "placeholder":
            return self._image(value)
        if node.op == "get_attr":
            return torch.zeros(value.shape, dtype=torch.float64) if isinstance(value, Tensor) else value
        known = [self.labels[parent.name] for parent in node.all_input_nodes]
        inputs = [label for label in known if isinstance(label, Tensor)]
        if not holds_tensor(value):
            return value
        if not any(holds_tensor(label) for label in known):
            return map_aggregate(value, lambda part: torch.zeros(part.shape, dtype=torch.float64) if isinstance(part, Tensor) else part)
        call = call_of(node, self.graph.modules)
        if call.module is not None and has_separate_kernels(call.module) and len(inputs) == 1:
            return self._layer(node, value, call.module, inputs[0])
        if call.entry.moves:
            return self._moved(node)
        if call.entry.reduces is not None:
            return self._reduced(node, value, inputs, call.entry.reduces(call, inputs[0].dim()))
        alone = call.entry.keeps == "apart" and len(inputs) == 1
        if isinstance(value, Tensor) and (call.entry.pointwise or (alone and (call.entry.local or call.entry.normalizes))):
            return self._met(node, value, inputs)
        if call.entry.keeps == "apart" and not call.entry.normalizes:
            return self._over_positions(call, value, inputs[0])
        if call.module is not None and any(True for _ in call.module.parameters()) and not call.entry.normalizes:
            kind = type(call.module).__name__
            self.skipped[str(node.target)] = f"a {kind} has no kernels that can be told apart: it counts as a mixture"
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

    def _layer(self, node: fx.Node, value: Tensor, module: nn.Module, label: Tensor) -> Tensor:
        layer = layer_of(module)
        assert layer is not None
        axis = layer.channel_axis(value.dim())
        feeding = self.one_each(node, label.movedim(axis, 0).flatten(1))
        sources = np.repeat(feeding.reshape(layer.groups, -1), layer.out_channels // layer.groups, axis=0)
        ids = self._new(layer.out_channels)
        self.parts.append(KernelEdges(str(node.target), node.name, sources, ids))
        shape = [1] * value.dim()
        shape[axis] = layer.out_channels
        return torch.from_numpy(ids).double().view(shape).expand(value.shape)

    def one_each(self, node: fx.Node, rows: Tensor) -> np.ndarray:
        """One node for each row of labels; those of a row are joined."""
        first = rows[:, 0].long().numpy().copy()
        for place in torch.nonzero((rows != rows[:, :1]).any(1)).flatten().tolist():
            first[place] = self._join(node, rows[place].unique().long().numpy()[None])[0]
        return first

    def _join(self, node: fx.Node, members: np.ndarray) -> np.ndarray:
        ids = self._new(len(members))
        self.parts.append(Merge(node.name, members, ids))
        return ids

    def _over_positions(self, call: Call, value: Any, label: Tensor) -> Any:
        """Pooling, resizing and padding of positions; a padding of channels with zeros adds constants."""
        if isinstance(value, Tensor) and value.dim() > 2 and value.shape[:2] == label.shape[:2]:
            ids = torch.from_numpy(self.one_each(call.node, label[:1].movedim(1, 0).flatten(1))).double()
            return ids.view(1, -1, *[1] * (value.dim() - 2)).expand(value.shape)
        if call.entry.adds_zeros is not None and call.entry.adds_zeros(call):
            return self._moved(call.node)
        return self._mixed(call.node, value, [label])

    def _reduced(self, node: fx.Node, value: Any, inputs: list[Tensor], axes: tuple[int, ...]) -> Any:
        if isinstance(value, Tensor):
            kept = value.dim() == inputs[0].dim()
            low, high = inputs[0].amin(axes, kept), inputs[0].amax(axes, kept)
            if low.shape == value.shape and torch.equal(low, high):
                return low
        return self._mixed(node, value, inputs)

    def _moved(self, node: fx.Node) -> Any:
        args: Any = map_arg(node.args, self._label_or_index)
        kwargs: Any = map_arg(node.kwargs, self._label_or_index)
        try:
            return execute(self.graph.model, node.op, node.target, args, kwargs)
        except (RuntimeError, TypeError):  # a move that does not exist for numbers of nodes
            known = [self.labels[parent.name] for parent in node.all_input_nodes]
            return self._mixed(node, self.values[node.name], known)

    def _label_or_index(self, node: fx.Node) -> Any:
        value = self.values[node.name]
        if isinstance(value, Tensor) and not value.is_floating_point():
            return value
        label = self.labels[node.name]
        return label.contiguous() if isinstance(label, Tensor) else label  # a view is allowed where it was on the value

    def _met(self, node: fx.Node, value: Tensor, inputs: list[Tensor]) -> Tensor:
        """Labels that meet element by element: constants give way, two different nodes are joined."""
        try:
            wide = [label.expand(value.shape) for label in inputs]
        except RuntimeError:
            return self._mixed(node, value, inputs)
        merged = wide[0]
        for label in wide[1:]:
            merged = self._meet(node, merged, label)
        return merged

    def _meet(self, node: fx.Node, a: Tensor, b: Tensor) -> Tensor:
        if torch.equal(a, b):
            return a
        left, right = node_per_channel(a), node_per_channel(b)
        even = left is not None and right is not None
        if left is None or right is None:
            left, right = a.long().numpy().ravel(), b.long().numpy().ravel()
        out = np.where(left == 0, right, left)
        pairs = (left != right) & (left != 0) & (right != 0)
        if pairs.any():
            keys, place = np.unique(left[pairs] * self.size + right[pairs], return_inverse=True)
            out[pairs] = self._join(node, np.stack([keys // self.size, keys % self.size], axis=1))[place.ravel()]
        out = torch.from_numpy(out).double()
        return out.view(1, -1, *[1] * (a.dim() - 2)).expand(a.shape) if even else out.view(a.shape)

    def _mixed(self, node: fx.Node, value: Any, inputs: list[Any]) -> Any:
        """One node for everything: what the step does with its inputs is not known."""
        found: list[Tensor] = []
        map_aggregate(inputs, lambda part: found.append(part.unique()) if isinstance(part, Tensor) else None)
        members = torch.cat(found).unique().long().numpy()
        members = members[members != 0]
        name = float(members[0]) if len(members) == 1 else float(self._join(node, members[None])[0]) if len(members) else 0.0
        return map_aggregate(value, lambda part: torch.full(part.shape, name, dtype=torch.float64) if isinstance(part, Tensor) else part)
