"""Tally: sums over evaluated images, from which accuracy, loss and margin follow."""

from dataclasses import dataclass, fields
from typing import Any

import scipy
import torch
from torch.nn import functional as F

from channelscope.display import Facts, Shown
from channelscope.errors import DataError, InputError
from channelscope.types import Float, Int, Tensor


@dataclass(frozen=True, repr=False)
class Tally(Shown):
    """Sums over evaluated images; `+` merges disjoint image sets.

    Examples
    --------
    >>> one = Tally.of(torch.tensor([[2.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 1]))
    >>> one.accuracy, one.margin, (one + one).images
    (0.5, 0.0, 4.0)
    >>> [round(end, 3) for end in one.accuracy_interval()]
    [0.095, 0.905]
    """

    images: float = 0.0
    """number of images"""
    correct: float = 0.0
    """images whose largest logit is the label's"""
    loss_sum: float = 0.0
    """sum of cross-entropies in nats"""
    loss_squares: float = 0.0
    """sum of squared cross-entropies"""
    margin_sum: float = 0.0
    """sum of logit margins"""
    margin_squares: float = 0.0
    """sum of squared logit margins"""

    def facts(self) -> Facts:
        """Accuracy with its interval, loss and margin."""
        if not self.images:
            return "Tally(no images)", []
        low, high = self.accuracy_interval()
        return f"Tally({self.images:,.0f} images)", [
            ("accuracy", f"{self.accuracy:.1%} [{low:.1%}, {high:.1%}]"),
            ("loss", f"{self.loss:.3f} ± {self.loss_standard_error:.3f} nats"),
            ("margin", f"{self.margin:.3f}"),
        ]

    @classmethod
    def of(cls, logits: Float[Tensor, "images classes"], labels: Int[Tensor, "images"]) -> "Tally":
        """Tally of one batch.

        Parameters
        ----------
        logits
            Output of the network, images × classes.
        labels
            Class of each image, from 0.

        Raises
        ------
        InputError
            For an output that is not one row of logits for each image, such as a map or a dictionary.
        DataError
            For labels outside the classes.
        """
        check_logits(logits, len(labels))
        _check(labels, logits.shape[1])
        values = logits.detach().double()
        loss = F.cross_entropy(values, labels, reduction="none")
        gap = margin(values, labels)
        correct = (values.argmax(1) == labels).sum()
        sums = (correct, loss.sum(), loss.square().sum(), gap.sum(), gap.square().sum())
        return cls(float(len(labels)), *(float(part) for part in sums))

    def __add__(self, other: "Tally") -> "Tally":
        """Tally of the union of two disjoint image sets."""
        return Tally(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    @property
    def accuracy(self) -> float:
        """Fraction of images classified correctly; nan without images."""
        return self.correct / self.images if self.images else float("nan")

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats."""
        return self.loss_sum / self.images if self.images else float("nan")

    @property
    def margin(self) -> float:
        """Mean logit margin."""
        return self.margin_sum / self.images if self.images else float("nan")

    @property
    def loss_standard_error(self) -> float:
        """Standard error of the mean loss over images."""
        return _error(self.loss_sum, self.loss_squares, self.images)

    def accuracy_interval(self, level: float = 0.95) -> tuple[float, float]:
        """Wilson interval of the accuracy; nan ends without images.

        References
        ----------
        Wilson 1927.
        """
        if not self.images:
            return float("nan"), float("nan")
        ends = scipy.stats.binomtest(round(self.correct), round(self.images)).proportion_ci(level, "wilson")
        return float(ends.low), float(ends.high)

    def __str__(self) -> str:
        """Accuracy with its interval and the loss, on one line."""
        low, high = self.accuracy_interval()
        loss = f"loss {self.loss:.3f} ± {self.loss_standard_error:.3f} nats"
        return f"accuracy {self.accuracy:.1%} [{low:.1%}, {high:.1%}], {loss}, {self.images:,.0f} images"


def _error(total: float, squares: float, count: float) -> float:
    if count < 2:
        return float("nan")
    return (max(squares - total * total / count, 0.0) / (count - 1) / count) ** 0.5


def check_logits(logits: Any, images: int) -> None:
    """Refuse what is not images × classes, two classes at least.

    Parameters
    ----------
    logits
        What a network returned.
    images
        Number of images that it was given.

    Raises
    ------
    InputError
        With the shape and what to do.

    Examples
    --------
    >>> import torch
    >>> check_logits(torch.zeros(3, 10), 3)
    """
    if not isinstance(logits, Tensor):
        raise InputError(f"expected logits, a tensor of images × classes, received a {type(logits).__name__}: return its logits alone")
    if logits.dim() != 2 or len(logits) != images or logits.shape[1] < 2:
        raise InputError(
            f"expected logits of shape {images} images × classes (at least 2), received {' × '.join(map(str, logits.shape))}: "
            + (
                "accuracy is of one class per image, not of a map; average the map, or judge it outside"
                if logits.dim() > 2
                else "a network with one output has no margin between classes"
                if logits.dim() == 2 and logits.shape[1] == 1
                else "return one row for each image"
            )
        )


def _check(labels: Int[Tensor, "images"], classes: int) -> None:
    """Refuse labels that are not classes: DataError."""
    if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= classes):
        raise DataError(
            f"labels must lie in 0 … {classes - 1} for a network of {classes} classes, "
            f"received {int(labels.min())} … {int(labels.max())}: check the data set, or give every image a label"
        )


def margin(logits: Float[Tensor, "images classes"], labels: Int[Tensor, "images"]) -> Float[Tensor, "images"]:
    """Logit margin of each image, z_y − max over c ≠ y of z_c for the label y.

    Parameters
    ----------
    logits
        Output of the network, images × classes.
    labels
        Class of each image, from 0.

    Returns
    -------
    Tensor
        In the unit of the logits; positive where the image is classified correctly.

    Examples
    --------
    >>> margin(torch.tensor([[3.0, 1.0, 0.0], [3.0, 1.0, 0.0]]), torch.tensor([0, 1])).tolist()
    [2.0, -2.0]
    """
    label_logits = logits.gather(1, labels[:, None])[:, 0]
    others = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    return label_logits - others
