"""Sensitivity: sums over images of the first-order effect of each channel on the loss."""

from dataclasses import dataclass, fields

import torch

from channelscope.types import Float, Tensor


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
