"""ImageSplits: training, validation, test and calibration images of a data set, ready for a network; and masks of the object in each."""

import dataclasses
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from channelscope.data.decoding import BROKEN, ResizeCrop, contents, open_image
from channelscope.data.sources import IMAGE_SUFFIXES, ImageSource, Normalization, native_shape, open_dataset
from channelscope.data.splits import SMALL_SET, ImageStore, PartitionedDataset, Split, divide
from channelscope.display import Facts, Shown
from channelscope.errors import DataError, first_line
from channelscope.types import Bool, Tensor

SMALL_IMAGE = 64

MEASURED = 5000

LISTED = 5
"""most classes that a warning names"""

IMAGENET: Normalization = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True, repr=False)
class ImageSplits(Shown):
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

    def facts(self) -> Facts:
        """The data set, the size of each split, and the normalization."""
        splits = ((split.name, f"{len(split):,} images") for split in (self.train, self.calibration, self.validation, self.test))
        mean, std = (" ".join(f"{each:.3g}" for each in values) for values in self.normalization)
        left_out = [("left out", f"{self.skipped:,} corrupt images")] if self.skipped else []
        size = " × ".join(map(str, self.image_shape))
        return f"ImageSplits({self.source.data}: {self.classes:,} classes, {size})", [
            *splits,
            ("normalized by", f"mean {mean}, standard deviation {std}"),
            *left_out,
        ]

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.calibration.classes

    @property
    def chance(self) -> float:
        """Accuracy of a guess, where all classes are equally frequent."""
        return 1 / self.classes

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

    def require_training(self) -> None:
        """Raise DataError where a network cannot be trained on the set: it needs two training and two validation images.

        Classes without a training image are named in a warning.

        Examples
        --------
        >>> read_images("digits").require_training()
        """
        data = self.source.data
        if not len(self.train):
            raise DataError(
                f"{data}: there are no training images: a set of fewer than {SMALL_SET:,} images without parts is divided into calibration "
                "and test images, and held-out parts are not trained on; give the images to train on as a part named train, such as a "
                "folder train with a folder for each class"
            )
        for split in (self.train, self.validation):
            if len(split) < 2:
                raise DataError(f"{data}: {len(split)} {split.name} images, at least 2 are needed to train; add more training images")
        unseen = sorted(set(range(self.classes)) - set(self.train.labels.tolist()))
        if unseen:
            names = ", ".join(self.class_names[label] for label in unseen[:LISTED]) + (", …" if len(unseen) > LISTED else "")
            said = f"{data}: {len(unseen)} of {self.classes:,} classes cannot be learned, for they have no training image: {names}"
            warnings.warn(said, UserWarning, stacklevel=1)

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


FOLDER = "folder:"


def object_masks(split: Split, where: str) -> list[Bool[Tensor, "height width"]]:
    """Object masks of the images of a split, resized and cropped as the images are (nearest pixel).

    Parameters
    ----------
    split
        Images of a data set.
    where
        A column of the data set with a mask image for every picture; or, for a data set of folders, folder:PATH with a mask
        at the relative path and name of every picture (any ending).

    Returns
    -------
    list
        For each image bool (height, width), true where the mask image is above zero.

    Raises
    ------
    DataError
        For a mask that is missing, no picture, or not as large as its picture.

    Examples
    --------
    >>> import tempfile
    >>> from PIL import Image
    >>> from channelscope.data.images import ImageSource, read_images
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name, color in (("photos/cat/1.png", 90), ("masks/cat/1.png", 255), ("photos/cat/2.png", 9), ("masks/cat/2.png", 0)):
    ...         Path(folder, name).parent.mkdir(parents=True, exist_ok=True)
    ...         Image.new("L", (4, 3), color).save(Path(folder, name))
    ...     split = read_images(ImageSource(f"folder:{folder}/photos", mean=(0.0,), std=(1.0,))).calibration
    ...     masks = object_masks(split, f"folder:{folder}/masks")
    >>> masks[0].shape
    torch.Size([3, 4])
    """
    return [_mask(split, row, data) for row, data in zip(split.rows.tolist(), _files(split, where), strict=True)]


def _files(split: Split, where: str) -> list[Any]:
    """The encoded mask of each image, None where the column has none."""
    if not where.startswith(FOLDER):
        cells = [cell if isinstance(cell, dict) else {"bytes": cell} for cell in split.column(where)]
        return [contents(Path(cell["path"])) if cell.get("bytes") is None and cell.get("path") else cell.get("bytes") for cell in cells]
    root = Path(where.removeprefix(FOLDER)).expanduser()
    return [contents(_mask_file(root, path)) for path in split.column("path")]


def _mask_file(root: Path, path: Path) -> Path:
    """The mask of the picture at a path within its data set."""
    found = [each for each in sorted((root / path.parent).glob("*")) if each.stem == path.stem and each.suffix.lower() in IMAGE_SUFFIXES]
    if not found:
        raise DataError(
            f"{root / path.with_suffix('')}: expected the mask of {path} (any of {' '.join(sorted(IMAGE_SUFFIXES))}), found none"
        )
    return found[0]


def _mask(split: Split, row: int, data: Any) -> Tensor:
    partition, place = split.store.locate(row)
    where = f"the mask of {partition.location(place)}"
    if not isinstance(data, bytes):
        raise DataError(f"{where}: expected an encoded picture, received {type(data).__name__}; name a column of mask images")
    picture, size = open_image(data, where), split.store.size(row)
    if picture.size != size:
        raise DataError(f"{where}: expected {size[0]}×{size[1]} pixels like the picture, received {picture.size[0]}×{picture.size[1]}")
    if picture.mode not in ("1", "L", "P", "RGB"):
        raise DataError(f"{where}: expected gray, palette or RGB pixels, zero where there is no object, received mode {picture.mode}")
    fit: ResizeCrop = dataclasses.replace(split.store.fit, interpolation="nearest")
    try:
        values = np.asarray(fit.apply(picture))
    except BROKEN as error:
        raise DataError(f"{where} is corrupt: {first_line(error)}") from error
    return torch.from_numpy(values.reshape(*values.shape[:2], -1).any(-1))
