"""Toy: a tiny network, its images, and what must come out."""

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
    """A network in eval mode, the images to show it, and what must come out."""

    model: nn.Module
    """the network"""
    batches: Batches
    """(images float32, labels int64, index int64), a list: iterate it as often as you like"""
    truth: dict[str, Any]
    """what is known; each toy's docstring names its entries"""

    @property
    def images(self) -> int:
        """Number of images."""
        return sum(len(labels) for _, labels, _ in self.batches)


def batches(pixels: Float[Tensor, "images C H W"], labels: Int[Tensor, "images"]) -> Batches:
    """Batches of 64 images with their running index."""
    index = torch.arange(len(labels))
    return list(zip(pixels.split(CHUNK), labels.split(CHUNK), index.split(CHUNK), strict=True))
