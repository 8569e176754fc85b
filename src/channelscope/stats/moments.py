"""Moments: count, mean and centred scatter of samples; they add over any partition of the samples, and so does Variance, entry by entry."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from channelscope.errors import ShapeError
from channelscope.types import Float, Index, Tensor

BLOCKED_FROM = 256
"""Coordinates from which on a symmetric product is cheaper in four blocks, one of them copied."""

MEAN_SAMPLE = 256
"""Rows from which a mean is guessed before it is known."""


@dataclass(frozen=True)
class Moments:
    """Count, mean and scatter of some samples.

    `+` merges disjoint sample sets, `[]` keeps some coordinates. Nothing here assumes a distribution.

    Examples
    --------
    >>> one, other = Moments.of(torch.tensor([[0.0], [2.0]])), Moments.of(torch.tensor([[7.0]]))
    >>> (one + other).mean.tolist(), (one + other).scatter.tolist()
    ([3.0], [[26.0]])
    """

    count: float
    """number of samples"""
    mean: Float[Tensor, "d"]
    """sample mean, float64"""
    scatter: Float[Tensor, "d d"]
    """sum over samples of (y − mean)(y − mean)', float64, not divided by anything"""

    @classmethod
    def zero(cls, d: int) -> "Moments":
        """Moments of no samples: the neutral element of `+`."""
        return cls(0.0, torch.zeros(d, dtype=torch.float64), torch.zeros(d, d, dtype=torch.float64))

    @classmethod
    def of(cls, samples: Float[Tensor, "samples d"]) -> "Moments":
        """Moments of a block of samples, multiplied in the samples' own precision (at least float32).

        Parameters
        ----------
        samples
            One sample per row.

        Returns
        -------
        Moments
            Float64.

        References
        ----------
        Chan, Golub, LeVeque 1983. Checked against tests/pencil.py::moments.
        """
        rows = samples if samples.dtype == torch.float64 else samples.float()
        if len(rows) == 0:
            return cls.zero(rows.shape[1])
        origin = approximate_mean(rows)
        centred = rows - origin
        remainder = centred.sum(0)
        remainder = remainder.double()
        scatter = gram(centred).double().addr_(remainder, remainder, alpha=-1 / len(rows))
        return cls(float(len(rows)), origin.double() + remainder / len(rows), scatter)

    def __add__(self, other: "Moments") -> "Moments":
        """Moments of the union of two disjoint sample sets.

        Raises
        ------
        ShapeError
            If they have different numbers of coordinates.

        References
        ----------
        Chan, Golub, LeVeque 1983.
        """
        if self.mean.shape != other.mean.shape:
            raise ShapeError(f"cannot add moments of {len(self.mean)} and {len(other.mean)} coordinates")
        count = self.count + other.count
        if count == 0:
            return self
        gap = other.mean - self.mean
        mean = self.mean + gap * (other.count / count)
        scatter = (self.scatter + other.scatter).addr_(gap, gap, alpha=self.count * other.count / count)
        return Moments(count, mean, scatter)

    def __getitem__(self, index: Index) -> "Moments":
        """Moments of some coordinates; indexing commutes with measuring."""
        return Moments(self.count, self.mean[index], self.scatter[index][:, index])

    def scaled(self, factor: Float[Tensor, "d"], shift: Float[Tensor, "d"]) -> "Moments":
        """Moments of factor · y + shift, coordinate by coordinate; both (d,)."""
        return Moments(self.count, self.mean * factor + shift, self.scatter * torch.outer(factor, factor))

    def __len__(self) -> int:
        """Number of coordinates."""
        return len(self.mean)

    @property
    def covariance(self) -> Float[Tensor, "d d"]:
        """Scatter divided by the count (maximum likelihood)."""
        return self.scatter / self.count

    @property
    def variance(self) -> Float[Tensor, "d"]:
        """Diagonal of `covariance`."""
        return self.scatter.diagonal() / self.count


