"""Where the kept information lies: its concentration on the object, its correlation with edges and color, and localization by a box."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy
import torch

from channelscope import tables
from channelscope.data.batches import indexed_batches
from channelscope.discarding.cid import COLUMNS, CIDOptions, CIDResult, describe_discarding
from channelscope.discarding.jacobian import PixelNetwork
from channelscope.discarding.noise import Cells, entropy, gaussian_blur
from channelscope.errors import DataError, ShapeError
from channelscope.formulas.intervals import t_interval
from channelscope.types import Bool, Float, Tensor

Box = Sequence[float]
"""x0, y0, x1, y1 in pixels of the image as the network sees it"""

QUANTILES = tuple(level / 20 for level in range(1, 20))
"""quantiles of a map that are tried as its threshold"""

MAP_BLUR = 4.0
"""standard deviation in pixels of the blur of every map before a box is taken"""

IOU_THRESHOLD = 0.5
"""intersection over union from which an object counts as found"""


def edge_strength(pixels: Float[Tensor, "images C H W"]) -> Float[Tensor, "images H W"]:
    """Length of the brightness gradient at each pixel (central differences; brightness is the mean of the colors).

    Parameters
    ----------
    pixels
        Images in pixels of 0 to 1, at least two pixels high and wide.

    Returns
    -------
    Tensor
        Brightness per pixel.

    Examples
    --------
    >>> edge_strength(torch.tensor([0.0, 0.5, 1.0]).expand(1, 3, 2, 3))[0, 0].tolist()
    [0.5, 0.5, 0.5]

    References
    ----------
    Sobel & Feldman 1968 (gradient magnitude), without their smoothing.
    """
    rows, columns = torch.gradient(pixels.mean(1), dim=(1, 2))
    return (rows.square() + columns.square()).sqrt()


def colorfulness(pixels: Float[Tensor, "images C H W"]) -> Float[Tensor, "images H W"]:
    """Standard deviation over the colors of each pixel, 0 for gray.

    Parameters
    ----------
    pixels
        Images in pixels of 0 to 1.

    Returns
    -------
    Tensor
        In the unit of the pixels.

    Examples
    --------
    >>> colorfulness(torch.tensor([0.0, 1.0]).view(1, 2, 1, 1)).item(), colorfulness(torch.ones(1, 3, 1, 1)).item()
    (0.5, 0.0)

    References
    ----------
    Chroma as the distance from the gray axis.
    """
    return pixels.std(1, correction=0)


def edge_color_correlation(network: PixelNetwork, batches: Iterable, results: Sequence[CIDResult], options: CIDOptions) -> pd.DataFrame:
    """One row per layer and quantity: mean over images of Spearman's ρ between −H and edge strength, or color, over the cells.

    Edge strength and color are means over a cell's pixels. Images in which one of the two is constant are left out.

    Parameters
    ----------
    network
        Network from pixels on.
    batches
        The batches of images that `results` belong to.
    results
        Results of `discard`, in its order.
    options
        Options that `results` were computed with.

    Returns
    -------
    DataFrame
        The table `discarded_edges`; the column `of` holds edges or color.

    Examples
    --------
    Noise that falls with the edge strength keeps the edges.

    >>> from channelscope.discarding.jacobian import LayerOutput
    >>> network = PixelNetwork(torch.nn.Identity(), (1, 2, 4), [0.0], [1.0])
    >>> image = torch.tensor([0.0, 0.1, 0.4, 1.0]).expand(1, 1, 2, 4)
    >>> noise, numbers = 1 / (1 + edge_strength(image)).flatten(1), {"cid": torch.zeros(1)}
    >>> result = CIDResult(LayerOutput("a", "a", 1), torch.arange(1), noise, numbers, torch.ones(1) > 0, 20, 6, 0.1)
    >>> edge_color_correlation(network, [image], [result], CIDOptions())[["of", "n", "rho"]].round(3).values.tolist()
    [['edges', 1, 1.0], ['color', 0, nan]]

    References
    ----------
    Spearman 1904; checked by tests/discarding/test_concentration_edges.py.
    """
    cells = Cells.of((network.shape[1], network.shape[2]), options.side)
    values: dict[tuple[str, int, str], list[float]] = {}
    layers = list(dict.fromkeys(each.layer for each in results))
    for number, (images, _, _) in enumerate(indexed_batches(batches, labels=False)):
        pixels = network.denormalize(images)
        seen = {"edges": cells.mean_by_cell(edge_strength(pixels)), "color": cells.mean_by_cell(colorfulness(pixels))}
        for each in results[number * len(layers) : (number + 1) * len(layers)]:
            for kind, what in seen.items():
                own = values.setdefault((each.layer.name, each.layer.depth, kind), [])
                own += [_spearman_with_map(-one, other) for one, other in zip(each.entropy, what, strict=True)]
    rows = []
    for (layer, depth, kind), rho in values.items():
        known = pd.Series(rho, dtype=float).dropna()
        row = {"layer": layer, "depth": depth, "of": kind, "n": len(known)}
        rows.append(row | dict(zip(("rho", "rho_low", "rho_high"), t_interval(known), strict=True)))
    rho = tables.Column("", 3, "Spearman's ρ over an image's cells between what is kept (−H) and edges or color", "Spearman 1904", -1, 1)
    return describe_discarding("discarded_edges", rows, options, {"rho": rho})


def _spearman_with_map(kept: Tensor, there: Tensor) -> float:
    used = kept.isfinite()
    one, other = kept[used], there[used]
    if len(one) < 2 or bool((one == one[0]).all()) or bool((other == other[0]).all()):
        return float("nan")
    return float(scipy.stats.spearmanr(one.cpu().numpy(), other.cpu().numpy())[0])


def box_mask(boxes: Iterable[Box], plane: tuple[int, int]) -> Bool[Tensor, "height width"]:
    """Pixels whose center lies in any of the boxes.

    Parameters
    ----------
    boxes
        Boxes x0, y0, x1, y1 in pixels of the image.
    plane
        Height and width of the image in pixels.

    Returns
    -------
    Tensor
        True inside of a box.

    Raises
    ------
    DataError
        For a box with x0 > x1 or y0 > y1, or without a pixel of the image.

    Examples
    --------
    >>> box_mask([(1, 0, 3, 1)], (2, 4)).int().tolist()
    [[0, 1, 1, 0], [0, 0, 0, 0]]

    References
    ----------
    Ma et al. 2022 (foreground from boxes).
    """
    rows, columns = torch.arange(plane[0]) + 0.5, torch.arange(plane[1]) + 0.5
    found = torch.zeros(plane, dtype=torch.bool)
    for box in boxes:
        x0, y0, x1, y1 = (float(number) for number in box)
        if not (x0 <= x1 and y0 <= y1):
            raise DataError(f"expected a box x0 y0 x1 y1 with x0 ≤ x1 and y0 ≤ y1, received {x0:g} {y0:g} {x1:g} {y1:g}")
        inside = ((rows >= y0) & (rows < y1))[:, None] & ((columns >= x0) & (columns < x1))
        if not bool(inside.any()):
            raise DataError(f"the box {x0:g} {y0:g} {x1:g} {y1:g} lies outside the image of {plane[1]}×{plane[0]} pixels, or has no pixel")
        found |= inside
    return found


def concentration(
    entropies: Float[Tensor, "... cells"], foreground: Float[Tensor, "cells"], background: Float[Tensor, "cells"]
) -> Float[Tensor, "..."]:
    """Mean H over the background less mean H over the foreground; positive where the object is kept better.

    Parameters
    ----------
    entropies
        H of each cell in nats per value.
    foreground, background
        Numbers of varying values of each cell inside and outside of the object.

    Returns
    -------
    Tensor
        Nats per value; nan where the foreground or the background has no values.

    Raises
    ------
    ShapeError
        If the numbers of cells differ.

    Examples
    --------
    >>> concentration(torch.tensor([-3.0, -1.0]), torch.tensor([4.0, 0.0]), torch.tensor([0.0, 4.0])).item()
    2.0

    References
    ----------
    Ma et al. 2022 (arXiv 1906.04109), section 3; checked by tests/pencil_discarding.py::concentration.
    """
    if not entropies.shape[-1:] == foreground.shape == background.shape:
        raise ShapeError(f"expected one count per cell, received {entropies.shape[-1]} cells and {len(foreground)} counts")
    return _mean(entropies, background) - _mean(entropies, foreground)


@dataclass(frozen=True)
class RhoConstants:
    """Constants C₁ to C₄ of ρ, which depend on the image and the data and not on the network.

    Examples
    --------
    >>> constants = RhoConstants.of(torch.ones(2), torch.tensor([4.0, 0.0]), torch.tensor([0.0, 4.0]))
    >>> constants.c1, constants.c2, round(constants.c4, 4), round(constants.rho(constants.c4 - 1, 1.0), 3)
    (0.5, 0.5, 1.4189, 0.75)
    """

    c1: float
    """fraction of the values in the foreground, n_f / n"""
    c2: float
    """2 n_f n_b / n²"""
    c3: float
    """2 (n_f / n) (C₄ − mean entropy of a foreground value)"""
    c4: float
    """mean entropy of a value of the input, in nats"""

    @classmethod
    def of(cls, cap: Float[Tensor, "cells"], foreground: Float[Tensor, "cells"], background: Float[Tensor, "cells"]) -> "RhoConstants":
        """The constants if values are independent and normal with the data's standard deviation.

        Parameters
        ----------
        cap
            Standard deviation over the data of each cell's values, in pixels of 0 to 1.
        foreground, background
            Numbers of varying values of each cell inside and outside of the object.
        """
        inside, outside = float(foreground.sum()), float(background.sum())
        whole, own = entropy(cap.double()), foreground + background
        c4 = float(_mean(whole, own))
        share = inside / (inside + outside)
        return cls(share, 2 * share * (1 - share), 2 * share * (c4 - float(_mean(whole, foreground))), c4)

    def rho(self, mean: float, concentration: float) -> float:
        """ρ = C₁ + (C₂ · concentration − C₃) / (2 (C₄ − H̄)): the fraction of the kept information that is about the foreground.

        Parameters
        ----------
        mean
            H̄, mean entropy of the map over the values of the image, in nats: its CID without the estimated gap.
        concentration
            Concentration of the same map, in nats.

        Returns
        -------
        float
            A fraction; nan where nothing was kept (H̄ ≥ C₄).
        """
        return self.c1 + (self.c2 * concentration - self.c3) / (2 * (self.c4 - mean)) if self.c4 > mean else math.nan


def knowledge_points(
    entropies: Float[Tensor, "cells"], foreground: Float[Tensor, "cells"], background: Float[Tensor, "cells"], margin: float
) -> tuple[int, int]:
    """Numbers of cells on the object, and beside it, whose H is below the background's mean by more than a margin.

    Parameters
    ----------
    entropies
        H of each cell in nats per value.
    foreground, background
        Numbers of varying values of each cell inside and outside of the object; a cell belongs to the larger.
    margin
        Nats per value.

    Returns
    -------
    tuple[int, int]
        Cells on the object, cells beside it.

    Examples
    --------
    >>> inside = torch.tensor([1.0, 1.0, 0.0, 0.0])
    >>> knowledge_points(torch.tensor([-5.0, -1.0, -1.0, -3.0]), inside, 1 - inside, margin=0.5)
    (1, 1)

    References
    ----------
    Cheng, Rao, Chen, Zhang 2020 (arXiv 2003.03622).
    """
    kept = entropies < _mean(entropies, background) - margin
    return int((kept & (foreground >= background) & (foreground > 0)).sum()), int((kept & (background > foreground)).sum())


def concentration_table(
    results: Iterable[CIDResult],
    inside: Callable[[int], Bool[Tensor, "height width"]],
    cells: Cells,
    cap: Float[Tensor, "cells"],
    varies: Bool[Tensor, "C H W"],
    margin: float,
    options: CIDOptions,
) -> pd.DataFrame:
    """One row per image and layer: concentration, ρ with its constants, and knowledge points.

    ρ is computed from the mean entropy of the map, without the estimated gap that `cid` contains.

    Parameters
    ----------
    results
        Results of `discard`.
    inside
        Index of an image → True at the pixels of its object; a DataError that it raises becomes the row's note.
    cells
        Cells of the maps.
    cap
        Standard deviation over the data of each cell's values.
    varies
        True where a value varies over the data.
    margin
        Nats below the background's mean at which a cell is a knowledge point.
    options
        Options of the results.

    Returns
    -------
    DataFrame
        The table `concentration`.

    Examples
    --------
    >>> from channelscope.discarding.jacobian import LayerOutput
    >>> noise, numbers = torch.tensor([[0.1, 0.2]]), {"cid": torch.tensor([-0.5])}
    >>> result = CIDResult(LayerOutput("a", "a", 1), torch.arange(1), noise, numbers, torch.ones(1) > 0, 20, 6, 0.1)
    >>> left, varies = (lambda image: torch.tensor([[True, False]])), torch.ones(1, 1, 2) > 0
    >>> frame = concentration_table([result], left, Cells.of((1, 2)), torch.ones(2), varies, 0.2, CIDOptions())
    >>> round(float(frame.concentration[0]), 4), round(math.log(2), 4), int(frame.points_on[0]), int(frame.points_beside[0])
    (0.6931, 0.6931, 1, 0)

    References
    ----------
    Ma et al. 2022; checked by tests/discarding/test_concentration.py.
    """
    counts = varies.sum(0)
    rows = []
    for each in results:
        for place, image in enumerate(each.index.tolist()):
            row = {"layer": each.layer.name, "depth": each.layer.depth, "image": image, "cid": float(each.numbers["cid"][place])}
            try:
                rows.append(row | _row(each, place, inside(image), (cells, cap, counts), margin) | {"note": ""})
            except DataError as error:
                rows.append(row | {"note": str(error)})
    return describe_discarding("concentration", pd.DataFrame(rows).sort_values(["depth", "image"], ignore_index=True), options)


def concentration_by_layer(images: pd.DataFrame) -> pd.DataFrame:
    """One row per layer: mean concentration and ρ with t intervals over the images that have a foreground and a background.

    Parameters
    ----------
    images
        The table of `concentration_table`.

    Returns
    -------
    DataFrame
        The table `concentration_layers`.

    Examples
    --------
    >>> rows = [{"layer": "a", "depth": 1, "concentration": value, "rho": 0.5, "c1": 0.25} for value in (1.0, 3.0)]
    >>> by_layer = concentration_by_layer(describe_discarding("concentration", rows, CIDOptions()))
    >>> by_layer[["layer", "n", "concentration", "rho"]].values.tolist()
    [['a', 2, 2.0, 0.5]]

    References
    ----------
    Student 1908.
    """
    rows = []
    for layer, own in images.groupby("layer", sort=False):
        known = own.dropna(subset="concentration")
        row = {"layer": layer, "depth": own.depth.iloc[0], "n": len(known)}
        for name in ("concentration", "rho", "c1"):
            row |= dict(zip((name, f"{name}_low", f"{name}_high"), t_interval(known[name]), strict=True))
        rows.append(row)
    return tables.describe(pd.DataFrame(rows), {**images.attrs, "name": "concentration_layers", "columns": COLUMNS})


def _row(each: CIDResult, place: int, inside: Tensor, data: tuple[Cells, Tensor, Tensor], margin: float) -> dict[str, float | int]:
    cells, cap, counts = data
    foreground, background = cells.sum_by_cell((counts * inside).float()), cells.sum_by_cell((counts * ~inside).float())
    if not bool(background.sum() > 0) or not bool(foreground.sum() > 0):
        raise DataError("there is no foreground or no background: concentration is undefined")
    maps = each.entropy[place]
    value = float(concentration(maps, foreground, background))
    constants = RhoConstants.of(cap, foreground, background)
    on, beside = knowledge_points(maps, foreground, background, margin)
    own = float(_mean(maps, foreground + background))
    rho = constants.rho(own, value)
    return {"concentration": value, "rho": rho, **vars(constants), "points_on": on, "points_beside": beside}


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    used = weights > 0
    return (values[..., used] * weights[used]).sum(-1) / weights.sum()


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
    labels, count = scipy.ndimage.label(values >= np.quantile(values, level))
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
