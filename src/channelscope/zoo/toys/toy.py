"""Toy: a tiny network, its images, and its known statistics."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from channelscope.types import Float, Int

Batches = list[tuple[Tensor, Tensor, Tensor]]

SIDE = 4

CHUNK = 64


@dataclass(frozen=True)
class Toy:
    """A network in evaluation mode, its images, and its known statistics.

    Examples
    --------
    >>> from channelscope.zoo.toys import exact_copy
    >>> exact_copy(images=100).images
    100
    """

    model: nn.Module
    """the network"""
    batches: Batches
    """(images float32, labels int64, index int64), as a list"""
    truth: dict[str, Any]
    """known statistics by name; the docstring of each toy lists them"""

    @property
    def images(self) -> int:
        """Number of images."""
        return sum(len(labels) for _, labels, _ in self.batches)


def batches(pixels: Float[Tensor, "images C H W"], labels: Int[Tensor, "images"]) -> Batches:
    """Batches of 64 images with their running index.

    Parameters
    ----------
    pixels
        float32 (images, channels, height, width).
    labels
        int64 (images,).

    Returns
    -------
    list
        (images, labels, index) of each batch.

    Examples
    --------
    >>> [len(index) for _, _, index in batches(torch.zeros(100, 1, 4, 4), torch.zeros(100))]
    [64, 36]
    """
    index = torch.arange(len(labels))
    return list(zip(pixels.split(CHUNK), labels.split(CHUNK), index.split(CHUNK), strict=True))