def approximate_mean(rows: Float[Tensor, "samples d"]) -> Float[Tensor, "d"]:
    """Mean of some hundred evenly spaced rows, a point near the mean of all.

    Samples are measured from it, so that products in float32 keep their digits; sums correct the difference from the mean.

    Parameters
    ----------
    rows
        One sample per row.

    Returns
    -------
    Tensor
        (d,), in the precision of the rows.

    Examples
    --------
    >>> approximate_mean(torch.tensor([[0.0, 1.0], [2.0, 3.0]])).tolist()
    [1.0, 2.0]
    """
    return rows[:: len(rows) // MEAN_SAMPLE | 1].mean(0)  # an odd step meets every column of a map


def gram(rows: Float[Tensor, "samples d"], out: Float[Tensor, "d d"] | None = None) -> Float[Tensor, "d d"]:
    """Gram matrix rows' rows, with each off-diagonal block computed once.

    Parameters
    ----------
    rows
        One sample per row.
    out
        Where to write the result.

    Returns
    -------
    Tensor
        (d, d), exactly symmetric, in the precision of the rows.

    Examples
    --------
    >>> gram(torch.tensor([[1.0, 2.0], [3.0, 4.0]])).tolist()
    [[10.0, 14.0], [14.0, 20.0]]
    """
    d = rows.shape[1]
    out = rows.new_empty(d, d) if out is None else out
    if d < BLOCKED_FROM:
        product = (rows.T @ rows).triu_()  # BLAS does not promise that the two triangles agree
        return torch.add(product, product.triu(1).T, out=out)
    half = d // 128 * 64  # blocks that begin at whole cache lines
    left, right = rows[:, :half], rows[:, half:]
    gram(left, out[:half, :half])
    gram(right, out[half:, half:])
    out[:half, half:] = left.T @ right
    out[half:, :half] = out[:half, half:].T
    return out


BLOCK = 32768
"""Samples gathered before they are multiplied: adding to a shard costs as much as the products of some hundred samples."""

BLOCK_BYTES = 16 * 2**20
"""Most memory the gathered samples of one accumulator take."""

ShardSlices: TypeAlias = Sequence[tuple[int, slice]]
"""Which images of a batch belong to which shard; a batch is sorted by shard."""


class MomentsAccumulator:
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
        self._origin = self._target_origin = torch.empty(0)
        self._block = max(256, min(BLOCK, BLOCK_BYTES // (4 * channels)))
        self._samples: list[Tensor] = []
        self._columns: list[Tensor] = []
        self._spans: list[ShardSlices] = []
        self._waiting = self._samples_per_image = 0

    def add(self, samples: Float[Tensor, "images each channels"], spans: ShardSlices, lent: bool = False) -> None:
        """Take over the samples of a batch; `lent` memory is about to change and is copied, or used up at once."""
        images, self._samples_per_image, _ = samples.shape
        samples = samples if samples.dtype == torch.float64 else samples.float()
        if not len(self._origin):
            self._origin = approximate_mean(samples.flatten(0, 1))
        if not self.targets and images * self._samples_per_image >= self._block:
            for shard, rows in spans:
                centred = samples[rows].flatten(0, 1) - self._origin
                self._merge(shard, len(centred), centred.sum(0), gram(centred))
            return
        self._samples.append(samples.clone() if lent else samples)
        self._spans.append(spans)
        self._waiting += images * self._samples_per_image

    def close(self, columns: Float[Tensor, "images targets"]) -> None:
        """End a batch with its targets; a full block is multiplied."""
        if len(self._columns) < len(self._samples):
            if not len(self._target_origin):
                self._target_origin = approximate_mean(columns.to(self._samples[0].dtype))
            self._columns.append(columns)
        if self._waiting >= self._block:
            self.flush()

    def flush(self) -> None:
        """Multiply and add what is waiting."""
        by_shard: dict[int, list[tuple[int, slice]]] = {}
        for batch, spans in enumerate(self._spans):
            for shard, rows in spans:
                by_shard.setdefault(shard, []).append((batch, rows))
        for shard, parts in by_shard.items():
            centred = torch.cat([self._samples[batch][rows] for batch, rows in parts]).sub_(self._origin).flatten(0, 1)
            if self.targets:
                targets_of_rows = torch.cat([self._columns[batch][rows] for batch, rows in parts]).to(centred.dtype) - self._target_origin
                self._merge(shard, len(centred), *_joint_products(centred, targets_of_rows.repeat_interleave(self._samples_per_image, 0)))
            else:
                self._merge(shard, len(centred), centred.sum(0), gram(centred))
        self._samples, self._columns, self._spans, self._waiting = [], [], [], 0

    def _merge(self, shard: int, n: int, sums: Float[Tensor, "d"], product: Float[Tensor, "d d"]) -> None:
        """Add a block to a shard, in place: this runs for every site, shard and block."""
        self._counts[shard] += n
        sums_before, products = self._sums[shard], self._products[shard]
        self._sums[shard] = sums.double() if sums_before is None else sums_before.add_(sums)
        self._products[shard] = product.double() if products is None else products.add_(product)

    def finish(self) -> list[Moments]:
        """Moments of every shard, channels first, then targets; more may be added afterwards."""
        self.flush()
        return [self._moments(*part) for part in zip(self._counts, self._sums, self._products, strict=True)]

    def _moments(self, n: int, sums: Tensor | None, product: Tensor | None) -> Moments:
        if sums is None or product is None:
            return Moments.zero(self.channels + self.targets)
        origin = torch.cat([self._origin, self._target_origin]) if self.targets else self._origin
        scatter = torch.addr(product, sums, sums, alpha=-1 / n)
        return Moments(float(n), (origin.double() + sums / n).cpu(), scatter.cpu())


def _joint_products(
    samples: Float[Tensor, "samples channels"], targets: Float[Tensor, "samples targets"]
) -> tuple[Float[Tensor, "d"], Float[Tensor, "d d"]]:
    """Sums and products of rows joined with side columns."""
    c = samples.shape[1]
    product = samples.new_empty(c + targets.shape[1], c + targets.shape[1])
    gram(samples, product[:c, :c])
    product[c:, :c] = targets.T @ samples
    product[:c, c:] = product[c:, :c].T
    product[c:, c:] = targets.T @ targets
    return torch.cat([samples.sum(0), targets.sum(0)]), product


@dataclass(frozen=True)
class Variance:
    """Count, mean and centred sum of squares of every entry over some images; `+` merges disjoint image sets.

    Examples
    --------
    >>> variance = Variance.of(torch.tensor([[0.0, 1.0], [2.0, 1.0]])) + Variance.of(torch.tensor([[4.0, 1.0]]))
    >>> variance.mean.tolist(), round(variance.total, 3)
    ([2.0, 1.0], 2.667)
    """

    count: int
    """number of images"""
    mean: Float[Tensor, "..."]
    """mean of each entry, float64"""
    scatter: Float[Tensor, "..."]
    """sum over images of the squared distance from the mean, entry by entry, float64"""

    @classmethod
    def of(cls, batch: Float[Tensor, "images ..."]) -> "Variance":
        """The variance within one batch, images first."""
        values = batch.detach().double()
        mean = values.mean(0)
        return cls(len(batch), mean, (values - mean).square().sum(0))

    def __add__(self, other: "Variance") -> "Variance":
        """The variance over the images of both (Chan, Golub, LeVeque 1983)."""
        if self.mean.shape != other.mean.shape:
            raise ShapeError(f"cannot add variances of shapes {tuple(self.mean.shape)} and {tuple(other.mean.shape)}")
        count = self.count + other.count
        gap = other.mean - self.mean
        scatter = self.scatter + other.scatter + gap.square() * (self.count * other.count / count)
        return Variance(count, self.mean + gap * (other.count / count), scatter)

    @property
    def each(self) -> Float[Tensor, "..."]:
        """Variance of each entry (divided by the count)."""
        return self.scatter / self.count

    @property
    def total(self) -> float:
        """Sum of the variances of all entries: the trace of the covariance, mean squared distance from the mean."""
        return float(torch.sum(self.each))
