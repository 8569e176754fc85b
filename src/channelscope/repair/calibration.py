"""Calibration images as repair takes them: in chunks of one size, whatever the batches were."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from channelscope.errors import InputError, SampleError
from channelscope.net.edits import blank
from channelscope.net.groups import Groups
from channelscope.net.subset import Subset

CHUNK = 100
"""Images carried forward together; an even number, for every other image belongs to the other half."""


def chunks(source: Iterable, found: Groups) -> list[tuple[Tensor, ...]]:
    """All images of batches of (images, …), or of bare images, in equal chunks on the network's device.

    A network of several inputs takes batches of ((first, second, …), …).

    Raises   SampleError without images.
    """
    inputs = len(found.graph.inputs)
    device = next(found.graph.model.parameters()).device
    columns: list[list[Tensor]] = [[] for _ in range(inputs)]
    for batch in source:
        parts = batch if isinstance(batch, tuple | list) else (batch,)
        first = parts[0] if isinstance(parts[0], tuple | list) else parts[:inputs]
        for column, part in zip(columns, first, strict=True):
            column.append(part.to(device))
    if not columns[0]:
        raise SampleError("there are no calibration images: the batches are empty")
    return list(zip(*(torch.cat(column).split(CHUNK) for column in columns), strict=True))


def example(model: nn.Module, source: Subset | Iterable) -> Tensor:
    """One blank image to trace a network on, in the shape a subset or the first batch gives."""
    if isinstance(source, Subset):
        if not source.input_shape:
            raise InputError("repair: the subset needs the input shape, as cut() and Subset.everything() give it")
        return blank(model, source.input_shape)
    batch = next(iter(source), None)
    if batch is None:
        raise SampleError("there are no calibration images: the batches are empty")
    image = batch[0] if isinstance(batch, tuple | list) else batch
    return blank(model, tuple(image.shape[1:]))
