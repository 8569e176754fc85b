"""Variance: the variance over images of each entry of a tensor; it adds over any partition of the images."""

from dataclasses import dataclass

import torch

from channelscope.errors import ShapeError
from channelscope.types import Float, Tensor


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
