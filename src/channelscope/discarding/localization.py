"""From a relevance map to a box, and its overlap with the object's box."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from scipy import ndimage

from channelscope.discarding.cid import CIDOptions
from channelscope.discarding.concentration import Box
from channelscope.discarding.smoothing import gaussian_blur
from channelscope.discarding.tables import describe_discarding
from channelscope.errors import DataError, ShapeError
from channelscope.formulas.intervals import t_interval
from channelscope.types import Float, Tensor

QUANTILES = tuple(level / 20 for level in range(1, 20))
"""thresholds tried, as quantiles of the map"""


def largest_component_box(relevance: Float[Tensor, "height width"], level: float) -> tuple[float, float, float, float]:
    """The box around the largest connected part of a map above its quantile `level`: x0 y0 x1 y1 in pixels.

    Quantiles make maps of any scale comparable; ties at the quantile count as above it.

    References
    ----------
    Zhou et al. 2016 (threshold, largest component, box); checked by tests/pencil_discarding.py::box.
    """
    values = relevance.detach().cpu().numpy()
    labels, count = ndimage.label(values >= np.quantile(values, level))
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    rows, columns = np.nonzero(labels == 1 + int(sizes.argmax()))
    return float(columns.min()), float(rows.min()), float(columns.max() + 1), float(rows.max() + 1)


def box_iou(first: Box, second: Box) -> float:
    """Intersection over union of two boxes.

    References
    ----------
    Jaccard 1901.
    """
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(width, 0.0) * max(height, 0.0)
    areas = [(one[2] - one[0]) * (one[3] - one[1]) for one in (first, second)]
    return shared / (sum(areas) - shared)


def best_iou(found: Box, boxes: Sequence[Box]) -> float:
    """The largest overlap with any of the image's boxes.

    Raises
    ------
    DataError
        For an image without a box.

    References
    ----------
    ILSVRC localization (Russakovsky et al. 2015).
    """
    usable = [each for each in boxes if each[2] > each[0] and each[3] > each[1]]
    if not usable:
        raise DataError("an image has no box: localization needs one in every image; leave it out of the data")
    return max(box_iou(found, each) for each in usable)


def best_quantile(relevance: Float[Tensor, "images height width"], boxes: Sequence[Sequence[Box]]) -> float:
    """The level whose boxes overlap best on average, to be chosen on images that are not reported.

    Raises
    ------
    ShapeError
        If maps and boxes do not match.
    DataError
        For an image without a box.

    References
    ----------
    Ma et al. 2022 (threshold chosen on a held-out split).
    """
    if len(relevance) != len(boxes) or not len(boxes):
        raise ShapeError(f"expected boxes for each of {len(relevance)} maps, received {len(boxes)}")
    means = [
        np.mean([best_iou(largest_component_box(one, level), own) for one, own in zip(relevance, boxes, strict=True)])
        for level in QUANTILES
    ]
    return QUANTILES[int(np.argmax(means))]


MAP_BLUR = 4.0
"""standard deviation in pixels by which every map is blurred before it is cut into a box"""

IOU_THRESHOLD = 0.5
"""overlap from which an object counts as found"""


def localization_table(
    tuned: Mapping[str, Float[Tensor, "images H W"]],
    tuned_boxes: Sequence[Sequence[Box]],
    maps: Mapping[str, Float[Tensor, "images H W"]],
    boxes: Sequence[Sequence[Box]],
    options: CIDOptions,
) -> pd.DataFrame:
    """One row per method: mean IoU and accuracy at IoU .5 with t intervals, at the threshold that is best on the tuning images.

    Differences are from the first method, paired. The table names the options of its CID maps.

    Raises
    ------
    DataError
        For an image without a box.

    References
    ----------
    Zhou et al. 2016; Ma et al. 2022 (weakly supervised localization).
    """
    scores = {}
    levels = {name: best_quantile(tuned[name], tuned_boxes) for name in maps}
    for name, relevance in maps.items():
        scores[name] = pd.Series(
            [best_iou(largest_component_box(one, levels[name]), own) for one, own in zip(relevance, boxes, strict=True)]
        )
    rows = []
    first = next(iter(scores))
    for name, own in scores.items():
        row = {"method": name, "n": len(own), "tuned": len(tuned_boxes), "level": levels[name]}
        row |= dict(zip(("iou", "iou_low", "iou_high"), t_interval(own), strict=True))
        row |= dict(zip(("found", "found_low", "found_high"), t_interval((own >= IOU_THRESHOLD).astype(float)), strict=True))
        apart = t_interval(own - scores[first]) if name != first else (math.nan,) * 3
        rows.append(row | dict(zip(("less_cid", "less_cid_low", "less_cid_high"), apart, strict=True)))
    return describe_discarding("localization", rows, options)


def center_prior(images: Float[Tensor, "images C H W"]) -> Float[Tensor, "images H W"]:
    """A map that knows nothing but that objects are in the middle: the control of localization.

    References
    ----------
    This library.
    """
    rows, columns = (torch.linspace(-1, 1, side, device=images.device) for side in images.shape[2:])
    return (-rows.square()[:, None] - columns.square()).expand(len(images), -1, -1)


def smoothed(relevance: Float[Tensor, "images H W"]) -> Float[Tensor, "images H W"]:
    """A map blurred by a few pixels, so that a threshold leaves parts and not grains; the same for all methods.

    References
    ----------
    Ma et al. 2022 (localization).
    """
    return gaussian_blur(relevance, MAP_BLUR)
