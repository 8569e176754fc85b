"""Calibration images in chunks of one size, the positions that each contributes to a regression, the memory that passes over them leave."""

import ctypes
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from channelscope.data.batches import images_of, on_device_of
from channelscope.errors import DataError, InputError, SampleError
from channelscope.network.module_state import zero_batch
from channelscope.network.removal.groups import Groups
from channelscope.stats.readout import draw_positions
from channelscope.subset import Subset
from channelscope.types import Int

CHUNK_IMAGES = 100
"""Images in one chunk; even, so that alternate images divide every full chunk into two equal halves."""


def rechunked(source: Iterable, found: Groups) -> list[tuple[Tensor, ...]]:
    """All calibration images in chunks of equal size, on the network's device; labels are not used.

    Parameters
    ----------
    source
        Batches of (images, …) in any form that data/batches.py reads; ((first, second, …), …) for a network of several inputs.
    found
        The network's `groups`.

    Returns
    -------
    list of tuple of Tensor
        For each chunk all inputs of the network, each (images, …); 100 images a chunk, fewer in the last.

    Raises
    ------
    SampleError
        Without images.
    DataError
        For a batch that cannot be read.

    Examples
    --------
    >>> from channelscope.network.removal.groups import groups
    >>> found = groups(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1), nn.Flatten()), torch.zeros(1, 3, 8, 8))
    >>> [len(images) for (images,) in rechunked(torch.zeros(230, 3, 8, 8).split(7), found)]
    [100, 100, 30]
    """
    inputs = len(found.graph.inputs)
    columns: list[list[Tensor]] = [[] for _ in range(inputs)]
    for batch in source:
        for column, part in zip(columns, _inputs(batch, inputs), strict=True):
            column.append(on_device_of(part, found.graph.model))
    if not columns[0]:
        raise SampleError("there are no calibration images: the batches are empty")
    return list(zip(*map(_chunks, columns), strict=True))


def _chunks(parts: Sequence[Tensor]) -> Sequence[Tensor]:
    """Chunks of equal size, the last one smaller; no copies where the parts are that already."""
    *full, last = map(len, parts)
    if all(size == CHUNK_IMAGES for size in full) and 0 < last <= CHUNK_IMAGES:
        return parts
    return torch.cat(list(parts)).split(CHUNK_IMAGES)


def zero_input(model: nn.Module, source: Subset | Iterable) -> Tensor:
    """One blank image to trace a network on.

    Parameters
    ----------
    model
        The network, whose device and floating-point type the image has.
    source
        A subset of its channels, which knows the shape of an image, or batches of images.

    Returns
    -------
    Tensor
        Zeros (1, C, H, W).

    Raises
    ------
    InputError
        For a subset without the shape of an image.
    SampleError
        Without images.

    Examples
    --------
    >>> tuple(zero_input(nn.Conv2d(3, 4, 1), [(torch.ones(10, 3, 8, 8), torch.zeros(10))]).shape)
    (1, 3, 8, 8)
    """
    if isinstance(source, Subset):
        if not source.input_shape:
            raise InputError("repair: the subset needs the input shape, as cut() and Subset.everything() give it")
        return zero_batch(model, source.input_shape)
    batch = next(iter(source), None)
    if batch is None:
        raise SampleError("there are no calibration images: the batches are empty")
    return zero_batch(model, tuple(images_of(batch).shape[1:]))


def return_freed_memory() -> None:
    """Give what is free of the process's memory back to the system, where the C library can.

    Passes over many images leave their blocks to the C library, which later passes, with blocks of other sizes, use little of: 2.8 GB
    after the ranking of a ResNet-50 by 256 images.

    Examples
    --------
    >>> return_freed_memory()
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library than glibc
            ctypes.CDLL("libc.so.6").malloc_trim(0)


class DrawnPositions:
    """Positions that each calibration image contributes to a regression, drawn once for each number of positions of a map.

    Draws depend on the seed, the image's index and the number of positions alone, so layers with maps of equal size share them.

    Parameters
    ----------
    images
        Number of calibration images.
    count
        Positions drawn from each image.
    seed
        Seed of the draws.
    device
        Device of the drawn positions.

    Examples
    --------
    >>> draws = DrawnPositions(images=2, count=3)
    >>> draws.of(64).tolist()
    [[13, 41, 47], [8, 35, 39]]
    >>> draws.of(64) is draws.of(64), draws.of(3)
    (True, None)
    """

    def __init__(self, images: int, count: int, *, seed: int = 0, device: torch.device | str = "cpu"):
        self.images, self.count, self.seed, self.device = images, count, seed, device
        self._drawn: dict[int, Tensor] = {}

    def of(self, positions: int) -> Int[Tensor, "images count"] | None:
        """Positions drawn from every image, in ascending order, or None where all positions are taken.

        Parameters
        ----------
        positions
            Positions of one image in the map.

        Returns
        -------
        Tensor or None
            int64 (images, count), row i for the image of index i; None if a map has at most `count` positions.
        """
        if positions <= self.count:
            return None
        if positions not in self._drawn:
            chunks = torch.arange(self.images).split(CHUNK_IMAGES)
            drawn = torch.cat([draw_positions(index, positions, self.count, self.seed) for index in chunks])
            self._drawn[positions] = drawn.to(self.device)
        return self._drawn[positions]


def _inputs(batch: Any, count: int) -> Sequence[Tensor]:
    """What a network of so many inputs takes from a batch."""
    if count == 1:
        return (images_of(batch),)
    parts = batch if isinstance(batch, tuple | list) else (batch,)
    first = parts[0] if parts and isinstance(parts[0], tuple | list) else parts[:count]
    if len(first) != count or not all(isinstance(part, Tensor) for part in first):
        received = ", ".join(type(part).__name__ for part in first)
        raise DataError(
            f"the network takes {count} inputs, so a batch is a tuple of as many tensors, ((first, second, …), …); received {received}"
        )
    return first
