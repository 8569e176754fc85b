"""The channels of a traced network followed from step to step, as the nodes and edges of a ChannelGraph.

Each element of each step's value carries the number of the node it comes from. Steps that only move elements (reshaping,
concatenating, shuffling) are carried out on these numbers; element-wise steps join the numbers that meet; pooling keeps a
channel's number; what is not known to do any of these mixes everything with everything.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate, map_arg

from channelscope.errors import ShapeError
from channelscope.network.channel_graph import ChannelGraph, KernelEdges, Merge
from channelscope.network.graph import Graph, execute
from channelscope.network.module_state import eval_mode
from channelscope.network.sites import BATCH_NORMS, CHANNELWISE

ELEMENTWISE = {"add", "sub", "mul", "div", "truediv", "maximum", "minimum", "iadd", "isub", "imul", "itruediv"}

RESHAPING = {
    "flatten", "view", "reshape", "permute", "transpose", "cat", "concat", "chunk", "split", "getitem", "unsqueeze", "squeeze",
    "contiguous", "expand", "stack", "movedim", "swapaxes", "unbind", "clone", "unflatten", "tensor_split",
}  # fmt: skip

PASSING = {
    "relu", "relu6", "gelu", "silu", "mish", "hardswish", "hardsigmoid", "hardtanh", "leaky_relu", "elu", "celu", "selu", "sigmoid", "tanh",
    "softplus", "dropout", "dropout1d", "dropout2d", "dropout3d", "clamp", "stochastic_depth", "drop_path", "contiguous", "clone", "to",
    "float", "type_as", "neg", "square", "sqrt", "abs", "exp",
}  # fmt: skip

POOLS = {
    f"{kind}_pool{dims}d" for kind in ("avg", "max", "adaptive_avg", "adaptive_max", "lp") for dims in (1, 2, 3)
} | {"interpolate", "upsample", "lp_pool"}  # fmt: skip

POOLING = (
    nn.modules.pooling._AvgPoolNd, nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd, nn.modules.pooling._LPPoolNd, nn.Upsample,
)  # fmt: skip

ELEMENTWISE_PAIRS = ELEMENTWISE | PASSING | {"pow", "rsqrt", "where", "logsigmoid", "detach"}

REARRANGING = RESHAPING | {"narrow", "roll", "flip", "repeat", "t", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "swapdims"}

REARRANGING_MODULES = (nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle)

PADDING = (nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.ConstantPad2d)

REDUCING = {"mean", "sum", "amax", "amin"}

NUMPY = {"axis": "dim", "keepdims": "keepdim"}

CONVOLUTIONS_IN_ORDER = (nn.Conv2d.forward, nn.Linear.forward)


def has_tensor(value: Any) -> bool:
    """Whether a step's value is a tensor or holds one.

    Examples
    --------
    >>> has_tensor((1, [torch.ones(1)])), has_tensor((1, torch.ones(1))), has_tensor("text")
    (False, True, False)
    """
    parts = value if isinstance(value, tuple | list) else [value]
    return any(isinstance(part, Tensor) for part in parts)


def has_separate_kernels(module: nn.Module) -> bool:
    """Whether a module's kernels can be told apart: an ordinary 2-D convolution or linear layer.

    Examples
    --------
    >>> has_separate_kernels(nn.Conv2d(3, 8, 3)), has_separate_kernels(nn.BatchNorm2d(8))
    (True, False)

    References
    ----------
    Hamblin, Konkle, Alvarez 2022: a kernel is a 2-D slice W[o,i] of a convolution, or one weight of a linear layer.
    """
    return isinstance(module, nn.Conv2d | nn.Linear) and type(module).forward in CONVOLUTIONS_IN_ORDER


def upstream(graph: Graph, target: str) -> list[fx.Node]:
    """The steps that `target` depends on, itself included, in execution order.

    Examples
    --------
    >>> from channelscope.network.graph import trace
    >>> graph = trace(nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Flatten()), torch.zeros(1, 1, 2, 2))
    >>> len(upstream(graph, "_1")), str(upstream(graph, "_1")[-1].target)
    (3, '1')

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

    Examples
    --------
    >>> from channelscope.network.graph import trace
    >>> graph = trace(nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 3, 1)), torch.zeros(1, 1, 2, 2))
    >>> wiring = channel_graph(graph, "_2")
    >>> wiring.layers, {name: tuple(marks.shape) for name, marks in wiring.full_mask().items()}
    (('0', '2'), {'0': (2, 1), '2': (3, 2)})

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
        module = graph.modules[str(node.target)] if node.op == "call_module" else None
        if module is not None and has_separate_kernels(module):
            return label.dim() - 2 if isinstance(module, nn.Linear) else 0
        changing = [place for place in range(1, label.dim()) if not bool((label == label.narrow(place, 0, 1)).all())]
        if len(changing) == 1:
            return changing[0] - 1
        parents = [each for each in node.all_input_nodes if graph.shapes.get(each.name) == graph.shapes[node.name]]
        if changing or not parents or _spelled(node) in REARRANGING or isinstance(module, REARRANGING_MODULES):
            break
        node = parents[0]
    shape = tuple(graph.shapes[first.name][1:])
    raise ShapeError(
        f"at {first.name}: expected values whose channels lie on one axis, received shape {shape} in which no axis goes from channel "
        "to channel: name a convolution or linear layer"
    )


