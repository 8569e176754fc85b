"""Readout: what one sample of a feature map is (some positions, all of them, or their average)."""

import re
from dataclasses import dataclass
from typing import Literal

import torch

from channelscope.errors import InputError
from channelscope.types import Float, Int, Tensor


@dataclass(frozen=True)
class Readout:
    """How a map becomes samples of its channels.

    positions(16) takes 16 positions of each image, drawn by the image's index, so that batch size, order and device do not
    change them; positions(all) takes every one; pooled takes the average over positions.

    Examples
    --------
    >>> readout = Readout.parse("pooled")
    >>> readout.samples(torch.tensor([[[1.0, 3.0]]]), axis=0).tolist()
    [[[2.0]]]
    >>> str(Readout.parse("positions(16)")), Readout.parse("positions(16)").of(positions=9)
    ('positions(16)', 9)
    """

    kind: Literal["positions", "pooled"]
    """positions, or pooled"""
    count: int | None = None
    """positions per image; None for all of them"""

    @classmethod
    def parse(cls, text: "str | Readout") -> "Readout":
        """The readout that a text describes: 'pooled', 'positions(all)' or 'positions(N)'.

        Raises
        ------
        InputError
            For any other text.
        """
        if isinstance(text, Readout):
            return text
        if text == "pooled":
            return cls("pooled")
        match = re.fullmatch(r"positions\((all|[1-9]\d*)\)", text)
        if not match:
            raise InputError(f"readout: expected 'pooled', 'positions(all)' or 'positions(16)', received '{text}'")
        return cls("positions", None if match[1] == "all" else int(match[1]))

    def __str__(self) -> str:
        """The text that `parse` reads."""
        return "pooled" if self.kind == "pooled" else f"positions({self.count or 'all'})"

    def of(self, positions: int) -> int:
        """Number of samples of an image that has this many positions."""
        return 1 if self.kind == "pooled" else min(self.count or positions, positions)

    def samples(
        self, maps: Tensor, axis: int, where: Int[Tensor, "images positions"] | None = None
    ) -> Float[Tensor, "images samples channels"]:
        """Samples of each image of a batch of maps.

        Parameters
        ----------
        maps
            Images first.
        axis
            The axis of the channels, counted without the batch axis.
        where
            Positions of each image, as `where` gives them; None for all.

        Returns
        -------
        Tensor
            (images, samples, channels). A new tensor, except where every position is a sample: then a view of the maps.
        """
        flat = channels_last(maps, axis)
        if self.kind == "pooled":
            return flat.mean(1, keepdim=True)
        if where is None:
            return flat
        if flat.is_contiguous():
            first = torch.arange(0, len(flat) * flat.shape[1], flat.shape[1], device=where.device)
            return flat.flatten(0, 1).index_select(0, (where + first[:, None]).flatten()).unflatten(0, where.shape)
        return flat.transpose(1, 2).gather(2, where[:, None, :].expand(-1, flat.shape[2], -1)).transpose(1, 2)

    def where(self, index: Int[Tensor, "images"], positions: int, seed: int) -> Int[Tensor, "images positions"] | None:
        """The positions that each image gives, or None for all of them.

        Parameters
        ----------
        index
            Index of each image.
        positions
            Number of positions of an image.
        seed
            Of the drawn positions.
        """
        if self.kind == "pooled" or self.count is None or self.count >= positions:
            return None
        return draw_positions(index, positions, self.count, seed)


def channels_last(maps: Tensor, axis: int) -> Float[Tensor, "images positions channels"]:
    """Maps as images × positions × channels: a view, unless positions cannot be one axis.

    Parameters
    ----------
    maps
        Images first.
    axis
        The axis of the channels, counted without the batch axis.

    Examples
    --------
    >>> channels_last(torch.arange(8.0).view(1, 2, 2, 2), axis=0).tolist()
    [[[0.0, 4.0], [1.0, 5.0], [2.0, 6.0], [3.0, 7.0]]]
    """
    return maps.movedim(axis + 1, -1).flatten(1, -2) if maps.dim() > 2 else maps[:, None]


def draw_positions(index: Int[Tensor, "images"], positions: int, count: int, seed: int) -> Int[Tensor, "images count"]:
    """Distinct positions for each image, a function of seed and image index alone: those of the smallest hashed keys.

    Parameters
    ----------
    index
        Index of each image.
    positions
        Number of positions of an image.
    count
        Positions drawn.
    seed
        Of the draw.

    Returns
    -------
    Tensor
        (images, count), sorted.

    Examples
    --------
    >>> few, many = draw_positions(torch.tensor([7]), 100, 3, seed=0), draw_positions(torch.tensor([5, 7]), 100, 3, seed=0)
    >>> few.shape, bool((many[1] == few[0]).all())
    (torch.Size([1, 3]), True)
    """
    keys = index.cpu().long()[:, None] * positions + torch.arange(positions)
    return _mix(_mix(keys) + seed).topk(count, dim=1, largest=False).indices.sort(1).values.to(index.device)


def _mix(keys: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """SplitMix64's finalizer in wrapping 64-bit arithmetic (Steele, Lea, Flood 2014)."""
    keys = keys + _signed(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        keys = (keys ^ ((keys >> shift) & ((1 << (64 - shift)) - 1))) * _signed(factor)
    return keys


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
