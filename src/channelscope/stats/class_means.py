"""ClassMeans: counts and means of the channels by class, from which the within-class scatter follows."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from channelscope.errors import ShapeError
from channelscope.stats.moments import Moments
from channelscope.types import Float, Int, Tensor


@dataclass(frozen=True)
class ClassMeans:
    """Number of samples and mean of each class; adds over disjoint sample sets.

    Examples
    --------
    >>> samples, labels = torch.tensor([[0.0], [2.0], [7.0]]), torch.tensor([0, 0, 1])
    >>> classes = ClassMeans.of(samples, labels, 2)
    >>> classes.means.tolist(), classes.within_class_moments(Moments.of(samples)).scatter.tolist()
    ([[1.0], [7.0]], [[2.0]])
    """

    counts: Float[Tensor, "classes"]
    """samples of each class, float64"""
    means: Float[Tensor, "classes channels"]
    """class means, float64; zero rows for classes without samples"""

    @classmethod
    def zero(cls, classes: int, channels: int) -> "ClassMeans":
        """No samples of any class: the neutral element of `+`."""
        return cls(torch.zeros(classes, dtype=torch.float64), torch.zeros(classes, channels, dtype=torch.float64))

    @classmethod
    def of(cls, samples: Float[Tensor, "samples channels"], labels: Tensor, classes: int) -> "ClassMeans":
        """Counts and means of labeled samples.

        Parameters
        ----------
        samples
            One sample per row.
        labels
            Class of each sample, from 0.
        classes
            Number of classes.
        """
        counts = torch.bincount(labels, minlength=classes).double()
        sums = torch.zeros(classes, samples.shape[1], dtype=torch.float64).index_add_(0, labels, samples.double())
        return cls(counts, sums / counts.clamp(min=1)[:, None])

    def __add__(self, other: "ClassMeans") -> "ClassMeans":
        """Counts and means of the union of two disjoint sample sets."""
        if self.means.shape != other.means.shape:
            raise ShapeError(f"cannot add class means of shape {tuple(self.means.shape)} and {tuple(other.means.shape)}")
        counts = self.counts + other.counts
        share = torch.where(counts > 0, other.counts / counts.clamp(min=1), 0.0)[:, None]
        return ClassMeans(counts, self.means + (other.means - self.means) * share)

    def within_class_moments(self, total: Moments) -> Moments:
        """Moments of the samples minus their class means: the pooled within-class scatter.

        Parameters
        ----------
        total
            Moments of the same samples.
        """
        away = (self.means - total.mean) * self.counts.sqrt()[:, None]
        return Moments(total.count, torch.zeros_like(total.mean), total.scatter - away.T @ away)


class ClassMeansAccumulator:
    """Class means of many sites and shards, added batch by batch; memory is allocated for the classes that occur."""

    def __init__(self, classes: int, shards: int):
        self.classes = classes
        self.counts = torch.zeros(shards * classes, dtype=torch.float64)
        self._place = torch.full((shards * classes,), -1)
        self._sums: dict[str, tuple[Tensor, Tensor]] = {}

    def add(self, owners: Int[Tensor, "images"], labels: Int[Tensor, "images"], pooled: Mapping[str, Tensor]) -> None:
        """Add a batch.

        Parameters
        ----------
        owners
            Shard of each image.
        labels
            Class of each image.
        pooled
            Samples (images, channels) of every site.
        """
        keys = owners.cpu() * self.classes + labels.cpu()
        fresh = keys[self._place[keys] < 0].unique()
        used = int((self._place >= 0).sum())
        self._place[fresh] = torch.arange(used, used + len(fresh))
        self.counts += torch.bincount(keys, minlength=len(self.counts))
        for name, samples in pooled.items():
            rows = samples.double()
            origin, sums = self._sums.get(name, (rows.mean(0), rows.new_zeros(0, rows.shape[1])))
            if used + len(fresh) > len(sums):
                sums = torch.cat([sums, sums.new_zeros(used + 2 * len(fresh) - len(sums), sums.shape[1])])
            self._sums[name] = (origin, sums.index_add_(0, self._place[keys].to(rows.device), rows - origin))

    def of(self, name: str, shard: int, channels: int) -> ClassMeans:
        """Class means of one site and shard."""
        result = ClassMeans.zero(self.classes, channels)
        rows = slice(shard * self.classes, (shard + 1) * self.classes)
        result.counts.copy_(self.counts[rows])
        present = result.counts > 0
        if bool(present.any()):
            origin, sums = self._sums[name]
            result.means[present] = (
                origin + sums[self._place[rows][present].to(sums.device)] / result.counts[present, None].to(sums.device)
            ).cpu()
        return result
