"""Labels: int64 tensors in the shape of a value that hold, for each element, the number of the channel it belongs to.

`Union` says which channels go together; `Sources` are parameters, buffers and computed weights, and the channels that their
elements go with.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from channelscope.network import nest

if TYPE_CHECKING:
    from channelscope.network.operations.step import Operand

FIXED = -1
"""Number of what cannot be removed: the input image, constants, the outputs of a network."""
FREE = -2
"""Number of what follows any removal by itself, such as the zeros of a padding or a single number."""
PARAMETERS = 1 << 40
"""Numbers from here on are elements of parameters, below it are channels."""


def full(shape: tuple[int, ...], number: int = FIXED) -> Tensor:
    """Labels of this shape that all are the same number; they take no memory.

    Examples
    --------
    >>> full((2, 2)).tolist(), full((1,), 5).tolist()
    ([[-1, -1], [-1, -1]], [5])
    """
    return torch.full((1,) * len(shape), number, dtype=torch.long).expand(shape)


def fixed(value: Any) -> Any:
    """Labels of a value that nothing can be removed from; what is not a tensor stays as it is.

    Examples
    --------
    >>> fixed((torch.rand(2), 3))
    (tensor([-1, -1]), 3)
    """
    return nest.replaced(value, lambda part: full(tuple(part.shape)))


def channels_in(labels: Tensor) -> Tensor:
    """Marks of the elements that belong to a channel: bool, in the shape of the labels.

    Examples
    --------
    >>> channels_in(torch.tensor([FIXED, 0, 4, PARAMETERS])).tolist()
    [False, True, True, False]
    """
    return (labels >= 0) & (labels < PARAMETERS)


def compact(labels: Tensor, axes: tuple[int, ...] | None = None) -> Tensor:
    """The labels with every axis along which they repeat themselves shortened to 1.

    Examples
    --------
    >>> compact(torch.tensor([[4, 4, 4], [7, 7, 7]])).tolist()
    [[4], [7]]
    """
    for axis in range(labels.dim()) if axes is None else axes:
        if labels.shape[axis] > 1:
            first = labels.narrow(axis, 0, 1)
            if labels.stride(axis) == 0 or bool((labels == first).all()):
                labels = first
    return labels


def varying(labels: Tensor) -> list[int]:
    """Axes along which different numbers occur.

    Examples
    --------
    >>> varying(torch.tensor([[4, 4, 4], [7, 7, 7]]))
    [0]
    """
    return [axis for axis, size in enumerate(compact(labels).shape) if size > 1]


def numbers_in(labels: Any) -> Tensor:
    """The channel numbers that occur in a nested value of labels, sorted.

    Examples
    --------
    >>> numbers_in((torch.tensor([7, FIXED]), [torch.tensor([4, 7, PARAMETERS])])).tolist()
    [4, 7]
    """
    parts = [compact(part).flatten() for part in nest.tensors(labels)]
    numbers = torch.cat(parts).unique() if parts else torch.empty(0, dtype=torch.long)
    return numbers[channels_in(numbers)]


class Union:
    """A partition of channel numbers that only grows coarser.

    Examples
    --------
    >>> union = Union()
    >>> numbers = union.add(4)
    >>> union.unite(0, 2)
    >>> union.hold([2], "it leaves the network")
    >>> [union.root(number) for number in range(4)], union.reason(0)
    ([0, 1, 0, 3], 'it leaves the network')
    """

    def __init__(self) -> None:
        self.parent: list[int] = []
        self.held: dict[int, str] = {}
        self.why: dict[int, str] = {}

    def add(self, count: int) -> Tensor:
        """Numbers of new channels, int64 (count,)."""
        start = len(self.parent)
        self.parent += range(start, start + count)
        return torch.arange(start, start + count)

    def root(self, number: int) -> int:
        """The representative of a channel."""
        while self.parent[number] != number:
            self.parent[number] = self.parent[self.parent[number]]
            number = self.parent[number]
        return number

    def reason(self, number: int) -> str:
        """Why a channel cannot be removed; empty when it can."""
        return self.held.get(self.root(number), "")

    def hold(self, labels: Tensor | Iterable[int], reason: str) -> None:
        """Keep these channels and all that go with them."""
        numbers = compact(labels).unique().tolist() if isinstance(labels, Tensor) else labels
        for number in numbers:
            if 0 <= number < PARAMETERS:
                self.held.setdefault(self.root(number), reason)

    def unite(self, a: int, b: int, why: str = "") -> None:
        """Two channels go together; with something FIXED a channel stays."""
        if not (0 <= a < PARAMETERS and 0 <= b < PARAMETERS):
            if FIXED in (a, b):
                self.hold([a, b], why or "it meets something that cannot be removed")
            return
        a, b = self.root(a), self.root(b)
        if a != b:
            for table in (self.held, self.why):
                if b in table:
                    table.setdefault(a, table[b])
                    del table[b]
            if why:
                self.why.setdefault(a, why)
            self.parent[b] = a

    def unite_all(self, labels: Tensor, why: str) -> None:
        """All of these go together; if something FIXED is among them they stay."""
        numbers = labels.unique().tolist()
        channels = [number for number in numbers if 0 <= number < PARAMETERS]
        for number in channels[1:]:
            self.unite(channels[0], number, why)
        if channels and FIXED in numbers:
            self.hold(channels[:1], why)

    def roots(self, labels: Tensor) -> Tensor:
        """The labels with each channel replaced by its representative."""
        numbers, inverse = labels.unique(return_inverse=True)
        marks = channels_in(numbers).tolist()
        roots = [self.root(number) if mark else number for number, mark in zip(numbers.tolist(), marks, strict=True)]
        return torch.tensor(roots, dtype=torch.long)[inverse].view(labels.shape) if len(roots) else labels


Gone = Callable[[Tensor], Tensor]
"""Labels → which of them are removed, bool in the same shape."""
ADOPTED = "slices shared with channels"
"""The use of elements that lie in one slice with channels, such as a class token beside the others."""


@dataclass(frozen=True, eq=False)
class Axis:
    """Slices along one axis go with one channel each."""

    axis: int
    labels: Tensor
    """int64 (slices,)"""


@dataclass(frozen=True, eq=False)
class Pairs:
    """Elements go with channels, or with elements of other parameters; an element stays as long as one of its partners does."""

    elements: Tensor
    """int64 (pairs,): positions in the flattened parameter"""
    partners: Tensor
    """int64 (pairs,)"""


@dataclass(eq=False)
class Source:
    """A tensor that can be cut."""

    name: str
    """path of the parameter or buffer, or the name of the step that computes it"""
    value: Tensor
    base: int
    """number of its first element"""
    node: fx.Node | None = None
    """the step that computes it; None for a parameter or buffer"""
    uses: dict[str, list[Axis | Pairs]] = field(default_factory=dict)
    """step → how the parameter is cut there; of several statements for one step each removes"""

    def numbers(self) -> Tensor:
        """One number for each element, in the shape of the value."""
        return torch.arange(self.base, self.base + self.value.numel()).view(self.value.shape)

    def removed(self, gone: Gone) -> Tensor:
        """Which elements are removed, bool in the shape of the value."""
        alive, named = (torch.zeros(self.value.shape, dtype=torch.bool) for _ in range(2))
        for statements in self.uses.values():
            here, there = (torch.zeros(self.value.shape, dtype=torch.bool) for _ in range(2))
            for each in statements:
                mark, lost = self._by(each, gone)
                here |= mark
                there |= lost
            named |= here
            alive |= here & ~there
        return named & ~alive

    def axes(self) -> dict[int, Tensor] | None:
        """Axis → channels that its slices go with, of a parameter used by one step that names each axis at most once; else None."""
        if len(self.uses) != 1:
            return None
        (statements,) = self.uses.values()
        found = {each.axis: each.labels for each in statements if isinstance(each, Axis)}
        return found if len(found) == len(statements) else None

    def _by(self, each: Axis | Pairs, gone: Gone) -> tuple[Tensor, Tensor]:
        """Which elements a statement is about, and which of them it removes."""
        if isinstance(each, Axis):
            sizes = [1] * self.value.dim()
            sizes[each.axis] = -1
            return torch.ones((), dtype=torch.bool).expand(self.value.shape), gone(each.labels).view(sizes).expand(self.value.shape)
        alive, named = (torch.zeros(self.value.numel(), dtype=torch.bool) for _ in range(2))
        named[each.elements] = True
        alive[each.elements[~gone(each.partners)]] = True
        return named.view(self.value.shape), (named & ~alive).view(self.value.shape)


class Sources:
    """All sources of a network, by name and by the numbers of their elements."""

    def __init__(self) -> None:
        self.found: dict[str, Source] = {}
        self.next = PARAMETERS

    def __getitem__(self, name: str) -> Source:
        """The source of that name."""
        return self.found[name]

    def add(self, name: str, value: Tensor, node: fx.Node | None = None) -> Source:
        """The source of that name, a new one if there is none yet."""
        if name not in self.found:
            self.found[name] = Source(name, value, self.next, node)
            self.next += value.numel()
        return self.found[name]

    def holding(self, numbers: Tensor) -> list[tuple[Source, Tensor]]:
        """The sources that some element numbers belong to, each with the marks of its numbers."""
        if not numbers.numel() or int(numbers.max()) < PARAMETERS:
            return []
        known = numbers >= PARAMETERS
        low, high = int(torch.where(known, numbers, self.next).min()), int(numbers.max())
        between = [each for each in self.found.values() if each.base <= high and each.base + each.value.numel() > low]
        if len(between) == 1:
            return [(between[0], known)]
        marks = [(each, (numbers >= each.base) & (numbers < each.base + each.value.numel())) for each in between]
        return [(each, mark) for each, mark in marks if bool(mark.any())]

    def tie(self, elements: Tensor, partners: Tensor, use: str) -> None:
        """Elements of parameters (by number) go with these partners, pair by pair."""
        for source, mark in self.holding(elements):
            pairs = torch.stack([elements[mark] - source.base, partners[mark]])
            source.uses.setdefault(use, []).append(Pairs(*pairs))

    def follow(self, operand: "Operand", labels: Tensor | None, axis: int, numbers: Tensor, use: str) -> None:
        """Slices of an operand along `axis` go with one channel each; `labels` are those of a computed operand."""
        if labels is None:
            self.found[str(operand.path)].uses.setdefault(use, []).append(Axis(axis, numbers))
            return
        first = int(labels.flatten()[0])
        same = [each for each in self.found.values() if each.base == first and each.value.shape == labels.shape]
        if same and torch.equal(labels, same[0].numbers()):
            same[0].uses.setdefault(use, []).append(Axis(axis, numbers))
            return
        sizes = [1] * labels.dim()
        sizes[axis] = -1
        every = numbers.view(sizes).expand(labels.shape).flatten()
        known = labels.flatten() >= PARAMETERS
        self.tie(labels.flatten()[known], every[known], use)

    def channels(self, numbers: Tensor, seen: tuple[str, ...] = ()) -> Tensor:
        """The numbers with elements of parameters replaced by the channels that they go with, FREE where they go with none."""
        result = numbers.clone()
        for source, mark in self.holding(numbers):
            found = torch.full((source.value.numel(),), FREE)
            if source.name not in seen:
                for each in (each for statements in source.uses.values() for each in statements):
                    if isinstance(each, Pairs):
                        partners = self.channels(each.partners, (*seen, source.name))
                        known = channels_in(partners)
                        found[each.elements[known]] = partners[known]
                    elif source.value.dim() == 1:
                        found = torch.where(channels_in(each.labels), each.labels, found)
            result[mark] = found[numbers[mark] - source.base]
        return result


def agree(source: Source, sources: Sources, union: Union) -> None:
    """A parameter that is used several times is cut in the same way wherever the uses have elements in common, or kept whole.

    Examples
    --------
    >>> from torch import nn
    >>> from channelscope.network.removal.trial import labeled_graph
    >>> net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(3, 1)).eval()
    >>> graph = labeled_graph(net, torch.ones(1, 1, 1, 1))
    >>> agree(graph.sources.found["0.weight"], graph.sources, graph.union)  # it is used once, so nothing has to agree
    >>> len(graph.groups)
    3
    """
    uses = [_joined(statements) if use == ADOPTED else statements for use, statements in source.uses.items()]
    if len(uses) < 2:
        return
    uses = [[_resolved(each, sources) for each in statements] for statements in uses]
    uses = [statements for statements in uses if not all(isinstance(each, Pairs) and not len(each.elements) for each in statements)]
    if len(uses) < 2:
        return
    why = f"{source.name} is used in several places"
    tables = [_table(statements, source) for statements in uses]
    if any(table is None for table in tables):
        for statements in uses:
            for each in statements:
                union.hold(each.labels if isinstance(each, Axis) else each.partners, why)
        return
    for axis in range(source.value.dim()):
        columns = [table[axis] for table in tables if table is not None]
        for first, other in combinations(columns, 2):
            for a, b in torch.stack([first, other]).unique(dim=1).T.tolist():
                union.unite(a, b, why)


def _resolved(each: Axis | Pairs, sources: Sources) -> Axis | Pairs:
    """A statement in terms of channels; what goes with no channel is left out."""
    if isinstance(each, Axis):
        return each
    partners = sources.channels(each.partners)
    known = partners != FREE
    return Pairs(each.elements[known], partners[known])


def _joined(statements: list[Axis | Pairs]) -> list[Axis | Pairs]:
    pairs = [each for each in statements if isinstance(each, Pairs)]
    return [Pairs(torch.cat([each.elements for each in pairs]), torch.cat([each.partners for each in pairs]))]


def _table(statements: list[Axis | Pairs], source: Source) -> list[Tensor] | None:
    """For each axis of a parameter the channel of each slice, FIXED where there is none, FREE where the slice is not used; None if that
    cannot be said."""
    shape = source.value.shape
    table = [torch.full((size,), FIXED) for size in shape]
    for each in statements:
        if isinstance(each, Axis):
            found: tuple[int, Tensor] | None = (each.axis, each.labels)
        else:
            found = _as_axis(each, tuple(shape))
        if found is None or bool((table[found[0]] != FIXED).any()):
            return None
        table[found[0]] = found[1]
    return table


def _as_axis(pairs: Pairs, shape: tuple[int, ...]) -> tuple[int, Tensor] | None:
    labels = torch.full((int(torch.tensor(shape).prod()),), FREE)
    labels[pairs.elements] = pairs.partners
    if not torch.equal(labels[pairs.elements], pairs.partners) or not bool(channels_in(pairs.partners).all()):
        return None
    fits: list[tuple[int, int, Tensor]] = []
    for axis, size in enumerate(shape):
        slices = labels.view(shape).movedim(axis, 0).reshape(size, -1)
        found = slices.amax(1)
        unused = slices == FREE
        if bool((unused | (slices == found[:, None])).all()):
            fits.append((int((unused & (found != FREE)[:, None]).sum()) + (size == 1), axis, found))
    return min(fits, key=lambda fit: fit[:2])[1:] if fits else None
