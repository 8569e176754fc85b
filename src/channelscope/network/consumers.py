"""Consumers: the layers that take a site's channels as input with no other layer in between."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import fx

from channelscope.network.graph import Graph, Hook
from channelscope.network.module_state import eval_mode
from channelscope.network.operations import layer_of, of_step
from channelscope.network.sites import Sites
from channelscope.site import Site
from channelscope.types import Bool, Tensor

SMALL = 0.01
"""What layers give where only the structure counts: small, so that long sums do not reach the upper end of an activation."""

BLOCK = 64
"""Patterns tried in one run; a run passes through no layer, so it costs little more than its memory."""


@dataclass(frozen=True)
class Consumer:
    """One layer that reads a site."""

    layer: str
    """module path of the convolution or linear layer"""
    through_sum: bool
    """whether the channels meet others in a sum or product on the way, as in a residual connection"""


def consumers(graph: Graph, site: Site) -> tuple[Consumer, ...]:
    """The layers that see the site's cut point through activations, pooling, sums and reshaping, in execution order."""
    met: dict[str, bool] = {}
    for node, summed in _reached_layers(graph, site).items():
        met[str(node.target)] = met.get(str(node.target), False) or summed
    return tuple(Consumer(layer, summed) for layer, summed in met.items())


def channels_seen_by_inputs(found: Sites, site: Site, images: Tensor) -> dict[str, Bool[Tensor, "channels inputs"]]:
    """Which inputs of each reader show which channels of the site: reader → marks.

    Seen by trial, so that flattening, concatenation, splits and gates need no rules: the outputs of all layers are held,
    channels are raised, and an input that changes shows them. Behind a norm or gate that looks at all channels, every input
    shows every channel, as it does in truth.

    Parameters
    ----------
    images
        One or a few images to try it on; any number that is not all alike will do.
    """
    marks: dict[str, Tensor] = {}
    for layer, seen in Trial(found, images, (site,)).marks(site):
        marks[layer] = marks.get(layer, False) | seen
    return marks


class Trial:
    """Finds by trial which inputs of which layers show which channels of some sites; one run of the network serves all of them.

    Parameters
    ----------
    found
        The sites of a network.
    images
        One or a few images, batch × channels × height × width, not all alike.
    asked
        The sites that `marks` will be asked about.
    structural
        Whether only the structure counts: normalization passes every channel on as it is, and all layers give small
        positive numbers, so that no activation is shut and no gate is zero. Otherwise what an input shows is what it
        shows of these images.
    """

    def __init__(self, found: Sites, images: Tensor, asked: Sequence[Site], structural: bool = False):
        self.found, self.images, self.structural = found, images, structural
        self.held = [node.name for node in found.graph.steps.nodes if _weighted(found.graph, node)]
        wanted = tuple(dict.fromkeys((*self.held, *(site.activation for site in asked))))
        with eval_mode(found.graph.model), torch.no_grad():
            self.before = dict(zip(wanted, found.graph.run(images, outputs=wanted, out_of_place=True), strict=True))
        if structural:
            source = torch.Generator().manual_seed(0)
            self.before = {name: _small(value, source) for name, value in self.before.items()}

    def marks(self, site: Site) -> list[tuple[str, Bool[Tensor, "channels inputs"]]]:
        """Calls of the layers that see the site, in execution order.

        Parameters
        ----------
        site
            One of the sites asked for.

        Returns
        -------
        list
            For each call the layer's module path, and which of its inputs show which channels.

        Notes
        -----
        Channels are raised together: for each binary digit of their numbers, first those that have it, then the others. An
        input that changes in one of the two runs of every digit shows one channel, whose number it spells. Where an input
        shows several channels, each channel is raised alone.
        """
        reached = list(_reached_layers(self.found.graph, site))
        if not reached:
            return []
        digits = max(1, (site.channels - 1).bit_length())
        value = 1 << torch.arange(digits)
        with_digit = torch.arange(site.channels) & value[:, None] > 0
        changed = self._changed(site, reached, torch.cat([with_digit, ~with_digit]))
        spelled = [seen.unflatten(0, (2, digits)) for seen in changed]
        if any(bool((seen.any((0, 1)) & ~(seen[0] ^ seen[1]).all(0)).any()) for seen in spelled):
            marks = self._changed(site, reached, torch.eye(site.channels, dtype=torch.bool))
        else:
            numbers = [torch.where(seen.any((0, 1)), value @ seen[0].long(), -1) for seen in spelled]
            marks = [torch.arange(site.channels)[:, None] == number for number in numbers]
        return [(str(node.target), seen) for node, seen in zip(reached, marks, strict=True)]

    def _changed(self, site: Site, reached: list[fx.Node], patterns: Bool[Tensor, "patterns channels"]) -> list[Tensor]:
        """For each call, which inputs change when the channels of each pattern are raised: bool (patterns, inputs)."""
        inputs = tuple(node.all_input_nodes[0].name for node in reached)
        parts = []
        with eval_mode(self.found.graph.model), torch.no_grad():
            for chosen in patterns.split(BLOCK):
                plain = torch.cat([torch.zeros_like(chosen[:1]), chosen])
                parts.append(self._run(site, plain, inputs))
        changed = []
        for place, node in enumerate(reached):
            layer = layer_of(self.found.graph.modules[str(node.target)])
            assert layer is not None
            axis = -1 if layer.tokens else 2
            moved = [(part[place][1:] != part[place][:1]).movedim(axis, 1).flatten(2).any(2) for part in parts]
            changed.append(torch.cat(moved).cpu())
        return changed

    def _run(self, site: Site, patterns: Bool[Tensor, "patterns channels"], inputs: tuple[str, ...]) -> list[Tensor]:
        """What the readers see with the channels of each pattern raised: (patterns, images, …) each."""
        times = len(patterns)
        given = {name: _copied(self.before[name], times) for name in self.held if name != site.activation}
        given[site.activation] = _perturbed(self.before[site.activation], patterns, site.channel_axis)
        after = self._passing(given) if self.structural else None
        values = self.found.graph.run(_copied(self.images, times), known=given, hooks=after, outputs=inputs, out_of_place=True)
        return [value.unflatten(0, (times, len(self.images))) for value in values]

    def _passing(self, given: dict[str, Tensor]) -> dict[str, Hook]:
        """What makes every normalization hand on what it gets."""
        seen, after = dict(given), {}

        def keep(name: str, value: Tensor) -> None:
            seen[name] = value

        for node in self.found.graph.steps.nodes:
            if _normalizes(self.found.graph, node):
                source = node.all_input_nodes[0].name
                after.setdefault(source, partial(keep, source))
                after[node.name] = partial(_handed_on, seen, source, node.name)
        return after


