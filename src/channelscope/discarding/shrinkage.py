"""Maps from few noisy passes: coarse structure first, finer structure as far as it stands out of the noise."""

from itertools import pairwise

import torch
from torch.nn import functional as F

from channelscope.types import Bool, Float, Tensor

LEAST = 0.5
"""smallest factor by which one scale may lower a cell: samples that can be negative must not make a map vanish"""


def shrunk(
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

    Returns  the map, with the sum that was measured, zero in cells not `seen`; and what the noise leaves of its mean squared
             relative error, Σ w · noise over the scales (posterior variances): a lower bound, for what is too faint to be told
             from the noise is not in it; 0 for a single draw.
    Source   Efron & Morris 1973 (empirical Bayes) on the scales of Burt & Adelson 1983; checked by tests/pencil_discarding.py::shrunk
    """
    samples = samples.where(seen, 0)
    total = samples.mean(0).sum((1, 2), keepdim=True)
    field = _scaled(torch.where(seen, start, 0).to(samples.dtype), total)
    count = seen.sum((1, 2)).clamp(min=1)
    doubt = torch.zeros_like(total[:, 0, 0])
    for coarser, scale in pairwise([torch.inf, *scales(*seen.shape[1:])]):
        ratio = (blurred(samples, scale) / blurred(field, scale).where(seen, 1)).where(seen, 0)
        background = blurred(ratio, coarser) / blurred(seen.to(ratio), coarser).where(seen, 1) if coarser < torch.inf else 1.0
        detail = (ratio - background).where(seen, 0)
        weight, noise = _weight(detail.flatten(2).transpose(0, 1), count)
        doubt = doubt + weight * noise
        field = _scaled(field * (1 + weight[:, None, None] * (ratio.mean(0) - 1)).clamp(min=LEAST), total)
    return field, doubt


def scales(rows: int, columns: int) -> list[float]:
    """Widths of the blurs in cells, each half the one before, and 0 for none.

    Source   Burt & Adelson 1983 (octaves)
    """
    widths = [2.0**power for power in range(15, -2, -1) if 4 * 2**power <= max(rows, columns)]
    return [*widths, 0.0]


def blurred(maps: Float[Tensor, "... rows columns"], width: float) -> Float[Tensor, "... rows columns"]:
    """Gaussian blur of standard deviation `width` cells; nothing comes in from outside the map.

    Source   separable convolution; checked by tests/discarding/test_shrinkage.py
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


def _scaled(field: Tensor, total: Tensor) -> Tensor:
    return field * (total / field.sum((1, 2), keepdim=True))
