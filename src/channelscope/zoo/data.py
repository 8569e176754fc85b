"""Images: the splits of a data set, ready for a network; calibration images are training images, the others are disjoint."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from channelscope.errors import DataError
from channelscope.zoo.division import divide
from channelscope.zoo.folders import folder
from channelscope.zoo.parquet import hub
from channelscope.zoo.pictures import Fit, is_gray, opened
from channelscope.zoo.shelf import Shelves, cifar, digits
from channelscope.zoo.split import Album, Split

CACHE = Path("~/.cache/channelscope")
Normalization: TypeAlias = tuple[tuple[float, ...], tuple[float, ...]]
SMALL_IMAGE = 64
MEASURED = 5000
IMAGENET: Normalization = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class ImageSource:
    """Which images, and how they are divided and normalized."""

    data: str = "digits"
    """digits, cifar10, cifar100, folder:PATH (one folder per class) or hf:ID_OR_PATH (hub id or local folder of parquet files)"""
    batch_size: int = 128
    """images per batch"""
    seed: int = 0
    """which images are drawn for calibration; what is tested on never depends on it"""
    images: int | None = None
    """calibration images; by default 5000, or half of a small set that has no training images"""
    size: int | None = None
    """resize the shorter side to this many pixels and crop the center; by default the network's own input size, if it has one"""
    mean: tuple[float, ...] | None = None
    """subtracted from pixels in 0..1, one number per channel; by default the network's or the data set's own"""
    std: tuple[float, ...] | None = None
    """divides after the subtraction, one number per channel; by default the network's or the data set's own"""
    image_column: str | None = None
    """column of the images in a parquet or hub data set; by default found by type and name"""
    label_column: str | None = None
    """column of the labels in a parquet or hub data set; by default found by type and name"""
    skip_corrupt: bool = False
    """leave out images that cannot be decoded and count them, instead of stopping at the first"""
    root: Path = CACHE
    """folder in which downloaded data sets are kept"""

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        for name, value, least in (("batch_size", self.batch_size, 1), ("images", self.images, 1), ("size", self.size, 1)):
            if value is not None and value < least:
                raise DataError(f"expected {name} of at least {least}, received {value}")
        if self.std is not None and min(self.std) <= 0:
            raise DataError(f"expected a positive std, received {self.std}")


@dataclass(frozen=True)
class Images:
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
        return self.calibration.album.shelves.class_names

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


def shelves(source: ImageSource) -> Shelves:
    """The data set as it lies on disk; nothing is decoded.

    Raises   DataError if the name is unknown, or the set is missing, empty or unclear.
    """
    kind, _, rest = source.data.partition(":")
    if source.data == "digits":
        return digits()
    if source.data in ("cifar10", "cifar100"):
        return cifar(source.data, source.root.expanduser())
    if kind == "folder" and rest:
        return folder(Path(rest).expanduser())
    if kind == "hf" and rest:
        return hub(rest, source.image_column, source.label_column)
    raise DataError(f"unknown data '{source.data}': expected digits, cifar10, cifar100, folder:PATH or hf:ID_OR_PATH")


def native_shape(found: Shelves) -> tuple[int, int, int]:
    """Channels of the pictures, and height and width of the first readable one as it lies on disk.

    The channels are three as soon as any picture has color, else one.

    Raises
    ------
    DataError
        If no picture can be read.
    """
    reason, size = None, None
    for part in found.parts:
        for row in range(len(part)):
            try:
                data = part.fetch(row)
                gray = is_gray(data, part.place(row))
                size = size or opened(data, part.place(row)).size
            except DataError as error:
                reason = error
                continue
            if not gray:
                return (3, size[1], size[0])
    if size is None:
        raise DataError(f"{found.name}: no image can be read; the last one: {reason}")
    return (1, size[1], size[0])


def read_images(
    source: ImageSource | str,
    fit: Fit | None = None,
    normalization: Normalization | None = None,
    found: Shelves | None = None,
    channels: int | None = None,
) -> Images:
    """The divided data set.

    `fit` and `normalization` are a network's own; the source's size, mean and std come before them. Without either, images
    of at most 64 pixels are normalized by the mean and standard deviation of (up to 5,000 of) the training images, larger
    ones by ImageNet's.

    Raises   DataError if the data cannot be used; a corrupt picture is met when it is first decoded.
    """
    source = ImageSource(source) if isinstance(source, str) else source
    found = found or shelves(source)
    if source.size is not None:
        fit = Fit((source.size, source.size))
    album = Album(found, fit or Fit(), channels or native_shape(found)[0])
    bad = album.corrupt() if source.skip_corrupt else []
    sizes = {part.part: len(part) for part in found.parts}
    rows, index = divide(sizes, source.images, source.seed)
    good = torch.ones(len(album), dtype=torch.bool)
    good[bad] = False
    rows = {name: kept[good[kept]] for name, kept in rows.items()}
    mean, std = _normalization(source, album, rows["train"], normalization)
    splits = {name: Split(name, album, kept, index[kept], mean, std, source.batch_size) for name, kept in rows.items()}
    if not len(splits["calibration"]):
        raise DataError(f"{source.data}: expected at least one calibration image, the {len(album)} images leave none")
    return Images(**splits, source=source, skipped=len(bad))


def _normalization(source: ImageSource, album: Album, train: Tensor, own: Normalization | None) -> Normalization:
    """The given numbers, else the network's own, else the data set's."""
    if source.mean is None or source.std is None:
        own = own or _measured(album, train)
    mean = source.mean or (own[0] if own else ())
    std = source.std or (own[1] if own else ())
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, album.channels):
            raise DataError(f"expected one {name} per channel ({album.channels}) or one for all, received {len(values)}: {values}")
    return tuple(mean) * (album.channels // len(mean)), tuple(std) * (album.channels // len(std))


def _measured(album: Album, train: Tensor) -> Normalization:
    if max(album.shape[1:]) > SMALL_IMAGE or not len(train):
        mean, std = IMAGENET
        return (mean, std) if album.channels == 3 else ((sum(mean) / 3,), (sum(std) / 3,))
    pixels = album.read(train[:MEASURED]).double() / 255
    deviation, mean = torch.std_mean(pixels, dim=(0, 2, 3), correction=0)
    if bool((deviation == 0).any()):
        raise DataError(f"{album.shelves.name}: a channel is the same in all images, so it has no std; pass mean and std")
    return tuple(round(float(value), 4) for value in mean), tuple(round(float(value), 4) for value in deviation)