def _handed_on(seen: dict[str, Tensor], source: str, name: str, value: Tensor) -> Tensor:
    seen[name] = seen[source]
    return seen[source]


def _normalizes(graph: Graph, node: fx.Node) -> bool:
    return of_step(node, graph.modules).normalizes


def _small(value: Tensor, source: torch.Generator) -> Tensor:
    """Random numbers from SMALL to 2 · SMALL of the same shape."""
    return (SMALL * (1 + torch.rand(value.shape, generator=source))).to(value)


def _reached_layers(graph: Graph, site: Site) -> dict[fx.Node, bool]:
    """Calls of layers that see the site → whether its channels have met others before."""
    summed: dict[fx.Node, bool] = {graph.nodes[site.activation]: False}
    found: dict[fx.Node, bool] = {}
    for node in graph.steps.nodes:
        before = [parent for parent in node.all_input_nodes if parent in summed]
        if before and node not in summed:
            met = any(summed[parent] for parent in before)
            if _weighted(graph, node):
                found[node] = met
            else:
                summed[node] = met or _combines(graph, node)
    return found


def _weighted(graph: Graph, node: fx.Node) -> bool:
    return node.op == "call_module" and layer_of(graph.modules[str(node.target)]) is not None


def _combines(graph: Graph, node: fx.Node) -> bool:
    """Whether a step brings two activations together element by element, not merely one beside the other."""
    if node.op != "call_function" or of_step(node, graph.modules).joins:
        return False
    return len([parent for parent in node.all_input_nodes if parent.name in graph.shapes and parent.op != "get_attr"]) > 1


def _copied(value: Tensor, times: int) -> Tensor:
    """The batch so many times over; of a single image a view."""
    return value.expand(times, *value.shape).flatten(0, 1)


def _perturbed(maps: Tensor, patterns: Bool[Tensor, "patterns channels"], axis: int) -> Tensor:
    """Copies of the maps, in each of which the channels of one pattern are well above all others, at every position by another amount."""
    copies = maps.repeat(len(patterns), *[1] * (maps.dim() - 1))
    each = copies.unflatten(0, (len(patterns), len(maps))).movedim(axis + 2, 1)
    amount = torch.rand(each.shape[1:], generator=torch.Generator().manual_seed(0)).to(maps)
    rows, channels = patterns.to(maps.device).nonzero(as_tuple=True)
    each[rows, channels] += (1 + 2 * maps.abs().max()) * (1 + amount[channels])
    return copies
