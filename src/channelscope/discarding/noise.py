"""Noise on a grid of cells: the grid, its entropy, and reverse water-filling."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch

from channelscope.errors import InputError, NumericError, ShapeError
from channelscope.types import Bool, Float, Int, Tensor

GRID_SIDE = 56
"""cells along a side of a large image unless said otherwise"""


@dataclass(frozen=True)
class Cells:
    """A partition of a height × width plane into rows × columns rectangles as equal as can be."""

    plane: tuple[int, int]
    """height and width, in pixels"""
    grid: tuple[int, int]
    """cells down and across"""

    @classmethod
    def of(cls, plane: tuple[int, int], side: int | None = GRID_SIDE) -> "Cells":
        """At most `side` cells along each side, so one per pixel of a small image; None for one per pixel always.

        Raises
        ------
        InputError
            If the side is not positive.
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
    def row_of_cell(self) -> Int[Tensor, "height"]:
        """Row of cells that each row of pixels belongs to."""
        return torch.arange(self.plane[0]) * self.grid[0] // self.plane[0]

    @cached_property
    def column_of_cell(self) -> Int[Tensor, "width"]:
        """Column of cells that each column of pixels belongs to."""
        return torch.arange(self.plane[1]) * self.grid[1] // self.plane[1]

    def sum_by_cell(self, plane: Float[Tensor, "... height width"]) -> Float[Tensor, "... cells"]:
        """Sum over the pixels of each cell."""
        if self.per_pixel:
            return plane.flatten(-2)
        rows = plane.new_zeros(*plane.shape[:-2], self.grid[0], plane.shape[-1]).index_add_(-2, self.row_of_cell.to(plane.device), plane)
        cells = rows.new_zeros(*rows.shape[:-1], self.grid[1]).index_add_(-1, self.column_of_cell.to(plane.device), rows)
        return cells.flatten(-2)

    @cached_property
    def pixels(self) -> Float[Tensor, "cells"]:
        """Number of pixels in each cell: not equal where the grid does not divide the plane."""
        return torch.outer(torch.bincount(self.row_of_cell), torch.bincount(self.column_of_cell)).flatten().float()

    def mean_by_cell(self, plane: Float[Tensor, "... height width"]) -> Float[Tensor, "... cells"]:
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
        >>> cells.pixels.tolist(), cells.mean_by_cell(torch.tensor([[1.0, 1.0, 1.0, 3.0, 5.0]])).tolist()
        ([3.0, 2.0], [1.0, 4.0])
        """
        return self.sum_by_cell(plane) / self.pixels.to(plane)

    def expand_to_pixels(self, cells: Float[Tensor, "... cells"]) -> Float[Tensor, "... height width"]:
        """Each cell's value at all of its pixels."""
        grid = cells.unflatten(-1, self.grid)
        return grid.index_select(-2, self.row_of_cell.to(cells.device)).index_select(-1, self.column_of_cell.to(cells.device))


GAUSSIAN_ENTROPY = 0.5 * math.log(2 * math.pi * math.e)
"""entropy in nats of a normal variable of standard deviation 1"""

LOW, NEAR = -0.8, 0.01
"""departures of a share from the mean: below the first its logarithm is not followed, within the second it is a parabola"""


@dataclass(frozen=True)
class Allocation:
    """The noise that maximizes mean entropy while the linearized feature change stays within the budget."""

    noise_std: Float[Tensor, "images cells"]
    """standard deviation of the noise in each cell, in the unit of the pixels; 0 in cells that are left out"""
    capped: Bool[Tensor, "images cells"]
    """True where the cap, not the budget, holds the noise back"""
    water_level: Float[Tensor, "images"]
    """θ: the budget that each value of an uncapped cell spends; infinite where the budget cannot be spent"""

    @property
    def reached(self) -> Bool[Tensor, "images"]:
        """True where the budget is spent; False where even the caps change the feature by less than it."""
        return self.water_level.isfinite()


