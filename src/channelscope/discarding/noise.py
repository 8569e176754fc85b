"""Maximum-entropy noise on a grid of cells: the grid, its entropy, and reverse water-filling with caps."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch

from channelscope.errors import InputError, NumericError, ShapeError
from channelscope.types import Bool, Float, Int, Tensor

GRID_SIDE = 56
"""default number of cells along a side of a large image"""


@dataclass(frozen=True)
class Cells:
    """A partition of a height × width plane into rows × columns rectangles whose sides differ by at most one pixel.

    Examples
    --------
    >>> cells = Cells.of((2, 5), 2)
    >>> cells, len(cells), cells.pixels.tolist()
    (Cells(plane=(2, 5), grid=(2, 2)), 4, [3.0, 2.0, 3.0, 2.0])
    """

    plane: tuple[int, int]
    """height and width, in pixels"""
    grid: tuple[int, int]
    """cells down and across"""

    @classmethod
    def of(cls, plane: tuple[int, int], side: int | None = GRID_SIDE) -> "Cells":
        """Cells of an image: at most `side` along each side, hence one per pixel of a small image.

        Parameters
        ----------
        plane
            Height and width in pixels.
        side
            Largest number of cells along a side; None for one per pixel.

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
        """Row of the grid to which each row of pixels belongs."""
        return torch.arange(self.plane[0]) * self.grid[0] // self.plane[0]

    @cached_property
    def column_of_cell(self) -> Int[Tensor, "width"]:
        """Column of the grid to which each column of pixels belongs."""
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
        """Number of pixels in each cell; the numbers differ where the grid does not divide the plane."""
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

LOG_CUTOFF, PARABOLA_WITHIN = -0.8, 0.01
"""limits of a share's relative deviation from the mean: smaller ones are raised to the first; within the second ½ x² is used"""


@dataclass(frozen=True)
class Allocation:
    """The noise that maximizes mean entropy while the linearized feature change stays within the budget."""

    noise_std: Float[Tensor, "images cells"]
    """standard deviation of the noise in each cell, in the unit of the pixels; 0 in cells that are left out"""
    capped: Bool[Tensor, "images cells"]
    """True where the cap is the binding constraint"""
    water_level: Float[Tensor, "images"]
    """θ: the budget that each value of an uncapped cell spends; infinite where the budget cannot be spent"""

    @property
    def reached(self) -> Bool[Tensor, "images"]:
        """True where the budget is spent; False where the noise at all caps changes the feature by less."""
        return self.water_level.isfinite()


