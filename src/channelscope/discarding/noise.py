"""Maximum-entropy noise on a grid of cells (its entropy, reverse water-filling with caps), and the denoising of maps on that grid."""

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch.nn import functional as F

from channelscope.errors import InputError, NumericError, ShapeError
from channelscope.types import Bool, Float, Int, Tensor

GRID_SIDE = 56
"""default number of cells along a side of a large image"""

GAUSSIAN_ENTROPY = 0.5 * math.log(2 * math.pi * math.e)
"""entropy in nats of a normal variable of standard deviation 1"""

LOG_CUTOFF, PARABOLA_WITHIN = -0.8, 0.01
"""limits of a share's relative deviation from the mean: smaller ones are raised to the first; within the second ½ x² is used"""

MIN_FACTOR = 0.5
"""lower bound of a scale's factor, for samples may be negative"""

CONTRAST, BRIGHTNESS = (0.0, 0.5, 1.0, 2.0, 4.0), (0.0, 1.0, 4.0)
"""standard deviations, in cells, of the windows in which contrast and brightness are measured"""

ONE_GRAY_LEVEL = 1 / 255
"""smallest difference between two pixels of an 8-bit image, added to every contrast"""

STEPS = 8
"""scoring steps of the fit, each at most 1 in any coefficient"""


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
            "cap the noise at the data's standard deviation, or name a deeper layer"
        )


def multiscale_shrinkage(
    samples: Float[Tensor, "draws images rows columns"],
    start: Float[Tensor, "images rows columns"],
    seen: Bool[Tensor, "images rows columns"],
) -> tuple[Float[Tensor, "images rows columns"], Float[Tensor, "images"]]:
    """The mean of noisy maps, shrunk toward a prior map scale by scale, and a lower bound of its relative variance.

    At each scale, from a quarter of the map down to single cells, the ratio of blurred samples to the blurred prediction is
    taken; the detail d is that ratio less its value at the next coarser scale. Then

        prediction ← prediction · (1 + w d)        w = max(0, 1 − noise / mean d²)

    with the noise estimated from the scatter between draws. Draws without scatter, and a single draw, are returned as they are.

    Parameters
    ----------
    samples
        Unbiased samples of the map; they may be negative.
    start
        Prior map, positive, in any unit.
    seen
        Cells in which the map is not zero.

    Returns
    -------
    tuple[Tensor, Tensor]
        The map, whose sum is that of the samples' mean, zero in cells not `seen`; and Σ w · noise over the scales, a lower
        bound of its mean squared relative error for each image; 0 for a single draw.

    Examples
    --------
    >>> samples = torch.tensor([[[1.0, 2.0], [3.0, 6.0]]]).expand(4, 1, 2, 2)
    >>> field, variance = multiscale_shrinkage(samples, torch.ones(1, 2, 2), torch.ones(1, 2, 2) > 0)
    >>> field.round(decimals=3).tolist(), abs(round(float(variance), 3))
    ([[[1.0, 2.0], [3.0, 6.0]]], 0.0)

    References
    ----------
    Efron & Morris 1973 (empirical Bayes) on the scales of Burt & Adelson 1983; checked by
    tests/pencil_discarding.py::shrunk.
    """
    samples = samples.where(seen, 0)
    total = samples.mean(0).sum((1, 2), keepdim=True)
    field = _rescale_to_total(torch.where(seen, start, 0).to(samples.dtype), total)
    count = seen.sum((1, 2)).clamp(min=1)
    relative_variance = torch.zeros_like(total[:, 0, 0])
    for coarser, scale in pairwise([torch.inf, *blur_widths(*seen.shape[1:])]):
        ratio = (gaussian_blur(samples, scale) / gaussian_blur(field, scale).where(seen, 1)).where(seen, 0)
        coarse = gaussian_blur(ratio, coarser) / gaussian_blur(seen.to(ratio), coarser).where(seen, 1) if coarser < torch.inf else 1.0
        detail = (ratio - coarse).where(seen, 0)
        weight, noise = _weight(detail.flatten(2).transpose(0, 1), count)
        relative_variance = relative_variance + weight * noise
        field = _rescale_to_total(field * (1 + weight[:, None, None] * (ratio.mean(0) - 1)).clamp(min=MIN_FACTOR), total)
    return field, relative_variance


