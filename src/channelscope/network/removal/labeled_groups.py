"""Groups from labels: the channels of sites that a labeled graph can remove, where silencing the sites does the same."""

import copy
from collections.abc import Iterable, Mapping
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from channelscope.network.edits import zero_channels
from channelscope.network.graph import Graph, Hook
from channelscope.network.labeling.labeled_graph import LabeledGraph, Layer
from channelscope.network.labeling.labels import FIXED, FREE, channels_in, compact, numbers_in, tensors
from channelscope.network.labeling.trial import labeled_graph
from channelscope.network.operations import spelling
from channelscope.network.removal.channels import UNPRUNABLE, ChannelDependencies, LayerChannels
from channelscope.site import Site


class LabeledDependencies:
    """What `ChannelDependencies` says, said by labels: channel numbers are those of the labeled graph.

    Layers that are called several times stay whole, as do channels whose values are not followed from a site alone.

    Parameters
    ----------
    coupling
        The channels of the same network as its steps alone tell them.
    image
        One image, all inputs of the network.

    Attributes
    ----------
    labeled
        The labeled graph.
    missing
        Site that the labeled graph does not know; empty where it knows all.
    products
        Steps outside the layers whose multiply-adds become fewer, each as a layer with as many outputs as it has channels.
    waking
        What `waking_steps` gives.
    """

    def __init__(self, coupling: ChannelDependencies, image: tuple[Tensor, ...]):
        self.found, self.graph = coupling.found, coupling.graph
        self.labeled = labeled_graph(self.graph.model, image)
        self.parent = self.labeled.union.parent
        self.offsets = {name: start for name, (start, _) in self.labeled.sites.items()}
        counts = {name: count for name, (_, count) in self.labeled.sites.items()}
        self.missing = next((site.name for site in self.found if counts.get(site.name) != site.channels), "")
        self.layers: dict[str, LayerChannels] = {}
        self.products: list[LayerChannels] = []
        self.waking: dict[str, Tensor] = {}
        if not self.missing:
            self._layers(coupling)
            self._products()

    def root(self, number: int) -> int:
        """The representative of a channel's component."""
        return self.labeled.union.root(number)

    def reason(self, number: int) -> str:
        """Why a channel cannot be removed; empty when it can."""
        return self.labeled.union.reason(number)

    def hold(self, numbers: Tensor | Iterable[int], reason: str) -> None:
        """Keep these channels, and all that go with them."""
        self.labeled.union.hold(numbers, reason)

    def settle(self) -> None:
        """Keep also what follows from the channels that are kept."""
        self.labeled.keep(torch.empty(0, dtype=torch.long), "")

    def sets(self) -> list[Tensor]:
        """Sets of channel numbers of which one has to stay: parts of values, and what a layer reads."""
        numbers = [layer.inputs for layer in self.labeled.layers] + [layer.outputs for layer in self.labeled.layers]
        numbers = [each.unique() for each in numbers if len(each) and bool(channels_in(each).all())]
        return numbers + [torch.tensor(part) for part in self.labeled.parts]

    @cached_property
    def before_cut(self) -> set[str]:
        """Steps of sites before their cut points, where a silenced channel still has its values."""
        found: set[str] = set()
        for site in self.found:
            node = self.graph.nodes[site.preactivation]
            while node.name != site.activation:
                found.add(node.name)
                node = next(iter(node.users))
        return found

    def halves(self) -> tuple[Tensor, Tensor]:
        """The channels that can be removed in two parts, groups whole: bool (channels,) each."""
        roots = np.array([self.root(number) for number in range(len(self.parent))])
        inside = {self.root(self.offsets[site.name] + channel) for site in self.found for channel in range(site.channels)}
        removable = np.array([root in inside and not self.reason(number) for number, root in enumerate(roots.tolist())])
        coin = np.random.default_rng(0).random(len(roots)) < 0.5
        return torch.from_numpy(coin[roots] & removable), torch.from_numpy(~coin[roots] & removable)

    def of_site(self, marks: Tensor, site: Site) -> Tensor:
        """Marks of the channels of one site: bool (channels,)."""
        return marks[self.offsets[site.name] : self.offsets[site.name] + site.channels]

    def _layers(self, coupling: ChannelDependencies) -> None:
        uses: dict[str, list[Layer]] = {}
        for layer in self.labeled.layers:
            uses.setdefault(layer.name, []).append(layer)
        norms = {str(node.target): node for node in self.labeled.steps.nodes if node.op == "call_module"}
        for name, before in coupling.layers.items():
            if before.taps:
                self._weighted(before, uses.get(name, []))
            elif name in norms:
                numbers = self._norm(self.labeled, norms[name].all_input_nodes[0])
                self.layers[name] = LayerChannels(name, before.node, numbers[:0], numbers, 0, 0)

    def _weighted(self, before: LayerChannels, uses: list[Layer]) -> None:
        inputs, outputs = torch.full_like(before.inputs, UNPRUNABLE), torch.full_like(before.outputs, UNPRUNABLE)
        same = [use for use in uses if len(use.inputs) == len(inputs) and len(use.outputs) == len(outputs)]
        module = self.graph.modules[before.name]
        if len(uses) == 1 and same and "weight" in module._parameters:
            inputs, outputs = uses[0].inputs, uses[0].outputs
        else:
            for use in uses:
                self.hold(torch.cat([use.inputs, use.outputs]), f"the weights of {before.name} are used in several places or computed")
        self.layers[before.name] = LayerChannels(
            before.name, before.node, inputs, outputs, before.taps, before.positions, before.groups, before.linear
        )

    @staticmethod
    def _norm(labeled: LabeledGraph, node: fx.Node) -> Tensor:
        labels = labeled.labels[node]
        rows = compact(labels).movedim(1, 0)
        high = rows.expand(labels.shape[1], *rows.shape[1:]).flatten(1).amax(1)
        return torch.where(channels_in(high), high, FIXED)

    def _products(self) -> None:
        """Steps such as attention products: their multiply-adds are shared out evenly among the groups of channels that they read."""
        nodes = {layer.node for layer in self.labeled.layers if layer.name in self.layers}
        for node in self.labeled.steps.nodes:
            amount = self.labeled.macs.get(node.name, 0) if node.name not in nodes else 0
            if not amount:
                continue
            other = [layer for layer in self.labeled.layers if layer.node == node.name]
            if other:
                self.products += [
                    LayerChannels(f"{layer.name} ", node.name, layer.inputs, layer.outputs, layer.taps, layer.positions, layer.groups)
                    for layer in other
                ]
                continue
            numbers = numbers_in([self.labeled.labels[parent] for parent in node.all_input_nodes if tensors(self.labeled.labels[parent])])
            numbers = self.labeled.union.roots(numbers).unique()
            if len(numbers) and amount % len(numbers) == 0:
                one = torch.full((1,), UNPRUNABLE)
                self.products.append(LayerChannels(f"{node.name} ", node.name, one, numbers, amount // len(numbers), 1))


def _same_steps(graph: Graph, labeled: LabeledGraph, values: Mapping[str, Any]) -> dict[str, fx.Node]:
    """Step of a traced network → the step of its labels that has the same value; empty where the two recordings differ.

    A module that is one step in the first may be several in the other; the last of them has its value.
    """
    rest = [node for node in labeled.steps.nodes if node.op not in ("get_attr", "output") and tensors(labeled.values.get(node.name))]
    found: dict[str, fx.Node] = {}
    for node in graph.steps.nodes:
        if node.op in ("get_attr", "output") or not tensors(values[node.name]):
            continue
        taken = 1
        if node.op == "call_module" and rest and rest[0].target != node.target:
            inside = [_within(labeled.owner.get(other.name, ""), str(node.target)) for other in rest]
            taken = inside.index(False) if False in inside else len(rest)
        elif not rest or rest[0].op != node.op or (node.op != "placeholder" and spelling(rest[0]) != spelling(node)):
            return {}
        if not taken:
            return {}
        found[node.name] = rest[taken - 1]
        del rest[:taken]
    return found if not rest else {}


def _within(owner: str, path: str) -> bool:
    return owner == path or owner.startswith(f"{path}.")


def waking_steps(channels: LabeledDependencies, image: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Steps that would give a removed channel a value again after its sites are silent, such as the shift of a norm behind a sum.

    Parameters
    ----------
    channels
        The channels of a network and what they are tied to.
    image
        One image, all inputs of the network, in float64.

    Returns
    -------
    dict
        Step → channel numbers of its value, shortened along axes on which they repeat.

    Examples
    --------
    >>> from torch import nn
    >>> from channelscope.network.removal.groups import groups
    >>> net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.MaxPool2d(2), nn.BatchNorm2d(2), nn.Conv2d(2, 5, 1), nn.Flatten()).eval()
    >>> {step: labels.flatten().tolist() for step, labels in groups(net, torch.zeros(1, 3, 4, 4)).waking.items()}
    {'_2': [0, 1]}
    """
    graph = generic(channels.graph)
    names = tuple(node.name for node in graph.steps.nodes)
    values = dict(zip(names, graph.run(*image, outputs=names, out_of_place=True), strict=True))
    steps = _same_steps(graph, channels.labeled, values)
    labels = {name: channels.labeled.labels[node] for name, node in steps.items() if isinstance(values[name], Tensor)}
    labels = {name: compact(part) for name, part in labels.items() if isinstance(part, Tensor) and len(numbers_in(part))}
    labels = {name: torch.where(channels_in(part), part, FREE) for name, part in labels.items() if name not in channels.before_cut}
    del values
    awake: dict[str, Tensor] = {}

    def watch(name: str, silent: Tensor, first: Hook | None) -> Hook:
        lost = torch.where(labels[name] >= 0, silent[labels[name].clamp(min=0)], False)

        def hook(value: Tensor) -> Tensor | None:
            value = value if first is None else first(value)  # type: ignore[assignment]
            if bool((value.masked_fill(~lost.to(value.device), 0) != 0).any()):
                awake[name] = labels[name]
            return value.masked_fill(lost.to(value.device), 0)

        return hook

    for silent in channels.halves():
        zero = {site.activation: zero_channels(channels.of_site(silent, site), site.channel_axis) for site in channels.found}
        graph.run(*image, hooks=zero | {name: watch(name, silent, zero.get(name)) for name in labels}, out_of_place=True)
    return {name: awake[name] for name in labels if name in awake}


def generic(graph: Graph) -> Graph:
    """The graph of a copy in float64 in which no shift is zero by chance: vectors of parameters and statistics are replaced by random ones.

    What silencing leaves of a channel then shows, whatever the weights of the network are.

    Parameters
    ----------
    graph
        A traced network; it stays as it is.

    Returns
    -------
    Graph
        The same steps on the copy.

    Examples
    --------
    >>> from torch import nn
    >>> from channelscope.network.graph import trace
    >>> net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)).eval()
    >>> shift = generic(trace(net, torch.zeros(1, 3, 4, 4))).model[1].bias
    >>> bool((shift >= 0.5).all()), net[1].bias.tolist()
    (True, [0.0, 0.0])
    """
    source = torch.Generator().manual_seed(0)
    model = copy.deepcopy(graph.model).double().eval()
    with torch.no_grad():
        for name, part in [*model.named_parameters(), *model.named_buffers()]:
            if not part.is_floating_point():
                continue
            draws = (0.5 + torch.rand(part.shape, generator=source, dtype=torch.float64)).to(part)
            if name.endswith("running_mean"):
                part.copy_(-draws)
            elif part.dim() <= 1 and not name.endswith("running_var"):
                part.copy_(draws)
            elif prod(part.shape):
                part.copy_(torch.where(part == 0, draws, part))
    constants = {name: part.double() if part.is_floating_point() else part for name, part in graph.constants.items()}
    return Graph(model, graph.steps, graph.shapes, constants, graph.output)
