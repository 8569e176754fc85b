"""Partition, Split and AugmentedBatches: the parts of a data set, some of its images in a fixed order, and random copies of them."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F

from channelscope.data.decoding import ResizeCrop, decode, open_image
from channelscope.display import Facts, Shown
from channelscope.errors import DataError
from channelscope.types import Float, Int, Tensor

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


KEPT_BYTES = 2 * 1024**3
"""decoded pixels of a data set stay in memory up to this size; larger sets are decoded on every pass"""

Batch: TypeAlias = "tuple[Float[Tensor, 'images C H W'], Int[Tensor, 'images'], Int[Tensor, 'images']]"


class ImageStore:
    """All pictures of a data set as uint8 pixels of one size; rows are numbered across its partitions.

    Parameters
    ----------
    dataset
        The data set.
    fit
        Resizing and cropping.
    channels
        1 or 3.

    Examples
    --------
    >>> from channelscope.data.sources import digits
    >>> store = ImageStore(digits(), ResizeCrop(), 1)
    >>> store.read(torch.tensor([0, 5])).shape
    torch.Size([2, 1, 8, 8])
    """

    def __init__(self, dataset: PartitionedDataset, fit: ResizeCrop, channels: int):
        self.dataset = dataset
        self.fit = fit
        self.channels = channels
        self.starts = np.cumsum([0, *(len(part) for part in dataset.parts)])
        self.labels = torch.cat([part.labels for part in dataset.parts])

    def __len__(self) -> int:
        """Number of pictures, corrupt ones included."""
        return len(self.labels)

    def locate(self, row: int) -> tuple[Partition, int]:
        """The partition that holds a row, and the number of the row within it."""
        part = int(np.searchsorted(self.starts, row, side="right")) - 1
        return self.dataset.parts[part], row - int(self.starts[part])

    def size(self, row: int) -> tuple[int, int]:
        """Width and height in pixels of a picture before resizing."""
        partition, place = self.locate(row)
        return open_image(partition.read(place), partition.location(place)).size

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of every picture after resizing and cropping."""
        if self.fit.size is not None:
            return (self.channels, *self.fit.size)
        row = next((row for row in range(len(self)) if self._readable(row)), None)
        if row is None:
            raise DataError(f"{self.dataset.name}: none of the {len(self)} images can be decoded")
        width, height = self.size(row)
        return (self.channels, height, width)

    def read(self, rows: Int[Tensor, "images"]) -> Tensor:
        """Pixels of some pictures.

        Parameters
        ----------
        rows
            int64 (images,).

        Returns
        -------
        Tensor
            Uint8 (images, channels, height, width).

        Raises
        ------
        DataError
            For a picture that is corrupt or of another size; the first one is named.
        """
        known, pixels = self._memory
        if pixels is None:
            return torch.stack(self._decode(rows.tolist()))
        missing = rows[~known[rows]].unique()
        if len(missing):
            pixels[missing] = torch.stack(self._decode(missing.tolist()))
            known[missing] = True
        return pixels[rows]

    def corrupt_rows(self) -> list[int]:
        """Rows whose picture cannot be decoded; every picture is decoded once.

        Raises
        ------
        DataError
            If no picture can be decoded.
        """
        rows = [row for row in range(len(self)) if not self._readable(row)]
        if len(rows) == len(self):
            raise DataError(f"{self.dataset.name}: none of the {len(self)} images can be decoded")
        return rows

    def _readable(self, row: int) -> bool:
        partition, place = self.locate(row)
        try:
            decode(partition.read(place), partition.location(place), self.channels, ResizeCrop())
        except DataError:
            return False
        return True

    @cached_property
    def _memory(self) -> tuple[Tensor, Tensor | None]:
        shape = (len(self), *self.shape)
        fits = int(np.prod(shape)) <= KEPT_BYTES
        with torch.inference_mode(False):  # the first to read may be an evaluation; training writes into the same memory later
            return torch.zeros(len(self), dtype=torch.bool), torch.empty(shape, dtype=torch.uint8) if fits else None

    def _decode(self, rows: Sequence[int]) -> list[Tensor]:
        workers = os.cpu_count() or 1
        step = max(16, -(-len(rows) // (4 * workers)))  # decoding releases the interpreter, starting a task does not
        chunks = [rows[start : start + step] for start in range(0, len(rows), step)]
        with ThreadPoolExecutor(workers) as pool:
            return [picture for part in pool.map(self._decode_some, chunks) for picture in part]

    def _decode_some(self, rows: Sequence[int]) -> list[Tensor]:
        pictures = []
        for row in rows:
            partition, place = self.locate(row)
            pixels = decode(partition.read(place), partition.location(place), self.channels, self.fit)
            if pixels.shape != self.shape:
                raise DataError(
                    f"{partition.location(place)}: expected {_size(self.shape)} pixels like the set's first picture, "
                    f"received {_size(pixels.shape)}; pass size to resize and crop all images"
                )
            pictures.append(torch.from_numpy(np.array(pixels)))
        return pictures


def _size(shape: Sequence[int]) -> str:
    return f"{shape[2]}×{shape[1]}"


@dataclass(frozen=True, repr=False)
class Split(Shown):
    """Some images of a data set in a fixed order; iterating gives normalized batches (images, labels, index).

    The index of an image is its position in one fixed shuffle of the data set: the same in every run, and independent of the
    class.

    Examples
    --------
    >>> from channelscope.data.images import read_images
    >>> split = read_images("digits").test.take(10)
    >>> len(split), split.classes, split.labels.shape
    (10, 10, torch.Size([10]))
    """

    name: str
    """train, calibration, validation or test"""
    store: ImageStore = field(repr=False)
    """the pictures, shared by all splits of a data set"""
    rows: Int[Tensor, "images"] = field(repr=False)
    """row of each image in the store"""
    indices: Int[Tensor, "images"] = field(repr=False)
    """index of each image, int64"""
    mean: tuple[float, ...]
    """subtracted from pixels in 0..1, one number per channel"""
    std: tuple[float, ...]
    """divides after the subtraction, one number per channel"""
    batch_size: int = 128
    """images per batch; the last batch holds the rest"""

    def facts(self) -> Facts:
        """The data set, the number of images, their shape and the size of a batch."""
        size = " × ".join(map(str, self.image_shape))
        told = f"{self.name} of {self.store.dataset.name}: {len(self):,} images, {self.classes:,} classes, {size}"
        return f"Split({told}, batches of {self.batch_size})", []

    def __len__(self) -> int:
        """Number of images."""
        return len(self.rows)

    @property
    def classes(self) -> int:
        """Number of classes of the data set."""
        return len(self.store.dataset.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width of one image."""
        return self.store.shape

    @property
    def labels(self) -> Int[Tensor, "images"]:
        """Class of each image, int64."""
        return self.store.labels[self.rows]

    def __iter__(self) -> Iterator[Batch]:
        """Batches in order: float32 images (B, C, H, W), int64 labels (B,), int64 indices (B,)."""
        for start in range(0, len(self), self.batch_size):
            yield self.batch(torch.arange(start, min(start + self.batch_size, len(self))))

    def batch(self, places: Int[Tensor, "images"]) -> Batch:
        """Normalized images at some positions of the split, with their labels and indices.

        Parameters
        ----------
        places
            Positions in the split, int64 (images,).

        Returns
        -------
        tuple
            float32 (images, channels, height, width), int64 (images,), int64 (images,).
        """
        return self.normalized(self.pixels(places)), self.labels[places], self.indices[places]

    def pixels(self, places: Int[Tensor, "images"]) -> Tensor:
        """Images at some positions of the split before normalization.

        Parameters
        ----------
        places
            Positions in the split, int64 (images,).

        Returns
        -------
        Tensor
            Uint8 (images, channels, height, width).
        """
        return self.store.read(self.rows[places])

    def normalized(self, pixels: Tensor) -> Float[Tensor, "images C H W"]:
        """Normalized pixels, (pixels / 255 − mean) / std.

        Parameters
        ----------
        pixels
            (images, channels, height, width), 0..255.

        Returns
        -------
        Tensor
            float32, on the device of the pixels.
        """
        mean = torch.tensor(self.mean, device=pixels.device).view(-1, 1, 1)
        std = torch.tensor(self.std, device=pixels.device).view(-1, 1, 1)
        return (pixels.float() / 255 - mean) / std

    def take(self, n: int) -> "Split":
        """The first n images, a random sample because the order is a shuffle.

        Raises
        ------
        DataError
            If the split has fewer.
        """
        if not 0 <= n <= len(self):
            raise DataError(f"expected at most {len(self)} images of the {self.name} split, asked for {n}")
        return replace(self, rows=self.rows[:n], indices=self.indices[:n])

    def drop(self, n: int) -> "Split":
        """All but the first n images.

        Raises
        ------
        DataError
            If the split has fewer.
        """
        if not 0 <= n <= len(self):
            raise DataError(f"expected at most {len(self)} images of the {self.name} split, asked to leave out {n}")
        return replace(self, rows=self.rows[n:], indices=self.indices[n:])

    def with_batch_size(self, size: int) -> "Split":
        """The same images in batches of another size."""
        return replace(self, batch_size=size)

    def column(self, column: str) -> list[Any]:
        """Values of a further column of the data set, one per image.

        Parameters
        ----------
        column
            Name of the column. Boxes (column `boxes`, x0 y0 x1 y1 in pixels) are resized and cropped with the images.

        Returns
        -------
        list
            In the order of the split.

        Raises
        ------
        DataError
            If the data set has no such column.
        """
        values = []
        for row in self.rows.tolist():
            partition, place = self.store.locate(row)
            if column not in partition.columns:
                found = ", ".join(partition.columns) or "none"
                raise DataError(f"{self.store.dataset.name}: expected a column '{column}', the further columns are: {found}")
            value = partition.columns[column](place)
            values.append(self.store.fit.boxes(value, *self.store.size(row)) if column == "boxes" else value)
        return values


CALIBRATION = 5000
MAX_VALIDATION = 5000
SMALL_SET = 1000
TEST_SHARE = 0.2
VALIDATION_SHARE = 0.1


def divide(
    sizes: Mapping[str, int], images: int | None = None, seed: int = 0
) -> tuple[dict[str, Int[Tensor, "images"]], Int[Tensor, "all"]]:
    """Rows of the train, calibration, validation and test splits, and the index of every row.

    One fixed shuffle of all rows gives each image its index. Existing parts keep their role; a validation part is for testing
    where there is no test part, and images of no named part are for training. Missing splits are taken from the training
    images in index order: the last fifth for testing, then the last tenth (at most 5,000) for validation. Calibration images
    are drawn by `seed` from what remains.
    A set of fewer than 1,000 images without parts, or one that has held-out parts only, has nothing to train on. Its first
    half in index order (more if `images` asks for more) is drawn from by `seed` for calibration, at most 5,000 images unless
    `images` says otherwise. The rest is for testing, or for validation where there is a test part. The test split
    does not depend on the seed, and no calibration image comes from a part named test.

    Parameters
    ----------
    sizes
        Images of each part: train, validation, test, all.
    images
        Number of calibration images.
    seed
        Seed of the calibration sample.

    Returns
    -------
    tuple
        Split → rows (int64, in index order), and the index of every row (int64, in row order).

    Raises
    ------
    DataError
        If there are too few images for calibration, or a test part only.

    Examples
    --------
    >>> splits, index = divide({"validation": 400}, images=100)
    >>> {name: len(rows) for name, rows in splits.items()}
    {'train': 0, 'calibration': 100, 'validation': 0, 'test': 200}
    """
    total = sum(sizes.values())
    shuffle = torch.randperm(total, generator=torch.Generator().manual_seed(0))
    index = torch.empty_like(shuffle)
    index[shuffle] = torch.arange(total)
    pools: dict[str, Tensor] = {}
    start = 0
    for part, size in sizes.items():
        rows = torch.arange(start, start + size)
        pools[part], start = rows[index[rows].argsort()], start + size
    draw = torch.Generator().manual_seed(seed)
    trains = "train" in pools or len(pools.get("all", ())) >= SMALL_SET or ("all" in pools and len(pools) > 1)
    return (_with_training if trains else _without_training)(pools, images, draw), index


def _with_training(pools: dict[str, Tensor], images: int | None, draw: torch.Generator) -> dict[str, Tensor]:
    train = torch.cat([pools[part] for part in ("train", "all") if part in pools])
    test = pools.get("test", pools.get("validation"))
    validation = pools.get("validation") if "test" in pools else None
    if test is None:
        train, test = _carve(train, round(TEST_SHARE * len(train)))
    if validation is None:
        train, validation = _carve(train, min(MAX_VALIDATION, round(VALIDATION_SHARE * len(train))))
    calibration = _draw_rows(train, min(CALIBRATION, len(train)) if images is None else images, draw)
    return {"train": train, "calibration": calibration, "validation": validation, "test": test}


def _without_training(pools: dict[str, Tensor], images: int | None, draw: torch.Generator) -> dict[str, Tensor]:
    if set(pools) == {"test"}:
        raise DataError(
            "the set has a test part alone, and calibration images never come from one: add a training or validation part, or give "
            "the images without a part"
        )
    test = pools.pop("test", None)
    (remaining,) = pools.values()
    half = len(remaining) // 2
    count = min(CALIBRATION, half) if images is None else images
    pool, rest = remaining[: max(half, count)], remaining[max(half, count) :]
    calibration = _draw_rows(pool, count, draw)
    none = remaining[:0]
    held = {"validation": none, "test": rest} if test is None else {"validation": rest, "test": test}
    return {"train": none, "calibration": calibration, **held}


def _carve(rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    return rows[: len(rows) - count], rows[len(rows) - count :]


def _draw_rows(pool: Tensor, count: int, draw: torch.Generator) -> Tensor:
    if count > len(pool):
        raise DataError(f"expected at most {len(pool)} calibration images, asked for {count}")
    return pool[torch.randperm(len(pool), generator=draw)][:count]


class AugmentedBatches:
    """Normalized images of a split, without labels, shuffled, shifted and mirrored anew in every pass.

    The draws of a pass depend on the seed and on how many passes there were before it.

    Parameters
    ----------
    split
        The images; its batch size is kept.
    pad, flip
        As in `augment`.
    seed
        Of all draws.

    Examples
    --------
    >>> from channelscope.data.images import read_images
    >>> batches = AugmentedBatches(read_images("digits").test.take(10).with_batch_size(4), pad=0, flip=False)
    >>> [len(batch) for batch in batches]
    [4, 4, 2]
    """

    def __init__(self, split: Split, pad: int, flip: bool, seed: int = 0):
        self.split, self.pad, self.flip, self.seed = split, pad, flip, seed
        self.passes = 0

    def __len__(self) -> int:
        """Number of batches of a pass."""
        return -(-len(self.split) // self.split.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        """Batches of float32 images (B, C, H, W)."""
        draw = torch.Generator().manual_seed(self.seed * 1_000_003 + self.passes)
        self.passes += 1
        for places in torch.randperm(len(self.split), generator=draw).split(self.split.batch_size):
            yield self.split.normalized(augment(self.split.pixels(places), self.pad, self.flip, draw))


def augment(pixels: Tensor, pad: int, flip: bool, generator: torch.Generator, erase: float = 0.0) -> Tensor:
    """Randomly shifted and mirrored copies of a batch of images, with a black square on each where that is asked for.

    Parameters
    ----------
    pixels
        (images, channels, height, width) of any type, on any device.
    pad
        Largest shift in pixels along each axis; pixels from outside are 0.
    flip
        Whether each image is mirrored left to right with probability one half.
    generator
        CPU generator of all draws, so that they do not depend on the device.
    erase
        Side of the black square, as a fraction of the image's shorter side. Its center is drawn among all pixels, so squares at the
        border are cut off; 0 for none.

    Returns
    -------
    Tensor
        Of the shape, type and device of `pixels`.

    Examples
    --------
    >>> pixels = torch.tensor([[[[1, 2, 3]]]])
    >>> augment(pixels, 0, True, torch.Generator().manual_seed(0)).tolist()
    [[[[3, 2, 1]]]]

    References
    ----------
    DeVries & Taylor 2017 for the erased squares (Cutout).
    """
    if pad or flip:
        pixels = _shifted(pixels, pad, flip, generator)
    return _erased(pixels, round(erase * min(pixels.shape[2:])), generator) if erase else pixels


def _shifted(pixels: Tensor, pad: int, flip: bool, generator: torch.Generator) -> Tensor:
    count, channels, height, width = pixels.shape
    top, left = torch.randint(2 * pad + 1, (2, count, 1), generator=generator)
    rows = top + torch.arange(height)
    columns = left + torch.arange(width)
    if flip:
        mirrored = torch.rand(count, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    padded = F.pad(pixels, (pad, pad, pad, pad))
    image = torch.arange(count, device=pixels.device).view(-1, 1, 1, 1)
    channel = torch.arange(channels, device=pixels.device).view(1, -1, 1, 1)
    rows, columns = rows.to(pixels.device), columns.to(pixels.device)
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def _erased(pixels: Tensor, side: int, generator: torch.Generator) -> Tensor:
    count, _, height, width = pixels.shape

    def covered(length: int) -> Tensor:
        start = torch.randint(length, (count, 1), generator=generator) - side // 2
        places = torch.arange(length)
        return (places >= start) & (places < start + side)

    rows, columns = covered(height), covered(width)
    square = (rows[:, None, :, None] & columns[:, None, None, :]).to(pixels.device)
    return pixels.masked_fill(square, 0)
