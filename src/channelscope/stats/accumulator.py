"""Accumulator: moments of several shards growing batch by batch, in memory that does not grow with the images."""

from collections.abc import Sequence
from typing import TypeAlias

import torch

from channelscope.stats.moments import Moments, centred, gram
from channelscope.types import Float, Tensor

BLOCK = 32768
"""Samples gathered before they are multiplied: merging a shard costs as much as the products of some hundred samples."""
BLOCK_BYTES = 16 * 2**20
"""Most memory the gathered samples of one accumulator take."""

Spans: TypeAlias = Sequence[tuple[int, slice]]
"""Which images of a batch belong to which shard; a batch is sorted by shard."""


class Accumulator:
    """Collects samples of `channels`, and target columns that are the same for all samples of an image.

    A batch is `add`ed, then `close`d: the targets are known when the forward pass has ended. Blocks are centred, multiplied
    in the samples' precision and merged in float64, shard by shard (Chan, Golub, LeVeque 1983).
    """

    def __init__(self, channels: int, targets: int, shards: int):
        self.channels, self.targets = channels, targets
        self._shards: list[Moments | None] = [None] * shards
        self._block = max(256, min(BLOCK, BLOCK_BYTES // (4 * channels)))
        self._samples: list[Tensor] = []
        self._columns: list[Tensor] = []
        self._spans: list[Spans] = []
        self._waiting = self._each = 0

    def add(self, samples: Float[Tensor, "images each channels"], spans: Spans, lent: bool = False) -> None:
        """Take over the samples of a batch; `lent` memory is about to change and is copied, or used up at once."""
        images, self._each, _ = samples.shape
        samples = samples if samples.dtype == torch.float64 else samples.float()
        if not self.targets and images * self._each >= self._block:
            for shard, own in spans:
                self._merge(shard, *_product(samples[own].flatten(0, 1)))
            return
        self._samples.append(samples.clone() if lent else samples)
        self._spans.append(spans)
        self._waiting += images * self._each

    def close(self, columns: Float[Tensor, "images targets"]) -> None:
        """End a batch with its targets; a full block is multiplied."""
        if len(self._columns) < len(self._samples):
            self._columns.append(columns)
        if self._waiting >= self._block:
            self.flush()

    def flush(self) -> None:
        """Merge what is waiting."""
        owned: dict[int, list[tuple[int, slice]]] = {}
        for batch, spans in enumerate(self._spans):
            for shard, own in spans:
                owned.setdefault(shard, []).append((batch, own))
        for shard, parts in owned.items():
            rows = torch.cat([self._samples[batch][own] for batch, own in parts]).flatten(0, 1)
            if self.targets:
                sides = torch.cat([self._columns[batch][own] for batch, own in parts]).to(rows.dtype)
                self._merge(shard, *_joint_product(rows, sides.repeat_interleave(self._each, 0)))
            else:
                self._merge(shard, *_product(rows, out=rows))
        self._samples, self._columns, self._spans, self._waiting = [], [], [], 0

    def _merge(self, shard: int, n: int, mean: Float[Tensor, "d"], product: Float[Tensor, "d d"]) -> None:
        """Add a block to a shard, in place: this runs for every site, shard and block."""
        total = self._shards[shard]
        if total is None:
            self._shards[shard] = Moments(float(n), mean, product.double())
            return
        count = total.count + n
        gap = mean - total.mean
        slope = gap.to(product.dtype)
        total.scatter.add_(product.addr_(slope, slope, alpha=total.count * n / count))
        self._shards[shard] = Moments(count, total.mean + gap * (n / count), total.scatter)

    def finish(self) -> list[Moments]:
        """Moments of every shard, channels first, then targets."""
        self.flush()
        d = self.channels + self.targets
        return [Moments.zero(d) if part is None else Moments(part.count, part.mean.cpu(), part.scatter.cpu()) for part in self._shards]


def _product(rows: Float[Tensor, "samples d"], out: Tensor | None = None) -> tuple[int, Float[Tensor, "d"], Float[Tensor, "d d"]]:
    """Number, mean and scatter of a block, the scatter in the samples' precision; `out` may be the rows themselves."""
    away, mean, rest = centred(rows, out)
    return len(rows), mean, gram(away).addr_(rest, rest, alpha=-1 / len(rows))


def _joint_product(
    rows: Float[Tensor, "samples channels"], sides: Float[Tensor, "samples targets"]
) -> tuple[int, Float[Tensor, "d"], Float[Tensor, "d d"]]:
    """The same for rows joined with side columns; the rows are overwritten."""
    (away, mean, rest), (aside, side_mean, side_rest) = centred(rows, rows), centred(sides)
    n, c, rest = len(rows), rows.shape[1], torch.cat([rest, side_rest])
    product = rows.new_empty(len(rest), len(rest))
    gram(away, product[:c, :c])
    product[c:, :c] = aside.T @ away
    product[:c, c:] = product[c:, :c].T
    product[c:, c:] = aside.T @ aside
    return n, torch.cat([mean, side_mean]), product.addr_(rest, rest, alpha=-1 / n)
