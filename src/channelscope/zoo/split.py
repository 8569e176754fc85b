"""Split: some images of a data set in a fixed order, decoded when first asked for."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import torch

from channelscope.errors import DataError
from channelscope.types import Float, Int, Tensor
from channelscope.zoo.pictures import Fit, decoded, opened
from channelscope.zoo.shelf import Shelf, Shelves

KEPT_BYTES = 2 * 1024**3
"""decoded pixels of a data set stay in memory up to this size; larger sets are decoded on every pass"""

Batch: TypeAlias = "tuple[Float[Tensor, 'images C H W'], Int[Tensor, 'images'], Int[Tensor, 'images']]"


class Album:
    """All pictures of a data set as uint8 pixels of one size; rows count through its shelves one after the other."""

    def __init__(self, shelves: Shelves, fit: Fit, channels: int):
        self.shelves = shelves
        self.fit = fit
        self.channels = channels
        self.starts = np.cumsum([0, *(len(shelf) for shelf in shelves.parts)])
        self.labels = torch.cat([shelf.labels for shelf in shelves.parts])

    def __len__(self) -> int:
        """Number of pictures, corrupt ones included."""
        return len(self.labels)

    def find(self, row: int) -> tuple[Shelf, int]:
        """The shelf that holds a row, and the row's place on it."""
        part = int(np.searchsorted(self.starts, row, side="right")) - 1
        return self.shelves.parts[part], row - int(self.starts[part])

    def size(self, row: int) -> tuple[int, int]:
        """Width and height in pixels of a picture as it lies on disk."""
        shelf, place = self.find(row)
        return opened(shelf.fetch(place), shelf.place(place)).size

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

        Raises   DataError naming the first picture that is corrupt or of another size.
        """
        known, pixels = self._memory
        if pixels is None:
            return torch.stack(self._decode(rows.tolist()))
        missing = rows[~known[rows]].unique()
        if len(missing):
            pixels[missing] = torch.stack(self._decode(missing.tolist()))
            known[missing] = True
        return pixels[rows]

    def corrupt(self) -> list[int]:
        """Rows whose picture cannot be decoded; decodes everything once.

        Raises   DataError if no picture can be.
        """
        rows = [row for row in range(len(self)) if not self._readable(row)]
        if len(rows) == len(self):
            raise DataError(f"{self.shelves.name}: none of the {len(self)} images can be decoded")
        return rows

    def _readable(self, row: int) -> bool:
        shelf, place = self.find(row)
        try:
            decoded(shelf.fetch(place), shelf.place(place), self.channels, Fit())
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
            shelf, place = self.find(row)
            pixels = decoded(shelf.fetch(place), shelf.place(place), self.channels, self.fit)
            if pixels.shape != self.shape:
                raise DataError(
                    f"{shelf.place(place)}: expected {_size(self.shape)} pixels like the set's first picture, "
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
    album: Album = field(repr=False)
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
        return len(self.album.shelves.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width of one image."""
        return self.album.shape

    @property
    def labels(self) -> Int[Tensor, "images"]:
        """Class of each image, int64."""
        return self.album.labels[self.rows]

    def __iter__(self) -> Iterator[Batch]:
        """Batches in order: float32 images (B, C, H, W), int64 labels (B,), int64 indices (B,)."""
        for start in range(0, len(self), self.batch_size):
            yield self.batch(torch.arange(start, min(start + self.batch_size, len(self))))

    def batch(self, places: Int[Tensor, "images"]) -> Batch:
        """The images at some places of the split, normalized, with labels and indices."""
        return self.normalized(self.pixels(places)), self.labels[places], self.indices[places]

    def pixels(self, places: Int[Tensor, "images"]) -> Tensor:
        """The images at some places of the split as uint8 (B, C, H, W), before normalization."""
        return self.album.read(self.rows[places])

    def normalized(self, pixels: Tensor) -> Float[Tensor, "images C H W"]:
        """(pixels / 255 − mean) / std in float32, on the device of the pixels."""
        mean = torch.tensor(self.mean, device=pixels.device).view(-1, 1, 1)
        std = torch.tensor(self.std, device=pixels.device).view(-1, 1, 1)
        return (pixels.float() / 255 - mean) / std

    def take(self, n: int) -> "Split":
        """The first n images (a random sample, for the order is a shuffle).

        Raises   DataError if there are fewer.
        """
        if not 0 <= n <= len(self):
            raise DataError(f"expected at most {len(self)} images of the {self.name} split, asked for {n}")
        return replace(self, rows=self.rows[:n], indices=self.indices[:n])

    def batched(self, size: int) -> "Split":
        """The same images in batches of another size."""
        return replace(self, batch_size=size)

    def extra(self, column: str) -> list[Any]:
        """A further column of the data set, one value per image.

        Boxes (column `boxes`, x0 y0 x1 y1 in pixels) are moved along with resizing and cropping.

        Raises   DataError if the data set has no such column.
        """
        values = []
        for row in self.rows.tolist():
            shelf, place = self.album.find(row)
            if column not in shelf.extra:
                found = ", ".join(shelf.extra) or "none"
                raise DataError(f"{self.album.shelves.name}: expected a column '{column}', the further columns are: {found}")
            value = shelf.extra[column](place)
            values.append(self.album.fit.boxes(value, *self.album.size(row)) if column == "boxes" else value)
        return values
