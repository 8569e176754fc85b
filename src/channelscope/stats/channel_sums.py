"""ClassMeans, FeatureMapSums, Sensitivity: what is summed over the images of a site besides its moments."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

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

    def __init__(self, classes: int, shards: int, compact: bool = False):
        self.classes, self._type = classes, torch.float32 if compact else torch.float64
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
            rows = samples.to(self._type)
            origin, sums = self._sums.get(name, (rows.mean(0), rows.new_zeros(0, rows.shape[1])))
            if used + len(fresh) > len(sums):
                sums = torch.cat([sums, sums.new_zeros(used + 2 * len(fresh) - len(sums), sums.shape[1])])
            self._sums[name] = (origin, sums.index_add_(0, self._place[keys].to(rows.device), rows - origin))

    def discard(self, name: str) -> None:
        """Give up the sums of one site."""
        self._sums.pop(name, None)

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


@dataclass(frozen=True)
class FeatureMapSums:
    """Sums over images, per channel, of feature-map rank and of channel independence; they add."""

    images: float
    """number of images"""
    rank: Float[Tensor, "channels"]
    """Σ over images of the rank of the channel's H×W map at the cut point"""
    independence: Float[Tensor, "channels"]
    """Σ over images of the drop in nuclear norm of the C×HW matrix of all maps when the channel's row is zeroed"""

    @classmethod
    def zero(cls, channels: int) -> "FeatureMapSums":
        """No images: the neutral element of `+`."""
        return cls(0.0, torch.zeros(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64))

    @classmethod
    def of(cls, maps: Float[Tensor, "images channels height width"]) -> "FeatureMapSums":
        """Ranks and independences of a batch of maps.

        Examples
        --------
        Two equal maps of rank 1: without one of them the nuclear norm falls from √2 · 2 to 2.

        >>> sums = FeatureMapSums.of(torch.ones(1, 2, 2, 2))
        >>> sums.rank.tolist(), [round(value, 3) for value in sums.independence.tolist()]
        ([1.0, 1.0], [0.828, 0.828])

        References
        ----------
        Lin et al. 2020 (HRank); Sui et al. 2021 (CHIP). Checked against tests/pencil_stats.py.
        """
        ranks = torch.linalg.matrix_rank(maps.float()).double().sum(0)
        drops = torch.stack([independence(image.flatten(1)) for image in maps.double()]).sum(0)
        return cls(float(len(maps)), ranks, drops)

    def __add__(self, other: "FeatureMapSums") -> "FeatureMapSums":
        """Sums over the union of two disjoint image sets."""
        return FeatureMapSums(self.images + other.images, self.rank + other.rank, self.independence + other.independence)


def independence(matrix: Float[Tensor, "channels positions"]) -> Float[Tensor, "channels"]:
    """Drop of the nuclear norm when each row in turn is set to zero.

    Parameters
    ----------
    matrix
        One flattened map per row.

    Returns
    -------
    Tensor
        (channels,), at least 0, in the unit of the maps.

    Examples
    --------
    >>> [round(value, 3) for value in independence(torch.diag(torch.tensor([3.0, 4.0], dtype=torch.float64))).tolist()]
    [3.0, 4.0]

    References
    ----------
    Sui et al. 2021, equation 4.
    """
    channels, positions = matrix.shape
    if channels <= positions:
        gram = matrix @ matrix.T
        reduced = gram.expand(channels, -1, -1).clone()
        rows = torch.arange(channels)
        reduced[rows, rows, :] = 0
        reduced[rows, :, rows] = 0
    else:
        gram = matrix.T @ matrix
        reduced = gram - matrix[:, :, None] * matrix[:, None, :]
    return _nuclear(gram) - _nuclear(reduced)


def _nuclear(gram: Tensor) -> Tensor:
    return torch.linalg.eigvalsh(gram).clamp(min=0).sqrt().sum(-1)


@dataclass(frozen=True)
class Sensitivity:
    """Sums over images of s = Σ over positions of value · d loss / d value, per channel, at the read and cut points; they add.

    At the read point the value is the layer's output without its bias, so that s is exactly the inner product of the
    channel's weights with their gradient for that image.

    Examples
    --------
    >>> sums = Sensitivity.of(torch.tensor([[1.0], [-3.0]]), torch.tensor([[2.0], [2.0]]))
    >>> sums.images, sums.read.tolist(), sums.read_absolute.tolist(), sums.cut_square.tolist()
    (2.0, [-2.0], [4.0], [8.0])
    """

    images: float
    """number of images"""
    read: Float[Tensor, "channels"]
    """Σ s at the read point"""
    read_absolute: Float[Tensor, "channels"]
    """Σ |s| at the read point"""
    read_square: Float[Tensor, "channels"]
    """Σ s² at the read point"""
    cut: Float[Tensor, "channels"]
    """Σ s at the cut point"""
    cut_absolute: Float[Tensor, "channels"]
    """Σ |s| at the cut point"""
    cut_square: Float[Tensor, "channels"]
    """Σ s² at the cut point"""

    @classmethod
    def zero(cls, channels: int) -> "Sensitivity":
        """No images: the neutral element of `+`."""
        return cls(0.0, *(torch.zeros(channels, dtype=torch.float64) for _ in fields(cls)[1:]))

    @classmethod
    def of(cls, read: Float[Tensor, "images channels"], cut: Float[Tensor, "images channels"]) -> "Sensitivity":
        """Sums of the per-image products at the read point and at the cut point, both (images, channels)."""
        a, b = read.double(), cut.double()
        return cls(float(len(a)), a.sum(0), a.abs().sum(0), a.square().sum(0), b.sum(0), b.abs().sum(0), b.square().sum(0))

    def __add__(self, other: "Sensitivity") -> "Sensitivity":
        """Sums over the union of two disjoint image sets."""
        return Sensitivity(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))
