"""Labels: tensors that hold the number of a channel in the place of each activation."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

FIXED = -1
"""Number of what cannot be removed: the input image, constants, a network's outputs."""
FREE = -2
"""Number of what follows any removal by itself, such as the zeros of a padding."""


def extent(labels: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Smallest and largest number along an axis, FREE apart."""
    high = labels.amax(axis)
    return torch.where(labels == FREE, high.unsqueeze(axis), labels).amin(axis), high


def varies(labels: Tensor, axis: int) -> bool:
    """Whether different numbers occur along an axis."""
    return not torch.equal(*extent(labels, axis))


def fixed(value: Any) -> Any:
    """Labels of a tensor that nothing can be removed from; anything else is left as it is."""
    return torch.full(value.shape, FIXED) if isinstance(value, Tensor) else value


def has_tensor(value: Any) -> bool:
    """Whether a step's value is a tensor or holds one."""
    parts = value if isinstance(value, tuple | list) else [value]
    return any(isinstance(part, Tensor) for part in parts)


def numbers_in(labels: Iterable[Any]) -> Tensor:
    """The channel numbers that occur in some tensors of labels."""
    parts = [part for label in labels for part in (label if isinstance(label, tuple | list) else [label]) if isinstance(part, Tensor)]
    numbers = torch.cat([compact(part)[0].flatten() for part in parts]).unique() if parts else torch.tensor([], dtype=torch.long)
    return numbers[numbers >= 0]


def compact(*labels: Tensor, first: int = 0) -> tuple[Tensor, ...]:
    """Shorten the axes along which every tensor repeats itself by construction (stride zero)."""
    for axis in range(first, labels[0].dim()):
        if all(label.stride(axis) == 0 for label in labels):
            labels = tuple(label.narrow(axis, 0, 1) for label in labels)
    return labels
