"""Partition: one set of labeled images on disk or in a package, before anything is decoded."""

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
"""what data sets call their parts, and which part that is; anything else is 'all'"""


@dataclass(frozen=True)
class Partition:
    """Labeled pictures of one part of a data set; reading one costs a file access, not a decoding."""

    role: str
    """train, validation, test, or all where the data set has no parts"""
    labels: Int[Tensor, "images"]
    """class of each picture, int64; −1 where the data set withholds it"""
    read: Callable[[int], bytes | np.ndarray]
    """row → the encoded picture, or its uint8 pixels (H, W) or (H, W, 3)"""
    location: Callable[[int], str]
    """row → where the picture is, for messages"""
    columns: Mapping[str, Callable[[int], Any]] = field(default_factory=dict)
    """further columns, such as boxes: name → row → value"""

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.labels)


@dataclass(frozen=True)
class PartitionedDataset:
    """All parts of one data set and what its classes are called."""

    name: str
    """the data set, as the user named it"""
    parts: tuple[Partition, ...]
    """the shelves: train before validation before test"""
    class_names: tuple[str, ...]
    """one name per class, in label order"""

    def __post_init__(self) -> None:
        """Refuse an empty set and labels that are no class; drop a part whose labels are all withheld."""
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
    """A shelf of decoded pictures: uint8 (images, H, W) or (images, H, W, 3)."""
    return Partition(part, torch.as_tensor(labels, dtype=torch.int64), pixels.__getitem__, lambda row: f"{name}, {part} image {row}")