def blur_widths(rows: int, columns: int) -> list[float]:
    """Standard deviations of the blurs in cells, from coarse to fine, each half the one before; the last is 0 (no blur).

    Parameters
    ----------
    rows, columns
        Size of the grid of cells.

    Returns
    -------
    list[float]
        Powers of two of at most a quarter of the longer side, then 0.

    Examples
    --------
    >>> blur_widths(8, 4)
    [2.0, 1.0, 0.5, 0.0]

    References
    ----------
    Burt & Adelson 1983 (octaves).
    """
    widths = [2.0**power for power in range(15, -2, -1) if 4 * 2**power <= max(rows, columns)]
    return [*widths, 0.0]


def gaussian_blur(maps: Float[Tensor, "... rows columns"], width: float) -> Float[Tensor, "... rows columns"]:
    """Maps blurred by a Gaussian kernel, with zeros outside of the map.

    Parameters
    ----------
    maps
        One map or a stack of maps.
    width
        Standard deviation in cells; 0 returns the maps as they are.

    Returns
    -------
    Tensor
        Maps of the same shape.

    Examples
    --------
    >>> [round(float(value), 3) for value in gaussian_blur(torch.tensor([[0.0, 0.0, 1.0, 0.0, 0.0]]), 0.5)[0]]
    [0.0, 0.084, 0.619, 0.084, 0.0]

    References
    ----------
    Separable convolution; checked by tests/discarding/test_smoothing.py.
    """
    if width == 0:
        return maps
    reach = min(int(3 * width) + 1, max(maps.shape[-2:]))
    steps = torch.arange(-reach, reach + 1, device=maps.device, dtype=maps.dtype)
    kernel = (-0.5 * (steps / width).square()).exp()
    kernel = kernel / kernel.sum()
    flat = maps.reshape(-1, 1, *maps.shape[-2:])
    flat = F.conv2d(flat, kernel[None, None, None, :], padding=(0, reach))
    return F.conv2d(flat, kernel[None, None, :, None], padding=(reach, 0)).reshape(maps.shape)


def _weight(detail: Float[Tensor, "images draws cells"], count: Tensor) -> tuple[Tensor, Tensor]:
    """Weight w = max(0, 1 − noise / mean d²) of a detail, and the noise of its mean over the draws; 1 and 0 for a single draw."""
    draws = detail.shape[1]
    scatter = detail.mean(1).square().sum(1) / count
    if draws == 1:
        return (scatter > 0).to(scatter), torch.zeros_like(scatter)
    noise = (detail.square().sum((1, 2)) / count / draws - scatter) / (draws - 1)
    return (1 - noise / scatter.where(scatter > 0, 1)).clamp(min=0) * (scatter > 0), noise


def _rescale_to_total(field: Tensor, total: Tensor) -> Tensor:
    return field * (total / field.sum((1, 2), keepdim=True))