def _spelled(node: fx.Node) -> str:
    """Name of a function or method; '' for a module."""
    if node.op == "call_module":
        return ""
    return str(node.target if node.op == "call_method" else node.target.__name__).rstrip("_")  # type: ignore[union-attr]


def node_per_channel(label: Tensor) -> np.ndarray | None:
    """Node of each channel on axis 1, or None where positions of a channel come from different nodes.

    Examples
    --------
    >>> node_per_channel(torch.tensor([[[4.0, 4.0], [7.0, 7.0]]])).tolist()
    [4, 7]
    >>> node_per_channel(torch.tensor([[[4.0, 5.0]]])) is None
    True

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
        if not has_tensor(value):
            return value
        if not any(has_tensor(label) for label in known):
            return map_aggregate(value, lambda part: torch.zeros(part.shape, dtype=torch.float64) if isinstance(part, Tensor) else part)
        if node.op == "call_module":
            return self._module(node, value, inputs)
        name = _spelled(node)
        if name in POOLS:
            return self._pooled(node, value, inputs[0])
        if name == "pad":
            return self._padded(node, value, inputs[0])
        if name in REDUCING:
            return self._reduced(node, value, inputs)
        if name in REARRANGING:
            return self._moved(node)
        if name in ELEMENTWISE_PAIRS and isinstance(value, Tensor):
            return self._met(node, value, inputs)
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

    def _module(self, node: fx.Node, value: Any, inputs: list[Tensor]) -> Any:
        module = self.graph.modules[str(node.target)]
        if has_separate_kernels(module) and len(inputs) == 1:
            return self._layer(node, value, module, inputs[0])
        if isinstance(module, POOLING + PADDING) and isinstance(value, Tensor):
            return self._pooled(node, value, inputs[0])
        if isinstance(module, CHANNELWISE) or (isinstance(module, BATCH_NORMS) and len(inputs) == 1):
            return self._met(node, value, inputs)
        if isinstance(module, REARRANGING_MODULES):
            return module(inputs[0])
        if any(True for _ in module.parameters()) and not isinstance(module, nn.LayerNorm | nn.GroupNorm):
            self.skipped[str(node.target)] = f"a {type(module).__name__} has no kernels that can be told apart: it counts as a mixture"
        return self._mixed(node, value, inputs)

    def _layer(self, node: fx.Node, value: Tensor, module: nn.Module, label: Tensor) -> Tensor:
        linear = isinstance(module, nn.Linear)
        rows = label.movedim(-1 if linear else 1, 0).flatten(1)
        feeding = self.one_each(node, rows)
        groups = 1 if linear else int(module.groups)  # type: ignore[arg-type]
        outputs = int(module.weight.shape[0])  # type: ignore[union-attr,index]
        sources = np.repeat(feeding.reshape(groups, -1), outputs // groups, axis=0)
        ids = self._new(outputs)
        self.parts.append(KernelEdges(str(node.target), node.name, sources, ids))
        shape = [1] * value.dim()
        shape[-1 if linear else 1] = outputs
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

    def _pooled(self, node: fx.Node, value: Any, label: Tensor) -> Any:
        if not isinstance(value, Tensor) or value.shape[:2] != label.shape[:2] or value.dim() < 3:
            return self._mixed(node, value, [label])
        ids = torch.from_numpy(self.one_each(node, label[:1].movedim(1, 0).flatten(1))).double()
        return ids.view(1, -1, *[1] * (value.dim() - 2)).expand(value.shape)

    def _padded(self, node: fx.Node, value: Any, label: Tensor) -> Any:
        if value.dim() > 2 and value.shape[:2] == label.shape[:2]:
            return self._pooled(node, value, label)
        constant = len(node.args) < 3 and node.kwargs.get("mode", "constant") == "constant" and not node.kwargs.get("value")
        return self._moved(node) if constant else self._mixed(node, value, [label])

    def _reduced(self, node: fx.Node, value: Any, inputs: list[Tensor]) -> Any:
        given = dict(zip(("input", "dim", "keepdim"), node.args, strict=False)) | {NUMPY.get(k, k): v for k, v in node.kwargs.items()}
        keep, dims = bool(given.get("keepdim")), given.get("dim")
        plain = isinstance(dims, int) or (isinstance(dims, list | tuple) and all(isinstance(dim, int) for dim in dims))
        if plain and isinstance(value, Tensor):
            low, high = (reduce(inputs[0], dims, keep) for reduce in (torch.amin, torch.amax))  # type: ignore[arg-type]
            if low.shape == value.shape and torch.equal(low, high):
                return low
        return self._mixed(node, value, inputs)

    def _moved(self, node: fx.Node) -> Any:
        args: Any = map_arg(node.args, self._label_or_index)
        kwargs: Any = map_arg(node.kwargs, self._label_or_index)
        return execute(self.graph.model, node.op, node.target, args, kwargs)

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
