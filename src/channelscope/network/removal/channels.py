"""ChannelDependencies: which channel of which site every layer's inputs and outputs are.

Every site's channels get numbers. The graph is then walked once with a tensor of numbers in the place of each
activation: reshaping steps act on the numbers themselves, sums and products unite the numbers that meet, and a step
that would behave differently with fewer channels (a LayerNorm, a split in two halves) holds on to all it sees.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.nn.utils.parametrize import is_parametrized

from channelscope.network.graph import execute
from channelscope.network.sites import BATCH_NORMS, CHANNELWISE, Sites

UNPRUNABLE = -1
"""Number of what cannot be removed: the input image, constants, a network's outputs."""

ANY = -2
"""Number of what follows any removal by itself, such as the zeros of a padding."""


def min_max_ids(labels: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Smallest and largest number along an axis, FREE apart."""
    high = labels.amax(axis)
    return torch.where(labels == ANY, high.unsqueeze(axis), labels).amin(axis), high


def varies(labels: Tensor, axis: int) -> bool:
    """Whether different numbers occur along an axis."""
    return not torch.equal(*min_max_ids(labels, axis))


def unprunable_like(value: Any) -> Any:
    """Labels of a tensor that nothing can be removed from; anything else is left as it is."""
    return torch.full(value.shape, UNPRUNABLE) if isinstance(value, Tensor) else value


def has_tensor(value: Any) -> bool:
    """Whether a step's value is a tensor or holds one."""
    parts = value if isinstance(value, tuple | list) else [value]
    return any(isinstance(part, Tensor) for part in parts)


def unique_ids(labels: Iterable[Any]) -> Tensor:
    """The channel numbers that occur in some tensors of labels."""
    parts = [part for label in labels for part in (label if isinstance(label, tuple | list) else [label]) if isinstance(part, Tensor)]
    numbers = (
        torch.cat([drop_broadcast_axes(part)[0].flatten() for part in parts]).unique() if parts else torch.tensor([], dtype=torch.long)
    )
    return numbers[numbers >= 0]


def drop_broadcast_axes(*labels: Tensor, first: int = 0) -> tuple[Tensor, ...]:
    """Shorten the axes along which every tensor repeats itself by construction (stride zero)."""
    for axis in range(first, labels[0].dim()):
        if all(label.stride(axis) == 0 for label in labels):
            labels = tuple(label.narrow(axis, 0, 1) for label in labels)
    return labels


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

REDUCTIONS = {"mean", "sum", "amax", "amin"}


@dataclass(frozen=True, eq=False)
class LayerChannels:
    """A convolution, linear layer or per-channel layer, and which channels its inputs and outputs are."""

    name: str
    """module path"""
    node: str
    """graph node of its (last) call"""
    inputs: Tensor
    """int64 (inputs,): channel numbers, FIXED where nothing can be removed; empty for per-channel layers"""
    outputs: Tensor
    """int64 (outputs,): channel numbers or FIXED"""
    taps: int
    """multiply-adds for one pair of an input and an output channel at one position; 0 for per-channel layers"""
    positions: int
    """positions per image, summed over calls"""
    groups: int = 1
    """groups of the convolution"""
    linear: bool = False
    """whether channels are on the last axis"""


class ChannelDependencies:
    """The walk and its result: `layers`, and for each channel number its component in `root`, or a reason in `held`."""

    def __init__(self, found: Sites, image: tuple[Tensor, ...]):
        self.found = found
        self.graph = found.graph
        self.offsets: dict[str, int] = {}
        self.parent: list[int] = []
        for site in found:
            self.offsets[site.name] = len(self.parent)
            self.parent += range(len(self.parent), len(self.parent) + site.channels)
        self.held: dict[int, str] = {}
        self.layers: dict[str, LayerChannels] = {}
        self.own = self._own_chains()
        names = tuple(node.name for node in self.graph.steps.nodes)
        self.values = dict(zip(names, self.graph.run(*image, outputs=names, out_of_place=True), strict=True))
        self.labels: dict[str, Any] = {}
        for node in self.graph.steps.nodes:
            self.labels[node.name] = self._label(node)
        del self.values, self.labels

    def root(self, number: int) -> int:
        """The representative of a channel's component."""
        while self.parent[number] != number:
            self.parent[number] = self.parent[self.parent[number]]
            number = self.parent[number]
        return number

    def reason(self, number: int) -> str:
        """Why a channel cannot be removed; empty when it can."""
        return self.held.get(self.root(number), "")

    def hold(self, numbers: Tensor | Iterable[int], reason: str) -> None:
        """Keep these channels, and all that live and die with them."""
        every = numbers.unique().tolist() if isinstance(numbers, Tensor) else numbers
        for number in every:
            if number >= 0:
                self.held.setdefault(self.root(number), reason)

    def unite(self, a: int, b: int, reason: str) -> None:
        """Two channels live and die together; the reason is for the case that one of them cannot be removed."""
        if ANY in (a, b):
            return
        if UNPRUNABLE in (a, b):
            self.hold([a, b], reason)
            return
        a, b = self.root(a), self.root(b)
        if a != b:
            kept = self.held.pop(b, None)
            if kept is not None:
                self.held.setdefault(a, kept)
            self.parent[b] = a

    def halves(self) -> tuple[Tensor, Tensor]:
        """The channels that can be removed in two parts, groups whole: bool (channels,) each."""
        roots = np.array([self.root(number) for number in range(len(self.parent))])
        removable = np.array([not self.reason(number) for number in range(len(roots))])
        coin = np.random.default_rng(0).random(len(roots)) < 0.5
        return torch.from_numpy(coin[roots] & removable), torch.from_numpy(~coin[roots] & removable)

    def _own_chains(self) -> set[str]:
        """Steps between a site's read and cut point: what is applied there is silenced with the channel."""
        own = set()
        for site in self.found:
            node = self.graph.nodes[site.preactivation]
            while node.name != site.activation:
                node = next(iter(node.users))
                own.add(node.name)
        return own

    def _label(self, node: fx.Node) -> Any:
        value = self.values[node.name]
        if node.op == "placeholder":
            return unprunable_like(value)
        if node.op == "get_attr":
            single = isinstance(value, Tensor) and value.numel() == 1
            return torch.full_like(value, ANY, dtype=torch.long) if single else unprunable_like(value)
        if node.op == "output":
            self._hold_all(node, "its values are the network's outputs")
            return None
        if not has_tensor(value):
            return value
        if node.op == "call_module":
            return self._module(node, self.graph.modules[str(node.target)])
        name = node.target if node.op == "call_method" else node.target.__name__  # type: ignore[union-attr]
        return self._function(node, str(name).rstrip("_"))

    def _module(self, node: fx.Node, module: nn.Module) -> Tensor:
        first = self._first(node)
        if isinstance(module, nn.modules.conv._ConvNd | nn.Linear):
            return self._weighted(node, module, first)
        per_channel = isinstance(module, BATCH_NORMS) or (isinstance(module, nn.PReLU) and module.num_parameters > 1)
        if per_channel:
            numbers = self._channels(first, 1, f"{node.target} has one weight for several channels")
            if node.name not in self.own:
                self.hold(numbers, f"the shift of {node.target}, which follows where channels have met, survives silencing")
            if str(node.target) in self.layers or is_parametrized(module):
                self.hold(numbers, f"{node.target} is used in several places")
            self.layers[str(node.target)] = LayerChannels(str(node.target), node.name, numbers[:0], numbers, 0, 0)
            return first
        if isinstance(module, CHANNELWISE):
            return first
        if isinstance(module, POOLING):
            return self._pooled(node, first)
        if isinstance(module, nn.Flatten | nn.Unflatten):
            return self._checked(node, module(first))
        if isinstance(module, nn.ZeroPad2d | nn.ConstantPad2d):
            return torch.nn.functional.pad(first, module.padding, value=ANY)
        return self._unknown(node, f"{node.target} ({type(module).__name__})")

    def _weighted(self, node: fx.Node, module: nn.Module, first: Tensor) -> Tensor:
        name, value = str(node.target), self.values[node.name]
        linear = isinstance(module, nn.Linear)
        axis = value.dim() - 1 if linear else 1
        inputs = self._channels(first, axis, f"{name} reads several channels as one")
        outputs = torch.full((value.shape[axis],), UNPRUNABLE)
        if name in self.offsets:
            outputs = torch.arange(self.offsets[name], self.offsets[name] + value.shape[axis])
        groups, taps, places = 1, 1, value
        if isinstance(module, nn.modules.conv._ConvNd):
            groups, taps = module.groups, int(torch.tensor(module.kernel_size).prod())
            places = first if isinstance(module, nn.modules.conv._ConvTransposeNd) else value
        positions = places[:1].numel() // places.shape[axis]
        if name in self.layers or is_parametrized(module) or "weight" not in module._parameters:
            earlier = self.layers[name].inputs if name in self.layers else inputs
            self.hold(torch.cat([inputs, earlier, outputs]), f"the weights of {name} are used in several places or computed")
            inputs, outputs = torch.full_like(inputs, UNPRUNABLE), torch.full_like(outputs, UNPRUNABLE)
            positions += self.layers[name].positions if name in self.layers else 0
        if groups > 1:
            for block in torch.cat([inputs.view(groups, -1), outputs.view(groups, -1)], 1).tolist():
                for other in block[1:]:
                    self.unite(block[0], other, f"{name} ties its groups' inputs to its outputs")
        self.layers[name] = LayerChannels(name, node.name, inputs, outputs, taps, positions, groups, linear)
        shape = [1] * value.dim()
        shape[axis] = -1
        return outputs.view(shape).expand(value.shape)

    def _function(self, node: fx.Node, name: str) -> Any:
        if name in ELEMENTWISE:
            return self._met(node, name)
        if name in RESHAPING:
            args, kwargs = map_aggregate((node.args, node.kwargs), self._contiguous if name == "view" else self._of)  # type: ignore[misc]
            return self._checked(node, execute(self.graph.model, node.op, node.target, args, kwargs))
        if name in PASSING and len([n for n in node.all_input_nodes if has_tensor(self.values[n.name])]) == 1:
            return self._first(node)
        if name in POOLS:
            return self._pooled(node, self._first(node))
        if name in REDUCTIONS:
            return self._reduced(node)
        if name == "pad":
            first, value = self._first(node), self.values[node.name]
            amounts = node.args[1] if len(node.args) > 1 else node.kwargs["pad"]
            amounts = map_aggregate(amounts, lambda part: self.values[part.name] if isinstance(part, fx.Node) else part)
            grown = UNPRUNABLE if value.shape[1] != first.shape[1] else ANY
            return torch.nn.functional.pad(first, amounts, value=grown)  # type: ignore[arg-type]
        return self._unknown(node, f"{name}()")

    def _met(self, node: fx.Node, name: str) -> Tensor:
        """Sums and products: the channels that meet are united."""
        parts = [self._of(part) for part in node.args[:2]]
        tensors = [part for part in parts if isinstance(part, Tensor)]
        if len(tensors) == 1:
            return tensors[0]
        shape = self.values[node.name].shape
        a, b = drop_broadcast_axes(*torch.broadcast_tensors(*tensors))
        for pair in torch.stack([a.flatten(), b.flatten()]).unique(dim=1).T.tolist():
            self.unite(pair[0], pair[1], f"{node.name} ({name}) adds or multiplies it with something that cannot be removed")
        return torch.maximum(a, b).expand(shape)

    def _checked(self, node: fx.Node, after: Any) -> Any:
        """Hold the channels that a reshaping step would not follow if some of them were gone."""
        before = [self.labels[n.name] for n in node.all_input_nodes if has_tensor(self.values[n.name])]
        seen = unique_ids(before)
        if not len(seen):
            return after
        for part in drop_broadcast_axes(after) if isinstance(after, Tensor) else after:
            axes = [axis for axis in range(part.dim()) if varies(part, axis)]
            if len(axes) > 1 or len(unique_ids([part])) < len(seen):
                self.hold(seen, f"{node.name} cuts its channels in parts of a written-out size")
            elif axes and node.target in {"view", "reshape", torch.reshape}:
                sizes = node.args[1] if isinstance(node.args[1], tuple | list) else node.args[1:]
                size = sizes[axes[0]] if axes[0] < len(sizes) else -1
                if isinstance(size, int) and size != -1:
                    self.hold(seen, f"{node.name} has the number {size} written out")
        return after

    def _pooled(self, node: fx.Node, first: Tensor) -> Tensor:
        value = self.values[node.name]
        if not isinstance(value, Tensor):
            return self._unknown(node, str(node.target))
        numbers = self._channels(first, 1, f"{node.name} pools several channels into one")
        return numbers.view(1, -1, *[1] * (value.dim() - 2)).expand(value.shape)

    def _reduced(self, node: fx.Node) -> Tensor:
        first, value = self._first(node), self.values[node.name]
        dims: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        dims = tuple(range(first.dim())) if dims is None else tuple(dims) if isinstance(dims, tuple | list) else (dims,)
        low, high = first.amin(dims), first.amax(dims)
        if not torch.equal(low, high):
            self.hold(first, f"{node.name} reduces over channels")
            return unprunable_like(value)
        return high.view(value.shape)

    def _channels(self, labels: Tensor, axis: int, reason: str) -> Tensor:
        """One number per channel along an axis; held and FIXED where positions disagree."""
        flat = drop_broadcast_axes(labels.movedim(axis, 0), first=1)[0].flatten(1)
        low, high = min_max_ids(flat, 1)
        if not torch.equal(low, high):
            self.hold(flat[low != high], reason)
            high = torch.where(low != high, UNPRUNABLE, high)
        return torch.where(high == ANY, UNPRUNABLE, high)

    def _unknown(self, node: fx.Node, what: str) -> Any:
        self._hold_all(node, f"{what} may look at all its channels at once")
        return map_aggregate(self.values[node.name], unprunable_like)

    def _hold_all(self, node: fx.Node, reason: str) -> None:
        self.hold(unique_ids([self.labels[n.name] for n in node.all_input_nodes]), reason)

    def _of(self, part: Any) -> Any:
        return self.labels[part.name] if isinstance(part, fx.Node) else part

    def _contiguous(self, part: Any) -> Any:
        label = self._of(part)  # a view is allowed where it was on the value
        return label.contiguous() if isinstance(label, Tensor) else label

    def _first(self, node: fx.Node) -> Tensor:
        return self.labels[node.all_input_nodes[0].name]
