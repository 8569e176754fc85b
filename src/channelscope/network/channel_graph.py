"""ChannelGraph: which channels feed which kernels of a traced network, whatever lies between the layers.

Channels are numbered as nodes in execution order, so that every node is fed by smaller numbers only: 0 is what does not
depend on the input, then the channels of the images, then each layer's outputs and the sums and mixtures in between.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from channelscope.display import Facts, Shown
from channelscope.types import Bool, Tensor

KernelMask = Mapping[str, Tensor]
"""layer → bool (outputs, inputs per group), on the CPU: which kernels are there"""

SHOWN = 4
"""Channels of a sum or mixture that are named."""


@dataclass(frozen=True)
class KernelEdges:
    """One use of a layer with kernels: kernel (o, i) leads from node `sources[o, i]` to node `outputs[o]`."""

    layer: str
    """module path"""
    step: str
    """the step of the graph"""
    sources: np.ndarray
    """int (outputs, inputs per group)"""
    outputs: np.ndarray
    """int (outputs,)"""


@dataclass(frozen=True)
class Merge:
    """Nodes that depend on several others, because they are their sum, product or mixture."""

    step: str
    """the step of the graph"""
    members: np.ndarray
    """int (nodes, members)"""
    outputs: np.ndarray
    """int (nodes,)"""


@dataclass(frozen=True, repr=False)
class ChannelGraph(Shown):
    """The channels between the images and one step of a network, and the kernels between the channels."""

    operations: tuple[KernelEdges | Merge, ...]
    """in execution order"""
    node_count: int
    """number of nodes"""
    image_nodes: np.ndarray
    """int: nodes of the images' channels"""
    channel_nodes: Mapping[str, np.ndarray | None]
    """step → node of each of its channels (axis 1), or None where positions of a channel differ or there is no such axis"""
    output_nodes: np.ndarray
    """int: nodes of the last step's channels"""
    opaque: Mapping[str, str]
    """layers with weights whose kernels cannot be told apart, and why; they count as one mixture"""
    axis: int = 0
    """which axis of the last step's value holds the channels, counted without the batch"""

    def facts(self) -> Facts:
        """How many nodes, kernels and layers, and what is opaque."""
        kernels = sum(marks.numel() for marks in self.full_mask().values())
        return f"ChannelGraph({self.node_count:,} nodes, {kernels:,} kernels at {len(self.layers)} layers)", self.opaque.items()

    @property
    def calls(self) -> Iterator[KernelEdges]:
        """The uses of layers with kernels, in execution order."""
        return (part for part in self.operations if isinstance(part, KernelEdges))

    @property
    def layers(self) -> tuple[str, ...]:
        """Layers with kernels, in execution order."""
        return tuple(dict.fromkeys(call.layer for call in self.calls))

    def names(self) -> list[str]:
        """What each node is called: layer:channel, image:channel, or the channels it joins."""
        names = ["constant"] * self.node_count
        for channel, node in enumerate(self.image_nodes.tolist()):
            names[node] = f"image:{channel}"
        for part in self.operations:
            for row, node in enumerate(part.outputs.tolist()):
                names[node] = (
                    f"{part.layer}:{row}" if isinstance(part, KernelEdges) else _joined([names[each] for each in part.members[row]])
                )
        return names

    def full_mask(self) -> dict[str, Bool[Tensor, "outputs inputs"]]:
        """Marks of all kernels."""
        return {call.layer: torch.ones(call.sources.shape, dtype=torch.bool) for call in self.calls}

    def ancestors(self, marks: KernelMask, seeds: np.ndarray) -> np.ndarray:
        """Nodes from which a way of marked kernels leads to one of the `seeds`: bool (nodes,)."""
        need = np.zeros(self.node_count, dtype=bool)
        need[seeds] = True
        for part in reversed(self.operations):
            rows = need[part.outputs]
            if isinstance(part, Merge):
                need[part.members[rows]] = True
            else:
                need[part.sources[rows][marks[part.layer].numpy()[rows]]] = True
        return need

    def reached(self, marks: KernelMask) -> np.ndarray:
        """Nodes to which a way of marked kernels leads from the images: bool (nodes,)."""
        fed = np.zeros(self.node_count, dtype=bool)
        fed[self.image_nodes] = True
        for part in self.operations:
            if isinstance(part, Merge):
                fed[part.outputs] = fed[part.members].any(1)
            else:
                fed[part.outputs] = (fed[part.sources] & marks[part.layer].numpy()).any(1)
        return fed

    def leading_to(self, marks: KernelMask, seeds: np.ndarray) -> dict[str, Bool[Tensor, "outputs inputs"]]:
        """Marked kernels with a way to one of the `seeds`."""
        need = self.ancestors(marks, seeds)
        return self._kernels(marks, lambda call: np.broadcast_to(need[call.outputs][:, None], call.sources.shape))

    def on_paths_to(self, marks: KernelMask, seeds: np.ndarray) -> dict[str, Bool[Tensor, "outputs inputs"]]:
        """Marked kernels on a way from the images to one of the `seeds`."""
        need, fed = self.ancestors(marks, seeds), self.reached(marks)
        return self._kernels(marks, lambda call: need[call.outputs][:, None] & fed[call.sources])

    def _kernels(self, marks: KernelMask, alive) -> dict[str, Tensor]:
        found = {call.layer: torch.zeros(call.sources.shape, dtype=torch.bool) for call in self.calls}
        for call in self.calls:
            found[call.layer] |= torch.from_numpy(np.array(alive(call)))
        return {layer: kernels & marks[layer] for layer, kernels in found.items()}

    def distances(self, marks: KernelMask | None = None) -> np.ndarray:
        """Fewest kernels on a way from the images to each node: float (nodes,), inf where there is none."""
        hops = np.full(self.node_count, np.inf)
        hops[self.image_nodes] = 0
        for part in self.operations:
            if isinstance(part, Merge):
                hops[part.outputs] = hops[part.members].min(1)
            else:
                before = hops[part.sources]
                if marks is not None:
                    before = np.where(marks[part.layer].numpy(), before, np.inf) if part.layer in marks else np.full_like(before, np.inf)
                hops[part.outputs] = 1 + before.min(1)
        return hops


