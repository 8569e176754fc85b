"""Split: some images of a data set in a fixed order, decoded when first asked for."""

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import torch

from channelscope.data.decoding import ResizeCrop, decode, open_image
from channelscope.data.partitions import Partition, PartitionedDataset
from channelscope.errors import DataError
from channelscope.types import Float, Int, Tensor

KEPT_BYTES = 2 * 1024**3
"""decoded pixels of a data set stay in memory up to this size; larger sets are decoded on every pass"""

Batch: TypeAlias = "tuple[Float[Tensor, 'images C H W'], Int[Tensor, 'images'], Int[Tensor, 'images']]"


class ImageStore:
    """All pictures of a data set as uint8 pixels of one size; rows count through its shelves one after the other."""

    def __init__(self, shelves: PartitionedDataset, fit: ResizeCrop, channels: int):
        self.shelves = shelves
        self.fit = fit
        self.channels = channels
        self.starts = np.cumsum([0, *(len(shelf) for shelf in shelves.parts)])
        self.labels = torch.cat([shelf.labels for shelf in shelves.parts])

    def __len__(self) -> int:
        """Number of pictures, corrupt ones included."""
        return len(self.labels)

    def locate(self, row: int) -> tuple[Partition, int]:
        """The shelf that holds a row, and the row's place on it."""
        part = int(np.searchsorted(self.starts, row, side="right")) - 1
        return self.shelves.parts[part], row - int(self.starts[part])

    def size(self, row: int) -> tuple[int, int]:
        """Width and height in pixels of a picture as it lies on disk."""
        shelf, place = self.locate(row)
        return open_image(shelf.read(place), shelf.location(place)).size

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width that every picture has after the fit."""
        if self.fit.size is not None:
            return (self.channels, *self.fit.size)
        row = next((row for row in range(len(self)) if self._readable(row)), None)
        if row is None:
            raise DataError(f"{self.shelves.name}: none of the {len(self)} images can be decoded")
        width, height = self.size(row)
        return (self.channels, height, width)

    def read(self, rows: Int[Tensor, "images"]) -> Tensor:
        """Pixels of some pictures: uint8 (images, C, H, W).

        Raises
        ------
        DataError
            Naming the first picture that is corrupt or of another size.
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
        """Rows whose picture cannot be decoded; decodes everything once.

        Raises
        ------
        DataError
            If no picture can be.
        """
        rows = [row for row in range(len(self)) if not self._readable(row)]
        if len(rows) == len(self):
            raise DataError(f"{self.shelves.name}: none of the {len(self)} images can be decoded")
        return rows

    def _readable(self, row: int) -> bool:
        shelf, place = self.locate(row)
        try:
            decode(shelf.read(place), shelf.location(place), self.channels, ResizeCrop())
        except DataError:
            return False
        return True

    @cached_property
    def _memory(self) -> tuple[Tensor, Tensor | None]:
        shape = (len(self), *self.shape)
        fits = int(np.prod(shape)) <= KEPT_BYTES
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
            shelf, place = self.locate(row)
            pixels = decode(shelf.read(place), shelf.location(place), self.channels, self.fit)
            if pixels.shape != self.shape:
                raise DataError(
                    f"{shelf.location(place)}: expected {_size(self.shape)} pixels like the set's first picture, "
                    f"received {_size(pixels.shape)}; pass size to resize and crop all images"
                )
            pictures.append(torch.from_numpy(np.array(pixels)))
        return pictures


def _size(shape: Sequence[int]) -> str:
    return f"{shape[2]}×{shape[1]}"


