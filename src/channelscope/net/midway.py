"""Midway: a forward pass stopped at one site, to be finished as often as one likes with that site's maps changed."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, fx

from channelscope.net.graph import Graph
from channelscope.site import Site


class Midway:
    """One batch at one site's cut point; `finish` runs the rest of the network, and nothing before."""

    def __init__(self, graph: Graph, site: Site, values: Mapping[str, Any]):
        self.graph, self.site, self.values = graph, site, values

    @property
    def maps(self) -> Tensor:
        """The site's maps as they are (images, …); not to be written into."""
        return self.values[self.site.cut]

    def finish(self, maps: Tensor) -> Tensor:
        """Logits of the batch with other maps at the cut point."""
        return self.graph.run(given={**self.values, self.site.cut: maps}, pure=True)


def stops(graph: Graph, sites: Iterable[Site], images: Tensor) -> Iterator[Midway]:
    """One batch at the cut point of each site in turn; in execution order every step is computed once for all of them.

    Only what the rest of the network needs is kept from one stop to the next. In a network with parallel branches the
    steps that lead into a branch may be computed again.
    """
    values: dict[str, Any] = {}
    for site in sites:
        wanted = frontier(graph, site.cut)
        values = dict(zip(wanted, graph.run(images, given=values, want=wanted, pure=True), strict=True))
        yield Midway(graph, site, values)


def frontier(graph: Graph, step: str) -> tuple[str, ...]:
    """The steps whose values are all that is needed to go on from `step`: itself, and what enters beside it later on.

    A residual shortcut around `step` is one; parameters read in the pass are not, for they are there anyway.
    """
    later = {graph.nodes[step]}
    beside: dict[fx.Node, None] = {graph.nodes[step]: None}
    for node in graph.steps.nodes:
        parents = node.all_input_nodes
        if any(parent in later for parent in parents):
            later.add(node)
            beside |= {parent: None for parent in parents if parent not in later and parent.op != "get_attr"}
    return tuple(node.name for node in beside)
