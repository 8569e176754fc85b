"""Moments: count, mean and centred scatter of a set of samples; they add, whatever the partition."""

from dataclasses import dataclass

import torch

from channelscope.errors import ShapeError
from channelscope.types import Float, Index, Tensor


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
        return centred(rows.clone())

    def __add__(self, other: "Moments") -> "Moments":
        """Moments of the union of two disjoint sample sets (Chan, Golub, LeVeque 1983)."""
        if self.mean.shape != other.mean.shape:
            raise ShapeError(f"cannot add moments of {len(self.mean)} and {len(other.mean)} coordinates")
        count = self.count + other.count
        if count == 0:
            return self
        gap = other.mean - self.mean
        mean = self.mean + gap * (other.count / count)
        scatter = self.scatter + other.scatter + torch.outer(gap, gap) * (self.count * other.count / count)
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


def centred(rows: Float[Tensor, "samples d"]) -> Moments:
    """Moments of a block of samples whose memory may be overwritten; what rounding the mean left behind is put right."""
    if len(rows) == 0:
        return Moments.zero(rows.shape[1])
    middle = rows.mean(0)
    rows.sub_(middle)
    residue = rows.sum(0)
    scatter = gram(rows).addr_(residue, residue, alpha=-1 / len(rows))
    return Moments(float(len(rows)), middle.double() + residue.double() / len(rows), scatter.double())


def gram(rows: Float[Tensor, "samples d"]) -> Float[Tensor, "d d"]:
    """rows' rows, each off-diagonal block computed once."""
    d = rows.shape[1]
    if d < 256:
        return rows.T @ rows
    half = d // 2
    left, right = rows[:, :half], rows[:, half:]
    product = rows.new_empty(d, d)
    product[:half, :half], product[half:, half:] = gram(left), gram(right)
    product[:half, half:] = left.T @ right
    product[half:, :half] = product[:half, half:].T
    return product
