"""Faithfulness: does the class score fall where a map says the evidence is, and does the map find the object?"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import pandas as pd
import torch

from channelscope.discarding.cells import Cells
from channelscope.discarding.concentration import Box
from channelscope.discarding.frames import described, t_interval
from channelscope.discarding.localization import best_overlap, box, threshold
from channelscope.discarding.rule import Rule
from channelscope.discarding.shrinkage import blurred
from channelscope.types import Bool, Float, Int, Tensor

SHARES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
"""shares of the pixels taken away"""
SIDE = 14
"""cells along a side"""
BLUR = 8.0
"""standard deviation of the blur in pixels"""
SMOOTH = 4.0
"""standard deviation in pixels by which every map is blurred before it is cut into a box"""
HALF = 0.5
"""overlap from which an object counts as found"""

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

    Source   Samek et al. 2017 (region perturbation); checked by tests/pencil_discarding.py::descriptive_accuracy
    """
    cells = Cells.of((images.shape[2], images.shape[3]), SIDE)
    order = torch.argsort(cells.mean(relevance), dim=1, descending=True, stable=True)
    covered = cells.pixels.to(order.device)[order].cumsum(1)
    other = torch.zeros_like(images) if baseline == "zero" else blurred(images, BLUR)
    curves = []
    for share in SHARES:
        taken = _closest(covered, share * relevance[0].numel())
        where = cells.spread(torch.zeros_like(covered).scatter_(1, order, taken.to(covered)))[:, None] > 0
        with torch.no_grad():
            chosen = logits(torch.where(where, other, images)).softmax(1).gather(1, target[:, None])[:, 0]
        curves.append(chosen)
    return torch.stack(curves, 1)


def _closest(covered: Float[Tensor, "images cells"], wanted: float) -> Bool[Tensor, "images cells"]:
    """The first cells of each row whose pixels come closest to a number; of two that are as close, the fewer."""
    off = (torch.cat([torch.zeros_like(covered[:, :1]), covered], 1) - wanted).abs()
    return torch.arange(covered.shape[1], device=covered.device) < off.argmin(1, keepdim=True)


def area(curves: Float[Tensor, "images shares"]) -> Float[Tensor, "images"]:
    """Trapezoid area under the curves over the share taken away.

    Source   trapezoid rule
    """
    return torch.trapezoid(curves, torch.tensor(SHARES, device=curves.device), dim=1)


def descriptive(curves: Mapping[tuple[str, str], Float[Tensor, "images shares"]], rule: Rule) -> pd.DataFrame:
    """One row per method and baseline: mean area with a t interval, and its paired difference from the first method's.

    The table names the rule of its CID maps.

    Source   Ma et al. 2022 (descriptive accuracy)
    """
    rows = []
    first = next(method for method, _ in curves)
    for (method, baseline), curve in curves.items():
        own, cid = area(curve), area(curves[first, baseline])
        row = {"method": method, "baseline": baseline, "n": len(own)}
        row |= dict(zip(("area", "area_low", "area_high"), t_interval(pd.Series(own.tolist())), strict=True))
        apart = t_interval(pd.Series((own - cid).tolist())) if method != first else (math.nan,) * 3
        rows.append(row | dict(zip(("less_cid", "less_cid_low", "less_cid_high"), apart, strict=True)))
    return described("descriptive_accuracy", rows, rule)


def localization(
    tuned: Mapping[str, Float[Tensor, "images H W"]],
    tuned_boxes: Sequence[Sequence[Box]],
    maps: Mapping[str, Float[Tensor, "images H W"]],
    boxes: Sequence[Sequence[Box]],
    rule: Rule,
) -> pd.DataFrame:
    """One row per method: mean IoU and accuracy at IoU .5 with t intervals, at the threshold that is best on the tuning images.

    Differences are from the first method, paired. The table names the rule of its CID maps.

    Raises   DataError for an image without a box.
    Source   Zhou et al. 2016; Ma et al. 2022 (weakly supervised localization)
    """
    scores = {}
    levels = {name: threshold(tuned[name], tuned_boxes) for name in maps}
    for name, relevance in maps.items():
        scores[name] = pd.Series([best_overlap(box(one, levels[name]), own) for one, own in zip(relevance, boxes, strict=True)])
    rows = []
    first = next(iter(scores))
    for name, own in scores.items():
        row = {"method": name, "n": len(own), "tuned": len(tuned_boxes), "level": levels[name]}
        row |= dict(zip(("iou", "iou_low", "iou_high"), t_interval(own), strict=True))
        row |= dict(zip(("found", "found_low", "found_high"), t_interval((own >= HALF).astype(float)), strict=True))
        apart = t_interval(own - scores[first]) if name != first else (math.nan,) * 3
        rows.append(row | dict(zip(("less_cid", "less_cid_low", "less_cid_high"), apart, strict=True)))
    return described("localization", rows, rule)


def center(images: Float[Tensor, "images C H W"]) -> Float[Tensor, "images H W"]:
    """A map that knows nothing but that objects are in the middle: the control of localization.

    Source   this library
    """
    rows, columns = (torch.linspace(-1, 1, side, device=images.device) for side in images.shape[2:])
    return (-rows.square()[:, None] - columns.square()).expand(len(images), -1, -1)


def smooth(relevance: Float[Tensor, "images H W"]) -> Float[Tensor, "images H W"]:
    """A map blurred by a few pixels, so that a threshold leaves parts and not grains; the same for all methods.

    Source   Ma et al. 2022 (localization)
    """
    return blurred(relevance, SMOOTH)
