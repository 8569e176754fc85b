"""Consumers: the layers that take a site's channels as input with no other layer in between."""

from dataclasses import dataclass

from torch import fx

from channelscope.network.channel_graph import channels_behind
from channelscope.network.channel_tracing import ChannelTracer
from channelscope.network.graph import Graph
from channelscope.network.operations import call_of, layer_of
from channelscope.network.sites import Sites
from channelscope.site import Site
from channelscope.types import Bool, Tensor


@dataclass(frozen=True)
class Consumer:
    """One layer that reads a site."""

    layer: str
    """module path of the convolution or linear layer"""
    through_sum: bool
    """whether the channels meet others in a sum or product on the way, as in a residual connection"""


def consumers(graph: Graph, site: Site) -> tuple[Consumer, ...]:
    """The layers that see the site's cut point through activations, pooling, sums and reshaping, in execution order.

    Examples
    --------
    >>> from channelscope.network.sites import sites
    >>> from channelscope.zoo.toys import residual_pair
    >>> toy = residual_pair()
    >>> found = sites(toy.model, toy.batches[0][0][:1])
    >>> [(each.layer, each.through_sum) for each in consumers(found.graph, found["stem"])]
    [('inner', False), ('fc', True)]
    """
    met: dict[str, bool] = {}
    for node, summed in _reached_layers(graph, site).items():
        met[str(node.target)] = met.get(str(node.target), False) or summed
    return tuple(Consumer(layer, summed) for layer, summed in met.items())


class InputChannels:
    """Which inputs of which layers show which channels of the sites of a network.

    Parameters
    ----------
    found
        The sites of a network.
    structural
        Whether normalization passes every channel on as it is. Otherwise every input behind a norm that looks at several channels
        shows all of them.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from channelscope.network.sites import sites
    >>> net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.GroupNorm(1, 2), nn.Conv2d(2, 4, 1), nn.Flatten(), nn.Linear(4, 5)).eval()
    >>> found = sites(net, torch.zeros(1, 3, 1, 1))
    >>> [InputChannels(found, structural).marks(found["0"])[0][1].int().tolist() for structural in (True, False)]
    [[[1, 0], [0, 1]], [[1, 1], [1, 1]]]
    """

    def __init__(self, found: Sites, structural: bool = False):
        self.found = found
        nodes = [node for node in found.graph.steps.nodes if node.op != "output"]
        self.traced = ChannelTracer(found.graph, nodes, own_layers=True, structural=structural)

    def marks(self, site: Site) -> list[tuple[str, Bool[Tensor, "channels inputs"]]]:
        """Calls of the layers that see the site, in execution order.

        Parameters
        ----------
        site
            A site of the network.

        Returns
        -------
        list
            For each call the layer's module path, and which of its inputs show which channels.
        """
        graph, traced = self.found.graph, self.traced
        channels = traced.one_each(graph.nodes[site.activation], traced.labels[site.activation].movedim(site.channel_axis + 1, 0))
        return [
            (str(node.target), channels_behind(traced.parts, channels, traced.reads[node.name])) for node in _reached_layers(graph, site)
        ]

    def by_layer(self, site: Site) -> dict[str, Bool[Tensor, "channels inputs"]]:
        """Which inputs of each consumer show which channels of the site, in any of its calls: consumer → marks.

        Parameters
        ----------
        site
            A site of the network.
        """
        found: dict[str, Tensor] = {}
        for layer, seen in self.marks(site):
            found[layer] = found.get(layer, False) | seen
        return found


def _reached_layers(graph: Graph, site: Site) -> dict[fx.Node, bool]:
    """Calls of layers that see the site → whether its channels have met others before."""
    summed: dict[fx.Node, bool] = {graph.nodes[site.activation]: False}
    found: dict[fx.Node, bool] = {}
    for node in graph.steps.nodes:
        before = [parent for parent in node.all_input_nodes if parent in summed and node in graph.of_images]
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
    if node.op != "call_function" or call_of(node, graph.modules).entry.joins:
        return False
    return len([parent for parent in node.all_input_nodes if parent.name in graph.shapes and parent.op != "get_attr"]) > 1