def channels_behind(parts: Sequence[KernelEdges | Merge], channels: np.ndarray, nodes: np.ndarray) -> Bool[Tensor, "channels nodes"]:
    """Which nodes depend on which channels through sums, products and mixtures alone, and through no layer.

    Parameters
    ----------
    parts
        The operations of a network, in execution order.
    channels
        int (channels,): nodes of the channels, those that are one node several times.
    nodes
        int (nodes,): the nodes that are asked about.

    Returns
    -------
    Tensor
        Marks.

    Examples
    --------
    >>> total = Merge("add", np.array([[1, 3], [2, 4]]), np.array([5, 6]))
    >>> channels_behind([total], np.array([1, 2]), np.array([2, 5, 6, 4])).int().tolist()
    [[0, 1, 0, 0], [1, 0, 1, 0]]
    """
    size = 1 + max(int(each.max()) for each in (channels, nodes, *(part.outputs for part in parts)) if len(each))
    one = np.full(size, NONE)
    one[channels] = np.arange(len(channels))
    several: dict[int, np.ndarray] = {}
    for node in channels[one[channels] != np.arange(len(channels))]:
        one[node], several[int(node)] = SEVERAL, channels == node
    for part in parts:
        if not isinstance(part, Merge):
            continue
        found = one[part.members]
        if bool((found == NONE).all()):
            continue
        first = found.max(1)
        same = (found == NONE) | (found == first[:, None])
        one[part.outputs] = np.where(same.all(1), first, SEVERAL)
        for row in np.flatnonzero(one[part.outputs] == SEVERAL):
            marks = np.zeros(len(channels), dtype=bool)
            marks[found[row][found[row] >= 0]] = True
            for member in part.members[row][found[row] == SEVERAL]:
                marks |= several[int(member)]
            several[int(part.outputs[row])] = marks
    result = torch.zeros(len(channels), len(nodes), dtype=torch.bool)
    for place, node in enumerate(nodes.tolist()):
        if one[node] == SEVERAL:
            result[:, place] = torch.from_numpy(several[node])
    single = np.flatnonzero(one[nodes] >= 0)
    result[one[nodes][single], single] = True
    return result


NONE, SEVERAL = -1, -2
"""A node that depends on none, or on several, of the channels that are asked about."""


def _joined(names: list[str]) -> str:
    shown = list(dict.fromkeys(names))
    return " + ".join(shown) if len(shown) <= SHOWN else f"{' + '.join(shown[:SHOWN])} + … ({len(shown)} channels)"