@dataclass(frozen=True)
class Split:
    """Some images of a data set in a fixed order; iterating gives normalized batches (images, labels, index).

    The index is the image's position in one fixed shuffle of the whole data set: the same in every run, different for
    different images, and unrelated to the class even where a data set is sorted by class.
    """

    name: str
    """train, calibration, validation or test"""
    store: ImageStore = field(repr=False)
    """the pictures, shared by the splits of a data set"""
    rows: Int[Tensor, "images"] = field(repr=False)
    """row of each image in the album"""
    indices: Int[Tensor, "images"] = field(repr=False)
    """index of each image, int64"""
    mean: tuple[float, ...]
    """subtracted from pixels in 0..1, one number per channel"""
    std: tuple[float, ...]
    """divides after the subtraction, one number per channel"""
    batch_size: int = 128
    """images per batch; the last batch holds the rest"""

    def __len__(self) -> int:
        """Number of images."""
        return len(self.rows)

    @property
    def classes(self) -> int:
        """Number of classes of the data set."""
        return len(self.store.shelves.class_names)

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
        """The images at some places of the split, normalized, with labels and indices."""
        return self.normalized(self.pixels(places)), self.labels[places], self.indices[places]

    def pixels(self, places: Int[Tensor, "images"]) -> Tensor:
        """The images at some places of the split as uint8 (B, C, H, W), before normalization."""
        return self.store.read(self.rows[places])

    def normalized(self, pixels: Tensor) -> Float[Tensor, "images C H W"]:
        """(pixels / 255 − mean) / std in float32, on the device of the pixels."""
        mean = torch.tensor(self.mean, device=pixels.device).view(-1, 1, 1)
        std = torch.tensor(self.std, device=pixels.device).view(-1, 1, 1)
        return (pixels.float() / 255 - mean) / std

    def take(self, n: int) -> "Split":
        """The first n images (a random sample, for the order is a shuffle).

        Raises
        ------
        DataError
            If there are fewer.
        """
        if not 0 <= n <= len(self):
            raise DataError(f"expected at most {len(self)} images of the {self.name} split, asked for {n}")
        return replace(self, rows=self.rows[:n], indices=self.indices[:n])

    def with_batch_size(self, size: int) -> "Split":
        """The same images in batches of another size."""
        return replace(self, batch_size=size)

    def column(self, column: str) -> list[Any]:
        """A further column of the data set, one value per image.

        Boxes (column `boxes`, x0 y0 x1 y1 in pixels) are moved along with resizing and cropping.

        Raises
        ------
        DataError
            If the data set has no such column.
        """
        values = []
        for row in self.rows.tolist():
            shelf, place = self.store.locate(row)
            if column not in shelf.columns:
                found = ", ".join(shelf.columns) or "none"
                raise DataError(f"{self.store.shelves.name}: expected a column '{column}', the further columns are: {found}")
            value = shelf.columns[column](place)
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
    """Rows of train, calibration, validation and test (int64, in row order of the data set), and the index of every row.

    One fixed shuffle of all rows gives each image its index. Named parts keep their role; a validation part is for testing
    where there is no test part, and images of no named part are for training. What is missing is carved from the training
    images in index order: the last fifth for testing, then the last tenth (at most 5,000) for validation. Calibration images
    are drawn by `seed` from what remains.
    A set of fewer than 1,000 images without parts, or one that has held-out parts only, has nothing to train on. Its first
    half in index order (more if `images` asks for more) is drawn from by `seed` for calibration, at most 5,000 images unless
    `images` says otherwise. The rest is for testing, or for validation where there is a test part. What is tested on depends
    on no seed, and no calibration image comes from a part named test.

    Parameters
    ----------
    sizes
        Images of each part: train, validation, test, all.
    images
        Calibration images.
    seed
        Which calibration images are drawn.

    Raises
    ------
    DataError
        If more calibration images are asked for than there are, or there is a test part alone.

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
    (whole,) = pools.values()
    half = len(whole) // 2
    count = min(CALIBRATION, half) if images is None else images
    pool, rest = whole[: max(half, count)], whole[max(half, count) :]
    calibration = _draw_rows(pool, count, draw)
    none = whole[:0]
    held = {"validation": none, "test": rest} if test is None else {"validation": rest, "test": test}
    return {"train": none, "calibration": calibration, **held}


def _carve(rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    return rows[: len(rows) - count], rows[len(rows) - count :]


def _draw_rows(pool: Tensor, count: int, draw: torch.Generator) -> Tensor:
    if count > len(pool):
        raise DataError(f"expected at most {len(pool)} calibration images, for that is all there are, asked for {count}")
    return pool[torch.randperm(len(pool), generator=draw)][:count]