def entropy(sigma: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Differential entropy of Gaussian noise: H = ln σ + ½ ln(2πe).

    Returns
    -------
    Tensor
        Nats per value; −inf where there is no noise.

    References
    ----------
    Ma et al. 2022 (arXiv 1906.04109), equation 2; checked by tests/discarding/test_noise.py.
    """
    return sigma.log() + GAUSSIAN_ENTROPY


def mean_entropy(sigma: Float[Tensor, "images cells"], values: Float[Tensor, "cells"]) -> Float[Tensor, "images"]:
    """Mean of H over the values of an image, cells without values left out.

    Returns
    -------
    Tensor
        Nats per value.

    References
    ----------
    Ma et al. 2022, equation 3; checked by tests/discarding/test_noise.py.
    """
    used = values > 0
    return (entropy(sigma[:, used]) * values[used]).sum(1) / values.sum()


def capacity(sensitivity: Float[Tensor, "images cells"], cap: Float[Tensor, "cells"]) -> Float[Tensor, "images"]:
    """The largest feature change the caps allow: Σ cap² g, infinite without caps.

    References
    ----------
    Ma et al. 2022 (reverse water-filling); checked by tests/discarding/test_noise.py.
    """
    return _change_at_cap(sensitivity, cap).sum(1)


def water_filling(
    sensitivity: Float[Tensor, "images cells"],
    budget: Float[Tensor, "images"],
    cap: Float[Tensor, "cells"],
    values: Float[Tensor, "cells"],
) -> Allocation:
    """Reverse water-filling: maximize Σ n_i ln σ_i subject to Σ σ_i² g_i ≤ ε and σ_i ≤ cap_i.

        σ_i² = min(cap_i², θ n_i / g_i)        θ from  Σ min(cap_i² g_i, θ n_i) = ε

    `sensitivity` is g_i, the squared response of the feature to unit noise in cell i, summed over its n_i values; θ is
    exact: the sum is piecewise linear in it, with one kink per cell. Cells without values (n_i = 0) get no noise.

    Returns
    -------
    Allocation
        An Allocation; where Σ cap² g < ε every cell sits at its cap and `reached` is False.

    Raises
    ------
    NumericError
        For negative or non-finite sensitivities, or for a cell that the feature does not see (g_i = 0) and no cap holds:
        its entropy has no maximum.
    ShapeError
        If the cells do not match.

    References
    ----------
    Cover & Thomas 2006, section 10.3.3 (reverse water-filling); checked by tests/pencil_discarding.py::allocation.
    """
    if not sensitivity.shape[1:] == cap.shape == values.shape:
        raise ShapeError(
            f"expected one cap and one count per cell, received {sensitivity.shape[1]} cells, {len(cap)} caps, {len(values)} counts"
        )
    _check_sensitivity(sensitivity, cap, values)
    used = values > 0
    spend = _change_at_cap(sensitivity, cap).double() * used
    weight = values.double()
    kink = torch.where(used, spend / weight, -torch.inf)
    order = kink.argsort(1)
    spent = spend.gather(1, order).cumsum(1)
    before = spent.roll(1, 1).index_fill(1, torch.zeros(1, dtype=torch.long, device=spent.device), 0)
    weights = weight.expand_as(spend).gather(1, order)
    left = weights.flip(1).cumsum(1).flip(1)
    theta = (budget.double()[:, None] - before) / left
    fits = (theta <= kink.gather(1, order)) & (weights > 0)
    first = fits.int().argmax(1, keepdim=True)
    level = torch.where(fits.any(1), theta.gather(1, first)[:, 0], torch.inf)
    capped = (kink <= level[:, None]) & used
    free = (level[:, None] * weight / sensitivity).sqrt()
    sigma = torch.where(capped, cap.double(), free)
    return Allocation(torch.where(used, sigma, 0).to(sensitivity.dtype), capped, level)


def isotropic(
    sensitivity: Float[Tensor, "images cells"],
    budget: Float[Tensor, "images"],
    cap: Float[Tensor, "cells"],
    values: Float[Tensor, "cells"],
) -> Float[Tensor, "images"]:
    """Level of uniform noise that spends a budget where no cell goes beyond its cap.

    Parameters
    ----------
    sensitivity
        g, the squared response of the feature to unit noise in each cell, at least 0.
    budget
        ε, above 0.
    cap
        Largest standard deviation of each cell; may be infinite.
    values
        Number of values in each cell; cells without any get no noise.

    Returns
    -------
    Tensor
        t with Σ min(t, cap)² g = ε; infinite where all caps together spend less.

    Examples
    --------
    >>> one, two = torch.tensor([[1.0, 1.0]]), torch.tensor([2.0, 0.5])
    >>> isotropic(one, torch.tensor([1.25]), two, torch.ones(2)).tolist()
    [1.0]

    References
    ----------
    Checked by tests/pencil_discarding.py::isotropic.
    """
    weight = (sensitivity * (values > 0)).double()
    order = cap.argsort()
    square, weight = cap[order].double().square(), weight[:, order]
    spent = torch.where(weight > 0, weight * square, 0).cumsum(1)
    before = torch.cat([torch.zeros_like(spent[:, :1]), spent[:, :-1]], 1)
    left = weight.flip(1).cumsum(1).flip(1)
    level = (budget.double()[:, None] - before) / left
    fits = (level <= square) & (left > 0)
    first = fits.int().argmax(1, keepdim=True)
    return torch.where(fits.any(1), level.gather(1, first)[:, 0].clamp(min=0).sqrt(), torch.inf).to(sensitivity.dtype)


def entropy_gap(share: Float[Tensor, "draws images cells"], free: Bool[Tensor, "images cells"]) -> Float[Tensor, "images"]:
    """Entropy in nats that equal shares of the budget would gain: the mean over the free cells of ½ (s − 1 − ln s).

    s is a cell's share over the mean. Its square is the product of two draws, so that the draws' noise is not in it; how far
    the logarithm bends away from the parabola is taken at the mean of all draws.

    Returns
    -------
    Tensor
        Nats per value of the free cells; may be slightly negative where there is nothing to gain.

    References
    ----------
    Jensen's gap of the logarithm at the optimum of reverse water-filling; checked by tests/discarding/test_noise.py.
    """
    share = share.where(free, 0)
    mean = share.sum(2).mean(0) / free.sum(1).clamp(min=1)
    off = (share / mean[:, None] - 1).where(free, 0)
    draws, total = len(off), off.sum(0)
    squares = (total.square() - off.square().sum(0)) / (draws * (draws - 1))
    at = (total / draws).clamp(min=LOW)
    bend = torch.where(at.abs() < NEAR, 1, 2 * (at - at.log1p()) / at.square().where(at.abs() >= NEAR, 1))
    return (squares * bend).sum(1) / free.sum(1).clamp(min=1) / 4


def _change_at_cap(sensitivity: Tensor, cap: Tensor) -> Tensor:
    """What each cell would spend at its cap; nothing where the feature does not see it."""
    return torch.where(sensitivity > 0, cap.square() * sensitivity, 0)


def _check_sensitivity(sensitivity: Tensor, cap: Tensor, values: Tensor) -> None:
    if not bool(((sensitivity >= 0) & sensitivity.isfinite()).all()):
        raise NumericError(
            "expected finite sensitivities of at least 0: the network's gradients are not finite, or the noise is far too large"
        )
    blind = (sensitivity == 0) & cap.isinf() & (values > 0)
    if bool(blind.any()):
        image, cell = (int(number) for number in blind.nonzero()[0])
        count = int(blind[image].sum())
        raise NumericError(
            f"image {image} of the batch: the feature does not see {count} cells (the first is {cell}), so their noise has no limit; "
            "pass caps (the data's standard deviation), or a deeper layer"
        )
