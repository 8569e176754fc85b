"""Maps from few noisy passes: shrinkage by scale and regression on the image."""

from itertools import pairwise

import torch
from torch.nn import functional as F

from channelscope.discarding.noise import Cells
from channelscope.types import Bool, Float, Tensor

MIN_FACTOR = 0.5
"""smallest factor by which one scale may lower a cell: samples that can be negative must not make a map vanish"""


def multiscale_shrinkage(
    samples: Float[Tensor, "draws images rows columns"],
    start: Float[Tensor, "images rows columns"],
    seen: Bool[Tensor, "images rows columns"],
) -> tuple[Float[Tensor, "images rows columns"], Float[Tensor, "images"]]:
    """The mean of noisy maps, shrunk toward a start scale by scale, and how far off it still is.

    At each scale, from a quarter of the map down to single cells, the detail d is what the ratio of measured to predicted
    (both blurred) has beyond the next coarser scale; it is kept by the share of its scatter that is not noise, which is
    known from the scatter between draws:

        prediction ← prediction · (1 + w d)        w = max(0, 1 − noise / mean d²)

    Draws without scatter are returned as they are, and so is a single draw, whose noise is unknown.

    Returns
    -------
    tuple[Tensor, Tensor]
        The map, with the sum that was measured, zero in cells not `seen`; and what the noise leaves of its mean squared
        relative error, Σ w · noise over the scales (posterior variances): a lower bound, for what is too faint to be told
        from the noise is not in it; 0 for a single draw.

    References
    ----------
    Efron & Morris 1973 (empirical Bayes) on the scales of Burt & Adelson 1983; checked by
    tests/pencil_discarding.py::shrunk.
    """
    samples = samples.where(seen, 0)
    total = samples.mean(0).sum((1, 2), keepdim=True)
    field = _rescale_to_total(torch.where(seen, start, 0).to(samples.dtype), total)
    count = seen.sum((1, 2)).clamp(min=1)
    doubt = torch.zeros_like(total[:, 0, 0])
    for coarser, scale in pairwise([torch.inf, *blur_widths(*seen.shape[1:])]):
        ratio = (gaussian_blur(samples, scale) / gaussian_blur(field, scale).where(seen, 1)).where(seen, 0)
        background = gaussian_blur(ratio, coarser) / gaussian_blur(seen.to(ratio), coarser).where(seen, 1) if coarser < torch.inf else 1.0
        detail = (ratio - background).where(seen, 0)
        weight, noise = _weight(detail.flatten(2).transpose(0, 1), count)
        doubt = doubt + weight * noise
        field = _rescale_to_total(field * (1 + weight[:, None, None] * (ratio.mean(0) - 1)).clamp(min=MIN_FACTOR), total)
    return field, doubt


def blur_widths(rows: int, columns: int) -> list[float]:
    """Widths of the blurs in cells, each half the one before, and 0 for none.

    References
    ----------
    Burt & Adelson 1983 (octaves).
    """
    widths = [2.0**power for power in range(15, -2, -1) if 4 * 2**power <= max(rows, columns)]
    return [*widths, 0.0]


def gaussian_blur(maps: Float[Tensor, "... rows columns"], width: float) -> Float[Tensor, "... rows columns"]:
    """Gaussian blur of standard deviation `width` cells; nothing comes in from outside the map.

    References
    ----------
    Separable convolution; checked by tests/discarding/test_shrinkage.py.
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
    """Share of the mean detail's square that different draws agree on, and the rest; a single draw is taken as it is."""
    draws = detail.shape[1]
    scatter = detail.mean(1).square().sum(1) / count
    if draws == 1:
        return (scatter > 0).to(scatter), torch.zeros_like(scatter)
    noise = (detail.square().sum((1, 2)) / count / draws - scatter) / (draws - 1)
    return (1 - noise / scatter.where(scatter > 0, 1)).clamp(min=0) * (scatter > 0), noise


def _rescale_to_total(field: Tensor, total: Tensor) -> Tensor:
    return field * (total / field.sum((1, 2), keepdim=True))


CONTRAST, BRIGHTNESS = (0.0, 0.5, 1.0, 2.0, 4.0), (0.0, 1.0, 4.0)
"""widths, in cells, over which a picture's contrast and brightness are taken"""

ONE_GRAY_LEVEL = 1 / 255
"""smallest difference between two pixels of an 8-bit image: where there is no contrast, this much is taken"""

STEPS = 8
"""steps of the fit, each at most 1 in any coefficient"""


def image_regressors(images: Float[Tensor, "images C H W"], cells: Cells) -> Float[Tensor, "images rows columns features"]:
    """Log contrast and brightness around each cell at several widths, and its place; each of mean 0 and mean square 1.

    What differs by less than one 8-bit step, or its share of a logarithm, is 0.

    References
    ----------
    This library.
    """
    pixels = cells.sum_by_cell(torch.ones_like(images[0, 0]))
    mean, square = ((cells.sum_by_cell(part) / pixels).unflatten(-1, cells.grid) for part in (images, images.square()))
    ones = torch.ones_like(mean)
    near = lambda plane, width: gaussian_blur(plane, width) / gaussian_blur(ones, width)  # noqa: E731
    contrast = [(near(square, width) - near(mean, width).square()).clamp(min=0).sum(1).add(ONE_GRAY_LEVEL**2).log() for width in CONTRAST]
    brightness = [near(mean, width).mean(1) for width in BRIGHTNESS]
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
    """The start times exp(features · b), fitted to the samples of each image: what the picture explains of its own map.

    b solves the equations of a gamma regression with a logarithmic link, whose scatter is in proportion to the mean and
    which minds no negative sample; the penalty is that of one more cell with b = 0.

    Returns
    -------
    Tensor
        The map; zero in cells not `seen`.

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
