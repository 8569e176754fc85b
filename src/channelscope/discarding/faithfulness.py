"""Descriptive accuracy: how the class score falls when the most relevant cells are replaced."""

import math
from collections.abc import Callable, Mapping
from typing import Literal

import pandas as pd
import torch

from channelscope.discarding.cid import CIDOptions
from channelscope.discarding.noise import Cells
from channelscope.discarding.smoothing import gaussian_blur
from channelscope.discarding.tables import describe_discarding
from channelscope.formulas.intervals import t_interval
from channelscope.types import Bool, Float, Int, Tensor

REMOVED_FRACTIONS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
"""shares of the pixels taken away"""

SIDE = 14
"""cells along a side"""

BLUR = 8.0
"""standard deviation of the blur in pixels"""

Baseline = Literal["zero", "blur"]


def descriptive_accuracy(
    logits: Callable[[Tensor], Tensor],
    images: Float[Tensor, "images C H W"],
    target: Int[Tensor, "images"],
    relevance: Float[Tensor, "images H W"],
    baseline: Baseline,
) -> Float[Tensor, "images shares"]:
    """Probability of a class after the most relevant cells are replaced, for each of SHARES.

    Cells are ranked by their mean relevance. At each share as many of them are replaced as come closest to that share of
    the pixels: cells of unequal size weigh what they cover. `images` are normalized, so that zero is the mean color; blur
    replaces a cell by its blurred self. The lower the curve, the better the map says where the evidence is.

    References
    ----------
    Samek et al. 2017 (region perturbation); checked by tests/pencil_discarding.py::descriptive_accuracy.
    """
    cells = Cells.of((images.shape[2], images.shape[3]), SIDE)
    order = torch.argsort(cells.mean_by_cell(relevance), dim=1, descending=True, stable=True)
    covered = cells.pixels.to(order.device)[order].cumsum(1)
    other = torch.zeros_like(images) if baseline == "zero" else gaussian_blur(images, BLUR)
    curves = []
    for share in REMOVED_FRACTIONS:
        taken = _closest(covered, share * relevance[0].numel())
        where = cells.expand_to_pixels(torch.zeros_like(covered).scatter_(1, order, taken.to(covered)))[:, None] > 0
        with torch.no_grad():
            chosen = logits(torch.where(where, other, images)).softmax(1).gather(1, target[:, None])[:, 0]
        curves.append(chosen)
    return torch.stack(curves, 1)


def _closest(covered: Float[Tensor, "images cells"], wanted: float) -> Bool[Tensor, "images cells"]:
    """The first cells of each row whose pixels come closest to a number; of two that are as close, the fewer."""
    off = (torch.cat([torch.zeros_like(covered[:, :1]), covered], 1) - wanted).abs()
    return torch.arange(covered.shape[1], device=covered.device) < off.argmin(1, keepdim=True)


def area_under_curve(curves: Float[Tensor, "images shares"]) -> Float[Tensor, "images"]:
    """Trapezoid area under the curves over the share taken away.

    References
    ----------
    Trapezoid options.
    """
    return torch.trapezoid(curves, torch.tensor(REMOVED_FRACTIONS, device=curves.device), dim=1)


def descriptive_accuracy_table(curves: Mapping[tuple[str, str], Float[Tensor, "images shares"]], options: CIDOptions) -> pd.DataFrame:
    """One row per method and baseline: mean area with a t interval, and its paired difference from the first method's.

    The table names the options of its CID maps.

    References
    ----------
    Ma et al. 2022 (descriptive accuracy).
    """
    rows = []
    first = next(method for method, _ in curves)
    for (method, baseline), curve in curves.items():
        own, cid = area_under_curve(curve), area_under_curve(curves[first, baseline])
        row = {"method": method, "baseline": baseline, "n": len(own)}
        row |= dict(zip(("area", "area_low", "area_high"), t_interval(own.tolist()), strict=True))
        apart = t_interval((own - cid).tolist()) if method != first else (math.nan,) * 3
        rows.append(row | dict(zip(("less_cid", "less_cid_low", "less_cid_high"), apart, strict=True)))
    return describe_discarding("descriptive_accuracy", rows, options)
