"""A circuit as a smaller stand-alone module with the same output as the masked network."""

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from channelscope.circuits.circuit import Circuit, remove_dead_ends
from channelscope.circuits.feature import LocatedFeature
from channelscope.errors import MismatchError, TracingError
from channelscope.network.channel_tracing import upstream
from channelscope.network.graph import trace
from channelscope.network.module_state import eval_mode
from channelscope.network.operations import Call, call_of, execute, has_separate_kernels, keep_channels, layer_of, of_step
from channelscope.types import Float

ChannelMask = dict[str, np.ndarray]
"""step → bool (channels on axis 1,)"""

SIZES = ("size", "dim")
"""Methods whose value is the number of images where they are asked for axis 0."""


def surviving_channels(circuit: Circuit, feature: LocatedFeature) -> ChannelMask:
    """Channels of every step that the circuit's stand-alone module has; steps without an axis of channels are left out.

    Parameters
    ----------
    circuit
        Kernels that are kept.
    feature
        The feature that the circuit computes.

    Returns
    -------
    ChannelMask
        Step → bool (channels,).

    Examples
    --------
    >>> from channelscope.circuits import locate_feature
    >>> from channelscope.circuits.criteria import baseline_scores
    >>> from channelscope.circuits.selection import connected_top_k
    >>> from channelscope.zoo import toys
    >>> toy = toys.independent_channels()
    >>> feature = locate_feature(toy.model, "logit:1", toy.batches[0][0])
    >>> circuit = connected_top_k(baseline_scores(feature, "magnitude"), 4)
    >>> surviving_channels(circuit, feature)["conv"].tolist()
    [True, False, True, False, False]

    References
    ----------
    Hamblin, Konkle, Alvarez 2022 (extraction).
    """
    plan = _ChannelCut(circuit, feature)
    changed = True
    while changed:
        before = {name: marks.copy() for name, marks in plan.kept.items()}
        for rule in plan.rules:
            rule()
        changed = any(not np.array_equal(before[name], marks) for name, marks in plan.kept.items())
    return plan.kept


def effective_mask(circuit: Circuit, feature: LocatedFeature) -> dict[str, torch.Tensor]:
    """Kernels of the masked network: those of the circuit, and those that no image reaches, because constants pass through them.

    Parameters
    ----------
    circuit
        Kernels that are kept.
    feature
        The feature that the circuit computes.

    Returns
    -------
    dict[str, Tensor]
        Layer → bool (outputs, inputs per group).

    Examples
    --------
    >>> from channelscope.circuits import locate_feature
    >>> from channelscope.zoo import toys
    >>> toy = toys.independent_channels()
    >>> feature = locate_feature(toy.model, "logit:1", toy.batches[0][0])
    >>> {layer: bool(marks.all()) for layer, marks in effective_mask(Circuit.full(feature), feature).items()}
    {'conv': True, 'fc': True}

    References
    ----------
    Hamblin, Konkle, Alvarez 2022: biases and normalizations stay.
    """
    every = feature.channel_graph.full_mask()
    return {
        layer: circuit[layer] | ~feature.relevant[layer] if layer in feature.relevant else torch.ones_like(marks)
        for layer, marks in every.items()
    }


