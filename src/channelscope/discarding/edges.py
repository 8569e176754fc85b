"""Edges or color: what is there at the places that a layer keeps?"""

from collections.abc import Iterable, Sequence

import pandas as pd
import torch
from scipy.stats import spearmanr

from channelscope import tables
from channelscope.discarding.cells import Cells
from channelscope.discarding.discard import Discarded
from channelscope.discarding.frames import described, t_interval
from channelscope.discarding.rule import Rule
from channelscope.discarding.view import View
from channelscope.net.batches import numbered
from channelscope.types import Float, Tensor


def edge_strength(pixels: Float[Tensor, "images C H W"]) -> Float[Tensor, "images H W"]:
    """Length of the brightness gradient (central differences; brightness is the mean of the colors).

    Source   Sobel & Feldman 1968 (gradient magnitude), without their smoothing
    """
    rows, columns = torch.gradient(pixels.mean(1), dim=(1, 2))
    return (rows.square() + columns.square()).sqrt()


def colorfulness(pixels: Float[Tensor, "images C H W"]) -> Float[Tensor, "images H W"]:
    """Standard deviation over the colors of a pixel: zero where it is gray.

    Source   chroma as the distance from the gray axis
    """
    return pixels.std(1, correction=0)


def edges(view: View, batches: Iterable, found: Sequence[Discarded], rule: Rule) -> pd.DataFrame:
    """One row per layer and kind: mean over images of Spearman's ρ between what is kept (−H) and edges, or color, over the cells.

    Edges and color are means over the pixels of a cell. An image without any color, or with one H everywhere, has no ρ and is left out.

    Source   Spearman 1904; checked by tests/discarding/test_edges.py
    """
    cells = Cells.of((view.shape[1], view.shape[2]), rule.side)
    values: dict[tuple[str, int, str], list[float]] = {}
    layers = list(dict.fromkeys(each.layer for each in found))
    for number, (images, _, _) in enumerate(numbered(batches, labels=False)):
        pixels = view.pixels(images)
        seen = {"edges": cells.mean(edge_strength(pixels)), "color": cells.mean(colorfulness(pixels))}
        for each in found[number * len(layers) : (number + 1) * len(layers)]:
            for kind, what in seen.items():
                own = values.setdefault((each.layer.name, each.layer.depth, kind), [])
                own += [_rho(-one, other) for one, other in zip(each.entropy, what, strict=True)]
    rows = []
    for (layer, depth, kind), rho in values.items():
        known = pd.Series(rho, dtype=float).dropna()
        row = {"layer": layer, "depth": depth, "of": kind, "n": len(known)}
        rows.append(row | dict(zip(("rho", "rho_low", "rho_high"), t_interval(known), strict=True)))
    rho = tables.Column("", 3, "Spearman's ρ over an image's cells between what is kept (−H) and edges or color", "Spearman 1904", -1, 1)
    return described("discarded_edges", rows, rule, {"rho": rho})


def _rho(kept: Tensor, there: Tensor) -> float:
    used = kept.isfinite()
    one, other = kept[used], there[used]
    if len(one) < 2 or bool((one == one[0]).all()) or bool((other == other[0]).all()):
        return float("nan")
    return float(spearmanr(one.cpu().numpy(), other.cpu().numpy())[0])
