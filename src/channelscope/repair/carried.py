"""Carried: the activations of all calibration images, moved forward through a network one step at a time."""

from typing import Any

from torch import Tensor

from channelscope.net.graph import Graph


class Carried:
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
                    values[name] = self.graph.run(given=given, want=name, pure=True)
                self._forget(values, self.place[name])
        self.reached = max(self.reached, self.place[step])
        return [values[step] for values in self.now]

    def hold(self, step: str) -> None:
        """Remember a step's values beyond their last use, until `release`."""
        self.held.add(step)

    def release(self, step: str) -> None:
        """Forget a held step as soon as nothing else needs it."""
        self.held.discard(step)
        for values in self.now:
            self._forget(values, self.reached)

    def _forget(self, values: dict[str, Any], place: int) -> None:
        for name in [name for name in values if self.last[name] <= place and name not in self.held and self.place[name] != place]:
            del values[name]