class _ChannelCut:
    def __init__(self, circuit: Circuit, feature: LocatedFeature):
        self.graph = feature.graph
        self.shapes = feature.graph.shapes
        self.nodes = upstream(feature.graph, feature.step)
        need = feature.channel_graph.ancestors(effective_mask(circuit, feature), feature.feature_nodes)
        need[0] = True
        self.kept: ChannelMask = {}
        for node in self.nodes:
            label = feature.channel_graph.channel_nodes.get(node.name)
            shape = self.shapes.get(node.name, ())
            if len(shape) >= 2:
                self.kept[node.name] = (
                    np.ones(shape[1], dtype=bool) if label is None or node.op in ("placeholder", "get_attr") else need[label]
                )
        if feature.axis != 0:
            self.kept.pop(feature.step, None)
        for marks in self.kept.values():
            marks[0] |= not marks.any()  # no module works with nothing at all
        self.calls = Counter(str(node.target) for node in self.nodes if node.op == "call_module")
        self.rules = [rule for node in self.nodes for rule in self._rules(node)]

    def _rules(self, node: fx.Node) -> list[Callable[[], None]]:
        parents = [parent for parent in node.all_input_nodes if parent.name in self.kept]
        if node.op in ("placeholder", "get_attr"):
            return []
        if len(parents) < len(node.all_input_nodes) or not parents:
            return self._whole([*parents, node])
        call = call_of(node, self.graph.modules)
        if call.spelled in SIZES and node.args[1:] == (0,):
            return []
        if call.module is not None and self.calls[str(node.target)] > 1:
            return self._whole([*parents, node])
        if call.module is not None and has_separate_kernels(call.module):
            return self._layer(node, layer_of(call.module), parents)
        if call.entry.joins and call.number("dim", 0) == 1 and node.name in self.kept:
            return [lambda: self._concatenated(node, parents)]
        if call.entry.flattens is not None and call.entry.flattens(call):
            return [lambda: self._flattened(node, parents[0])]
        if call.entry.pointwise or (call.entry.keeps == "apart" and not call.entry.moves and self._over_positions(call)):
            return self._tied([*parents, node])
        return self._whole([*parents, node])

    def _over_positions(self, call: Call) -> bool:
        """Whether a step combines positions alone: a window does, and a reduction over other axes than that of channels."""
        count = len(self.shapes[call.node.all_input_nodes[0].name])
        return call.entry.reduces is None or min(call.entry.reduces(call, count), default=0) > 1

    def _layer(self, node: fx.Node, layer: Any, parents: list[fx.Node]) -> list[Callable[[], None]]:
        if layer.groups == 1:
            apart = node.name in self.kept and layer.channel_axis(len(self.shapes[node.name])) == 1
            return [] if apart else self._whole([*parents, node])
        depthwise = layer.depthwise and layer.out_channels == layer.in_channels
        return self._tied([*parents, node]) if depthwise else self._whole([*parents, node])

    def _tied(self, nodes: list[fx.Node]) -> list[Callable[[], None]]:
        """All have the same channels; what is spread over all channels keeps its own."""
        sizes = {len(self.kept[node.name]) for node in nodes if node.name in self.kept}
        ranks = {len(self.shapes[node.name]) for node in nodes if node.name in self.kept and len(self.kept[node.name]) > 1}
        if any(node.name not in self.kept for node in nodes) or len(sizes - {1}) > 1 or (len(ranks) > 1 and not self._reduces(nodes[-1])):
            return self._whole(nodes)
        wide = [node for node in nodes if len(self.kept[node.name]) == max(sizes)]
        narrow = [node for node in nodes if node not in wide]

        def tie() -> None:
            union = np.logical_or.reduce([self.kept[node.name] for node in wide])
            for node in wide:
                self.kept[node.name] = union.copy()

        return [tie, *self._whole(narrow)]

    def _reduces(self, node: fx.Node) -> bool:
        return of_step(node, self.graph.modules).reduces is not None

    def _whole(self, nodes: list[fx.Node]) -> list[Callable[[], None]]:
        def keep() -> None:
            for node in nodes:
                if node.name in self.kept:
                    self.kept[node.name] = np.ones_like(self.kept[node.name])

        return [keep]

    def _concatenated(self, node: fx.Node, parents: list[fx.Node]) -> None:
        parts = node.args[0] if node.args else node.kwargs["tensors"]
        sizes = [len(self.kept[part.name]) for part in parts]  # type: ignore[union-attr]
        for part, marks in zip(parts, np.split(self.kept[node.name], np.cumsum(sizes)[:-1]), strict=True):  # type: ignore[arg-type]
            self.kept[part.name] = self.kept[part.name] | marks  # type: ignore[union-attr]
        self.kept[node.name] = np.concatenate([self.kept[part.name] for part in parts])  # type: ignore[union-attr]

    def _flattened(self, node: fx.Node, parent: fx.Node) -> None:
        before, after = self.kept[parent.name], self.kept[node.name]
        positions = len(after) // len(before)
        union = before | after.reshape(len(before), positions).any(1)
        self.kept[parent.name], self.kept[node.name] = union, np.repeat(union, positions)


