"""Readers: the layers that see a site's channels with no other layer in between, found in the traced graph."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx, nn

from channelscope.net.find import Sites
from channelscope.net.graph import Graph, evaluating
from channelscope.site import Site
from channelscope.types import Bool, Tensor

WEIGHTED = (nn.modules.conv._ConvNd, nn.Linear)
LINING_UP = ("cat", "concat", "concatenate", "stack")
BLOCK = 64
"""Channels marked in one run; a run passes through no layer, so it costs little more than its memory."""


@dataclass(frozen=True)
class Reader:
    """One layer that reads a site."""

    layer: str
    """module path of the convolution or linear layer"""
    summed: bool
    """whether the channels meet others in a sum or product on the way, as in a residual connection"""


def readers(graph: Graph, site: Site) -> tuple[Reader, ...]:
    """The layers that see the site's cut point through activations, pooling, sums and reshaping, in execution order."""
    met: dict[str, bool] = {}
    for node, summed in _reached(graph, site).items():
        met[str(node.target)] = met.get(str(node.target), False) or summed
    return tuple(Reader(layer, summed) for layer, summed in met.items())


def reading(found: Sites, site: Site, images: Tensor) -> dict[str, Bool[Tensor, "channels inputs"]]:
    """Which inputs of each reader show which channels of the site: reader → marks.

    Seen by trial, so that flattening, concatenation, splits and gates need no rules: the outputs of all layers are held,
    one channel after the other is raised, and an input that changes shows it. Behind a norm or gate that looks at all
    channels, every input shows every channel, as it does in truth.

    images   one or a few images to try it on; any number that is not all alike will do
    """
    graph = found.graph
    reached = list(_reached(graph, site))
    inputs = tuple(node.all_input_nodes[0].name for node in reached)
    held = [node.name for node in graph.steps.nodes if _weighted(graph, node) and node.name != site.cut]
    with evaluating(graph.model), torch.no_grad():
        wanted = tuple(dict.fromkeys((*held, site.cut, *inputs)))
        before = dict(zip(wanted, graph.run(images, want=wanted, pure=True), strict=True))
        parts = []
        for channels in torch.arange(site.channels).split(BLOCK):
            copies = (len(channels), len(images))
            given = {name: _copied(before[name], len(channels)) for name in held}
            after = graph.run(
                _copied(images, len(channels)),
                given={**given, site.cut: _raised(before[site.cut], channels, site.axis)},
                want=inputs,
                pure=True,
            )
            parts.append([(value.unflatten(0, copies) != before[name]) for name, value in zip(inputs, after, strict=True)])
    marks: dict[str, Tensor] = {}
    for place, node in enumerate(reached):
        axis = -1 if isinstance(graph.modules[str(node.target)], nn.Linear) else 2
        moved = torch.cat([part[place].movedim(axis, 1).flatten(2).any(2) for part in parts]).cpu()
        marks[str(node.target)] = marks.get(str(node.target), False) | moved
    return marks


def _reached(graph: Graph, site: Site) -> dict[fx.Node, bool]:
    """Calls of layers that see the site → whether its channels have met others before."""
    summed: dict[fx.Node, bool] = {graph.nodes[site.cut]: False}
    found: dict[fx.Node, bool] = {}
    for node in graph.steps.nodes:
        before = [parent for parent in node.all_input_nodes if parent in summed]
        if before and node not in summed:
            met = any(summed[parent] for parent in before)
            if _weighted(graph, node):
                found[node] = met
            else:
                summed[node] = met or _meets(graph, node)
    return found


def _weighted(graph: Graph, node: fx.Node) -> bool:
    return node.op == "call_module" and isinstance(graph.modules[str(node.target)], WEIGHTED)


def _meets(graph: Graph, node: fx.Node) -> bool:
    """Whether a step brings two activations together element by element, not merely one beside the other."""
    if node.op != "call_function" or node.target.__name__ in LINING_UP:  # type: ignore[union-attr]
        return False
    return len([parent for parent in node.all_input_nodes if parent.name in graph.shapes and parent.op != "get_attr"]) > 1


def _copied(value: Tensor, times: int) -> Tensor:
    return value.repeat(times, *[1] * (value.dim() - 1))


def _raised(maps: Tensor, channels: Sequence[int] | Tensor, axis: int) -> Tensor:
    """Copies of the maps, in each of which one of the channels is well above all others."""
    copies = _copied(maps, len(channels))
    each = copies.unflatten(0, (len(channels), len(maps))).movedim(axis + 2, 1)
    each[torch.arange(len(channels)), channels] += 1 + 2 * maps.abs().max()
    return copies
