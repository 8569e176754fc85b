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
    """Splits of a data set: train, validation and test are disjoint, calibration is a part of train.

    Examples
    --------
    >>> images = read_images("digits")
    >>> len(images.train), len(images.validation), len(images.test), images.image_shape
    (1294, 144, 359, (1, 8, 8))
    """

    train: Split
    """training images; empty where the data set has none"""
    calibration: Split
    """images on which statistics are measured: training images without augmentation, disjoint from validation and test"""
    validation: Split
    """images on which choices are made (best epoch, early stopping); empty without training images and without a validation part"""
    test: Split
    """images of the reported accuracy"""
    source: ImageSource = field(repr=False)
    """the data set and the options it was read with"""
    skipped: int = 0
    """corrupt images left out"""

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.calibration.classes

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name per class, in label order."""
        return self.calibration.store.dataset.class_names

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width of one image."""
        return self.calibration.image_shape

    @property
    def normalization(self) -> Normalization:
        """Mean and standard deviation of the pixels in 0..1 that batches are normalized by."""
        return self.calibration.mean, self.calibration.std

    def describe(self) -> dict[str, Any]:
        """Description for logs and reports: source, sizes of the splits, shape and normalization.

        Returns
        -------
        dict
            Of plain values, as for JSON.
        """
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
    """Splits of a data set, ready for a network.

    The size, mean and std of the source take precedence over `fit` and `normalization`. Without either, images of at most 64
    pixels are normalized by the mean and standard deviation of (up to 5,000 of) the training images, larger ones by ImageNet's.

    Parameters
    ----------
    source
        Name of a data set, or an `ImageSource`.
    fit
        Resizing and cropping that a network expects.
    normalization
        Mean and standard deviation per channel that a network expects, for pixels in 0..1.
    found
        The data set, if it has been opened already.
    channels
        1 or 3; by default those of the pictures.

    Returns
    -------
    ImageSplits
        Nothing but the pictures that the normalization needs is decoded.

    Raises
    ------
    DataError
        If the data cannot be used; a corrupt picture raises when it is first decoded.

    Examples
    --------
    >>> images = read_images(ImageSource("digits", batch_size=32))
    >>> next(iter(images.test))[0].shape
    torch.Size([32, 1, 8, 8])
    """
    source = ImageSource(source) if isinstance(source, str) else source
    dataset = found or open_dataset(source)
    if source.size is not None:
        fit = ResizeCrop((source.size, source.size))
    store = ImageStore(dataset, fit or ResizeCrop(), channels or native_shape(dataset)[0])
    bad = store.corrupt_rows() if source.skip_corrupt else []
    sizes = {part.role: len(part) for part in dataset.parts}
    rows, index = divide(sizes, source.images, source.seed)
    good = torch.ones(len(store), dtype=torch.bool)
    good[bad] = False
    rows = {name: kept[good[kept]] for name, kept in rows.items()}
    mean, std = _normalization(source, store, rows["train"], normalization)
    splits = {name: Split(name, store, kept, index[kept], mean, std, source.batch_size) for name, kept in rows.items()}
    if not len(splits["calibration"]):
        raise DataError(f"{source.data}: expected at least one calibration image, the {len(store)} images leave none")
    return ImageSplits(**splits, source=source, skipped=len(bad))


def _normalization(source: ImageSource, store: ImageStore, train: Tensor, expected: Normalization | None) -> Normalization:
    """Mean and std of the source, else those the network expects, else those of the data set."""
    if source.mean is None or source.std is None:
        expected = expected or _measured(store, train)
    mean = source.mean or (expected[0] if expected else ())
    std = source.std or (expected[1] if expected else ())
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, store.channels):
            raise DataError(f"expected one {name} per channel ({store.channels}) or one for all, received {len(values)}: {values}")
    return tuple(mean) * (store.channels // len(mean)), tuple(std) * (store.channels // len(std))


def _measured(store: ImageStore, train: Tensor) -> Normalization:
    if max(store.shape[1:]) > SMALL_IMAGE or not len(train):
        mean, std = IMAGENET
        return (mean, std) if store.channels == 3 else ((sum(mean) / 3,), (sum(std) / 3,))
    pixels = store.read(train[:MEASURED]).double() / 255
    deviation, mean = torch.std_mean(pixels, dim=(0, 2, 3), correction=0)
    if bool((deviation == 0).any()):
        raise DataError(f"{store.dataset.name}: a channel is the same in all images, so it has no std; pass mean and std")
    return tuple(round(float(value), 4) for value in mean), tuple(round(float(value), 4) for value in deviation)