TOLERANCE = 1e-3
"""Relative difference allowed between the extracted and the masked feature; smaller layers add up in another order."""


class StandaloneCircuit(nn.Module):
    """A circuit that stands alone: images in, the feature at every position out."""

    def __init__(self, body: fx.GraphModule, channels: list[int], weights: list[float], axis: int):
        super().__init__()
        self.body = body
        self.channels = channels
        self.axis = axis
        self.register_buffer("weights", torch.tensor(weights))

    def forward(self, images: Float[Tensor, "images C H W"]) -> Float[Tensor, "images ..."]:
        """The feature, (images, rows, columns) for a map, (images,) for a logit."""
        maps = self.body(images).movedim(self.axis + 1, -1)
        return maps[..., self.channels] @ self.weights.to(maps)


def extract_module(circuit: Circuit, feature: LocatedFeature) -> StandaloneCircuit:
    """The circuit as a stand-alone module from images to the feature; the network itself stays as it is.

    Channels that the feature does not depend on are removed, and masked kernels are zero in the rest. The result is compared with
    the masked network on noise before it is returned.

    Parameters
    ----------
    circuit
        Kernels that are kept.
    feature
        The feature that the circuit computes.

    Returns
    -------
    StandaloneCircuit
        In evaluation mode, on the network's device.

    Raises
    ------
    MismatchError
        If it does not compute what the masked network computes.

    Examples
    --------
    >>> from channelscope.circuits import locate_feature, score_kernels, top_k
    >>> from channelscope.zoo import toys
    >>> toy = toys.independent_channels()
    >>> feature = locate_feature(toy.model, "logit:1", toy.batches[0][0])
    >>> module = extract_module(top_k(score_kernels(feature, toy.batches), 6), feature)
    >>> module.body.conv, module(toy.batches[0][0]).shape
    (Conv2d(5, 3, kernel_size=(1, 1), stride=(1, 1)), torch.Size([64]))

    References
    ----------
    Hamblin, Konkle, Alvarez 2022 (extraction).
    """
    circuit = remove_dead_ends(circuit, feature)
    kept = surviving_channels(circuit, feature)
    kernels = effective_mask(circuit, feature)
    steps = fx.Graph()
    modules: dict[str, Any] = {}
    copies: dict[fx.Node, fx.Node] = {}
    for node in upstream(feature.graph, feature.step):
        name = str(node.target)
        if of_step(node, feature.graph.modules).identity:
            copies[node] = copies[node.all_input_nodes[0]]
            continue
        if node.op == "call_module" and name not in modules:
            modules[name] = _cut_module(feature, node, kept, kernels.get(name))
        copies[node] = _inline_module(steps, node, modules, copies, feature, kept) or steps.node_copy(node, copies.__getitem__)
        if node.op == "get_attr":
            modules[name] = _attribute(feature, name)
    steps.output(copies[feature.graph.nodes[feature.step]])
    body = fx.GraphModule(modules, steps, "Circuit")
    left = kept.get(feature.step)
    places = list(feature.feature.channels) if left is None else [int(left[:channel].sum()) for channel in feature.feature.channels]
    small = StandaloneCircuit(body, places, [weight for _, weight in feature.feature.weights], feature.axis).to(feature.device).eval()
    _compare(small, circuit, feature)
    return small


