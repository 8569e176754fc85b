"""Cells: the parts of an image that share one noise level, a pixel each or a block of pixels each."""

from dataclasses import dataclass
from functools import cached_property

import torch

from channelscope.errors import InputError
from channelscope.types import Float, Int, Tensor

SIDE = 56
"""cells along a side of a large image unless said otherwise"""


@dataclass(frozen=True)
class Cells:
    """A partition of a height × width plane into rows × columns rectangles as equal as can be."""

    plane: tuple[int, int]
    """height and width, in pixels"""
    grid: tuple[int, int]
    """cells down and across"""

    @classmethod
    def of(cls, plane: tuple[int, int], side: int | None = SIDE) -> "Cells":
        """At most `side` cells along each side, so one per pixel of a small image; None for one per pixel always.

        Raises   InputError if the side is not positive.
        """
        if side is not None and side < 1:
            raise InputError(f"expected at least one cell along a side, received {side}")
        height, width = plane
        return cls(plane, (height, width) if side is None else (min(side, height), min(side, width)))

    def __len__(self) -> int:
        """Number of cells."""
        return self.grid[0] * self.grid[1]

    @property
    def per_pixel(self) -> bool:
        """Whether every pixel is a cell of its own."""
        return self.grid == self.plane

    @cached_property
    def of_row(self) -> Int[Tensor, "height"]:
        """Row of cells that each row of pixels belongs to."""
        return torch.arange(self.plane[0]) * self.grid[0] // self.plane[0]

    @cached_property
    def of_column(self) -> Int[Tensor, "width"]:
        """Column of cells that each column of pixels belongs to."""
        return torch.arange(self.plane[1]) * self.grid[1] // self.plane[1]

    def sum(self, plane: Float[Tensor, "... height width"]) -> Float[Tensor, "... cells"]:
        """Sum over the pixels of each cell."""
        if self.per_pixel:
            return plane.flatten(-2)
        rows = plane.new_zeros(*plane.shape[:-2], self.grid[0], plane.shape[-1]).index_add_(-2, self.of_row.to(plane.device), plane)
        cells = rows.new_zeros(*rows.shape[:-1], self.grid[1]).index_add_(-1, self.of_column.to(plane.device), rows)
        return cells.flatten(-2)

    @cached_property
    def pixels(self) -> Float[Tensor, "cells"]:
        """Number of pixels in each cell: not equal where the grid does not divide the plane."""
        return torch.outer(torch.bincount(self.of_row), torch.bincount(self.of_column)).flatten().float()

    def mean(self, plane: Float[Tensor, "... height width"]) -> Float[Tensor, "... cells"]:
        """Mean of a map over the pixels of each cell, so that cells of unequal size can be compared.

        Parameters
        ----------
        plane
            A map, or a stack of maps, with one number per pixel.

        Returns
        -------
        Tensor
            One number per cell, in the unit of the map.

        Examples
        --------
        >>> cells = Cells.of((1, 5), 2)
        >>> cells.pixels.tolist(), cells.mean(torch.tensor([[1.0, 1.0, 1.0, 3.0, 5.0]])).tolist()
        ([3.0, 2.0], [1.0, 4.0])
        """
        return self.sum(plane) / self.pixels.to(plane)

    def spread(self, cells: Float[Tensor, "... cells"]) -> Float[Tensor, "... height width"]:
        """Each cell's value at all of its pixels."""
        grid = cells.unflatten(-1, self.grid)
        return grid.index_select(-2, self.of_row.to(cells.device)).index_select(-1, self.of_column.to(cells.device))
