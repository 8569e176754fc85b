"""Denoising of maps: multiscale empirical-Bayes shrinkage, and gamma regression on the image."""

from itertools import pairwise

import torch
from torch.nn import functional as F

from channelscope.discarding.noise import Cells
from channelscope.types import Bool, Float, Tensor

MIN_FACTOR = 0.5
"""lower bound of a scale's factor, for samples may be negative"""


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


CONTRAST, BRIGHTNESS = (0.0, 0.5, 1.0, 2.0, 4.0), (0.0, 1.0, 4.0)
"""standard deviations, in cells, of the windows in which contrast and brightness are measured"""

ONE_GRAY_LEVEL = 1 / 255
"""smallest difference between two pixels of an 8-bit image, added to every contrast"""

STEPS = 8
"""scoring steps of the fit, each at most 1 in any coefficient"""


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
