"""Weakly supervised localization: a box from each relevance map, and its overlap with the object's box."""

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
"""quantiles of a map that are tried as its threshold"""


def largest_component_box(relevance: Float[Tensor, "height width"], level: float) -> tuple[float, float, float, float]:
    """The box x0, y0, x1, y1 in pixels around the largest connected part of a map that reaches its quantile.

    Parameters
    ----------
    relevance
        A map, in any unit.
    level
        Quantile, from 0 to 1; values equal to it are included.

    Returns
    -------
    tuple[float, float, float, float]
        The box; x1 and y1 are exclusive.

    Examples
    --------
    >>> largest_component_box(torch.tensor([[9.0, 0.0, 0.0, 0.0], [0.0, 0.0, 5.0, 5.0]]), 0.7)
    (2.0, 1.0, 4.0, 2.0)

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

    Parameters
    ----------
    first, second
        Boxes x0, y0, x1, y1; at least one has an area.

    Returns
    -------
    float
        From 0 (disjoint) to 1 (equal).

    Examples
    --------
    >>> box_iou((0, 0, 2, 2), (1, 0, 3, 2)) == 2 / 6
    True

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
    """The largest intersection over union of a box with any of the image's boxes.

    Parameters
    ----------
    found
        Box x0, y0, x1, y1.
    boxes
        Boxes of the image; those without area are left out.

    Returns
    -------
    float
        From 0 to 1.

    Raises
    ------
    DataError
        For an image without a box.

    Examples
    --------
    >>> best_iou((0, 0, 2, 2), [(0, 0, 1, 2), (1, 1, 1, 2)])
    0.5

    References
    ----------
    ILSVRC localization (Russakovsky et al. 2015).
    """
    usable = [each for each in boxes if each[2] > each[0] and each[3] > each[1]]
    if not usable:
        raise DataError("an image has no box: localization needs one in every image; leave it out of the data")
    return max(box_iou(found, each) for each in usable)


def best_quantile(relevance: Float[Tensor, "images height width"], boxes: Sequence[Sequence[Box]]) -> float:
    """The quantile of QUANTILES at which the boxes' mean intersection over union is largest, for images that are not reported.

    Parameters
    ----------
    relevance
        Maps.
    boxes
        Boxes of each image.

    Returns
    -------
    float
        The smallest of equally good quantiles.

    Raises
    ------
    ShapeError
        If the numbers of maps and of images with boxes differ.
    DataError
        For an image without a box.

    Examples
    --------
    The object is the right half: values of 0 are left out from the quantile above one half.

    >>> best_quantile((torch.arange(4) > 1).float().expand(1, 4, 4), [[(2, 0, 4, 4)]])
    0.5

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
"""standard deviation in pixels of the blur of every map before a box is taken"""

IOU_THRESHOLD = 0.5
"""intersection over union from which an object counts as found"""


def localization_table(
    tuned: Mapping[str, Float[Tensor, "images H W"]],
    tuned_boxes: Sequence[Sequence[Box]],
    maps: Mapping[str, Float[Tensor, "images H W"]],
    boxes: Sequence[Sequence[Box]],
    options: CIDOptions,
) -> pd.DataFrame:
    """One row per method: mean IoU and accuracy at IoU .5 with t intervals, at the threshold that is best on the tuning images.

    Parameters
    ----------
    tuned
        Method → maps of the tuning images.
    tuned_boxes
        Boxes of each tuning image.
    maps
        Method → maps of the images, the method to compare with first; differences from it are paired.
    boxes
        Boxes of each image.
    options
        Options of the CID maps, which the table names.

    Returns
    -------
    DataFrame
        The table `localization`.

    Raises
    ------
    DataError
        For an image without a box.

    Examples
    --------
    >>> right = (torch.arange(4) > 1).float().expand(2, 4, 4)
    >>> maps, boxes = {"cid": right, "opposite": -right}, [[(2, 0, 4, 4)], [(2, 0, 4, 4)]]
    >>> frame = localization_table(maps, boxes, maps, boxes, CIDOptions())
    >>> frame[["method", "iou", "found", "less_cid"]].values.tolist()
    [['cid', 1.0, 1.0, nan], ['opposite', 0.5, 1.0, -0.5]]

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
    """Negative squared distance from the middle of the image, as a control of localization.

    Parameters
    ----------
    images
        Images, of which only the shape and the device matter.

    Returns
    -------
    Tensor
        Maps with 0 in the middle and −2 in the corners.

    Examples
    --------
    >>> center_prior(torch.zeros(1, 3, 1, 3)).tolist()
    [[[-2.0, -1.0, -2.0]]]

    References
    ----------
    This library.
    """
    rows, columns = (torch.linspace(-1, 1, side, device=images.device) for side in images.shape[2:])
    return (-rows.square()[:, None] - columns.square()).expand(len(images), -1, -1)


def smoothed(relevance: Float[Tensor, "images H W"]) -> Float[Tensor, "images H W"]:
    """Maps after a Gaussian blur of MAP_BLUR pixels, so that a threshold gives connected regions.

    At the border the weights of the pixels that exist are divided by their sum, so a constant map stays constant.

    Parameters
    ----------
    relevance
        Maps.

    Returns
    -------
    Tensor
        Maps of the same shape.

    Examples
    --------
    >>> maps = torch.zeros(1, 64, 64)
    >>> maps[0, 32, 32] = 1
    >>> round(float(smoothed(maps).sum()), 3), round(1 / float(smoothed(maps).max()) / (2 * math.pi), 1)
    (1.0, 16.0)

    References
    ----------
    Ma et al. 2022 (localization).
    """
    return gaussian_blur(relevance, MAP_BLUR) / gaussian_blur(torch.ones_like(relevance[:1]), MAP_BLUR)
