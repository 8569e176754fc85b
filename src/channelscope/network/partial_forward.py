"""A forward pass stopped at one site and finished many times with that site's maps changed."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, fx

from channelscope.network.graph import Graph
from channelscope.site import Site


class PartialForward:
    """One batch at one site's cut point; `finish` runs the rest of the network, and nothing before."""

    def __init__(self, graph: Graph, site: Site, values: Mapping[str, Any]):
        self.graph, self.site, self.values = graph, site, values

    @property
    def maps(self) -> Tensor:
        """The site's maps as they are (images, …); not to be written into."""
        return self.values[self.site.activation]

    def finish(self, maps: Tensor) -> Tensor:
        """Logits of the batch with other maps at the cut point."""
        return self.graph.run(known={**self.values, self.site.activation: maps}, out_of_place=True)


def partial_forwards(graph: Graph, sites: Iterable[Site], images: Tensor) -> Iterator[PartialForward]:
    """One batch at the cut point of each site in turn; in execution order every step is computed once for all of them.

    Only what the rest of the network needs is kept from one stop to the next. In a network with parallel branches the
    steps that lead into a branch may be computed again.

    Examples
    --------
    >>> import torch
    >>> from channelscope.network.sites import sites
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.ReLU(), torch.nn.Conv2d(2, 3, 1), torch.nn.Flatten())
    >>> images = torch.rand(4, 1, 2, 2)
    >>> found = sites(net, images)
    >>> [part.site.name for part in partial_forwards(found.graph, found.found, images)]
    ['0']
    """
    values: dict[str, Any] = {}
    for site in sites:
        wanted = live_nodes(graph, site.activation)
        values = dict(zip(wanted, graph.run(images, known=values, outputs=wanted, out_of_place=True), strict=True))
        yield PartialForward(graph, site, values)


def live_nodes(graph: Graph, step: str) -> tuple[str, ...]:
    """The steps whose values are all that is needed to go on from `step`: itself, and what enters beside it later on.

    A residual shortcut around `step` is one; parameters read in the pass are not, for they are there anyway.

    Examples
    --------
    >>> import torch
    >>> from channelscope.network.graph import trace
    >>> graph = trace(torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.ReLU()), torch.zeros(1, 1, 2, 2))
    >>> live_nodes(graph, "_0")
    ('_0',)
    """
    later = {graph.nodes[step]}
    beside: dict[fx.Node, None] = {graph.nodes[step]: None}
    for node in graph.steps.nodes:
        parents = node.all_input_nodes
        if any(parent in later for parent in parents):
            later.add(node)
            beside |= {parent: None for parent in parents if parent not in later and parent.op != "get_attr"}
    return tuple(node.name for node in beside)


class ActivationCache:
    """All images at one place of a network's pass: what is behind is forgotten, nothing is computed twice.

    A layer changed before its step is reached acts as changed on everything after it.
    """

    def __init__(self, graph: Graph, batches: list[tuple[Tensor, ...]]):
        self.graph = graph
        self.images = sum(len(batch[0]) for batch in batches)
        self.order = [node.name for node in graph.steps.nodes]
        self.place = {name: place for place, name in enumerate(self.order)}
        self.last = {node.name: max((self.place[user.name] for user in node.users), default=-1) for node in graph.steps.nodes}
        self.now: list[dict[str, Any]] = [dict(zip(graph.inputs, batch, strict=False)) for batch in batches]
        self.reached = -1
        self.held: set[str] = set()

    def __call__(self, step: str) -> list[Any]:
        """Values of a step, one a batch, going forward as far as needed."""
        ahead = self.order[self.reached + 1 : self.place[step] + 1]
        for values in self.now:
            for name in ahead:
                node = self.graph.nodes[name]
                if name not in values and node.op != "output":
                    given = {parent.name: values[parent.name] for parent in node.all_input_nodes}
                    values[name] = self.graph.run(known=given, outputs=name, out_of_place=True)
                self._forget(values, self.place[name])
        self.reached = max(self.reached, self.place[step])
        return [values[step] for values in self.now]

    def pin(self, step: str) -> None:
        """Remember a step's values beyond their last use, until `release`."""
        self.held.add(step)

    def unpin(self, step: str) -> None:
        """Forget a held step as soon as nothing else needs it."""
        self.held.discard(step)
        for values in self.now:
            self._forget(values, self.reached)

    def _forget(self, values: dict[str, Any], place: int) -> None:
        for name in [name for name in values if self.last[name] <= place and name not in self.held and self.place[name] != place]:
            del values[name]
