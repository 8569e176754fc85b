"""ImageSource: a data set by name or path, opened as partitions."""

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from sklearn.datasets import load_digits

from channelscope.data.decoding import contents, is_gray, open_image
from channelscope.data.parquet import parquet_or_hub
from channelscope.data.splits import ROLES, Partition, PartitionedDataset, from_arrays
from channelscope.data.torchvision_cpu import datasets as vision
from channelscope.errors import DataError


def digits() -> PartitionedDataset:
    """The 1,797 scanned digits of scikit-learn, 8×8 gray pixels; nothing is downloaded.

    Returns
    -------
    PartitionedDataset
        One part without a role, ten classes.

    Examples
    --------
    >>> len(digits().parts[0]), digits().class_names[-1]
    (1797, '9')
    """
    bunch: Any = load_digits()
    pixels = np.round(np.asarray(bunch["images"]) * (255 / 16)).astype(np.uint8)
    names = tuple(str(name) for name in bunch["target_names"])
    return PartitionedDataset("digits", (from_arrays("all", pixels, bunch["target"], "digits"),), names)


def cifar(name: str, root: Path) -> PartitionedDataset:
    """CIFAR-10 or CIFAR-100, downloaded into `root` once.

    Parameters
    ----------
    name
        cifar10 or cifar100.
    root
        Folder of the archive.

    Returns
    -------
    PartitionedDataset
        A training and a test part.

    Raises
    ------
    DataError
        If the archive is not in `root` and cannot be downloaded.

    Examples
    --------
    >>> cifar("cifar10", Path("~/data").expanduser()).parts[0].role  # doctest: +SKIP
    'train'
    """
    source = vision.CIFAR10 if name == "cifar10" else vision.CIFAR100
    try:
        sets = {"train": source(str(root), train=True, download=True), "test": source(str(root), train=False, download=True)}
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{name}: not found in {root} and the download failed ({error}). "
            f"Put the archive there, or pass data='hf:FOLDER' for a local folder of parquet files."
        ) from error
    parts = tuple(from_arrays(part, data.data, np.asarray(data.targets), name) for part, data in sets.items())
    return PartitionedDataset(name, parts, tuple(sets["train"].classes))


IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"}


def image_folder(root: Path) -> PartitionedDataset:
    """Data set of a folder of pictures: ROOT/CLASS/, or ROOT/PART/CLASS/ where PART is train, val, validation or test.

    A folder named like a part is a part if it holds folders and no pictures. Where there are parts, other folders beside them
    are ignored with a warning. Classes are numbered in the alphabetical order of their folders, over all parts together.

    Parameters
    ----------
    root
        The folder.

    Returns
    -------
    PartitionedDataset
        Its parts, undecoded; the further column `path` is the path of each picture relative to ROOT.

    Raises
    ------
    DataError
        If the folder is missing, holds no picture in a class folder, or has two folders for one part.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("cat", "dog"):
    ...         Path(folder, name).mkdir()
    ...         _ = Path(folder, name, "1.png").write_bytes(b"")
    ...     image_folder(Path(folder)).class_names
    ('cat', 'dog')
    """
    if not root.is_dir():
        raise DataError(f"{root}: expected a folder with one folder per class, found {'a file' if root.exists() else 'nothing'}")
    inner = _folders(root)
    bases = [("all", root)]
    named = [(ROLES[path.name.lower()], path) for path in inner if path.name.lower() in ROLES and _of_classes(path)]
    if named:
        bases, strays = named, [path.name for path in inner if path not in {part for _, part in named}]
        if strays:
            known = ", ".join(path.name for _, path in named)
            warnings.warn(f"{root}: the parts are {known}; passed over, for they are none: {', '.join(strays)}", UserWarning, stacklevel=2)
    parts = dict(bases)
    if len(parts) < len(bases):
        part = next(role for role, path in bases if parts[role] != path)
        twice = ", ".join(path.name for role, path in bases if role == part)
        raise DataError(f"{root}: expected one folder of {part} images, found {twice}; put them together, or move one away")
    names = tuple(sorted({path.name for base in parts.values() for path in _folders(base)}))
    partitions = tuple(_folder_partition(part, root, base, names) for part, base in parts.items())
    if not any(len(partition) for partition in partitions):
        endings = " ".join(sorted(IMAGE_SUFFIXES))
        raise DataError(f"{root}: expected pictures ({endings}) in one folder per class, found none in {len(names)} folders")
    return PartitionedDataset(f"folder:{root}", partitions, names)


