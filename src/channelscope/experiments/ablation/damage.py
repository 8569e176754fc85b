"""Damage: the change of the output under an ablation, image by image, as sums that add."""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from channelscope.stats.tally import margin
from channelscope.types import Float, Int, Tensor

DAMAGE_QUANTITIES = {"loss": "nats", "accuracy": "fraction", "margin": "logits", "kl": "nats"}
"""what is measured, with its unit; positive is worse"""


def image_damage(
    before: Float[Tensor, "images classes"], after: Float[Tensor, "images classes"], labels: Int[Tensor, "images"]
) -> Float[Tensor, "quantities images"]:
    """What each image loses, float64: rise of its cross-entropy, 1 if it is no longer right (−1 if it has become so), fall of its
    margin, and the Kullback-Leibler divergence of the output from what it was.
    """
    before, after = before.double(), after.double()
    was, now = before.log_softmax(1), after.log_softmax(1)
    right = (before.argmax(1) == labels).double() - (after.argmax(1) == labels).double()
    loss = F.nll_loss(now, labels, reduction="none") - F.nll_loss(was, labels, reduction="none")
    kl = (was.exp() * (was - now)).sum(1)
    return torch.stack([loss, right, margin(before, labels) - margin(after, labels), kl])


@dataclass(frozen=True, eq=False)
class Damage:
    """Sums over images of each lesion's harm and its square; `+` merges disjoint image sets."""

    images: Float[Tensor, "groups"]
    """images of each group"""
    sums: Float[Tensor, "lesions groups quantities"]
    """sum of harm, float64"""
    squares: Float[Tensor, "lesions groups quantities"]
    """sum of its square"""

    @classmethod
    def of(cls, harms: Float[Tensor, "lesions quantities images"], owners: Int[Tensor, "images"], groups: int) -> "Damage":
        """Damage over some images, each belonging to a group."""
        member = F.one_hot(owners, groups).double().to(harms.device)
        sums, squares = (torch.einsum("lqi,ig->lgq", each, member).cpu() for each in (harms, harms.square()))
        return cls(member.sum(0).cpu(), sums, squares)

    def __add__(self, other: "Damage") -> "Damage":
        """Damage over the union of two disjoint image sets."""
        return Damage(self.images + other.images, self.sums + other.sums, self.squares + other.squares)

    @property
    def mean(self) -> Float[Tensor, "lesions quantities"]:
        """Mean harm over the images."""
        return self.sums.sum(1) / self.images.sum()

    @property
    def error(self) -> Float[Tensor, "lesions quantities"]:
        """Standard error of `mean` over images; nan for a single image."""
        n = self.images.sum()
        if n < 2:
            return torch.full_like(self.mean, torch.nan)
        return ((self.squares.sum(1) - n * self.mean.square()).clamp(min=0) / (n - 1) / n).sqrt()
