"""Union: channels that are removed together, and those that cannot be removed, with the reason."""

from collections.abc import Iterable

import torch
from torch import Tensor

from channelscope.network.labeling.labels import FIXED, PARAMETERS, channels_in, compact


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