def image_regressors(images: Float[Tensor, "images C H W"], cells: Cells) -> Float[Tensor, "images rows columns features"]:
    """Regressors of each cell from the image: log contrast and brightness at several widths, and position.

    Parameters
    ----------
    images
        Images in pixels of 0 to 1.
    cells
        Cells of the images.

    Returns
    -------
    Tensor
        Twelve numbers per cell, each of mean 0 and mean square 1 over an image's cells; 0 where the regressor varies by less
        than one 8-bit step.

    Examples
    --------
    A gray image has no contrast and no brightness that varies; position is left.

    >>> regressors = image_regressors(torch.full((1, 3, 4, 4), 0.5), Cells.of((4, 4)))
    >>> regressors.square().mean((0, 1, 2)).round(decimals=3).abs().tolist()
    [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]

    References
    ----------
    This library.
    """
    pixels = cells.sum_by_cell(torch.ones_like(images[0, 0]))
    mean, square = ((cells.sum_by_cell(part) / pixels).unflatten(-1, cells.grid) for part in (images, images.square()))
    ones = torch.ones_like(mean)
    local_mean = lambda plane, width: gaussian_blur(plane, width) / gaussian_blur(ones, width)  # noqa: E731
    contrast = [
        (local_mean(square, width) - local_mean(mean, width).square()).clamp(min=0).sum(1).add(ONE_GRAY_LEVEL**2).log()
        for width in CONTRAST
    ]
    brightness = [local_mean(mean, width).mean(1) for width in BRIGHTNESS]
    down, across = (torch.linspace(-1, 1, side, device=images.device, dtype=images.dtype) for side in cells.grid)
    place = [part.expand_as(contrast[0]) for part in (down[:, None], across, down[:, None].square(), across.square())]
    found = torch.stack([*contrast, *brightness, *place], -1)
    found = found - found.mean((1, 2), keepdim=True)
    scale = found.square().mean((1, 2), keepdim=True).sqrt()
    return torch.where(scale > ONE_GRAY_LEVEL, found / scale, 0)


def gamma_regression(
    samples: Float[Tensor, "draws images rows columns"],
    start: Float[Tensor, "images rows columns"],
    seen: Bool[Tensor, "images rows columns"],
    features: Float[Tensor, "images rows columns features"],
) -> Float[Tensor, "images rows columns"]:
    """The map start · exp(features · b), with b fitted to the samples of each image by gamma regression, up to one factor per image.

    The factor left out is the mean of samples over start.

    The fit is a quasi-likelihood with logarithmic link and a variance in proportion to the squared mean, so that negative
    samples are allowed; the ridge penalty is 1 for each coefficient but the constant.

    Parameters
    ----------
    samples
        Unbiased samples of the map.
    start
        Factor of the prediction, positive.
    seen
        Cells in which the map is not zero.
    features
        Regressors of each cell, such as `image_regressors`.

    Returns
    -------
    Tensor
        The map up to a factor for each image; zero in cells not `seen`.

    Examples
    --------
    >>> seen, features = torch.tensor([[[True, True, False]]]), torch.zeros(1, 1, 3, 2)
    >>> gamma_regression(torch.tensor([[[[1.0, 3.0, 9.0]]]]), torch.ones(1, 1, 3), seen, features).tolist()
    [[[1.0, 1.0, 0.0]]]

    References
    ----------
    McCullagh & Nelder 1989 (gamma regression), ridge of Hoerl & Kennard 1970; checked by
    tests/pencil_discarding.py::regressed.
    """
    design = torch.where(seen[..., None], torch.cat([torch.ones_like(features[..., :1]), features], -1), 0).flatten(1, 2).double()
    ratio = torch.where(seen, samples.mean(0) / start.where(seen, 1), 0).flatten(1).double()
    used = seen.flatten(1)
    level = ratio.sum(1) / used.sum(1).clamp(min=1)
    penalty = torch.ones_like(design[0, 0])
    penalty[0] = 0
    normal = design.transpose(1, 2) @ design + torch.diag(penalty + (used.sum(1) == 0).any())
    fit = torch.zeros_like(design[:, 0])
    for _ in range(STEPS):
        predicted = (design @ fit[..., None])[..., 0].exp() * level[:, None]
        score = torch.where(used, ratio / predicted - 1, 0)
        step = torch.linalg.solve(normal, (score[:, None] @ design)[:, 0] - penalty * fit)
        fit = fit + step / step.abs().amax(1, keepdim=True).clamp(min=1)
    return torch.where(seen, start * (design @ fit[..., None])[..., 0].exp().view_as(start).to(start), 0)
