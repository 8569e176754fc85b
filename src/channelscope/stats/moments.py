"""Moments: count, mean and centred scatter of a set of samples; they add, whatever the partition."""

from dataclasses import dataclass

import torch

from channelscope.errors import ShapeError
from channelscope.types import Float, Index, Tensor

SPLIT = 256
"""Coordinates from which on a symmetric product is cheaper in four blocks, one of them copied."""

NEAR = 256
"""Rows from which a mean is guessed before it is known."""


@dataclass(frozen=True)
class Moments:
    """Sufficient statistics of second order over some samples.

    `+` merges disjoint sample sets, `[]` keeps some coordinates. Nothing here assumes a distribution.
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
        """Moments of a block of samples: centred first, multiplied in the samples' precision (at least float32).

        Source   Chan, Golub, LeVeque 1983; checked by tests/pencil.py::moments
        """
        rows = samples if samples.dtype == torch.float64 else samples.float()
        if len(rows) == 0:
            return cls.zero(rows.shape[1])
        point = near(rows)
        away = rows - point
        rest = away.sum(0)
        rest = rest.double()
        scatter = gram(away).double().addr_(rest, rest, alpha=-1 / len(rows))
        return cls(float(len(rows)), point.double() + rest / len(rows), scatter)

    def __add__(self, other: "Moments") -> "Moments":
        """Moments of the union of two disjoint sample sets (Chan, Golub, LeVeque 1983)."""
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
        """Moments of factor · y + shift, coordinate by coordinate."""
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


def near(rows: Float[Tensor, "samples d"]) -> Float[Tensor, "d"]:
    """A point near the mean, from some hundred of the rows: samples are measured from it, and sums put right what it misses."""
    return rows[:: len(rows) // NEAR | 1].mean(0)  # an odd step meets every column of a map


def gram(rows: Float[Tensor, "samples d"], out: Float[Tensor, "d d"] | None = None) -> Float[Tensor, "d d"]:
    """rows' rows, each off-diagonal block computed once."""
    d = rows.shape[1]
    out = rows.new_empty(d, d) if out is None else out
    if d < SPLIT:
        product = (rows.T @ rows).triu_()  # BLAS does not promise that the two triangles agree
        return torch.add(product, product.triu(1).T, out=out)
    half = d // 128 * 64  # blocks that begin at whole cache lines
    left, right = rows[:, :half], rows[:, half:]
    gram(left, out[:half, :half])
    gram(right, out[half:, half:])
    out[:half, half:] = left.T @ right
    out[half:, :half] = out[:half, half:].T
    return out