def _cut_module(feature: LocatedFeature, node: fx.Node, kept: ChannelMask, kernels: Tensor | None) -> nn.Module:
    """A copy of one module with only the kept channels."""
    module = copy.deepcopy(feature.graph.modules[str(node.target)])
    module.requires_grad_(False)
    parent = node.all_input_nodes[0].name
    if kernels is not None and layer_of(module) is not None:
        weight: Any = module.weight
        weight.mul_(kernels.to(weight).view(*kernels.shape, *[1] * (weight.dim() - 2)))
    if node.name not in kept or parent not in kept or not any(True for _ in module.parameters(recurse=False)):
        return module
    ins, outs = torch.from_numpy(kept[parent]), torch.from_numpy(kept[node.name])
    if bool(ins.all()) and bool(outs.all()):
        return module
    keep_channels(module, ins, outs)
    return module


def _slice(values: dict[str, Any], names: tuple[str, ...], axis: int, kept: Tensor) -> None:
    """Keep some slices of parameters or buffers, where a module has them."""
    for name in names:
        old = values.get(name)
        if old is not None and old.shape[axis] == len(kept):
            new = old.detach().index_select(axis, kept.nonzero().flatten().to(old.device))
            values[name] = nn.Parameter(new, requires_grad=False) if isinstance(old, nn.Parameter) else new


def torch_nn_class(module: nn.Module) -> type[nn.Module] | None:
    """The class of torch.nn whose forward pass the module has; None if it has one of its own.

    Parameters
    ----------
    module
        Any module.

    Returns
    -------
    type or None
        A class of torch.nn.

    Examples
    --------
    >>> class Convolution(nn.Conv2d):
    ...     pass
    >>> torch_nn_class(Convolution(1, 1, 1)).__name__
    'Conv2d'

    References
    ----------
    Definition.
    """
    for kind in type(module).__mro__:
        if vars(nn).get(kind.__name__) is kind:
            return kind if type(module).forward is kind.forward else None
    return None


def _inline_module(
    steps: fx.Graph, node: fx.Node, modules: dict[str, Any], copies: dict[fx.Node, fx.Node], feature: LocatedFeature, kept: ChannelMask
) -> fx.Node | None:
    """The steps of a module that torch.nn does not have, in the place of its call, so that only modules of torch.nn are left."""
    if node.op != "call_module" or torch_nn_class(modules[str(node.target)]) is not None or len(node.all_input_nodes) != 1:
        return None
    (parent,) = node.all_input_nodes
    shape = list(feature.graph.shapes[parent.name])
    shape[1] = int(kept[parent.name].sum()) if parent.name in kept else shape[1]
    module = modules[str(node.target)]
    try:
        inside = trace(module, torch.zeros(shape))
    except TracingError:
        return None  # it stays one step
    made = next(each for each in inside.steps.nodes if each.op == "output").args[0]
    within: dict[fx.Node, fx.Node] = {}
    for each in upstream(inside, made.name):  # type: ignore[union-attr]
        if each.op == "placeholder":
            within[each] = copies[parent]
            continue
        within[each] = steps.node_copy(each, within.__getitem__)
        if each.op in ("call_module", "get_attr"):
            name = f"{node.target}.{each.target}"
            within[each].target = name
            modules[name] = (
                inside.modules[str(each.target)] if each.op == "call_module" else execute(module, "get_attr", each.target, (), {})
            )
    return within[made]  # type: ignore[index]


def _attribute(feature: LocatedFeature, name: str) -> Tensor:
    if name in feature.graph.constants:
        return feature.graph.constants[name]
    path, _, last = name.rpartition(".")
    value = getattr(feature.graph.body.get_submodule(path), last)
    return value.detach().clone()


@torch.no_grad()
def _compare(small: StandaloneCircuit, circuit: Circuit, feature: LocatedFeature) -> None:
    shape = feature.graph.shapes[feature.graph.inputs[0]][1:]
    like = next(feature.model.parameters())
    noise = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)).to(like)
    with eval_mode(feature.model), feature.ablated((~circuit).masks):
        expected = feature.feature_map(noise)
    received = small(noise).reshape(len(noise), -1)
    error = (received - expected).abs().max() / expected.abs().max().clamp(min=torch.finfo(expected.dtype).tiny)
    if not float(error) < TOLERANCE:
        raise MismatchError(
            f"the extracted circuit is {float(error):.2g} (relative) away from the masked network; please report the network"
        )