def _of_classes(base: Path) -> bool:
    """Whether pictures lie in folders below, and none in the folder itself."""
    return bool(_folders(base)) and not any(_is_picture(path) for path in base.iterdir())


def _folder_partition(part: str, root: Path, base: Path, names: tuple[str, ...]) -> Partition:
    files = [(path, label) for label, name in enumerate(names) for path in _image_files(base / name)]
    paths = [path for path, _ in files]
    labels = torch.tensor([label for _, label in files], dtype=torch.int64)
    extra = {"path": lambda row: paths[row].relative_to(root)}
    return Partition(part, labels, lambda row: contents(paths[row]), lambda row: str(paths[row]), extra)


def _folders(base: Path) -> list[Path]:
    return sorted(path for path in base.iterdir() if path.is_dir() and not path.name.startswith("."))


def _image_files(base: Path) -> Iterable[Path]:
    return sorted(path for path in base.rglob("*") if _is_picture(path))


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir()


CACHE = Path("~/.cache/channelscope")

Normalization: TypeAlias = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class ImageSource:
    """A data set, and how it is divided and normalized.

    Examples
    --------
    >>> ImageSource("folder:photos", size=224).batch_size
    128
    """

    data: str = "digits"
    """digits, cifar10, cifar100, folder:PATH (one folder per class) or hf:ID_OR_PATH (hub id or local folder of parquet files)"""
    batch_size: int = 128
    """images per batch"""
    seed: int = 0
    """seed of the calibration sample; the test split does not depend on it"""
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
        """Raise DataError for numbers out of range."""
        for name, value, least in (("batch_size", self.batch_size, 1), ("images", self.images, 1), ("size", self.size, 1)):
            if value is not None and value < least:
                raise DataError(f"expected {name} of at least {least}, received {value}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and not (values and all(isinstance(value, int | float) and math.isfinite(value) for value in values)):
                raise DataError(f"{name}: expected finite numbers, one per channel or one for all, received {values}")
        if self.std is not None and min(self.std) <= 0:
            raise DataError(f"expected a positive std, received {self.std}")


def open_dataset(source: ImageSource) -> PartitionedDataset:
    """Data set of a source; nothing is decoded.

    Parameters
    ----------
    source
        Name of the data set, and options of reading it.

    Returns
    -------
    PartitionedDataset
        Its parts and class names.

    Raises
    ------
    DataError
        If the name is unknown, or the data set is missing, empty or ambiguous.

    Examples
    --------
    >>> open_dataset(ImageSource("digits")).name
    'digits'
    """
    kind, _, rest = source.data.partition(":")
    if source.data == "digits":
        return digits()
    if source.data in ("cifar10", "cifar100"):
        return cifar(source.data, source.root.expanduser())
    if kind == "folder" and rest:
        return image_folder(Path(rest).expanduser())
    if kind == "hf" and rest:
        return parquet_or_hub(rest, source.image_column, source.label_column)
    raise DataError(f"unknown data '{source.data}': expected digits, cifar10, cifar100, folder:PATH or hf:ID_OR_PATH")


def native_shape(found: PartitionedDataset) -> tuple[int, int, int]:
    """Shape of the pictures of a data set before resizing.

    Parameters
    ----------
    found
        The data set.

    Returns
    -------
    tuple
        Channels (3 if any picture has color, else 1), and height and width of the first readable picture.

    Raises
    ------
    DataError
        If no picture can be read.

    Examples
    --------
    >>> native_shape(digits())
    (1, 8, 8)
    """
    reason, size = None, None
    for part in found.parts:
        for row in range(len(part)):
            try:
                data = part.read(row)
                gray = is_gray(data, part.location(row))
                size = size or open_image(data, part.location(row)).size
            except DataError as error:
                reason = error
                continue
            if not gray:
                return (3, size[1], size[0])
    if size is None:
        raise DataError(f"{found.name}: no image can be read; the last one: {reason}")
    return (1, size[1], size[0])
