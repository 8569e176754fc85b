"""Localization: from a map of relevance to a box, and how far it covers the object's."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from channelscope.discarding.concentration import Box
from channelscope.errors import DataError, ShapeError
from channelscope.types import Float, Tensor

LEVELS = tuple(level / 20 for level in range(1, 20))
"""thresholds tried, as quantiles of the map"""


def box(relevance: Float[Tensor, "height width"], level: float) -> tuple[float, float, float, float]:
    """The box around the largest connected part of a map above its quantile `level`: x0 y0 x1 y1 in pixels.

    Quantiles make maps of any scale comparable; ties at the quantile count as above it.

    Source   Zhou et al. 2016 (threshold, largest component, box); checked by tests/pencil_discarding.py::box
    """
    values = relevance.detach().cpu().numpy()
    labels, count = ndimage.label(values >= np.quantile(values, level))
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    rows, columns = np.nonzero(labels == 1 + int(sizes.argmax()))
    return float(columns.min()), float(rows.min()), float(columns.max() + 1), float(rows.max() + 1)


def overlap(first: Box, second: Box) -> float:
    """Intersection over union of two boxes.

    Source   Jaccard 1901
    """
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(width, 0.0) * max(height, 0.0)
    areas = [(one[2] - one[0]) * (one[3] - one[1]) for one in (first, second)]
    return shared / (sum(areas) - shared)


def best_overlap(found: Box, boxes: Sequence[Box]) -> float:
    """The largest overlap with any of the image's boxes.

    Raises   DataError for an image without a box.
    Source   ILSVRC localization (Russakovsky et al. 2015)
    """
    usable = [each for each in boxes if each[2] > each[0] and each[3] > each[1]]
    if not usable:
        raise DataError("an image has no box: localization needs one in every image; leave it out of the data")
    return max(overlap(found, each) for each in usable)


def threshold(relevance: Float[Tensor, "images height width"], boxes: Sequence[Sequence[Box]]) -> float:
    """The level whose boxes overlap best on average, to be chosen on images that are not reported.

    Raises   ShapeError if maps and boxes do not match; DataError for an image without a box.
    Source   Ma et al. 2022 (threshold chosen on a held-out split)
    """
    if len(relevance) != len(boxes) or not len(boxes):
        raise ShapeError(f"expected boxes for each of {len(relevance)} maps, received {len(boxes)}")
    means = [np.mean([best_overlap(box(one, level), own) for one, own in zip(relevance, boxes, strict=True)]) for level in LEVELS]
    return LEVELS[int(np.argmax(means))]
