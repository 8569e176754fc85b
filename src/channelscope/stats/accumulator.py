"""Accumulator: moments of several shards growing batch by batch, in memory that does not grow with the images."""

from collections.abc import Sequence
from typing import TypeAlias

import torch

from channelscope.stats.moments import Moments, gram, near
from channelscope.types import Float, Tensor

BLOCK = 32768
"""Samples gathered before they are multiplied: adding to a shard costs as much as the products of some hundred samples."""
BLOCK_BYTES = 16 * 2**20
"""Most memory the gathered samples of one accumulator take."""

Spans: TypeAlias = Sequence[tuple[int, slice]]
"""Which images of a batch belong to which shard; a batch is sorted by shard."""


class Accumulator:
    """Collects samples of `channels`, and target columns that are the same for all samples of an image.

    A batch is `add`ed, then `close`d: the targets are known when the forward pass has ended. Samples are measured from one
    point, the mean of the first of them, multiplied in their own precision and summed in float64; `finish` moves the
    moments from that point to each shard's mean.
    """

    def __init__(self, channels: int, targets: int, shards: int):
        self.channels, self.targets = channels, targets
        self._counts = [0] * shards
        self._sums: list[Tensor | None] = [None] * shards
        self._products: list[Tensor | None] = [None] * shards
        self._origin = self._aside = torch.empty(0)
        self._block = max(256, min(BLOCK, BLOCK_BYTES // (4 * channels)))
        self._samples: list[Tensor] = []
        self._columns: list[Tensor] = []
        self._spans: list[Spans] = []
        self._waiting = self._each = 0

    def add(self, samples: Float[Tensor, "images each channels"], spans: Spans, lent: bool = False) -> None:
        """Take over the samples of a batch; `lent` memory is about to change and is copied, or used up at once."""
        images, self._each, _ = samples.shape
        samples = samples if samples.dtype == torch.float64 else samples.float()
        if not len(self._origin):
            self._origin = near(samples.flatten(0, 1))
        if not self.targets and images * self._each >= self._block:
            for shard, own in spans:
                away = samples[own].flatten(0, 1) - self._origin
                self._merge(shard, len(away), away.sum(0), gram(away))
            return
        self._samples.append(samples.clone() if lent else samples)
        self._spans.append(spans)
        self._waiting += images * self._each

    def close(self, columns: Float[Tensor, "images targets"]) -> None:
        """End a batch with its targets; a full block is multiplied."""
        if len(self._columns) < len(self._samples):
            if not len(self._aside):
                self._aside = near(columns.to(self._samples[0].dtype))
            self._columns.append(columns)
        if self._waiting >= self._block:
            self.flush()

    def flush(self) -> None:
        """Multiply and add what is waiting."""
        owned: dict[int, list[tuple[int, slice]]] = {}
        for batch, spans in enumerate(self._spans):
            for shard, own in spans:
                owned.setdefault(shard, []).append((batch, own))
        for shard, parts in owned.items():
            away = torch.cat([self._samples[batch][own] for batch, own in parts]).sub_(self._origin).flatten(0, 1)
            if self.targets:
                sides = torch.cat([self._columns[batch][own] for batch, own in parts]).to(away.dtype) - self._aside
                self._merge(shard, len(away), *_joined(away, sides.repeat_interleave(self._each, 0)))
            else:
                self._merge(shard, len(away), away.sum(0), gram(away))
        self._samples, self._columns, self._spans, self._waiting = [], [], [], 0

    def _merge(self, shard: int, n: int, sums: Float[Tensor, "d"], product: Float[Tensor, "d d"]) -> None:
        """Add a block to a shard, in place: this runs for every site, shard and block."""
        self._counts[shard] += n
        old, whole = self._sums[shard], self._products[shard]
        self._sums[shard] = sums.double() if old is None else old.add_(sums)
        self._products[shard] = product.double() if whole is None else whole.add_(product)

    def finish(self) -> list[Moments]:
        """Moments of every shard, channels first, then targets; more may be added afterwards."""
        self.flush()
        return [self._moments(*part) for part in zip(self._counts, self._sums, self._products, strict=True)]

    def _moments(self, n: int, sums: Tensor | None, product: Tensor | None) -> Moments:
        if sums is None or product is None:
            return Moments.zero(self.channels + self.targets)
        origin = torch.cat([self._origin, self._aside]) if self.targets else self._origin
        scatter = torch.addr(product, sums, sums, alpha=-1 / n)
        return Moments(float(n), (origin.double() + sums / n).cpu(), scatter.cpu())


def _joined(
    away: Float[Tensor, "samples channels"], aside: Float[Tensor, "samples targets"]
) -> tuple[Float[Tensor, "d"], Float[Tensor, "d d"]]:
    """Sums and products of rows joined with side columns."""
    c = away.shape[1]
    product = away.new_empty(c + aside.shape[1], c + aside.shape[1])
    gram(away, product[:c, :c])
    product[c:, :c] = aside.T @ away
    product[:c, c:] = product[c:, :c].T
    product[c:, c:] = aside.T @ aside
    return torch.cat([away.sum(0), aside.sum(0)]), product
