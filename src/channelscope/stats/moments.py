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
        if len(rows) == 0:
            return cls.zero(rows.shape[1])
        mean = rows.mean(0, dtype=torch.float64)
        centred = rows - mean.to(rows.dtype)
        residue = centred.sum(0, dtype=torch.float64)  # what rounding the mean left behind
        scatter = (centred.T @ centred).double() - torch.outer(residue, residue) / len(rows)
        return cls(float(len(rows)), mean, scatter)

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
