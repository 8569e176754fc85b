"""FeatureMapSums: sums over images of the rank and the independence of each channel's feature map."""

from dataclasses import dataclass

import torch

from channelscope.types import Float, Tensor


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