def entropy(sigma: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Differential entropy of Gaussian noise: H = ln σ + ½ ln(2πe).

    Parameters
    ----------
    sigma
        Standard deviation, at least 0.

    Returns
    -------
    Tensor
        Nats per value; −inf where there is no noise.

    Examples
    --------
    >>> [round(float(each), 4) for each in entropy(torch.tensor([1.0, 0.0]))]
    [1.4189, -inf]

    References
    ----------
    Ma et al. 2022 (arXiv 1906.04109), equation 2; checked by tests/discarding/test_noise.py.
    """
    return sigma.log() + GAUSSIAN_ENTROPY


def mean_entropy(sigma: Float[Tensor, "images cells"], values: Float[Tensor, "cells"]) -> Float[Tensor, "images"]:
    """Mean of H over the values of each image.

    Parameters
    ----------
    sigma
        Standard deviation of the noise in each cell.
    values
        Number of values in each cell; cells without values are left out.

    Returns
    -------
    Tensor
        Nats per value.

    Examples
    --------
    >>> sigma, values = torch.tensor([[1.0, math.e, 0.0]]), torch.tensor([1.0, 3.0, 0.0])
    >>> round(float(mean_entropy(sigma, values)) - GAUSSIAN_ENTROPY, 4)
    0.75

    References
    ----------
    Ma et al. 2022, equation 3; checked by tests/discarding/test_noise.py.
    """
    used = values > 0
    return (entropy(sigma[:, used]) * values[used]).sum(1) / values.sum()


def water_filling(
    sensitivity: Float[Tensor, "images cells"],
    budget: Float[Tensor, "images"],
    cap: Float[Tensor, "cells"],
    values: Float[Tensor, "cells"],
) -> Allocation:
    """Reverse water-filling: maximize Σ n_i ln σ_i subject to Σ σ_i² g_i ≤ ε and σ_i ≤ cap_i.

        σ_i² = min(cap_i², θ n_i / g_i)        θ from  Σ min(cap_i² g_i, θ n_i) = ε

    θ is exact: the sum is piecewise linear in θ, with one kink per cell.

    Parameters
    ----------
    sensitivity
        g, the squared response of the feature to unit noise in each cell, summed over its values; at least 0.
    budget
        ε, above 0.
    cap
        Largest standard deviation of each cell; may be infinite.
    values
        n, number of values in each cell; cells without any get no noise.

    Returns
    -------
    Allocation
        The noise; where Σ cap² g < ε every cell is at its cap and `reached` is False.

    Raises
    ------
    NumericError
        For negative or non-finite sensitivities, or for a cell without cap and with g_i = 0: its entropy has no maximum.
    ShapeError
        If the numbers of cells differ.

    Examples
    --------
    Each of two values spends half of ε = 2; with a cap of ¼ the second spends ¼, and the first the rest.

    >>> sensitivity, budget, values = torch.tensor([[1.0, 4.0]]), torch.tensor([2.0]), torch.ones(2)
    >>> water_filling(sensitivity, budget, torch.tensor([torch.inf, torch.inf]), values).noise_std.tolist()
    [[1.0, 0.5]]
    >>> water_filling(sensitivity, budget, torch.tensor([torch.inf, 0.25]), values).noise_std.square().round(decimals=4).tolist()
    [[1.75, 0.0625]]

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
    """Standard deviation of uniform noise, cut at each cell's cap, that spends a budget.

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
    """Entropy that equal shares of the budget would gain: the mean over the free cells of ½ (s − 1 − ln s), in nats.

    s is a cell's share over the mean share. (s − 1)² is estimated from products of different draws, which is unbiased; a factor
    taken at the mean of all draws corrects for the higher orders of the logarithm.

    Parameters
    ----------
    share
        Samples of what a value of each cell spends of the budget; at least two draws.
    free
        Cells below their cap.

    Returns
    -------
    Tensor
        Nats per value of the free cells; may be slightly negative where the shares are equal.

    Examples
    --------
    Shares ½ and 1½ without noise: ¼ (−½ − ln ½ + ½ − ln 1½) = −¼ ln ¾.

    >>> round(float(entropy_gap(torch.tensor([[[0.5, 1.5]], [[0.5, 1.5]]]), torch.ones(1, 2) > 0)), 4), round(-math.log(0.75) / 4, 4)
    (0.0719, 0.0719)

    References
    ----------
    Jensen's gap of the logarithm at the optimum of reverse water-filling; checked by tests/discarding/test_noise.py.
    """
    share = share.where(free, 0)
    mean = share.sum(2).mean(0) / free.sum(1).clamp(min=1)
    off = (share / mean[:, None] - 1).where(free, 0)
    draws, total = len(off), off.sum(0)
    squares = (total.square() - off.square().sum(0)) / (draws * (draws - 1))
    at = (total / draws).clamp(min=LOG_CUTOFF)
    bend = torch.where(at.abs() < PARABOLA_WITHIN, 1, 2 * (at - at.log1p()) / at.square().where(at.abs() >= PARABOLA_WITHIN, 1))
    return (squares * bend).sum(1) / free.sum(1).clamp(min=1) / 4


def _change_at_cap(sensitivity: Tensor, cap: Tensor) -> Tensor:
    """Feature change of each cell's noise at its cap; 0 where the sensitivity is 0."""
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
