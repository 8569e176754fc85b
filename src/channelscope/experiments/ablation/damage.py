"""Damage: the change of the output under an ablation, image by image, as sums that add."""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from channelscope.stats.tally import margin
from channelscope.types import Float, Int, Tensor

DAMAGE_QUANTITIES = {"loss": "nats", "accuracy": "fraction", "margin": "logits", "kl": "nats"}
"""Quantity → unit; positive is worse."""


def image_damage(
    before: Float[Tensor, "images classes"], after: Float[Tensor, "images classes"], labels: Int[Tensor, "images"]
) -> Float[Tensor, "quantities images"]:
    """Change of the output of each image, for every quantity of `DAMAGE_QUANTITIES`; positive is worse.

    Parameters
    ----------
    before, after
        Logits of the intact and of the ablated network, (images, classes).
    labels
        Class of each image.

    Returns
    -------
    Tensor
        (quantities, images), float64: rise of the cross-entropy [nats]; 1 if the image is no longer right, −1 if it has become
        so; fall of the logit margin; Kullback-Leibler divergence of the output from the intact network's [nats].

    Examples
    --------
    >>> before, after = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    >>> image_damage(before, after, torch.tensor([0])).round(decimals=3).flatten().tolist()
    [1.0, 1.0, 2.0, 0.462]
    """
    before, after = before.double(), after.double()
    was, now = before.log_softmax(1), after.log_softmax(1)
    right = (before.argmax(1) == labels).double() - (after.argmax(1) == labels).double()
    loss = F.nll_loss(now, labels, reduction="none") - F.nll_loss(was, labels, reduction="none")
    kl = (was.exp() * (was - now)).sum(1)
    return torch.stack([loss, right, margin(before, labels) - margin(after, labels), kl])


@dataclass(frozen=True, eq=False)
class Damage:
    """Sums over images of each ablation's damage and of its square; `+` merges disjoint image sets.

    Examples
    --------
    >>> values = torch.tensor([[[1.0, 3.0], [0.0, 1.0], [2.0, 2.0], [0.0, 0.0]]]).double()  # (ablations, quantities, images)
    >>> damage = Damage.of(values, torch.tensor([0, 1]), groups=2)
    >>> damage.mean.tolist(), damage.error.tolist()
    ([[2.0, 0.5, 2.0, 0.0]], [[1.0, 0.5, 0.0, 0.0]])
    """

    images: Float[Tensor, "groups"]
    """images of each group"""
    sums: Float[Tensor, "ablations groups quantities"]
    """sum of the damage, float64"""
    squares: Float[Tensor, "ablations groups quantities"]
    """sum of its square"""

    @classmethod
    def of(cls, values: Float[Tensor, "ablations quantities images"], group_of_image: Int[Tensor, "images"], groups: int) -> "Damage":
        """Damage over some images.

        Parameters
        ----------
        values
            Damage of every image, (ablations, quantities, images).
        group_of_image
            Group of each image, from 0.
        groups
            Number of groups.

        Returns
        -------
        Damage
            Sums by group.
        """
        member = F.one_hot(group_of_image, groups).double().to(values.device)
        sums, squares = (torch.einsum("lqi,ig->lgq", each, member).cpu() for each in (values, values.square()))
        return cls(member.sum(0).cpu(), sums, squares)

    def __add__(self, other: "Damage") -> "Damage":
        """Damage over the union of two disjoint image sets."""
        return Damage(self.images + other.images, self.sums + other.sums, self.squares + other.squares)

    @property
    def mean(self) -> Float[Tensor, "ablations quantities"]:
        """Mean damage over the images."""
        return self.sums.sum(1) / self.images.sum()

    @property
    def error(self) -> Float[Tensor, "ablations quantities"]:
        """Standard error of `mean` over images; nan for a single image."""
        n = self.images.sum()
        if n < 2:
            return torch.full_like(self.mean, torch.nan)
        return ((self.squares.sum(1) - n * self.mean.square()).clamp(min=0) / (n - 1) / n).sqrt()
