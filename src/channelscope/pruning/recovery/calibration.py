"""Calibration images as repair takes them: in chunks of one size, whatever the batches were."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from channelscope.data.batches import images_of, on_device_of
from channelscope.errors import DataError, InputError, SampleError
from channelscope.network.module_state import zero_batch
from channelscope.network.removal.groups import Groups
from channelscope.subset import Subset

CHUNK_IMAGES = 100
"""Images carried forward together; an even number, for every other image belongs to the other half."""


def rechunked(source: Iterable, found: Groups) -> list[tuple[Tensor, ...]]:
    """All images of batches (data/batches.py) in equal chunks, on the network's device; labels are not looked at.

    A network of several inputs takes batches of ((first, second, …), …).

    Raises
    ------
    SampleError
        Without images.
    DataError
        For a batch that cannot be read.
    """
    inputs = len(found.graph.inputs)
    columns: list[list[Tensor]] = [[] for _ in range(inputs)]
    for batch in source:
        for column, part in zip(columns, _inputs(batch, inputs), strict=True):
            column.append(on_device_of(part, found.graph.model))
    if not columns[0]:
        raise SampleError("there are no calibration images: the batches are empty")
    return list(zip(*(torch.cat(column).split(CHUNK_IMAGES) for column in columns), strict=True))


def zero_input(model: nn.Module, source: Subset | Iterable) -> Tensor:
    """One blank image to trace a network on, in the shape a subset or the first batch gives."""
    if isinstance(source, Subset):
        if not source.input_shape:
            raise InputError("repair: the subset needs the input shape, as cut() and Subset.everything() give it")
        return zero_batch(model, source.input_shape)
    batch = next(iter(source), None)
    if batch is None:
        raise SampleError("there are no calibration images: the batches are empty")
    return zero_batch(model, tuple(images_of(batch).shape[1:]))


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
