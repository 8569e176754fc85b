"""Maps from few noisy passes: coarse structure first, finer structure as far as it stands out of the noise."""

from itertools import pairwise

import torch
from scipy import stats
from torch.nn import functional as F

from channelscope.types import Bool, Float, Tensor

LEAST = 0.1
"""smallest factor by which one scale may lower a cell: samples that can be negative must not make a map vanish"""


def shrunk(
    samples: Float[Tensor, "draws images rows columns"],
    start: Float[Tensor, "images rows columns"],
    seen: Bool[Tensor, "images rows columns"],
    chance: float = 1.0,
) -> Float[Tensor, "images rows columns"]:
    """The mean of noisy maps, shrunk toward a start scale by scale.

    At each scale, from a quarter of the map down to single cells, the detail d is what the ratio of measured to predicted
    (both blurred) has beyond the next coarser scale; it is kept by the share of its scatter that is not noise, which is
    known from the scatter between draws:

        prediction ← prediction · (1 + w d)        w = max(0, 1 − noise / mean d²)

    Draws without scatter are returned as they are, and so is a single draw, whose noise is unknown. With `chance` below 1 a
    scale is believed only if the details of different draws agree: the mean of their products over all pairs of draws must
    exceed what chance gives them with that probability (a t test; the noise may be correlated from cell to cell).

    Returns  the map, with the sum that was measured; zero in cells not `seen`.
    Source   Efron & Morris 1973 (empirical Bayes) on the scales of Burt & Adelson 1983; checked by tests/pencil_discarding.py::shrunk
    """
    samples = samples.where(seen, 0)
    total = samples.mean(0).sum((1, 2), keepdim=True)
    field = _scaled(torch.where(seen, start, 0).to(samples.dtype), total)
    count = seen.sum((1, 2)).clamp(min=1)
    for coarser, scale in pairwise([torch.inf, *scales(*seen.shape[1:])]):
        ratio = (blurred(samples, scale) / blurred(field, scale).where(seen, 1)).where(seen, 0)
        background = blurred(ratio, coarser) / blurred(seen.to(ratio), coarser).where(seen, 1) if coarser < torch.inf else 1.0
        detail = (ratio - background).where(seen, 0)
        weight = _weight(detail.flatten(2).transpose(0, 1), count, chance)
        field = _scaled(field * (1 + weight[:, None, None] * (ratio.mean(0) - 1)).clamp(min=LEAST), total)
    return field


def shortfall(
    samples: Float[Tensor, "draws images rows columns"],
    start: Float[Tensor, "images rows columns"],
    seen: Bool[Tensor, "images rows columns"],
) -> Float[Tensor, "images 1"]:
    """Entropy in nats that noise allocated by the shrunk map misses, because the map is not known better.

        ¼ mean over the cells of (g/ĝ − 1)²

    to second order; (g/ĝ)² is the product of two draws that ĝ was made without (three draws are left out in turn), so that
    neither the draws' noise nor fitting to it enters. Slightly too large, for the map in use was made from all draws.

    Returns  nats per value; nan below five draws.
    Source   second order of reverse water-filling, leave-three-out; checked by tests/discarding/test_shrinkage.py
    """
    draws = len(samples)
    if draws < 5:
        return torch.full_like(samples[0, :, :1, 0], torch.nan)
    count = seen.sum((1, 2)).clamp(min=1)
    products = torch.zeros_like(samples[0, :, 0, 0])
    for first in range(draws):
        turned = samples.roll(-first, 0)
        ratio = (turned[:3] / shrunk(turned[3:], start, seen).where(seen, 1)).where(seen, 0)
        mean = ratio.sum((0, 2, 3)) / 3 / count
        off = (ratio / mean[:, None, None] - 1).where(seen, 0)
        products += (off.sum(0).square() - off.square().sum(0)).sum((1, 2)) / 6 / count
    return products[:, None] / draws / 4


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


def _weight(detail: Float[Tensor, "images draws cells"], count: Tensor, chance: float) -> Tensor:
    """Share of the mean detail's square that different draws agree on; 0 where they do not, 1 for a single draw."""
    draws = detail.shape[1]
    scatter = detail.mean(1).square().sum(1) / count
    if draws == 1:
        return (scatter > 0).to(scatter)
    products = detail @ detail.transpose(1, 2) / count[:, None, None]
    first, second = torch.triu_indices(draws, draws, 1, device=detail.device)
    pairs = products[:, first, second]
    agreed = pairs.mean(1)
    limit = 0.0
    if chance < 1 and len(first) > 1:
        limit = float(stats.t.isf(chance, len(first) - 1)) * pairs.std(1) / len(first) ** 0.5
    elif chance < 1:
        limit = torch.inf
    return torch.where(agreed > limit, agreed / scatter.where(scatter > 0, 1), 0)


def _scaled(field: Tensor, total: Tensor) -> Tensor:
    return field * (total / field.sum((1, 2), keepdim=True))
