"""Labels: int64 tensors in the shape of a value that hold, for each element, the number of the channel it belongs to."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

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


def mapped(function: Callable[[Tensor], Any], value: Any) -> Any:
    """A value with `function` applied to its tensors; containers are rebuilt as tuples, lists and dictionaries.

    Examples
    --------
    >>> mapped(lambda part: part + 1, {"a": torch.tensor(1), "b": (2, [torch.tensor(3)])})
    {'a': tensor(2), 'b': (2, [tensor(4)])}
    """
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, torch.Size):
        return value
    if isinstance(value, list):
        return [mapped(function, part) for part in value]
    if isinstance(value, tuple):
        return tuple(mapped(function, part) for part in value)
    if isinstance(value, Mapping):
        return {name: mapped(function, part) for name, part in value.items()}
    return value


def fixed(value: Any) -> Any:
    """Labels of a value that nothing can be removed from; what is not a tensor stays as it is.

    Examples
    --------
    >>> fixed((torch.rand(2), 3))
    (tensor([-1, -1]), 3)
    """
    return mapped(lambda part: full(tuple(part.shape)), value)


def tensors(value: Any) -> list[Tensor]:
    """The tensors of a nested value, in order.

    Examples
    --------
    >>> tensors({"a": torch.tensor(1), "b": (2, [torch.tensor(3)])})
    [tensor(1), tensor(3)]
    """
    found: list[Tensor] = []
    mapped(found.append, value)
    return found


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
    parts = [compact(part).flatten() for part in tensors(labels)]
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
