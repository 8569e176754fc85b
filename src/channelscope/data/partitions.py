"""Partition: labeled images of one part of a data set, before decoding."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from channelscope.errors import DataError
from channelscope.types import Int, Tensor

ROLES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
"""name of a part in a data set → its role; all other names have the role 'all'"""


@dataclass(frozen=True)
class Partition:
    """Labeled pictures of one part of a data set; `read` returns encoded bytes.

    Examples
    --------
    >>> len(from_arrays("train", np.zeros((5, 8, 8), np.uint8), np.zeros(5), "zeros"))
    5
    """

    role: str
    """train, validation, test, or all where the data set has no parts"""
    labels: Int[Tensor, "images"]
    """class of each picture, int64; −1 where the data set withholds it"""
    read: Callable[[int], bytes | np.ndarray]
    """row → the encoded picture, or its uint8 pixels (H, W) or (H, W, 3)"""
    location: Callable[[int], str]
    """row → location of the picture, for messages"""
    columns: Mapping[str, Callable[[int], Any]] = field(default_factory=dict)
    """further columns, such as boxes: name → row → value"""

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.labels)


@dataclass(frozen=True)
class PartitionedDataset:
    """All parts of a data set, and the names of its classes.

    Examples
    --------
    >>> part = from_arrays("train", np.zeros((2, 8, 8), np.uint8), np.array([0, 1]), "zeros")
    >>> PartitionedDataset("zeros", (part,), ("a", "b")).parts[0].labels.tolist()
    [0, 1]
    """

    name: str
    """name of the data set, as given by the user"""
    parts: tuple[Partition, ...]
    """the partitions, in the order train, validation, test, all; those without labels are dropped"""
    class_names: tuple[str, ...]
    """one name per class, in label order"""

    def __post_init__(self) -> None:
        """Sort the parts, drop those without labels, and raise DataError for an empty set or labels out of range."""
        kept = tuple(part for part in self.parts if len(part) and not bool((part.labels == -1).all()))
        order = ("train", "validation", "test", "all")
        object.__setattr__(self, "parts", tuple(sorted(kept, key=lambda part: order.index(part.role))))
        if not self.parts:
            raise DataError(f"{self.name}: expected labeled images, received none; check the path and its layout")
        classes = len(self.class_names)
        for part in self.parts:
            wrong = (part.labels < 0) | (part.labels >= classes)
            if bool(wrong.any()):
                row = int(wrong.nonzero()[0, 0])
                raise DataError(f"{part.location(row)}: expected a label from 0 to {classes - 1}, received {int(part.labels[row])}")


def from_arrays(part: str, pixels: np.ndarray, labels: np.ndarray, name: str) -> Partition:
    """Partition of pictures that are decoded already.

    Parameters
    ----------
    part
        Role: train, validation, test or all.
    pixels
        Uint8 (images, height, width) or (images, height, width, 3).
    labels
        (images,) class of each picture.
    name
        Name of the data set, for messages.

    Returns
    -------
    Partition
        Its `read` returns the pixels of a row.

    Examples
    --------
    >>> part = from_arrays("test", np.zeros((2, 8, 8), np.uint8), np.array([3, 1]), "zeros")
    >>> part.role, part.labels.tolist(), part.location(1)
    ('test', [3, 1], 'zeros, test image 1')
    """
    return Partition(part, torch.as_tensor(labels, dtype=torch.int64), pixels.__getitem__, lambda row: f"{name}, {part} image {row}")
