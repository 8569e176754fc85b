"""ImageSplits: training, validation, test and calibration images of a data set, ready for a network."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from channelscope.data.decoding import ResizeCrop
from channelscope.data.partitions import PartitionedDataset
from channelscope.data.sources import ImageSource, Normalization, native_shape, open_dataset
from channelscope.data.splits import ImageStore, Split, divide
from channelscope.errors import DataError

SMALL_IMAGE = 64

MEASURED = 5000

IMAGENET: Normalization = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class ImageSplits:
    """A data set, divided; training, validation and test images are disjoint, calibration images are training images."""

    train: Split
    """what a network is trained on; empty where the data set has no training images"""
    calibration: Split
    """what statistics are measured on: training images without augmentation, disjoint from validation and test"""
    validation: Split
    """what choices are made on (best epoch, early stopping); empty where there are neither training images nor a part for it"""
    test: Split
    """what is reported once"""
    source: ImageSource = field(repr=False)
    """what was asked for"""
    skipped: int = 0
    """corrupt images left out"""

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.calibration.classes

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name per class, in label order."""
        return self.calibration.store.shelves.class_names

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width of one image."""
        return self.calibration.image_shape

    @property
    def normalization(self) -> Normalization:
        """Mean and standard deviation of the pixels in 0..1 that batches are normalized by."""
        return self.calibration.mean, self.calibration.std

    def describe(self) -> dict[str, Any]:
        """Plain dictionary for logs and reports: the source, sizes of the splits, shape and normalization."""
        splits = {split.name: len(split) for split in (self.train, self.calibration, self.validation, self.test)}
        return {
            "data": self.source.data,
            "seed": self.source.seed,
            "splits": splits,
            "classes": self.classes,
            "image_shape": list(self.image_shape),
            "mean": list(self.normalization[0]),
            "std": list(self.normalization[1]),
            "skipped": self.skipped,
        }


def read_images(
    source: ImageSource | str,
    fit: ResizeCrop | None = None,
    normalization: Normalization | None = None,
    found: PartitionedDataset | None = None,
    channels: int | None = None,
) -> ImageSplits:
    """The divided data set.

    `fit` and `normalization` are a network's own; the source's size, mean and std come before them. Without either, images
    of at most 64 pixels are normalized by the mean and standard deviation of (up to 5,000 of) the training images, larger
    ones by ImageNet's.

    Raises
    ------
    DataError
        If the data cannot be used; a corrupt picture is met when it is first decoded.
    """
    source = ImageSource(source) if isinstance(source, str) else source
    found = found or open_dataset(source)
    if source.size is not None:
        fit = ResizeCrop((source.size, source.size))
    album = ImageStore(found, fit or ResizeCrop(), channels or native_shape(found)[0])
    bad = album.corrupt_rows() if source.skip_corrupt else []
    sizes = {part.role: len(part) for part in found.parts}
    rows, index = divide(sizes, source.images, source.seed)
    good = torch.ones(len(album), dtype=torch.bool)
    good[bad] = False
    rows = {name: kept[good[kept]] for name, kept in rows.items()}
    mean, std = _normalization(source, album, rows["train"], normalization)
    splits = {name: Split(name, album, kept, index[kept], mean, std, source.batch_size) for name, kept in rows.items()}
    if not len(splits["calibration"]):
        raise DataError(f"{source.data}: expected at least one calibration image, the {len(album)} images leave none")
    return ImageSplits(**splits, source=source, skipped=len(bad))


def _normalization(source: ImageSource, album: ImageStore, train: Tensor, own: Normalization | None) -> Normalization:
    """The given numbers, else the network's own, else the data set's."""
    if source.mean is None or source.std is None:
        own = own or _measured(album, train)
    mean = source.mean or (own[0] if own else ())
    std = source.std or (own[1] if own else ())
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, album.channels):
            raise DataError(f"expected one {name} per channel ({album.channels}) or one for all, received {len(values)}: {values}")
    return tuple(mean) * (album.channels // len(mean)), tuple(std) * (album.channels // len(std))


def _measured(album: ImageStore, train: Tensor) -> Normalization:
    if max(album.shape[1:]) > SMALL_IMAGE or not len(train):
        mean, std = IMAGENET
        return (mean, std) if album.channels == 3 else ((sum(mean) / 3,), (sum(std) / 3,))
    pixels = album.read(train[:MEASURED]).double() / 255
    deviation, mean = torch.std_mean(pixels, dim=(0, 2, 3), correction=0)
    if bool((deviation == 0).any()):
        raise DataError(f"{album.shelves.name}: a channel is the same in all images, so it has no std; pass mean and std")
    return tuple(round(float(value), 4) for value in mean), tuple(round(float(value), 4) for value in deviation)
