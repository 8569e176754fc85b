"""Removal: what is left of labels, values and parameters when some channels go."""

from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from channelscope.errors import InputError, MismatchError
from channelscope.network.labeling.labels import FREE, PARAMETERS, channels_in, compact

if TYPE_CHECKING:
    from channelscope.network.labeling.labeled_graph import LabeledGraph


class Removal:
    """Some channels of a network that go, and what follows from that.

    Parameters
    ----------
    graph
        The labeled graph of the network.
    gone
        Which channel numbers go, bool (all channels,).

    Raises
    ------
    InputError
        If a channel cannot be removed, a group is split, or a layer would lose all its inputs or outputs.
    """

    def __init__(self, graph: "LabeledGraph", gone: Tensor):
        self.graph = graph
        self.gone = gone.cpu()
        self._sources: dict[str, Tensor] = {}
        self._indices: dict[int, tuple[Tensor, list[Tensor]]] = {}
        self._check()

    def _check(self) -> None:
        graph = self.graph
        roots = graph.union.roots(torch.arange(len(self.gone))).tolist()
        marks = self.gone.tolist()
        lost: dict[int, bool] = {}
        for name, (start, count) in graph.sites.items():
            for number in range(start, start + count):
                root, here = roots[number], marks[number]
                if here and root in graph.union.held:
                    raise InputError(f"channel {number - start} of {name} cannot be removed: {graph.union.held[root]}")
                if lost.setdefault(root, here) != here:
                    raise InputError(f"channel {number - start} of {name} goes with others that are kept: remove all of a group or none")
        for layer in graph.layers:
            for numbers, what in ((layer.inputs, "inputs"), (layer.outputs, "outputs")):
                if bool(self.removed(numbers).all()):
                    raise InputError(f"all {what} of {layer.name} would go: keep at least one")

        for numbers, place in graph.parts.items():
            if bool(self.gone[list(numbers)].all()):
                raise InputError(f"nothing would be left of what {place} takes: keep at least one channel of it")

    def removed(self, labels: Tensor) -> Tensor:
        """Which elements of some labels go: bool, in their shape."""
        short = compact(labels)
        result = torch.zeros(short.shape, dtype=torch.bool)
        marks = channels_in(short)
        result[marks] = self.gone[short[marks]]
        if bool((short >= PARAMETERS).any()):
            for source, mark in self.graph.sources.holding(short):
                result[mark] = self.of_source(source.name).flatten()[short[mark] - source.base]
        return result.expand(labels.shape)

    def of_source(self, name: str) -> Tensor:
        """Which elements of a parameter, buffer or computed weight go: bool, in its shape."""
        if name not in self._sources:
            source = self.graph.sources[name]
            self._sources[name] = torch.ones(source.value.shape, dtype=torch.bool)  # while it is found out, for parameters that follow it
            self._sources[name] = source.removed(self.removed)
        return self._sources[name]

    def slices(self, removed: Tensor, free: Tensor | None = None) -> list[Tensor]:
        """Indices kept along each axis.

        Raises
        ------
        MismatchError
            If what goes is not made of whole slices.
        """
        keep = []
        for axis in range(removed.dim()):
            rows = removed.movedim(axis, 0).flatten(1) if removed.dim() > 1 else removed[:, None]
            every = rows
            if free is not None:
                every = rows | (free.movedim(axis, 0).flatten(1) if free.dim() > 1 else free[:, None])
            keep.append((~(every.all(1) & rows.any(1))).nonzero().flatten() if prod(rows.shape) else torch.arange(len(rows)))
        rest = removed
        for axis, index in enumerate(keep):
            rest = rest.index_select(axis, index)
        if bool(rest.any()):
            raise MismatchError("what would be removed is not made of whole slices; please report the network")
        return keep

    def indices(self, labels: Tensor) -> list[Tensor]:
        """Indices kept along each axis of a value with these labels."""
        known = self._indices.get(id(labels))
        if known is None:
            short = compact(labels)
            keep = self.slices(self.removed(short), short == FREE)
            sizes = zip(keep, short.shape, labels.shape, strict=True)
            known = labels, [index if size == length else torch.arange(length) for index, size, length in sizes]
            self._indices[id(labels)] = known  # with the labels, so that no others get their id
        return known[1]

    def shape(self, labels: Tensor) -> tuple[int, ...]:
        """Shape that is left of a value with these labels."""
        return tuple(len(index) for index in self.indices(labels))

    def restricted(self, value: Any, labels: Any) -> Any:
        """What is left of a value."""
        if isinstance(value, Tensor) and isinstance(labels, Tensor) and value.shape == labels.shape:
            for axis, index in enumerate(self.indices(labels)):
                if len(index) < value.shape[axis]:
                    value = value.index_select(axis, index.to(value.device))
        return value

    def masked(self, value: Any, labels: Any) -> Any:
        """A value with zeros in the place of what goes."""
        if isinstance(value, Tensor) and isinstance(labels, Tensor) and value.is_floating_point():
            numbers = compact(labels)
            lost = self.removed(torch.where(numbers >= PARAMETERS, FREE, numbers))
            if bool(lost.any()):
                return value.masked_fill(lost.expand(value.shape).to(value.device), 0)
        return value

    def is_awake(self, value: Tensor, labels: Tensor) -> bool:
        """Whether something other than zero is in the place of what goes."""
        short = compact(labels)
        gone = self.removed(torch.where(short >= PARAMETERS, FREE, short))
        if not bool(gone.any()):
            return False
        axes = [axis for axis, size in enumerate(short.shape) if size > 1]
        if len(axes) == 1:
            return bool((value.index_select(axes[0], gone.flatten().nonzero().flatten().to(value.device)) != 0).any())
        return bool((value.masked_fill(~gone.to(value.device), 0) != 0).any())

    def parameter(self, name: str, value: Tensor) -> Tensor | None:
        """What is left of a parameter or buffer with this value, a new tensor; None where nothing of it goes."""
        kept = self._kept_slices(name)
        if all(len(index) == size for index, size in zip(kept, value.shape, strict=True)):
            return None
        for axis, index in enumerate(kept):
            if len(index) < value.shape[axis]:
                value = value.index_select(axis, index.to(value.device))
        return value.contiguous()

    def _kept_slices(self, name: str) -> list[Tensor]:
        """Indices kept along each axis of a parameter or buffer."""
        source = self.graph.sources[name]
        axes = source.axes()
        if axes is None:
            return self.slices(self.of_source(name))
        kept = [torch.arange(size) for size in source.value.shape]
        for axis, labels in axes.items():
            kept[axis] = (~self.removed(labels)).nonzero().flatten()
        return kept
