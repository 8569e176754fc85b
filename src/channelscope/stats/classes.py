"""Classes: per-class counts and means of the channels, from which the within-class scatter follows."""

from dataclasses import dataclass

import torch

from channelscope.errors import ShapeError
from channelscope.stats.moments import Moments
from channelscope.types import Float, Tensor


@dataclass(frozen=True)
class Classes:
    """How many samples each class has and where their mean lies; adds over disjoint sample sets."""

    counts: Float[Tensor, "classes"]
    """samples of each class, float64"""
    means: Float[Tensor, "classes channels"]
    """class means, float64; zero rows for classes without samples"""

    @classmethod
    def zero(cls, classes: int, channels: int) -> "Classes":
        """No samples of any class: the neutral element of `+`."""
        return cls(torch.zeros(classes, dtype=torch.float64), torch.zeros(classes, channels, dtype=torch.float64))

    @classmethod
    def of(cls, samples: Float[Tensor, "samples channels"], labels: Tensor, classes: int) -> "Classes":
        """Counts and means of labeled samples."""
        counts = torch.bincount(labels, minlength=classes).double()
        sums = torch.zeros(classes, samples.shape[1], dtype=torch.float64).index_add_(0, labels, samples.double())
        return cls.from_sums(counts, sums, torch.zeros(samples.shape[1]))

    @classmethod
    def from_sums(cls, counts: Float[Tensor, "classes"], sums: Float[Tensor, "classes channels"], origin: Tensor) -> "Classes":
        """Classes from sums of samples measured from `origin` (channels,)."""
        seen = counts[:, None] > 0
        return cls(counts, torch.where(seen, origin.double() + sums / counts.clamp(min=1)[:, None], 0.0))

    def __add__(self, other: "Classes") -> "Classes":
        """Counts and means of the union of two disjoint sample sets."""
        if self.means.shape != other.means.shape:
            raise ShapeError(f"cannot add class means of shape {tuple(self.means.shape)} and {tuple(other.means.shape)}")
        counts = self.counts + other.counts
        share = torch.where(counts > 0, other.counts / counts.clamp(min=1), 0.0)[:, None]
        return Classes(counts, self.means + (other.means - self.means) * share)

    def within(self, total: Moments) -> Moments:
        """Moments of what is left after subtracting each sample's class mean: the pooled within-class scatter."""
        away = (self.means - total.mean) * self.counts.sqrt()[:, None]
        return Moments(total.count, torch.zeros_like(total.mean), total.scatter - away.T @ away)
