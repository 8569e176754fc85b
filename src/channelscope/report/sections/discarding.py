"""What layers discard: maps on one scale, layer curves, and what the maps are worth."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from safetensors import safe_open

from channelscope.lazy import LazyModule
from channelscope.report.section import Chart, Drawing, Section
from channelscope.tables.frame import format_interval, format_number
from channelscope.tables.run_folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

matplotlib = LazyModule("matplotlib")
mpl_figure = LazyModule("matplotlib.figure")

MOST = 6
"""images drawn"""

FENCE = 1.5
"""interquartile ranges beyond the quartiles at which colors end, as the whiskers of a box plot"""


def discarding_sentences(run: RunFolder) -> list[str]:
    """CID of the first and the last layer, what has not converged, differences, and where the object is kept.

    Examples
    --------
    >>> row = {"network": "tiny", "layer": "conv1", "cid": 1.5, "cid_low": 1.4, "cid_high": 1.6, "n": 8, "converged": 1.0,
    ...     "unseen": 0.0, "unreached": 0}
    >>> discarding_sentences(RunFolder(Path(), {}, {"discarded_layers": pd.DataFrame([row])}))
    ['Mean CID of tiny: conv1 1.50 [1.40, 1.60] (n = 8 images) nats per value; a larger number means that more was thrown away.']
    """
    layers = run.table("discarded_layers")
    if layers is None:
        return []
    sentences = []
    for network, own in layers.groupby("network", sort=False):
        ends = [own.iloc[0], own.iloc[-1]] if len(own) > 1 else [own.iloc[0]]
        parts = [f"{row.layer} {format_interval(row.cid, row.cid_low, row.cid_high, int(row.n), 'images')}" for row in ends]
        sentences.append(f"Mean CID of {network}: {', '.join(parts)} nats per value; a larger number means that more was thrown away.")
        doubtful = own[own.converged < 1]
        if len(doubtful):
            worst = doubtful.loc[doubtful.converged.idxmin()]
            sentences.append(
                f"Not converged for every image in {len(doubtful)} of {len(own)} layers (least in {worst.layer}: "
                f"{format_number(100 * worst.converged, 0)} % of the images); such maps are marked; "
                "the table says why, and `--mode exact` takes more passes."
            )
        sentences += [
            f"{format_number(100 * row.unseen, 0)} % of the image does not reach {row.layer}: outside its receptive field, or dead; noise "
            "sits at its cap there."
            for row in own[own.unseen > 0].itertuples()
        ]
        if own.unreached.sum():
            sentences.append(f"For {int(own.unreached.sum())} pairs of image and layer the constraint is out of reach; they are left out.")
    return sentences + _compared(run.table("discarded_difference")) + _kept(run.table("concentration_layers"))


def _compared(frame: pd.DataFrame | None) -> list[str]:
    if frame is None:
        return []
    clear = frame[(frame.difference_low > 0) | (frame.difference_high < 0)]
    row = frame.loc[frame.difference.abs().idxmax()]
    change = format_interval(row.difference, row.difference_low, row.difference_high, int(row.n), "images")
    return [
        f"{row.other} against {row.network}: the largest difference is {change} nats per value at {row.layer}; "
        f"in {len(clear)} of {len(frame)} layers the interval excludes zero."
    ]


def _kept(frame: pd.DataFrame | None) -> list[str]:
    if frame is None:
        return []
    row = frame.iloc[-1]
    value = format_interval(row.concentration, row.concentration_low, row.concentration_high, int(row.n), "images")
    return [f"At {row.layer} the background has {value} nats per value more noise than the object; above zero, the object is kept."]


def faithfulness_sentences(run: RunFolder) -> list[str]:
    """Where CID (of the first layer) wins, where it does not, what chance reaches, and whether the CID is known.

    Examples
    --------
    >>> rows = [{"method": "CID", "iou": 0.5, "iou_low": 0.4, "iou_high": 0.6, "n": 8, "less_cid_low": 0.0, "converged": 1.0}]
    >>> faithfulness_sentences(RunFolder(Path(), {}, {"localization": pd.DataFrame(rows)}))
    ["Boxes from CID overlap the object's with a mean IoU of 0.50 [0.40, 0.60] (n = 8 images); no other map is clearly better."]
    """
    found, curves = run.table("localization"), run.table("descriptive_accuracy")
    sentences = []
    if found is not None:
        own = found.iloc[0]
        better = found[found.less_cid_low > 0].method.tolist()
        sentences.append(
            f"Boxes from {own.method} overlap the object's with a mean IoU of "
            f"{format_interval(own.iou, own.iou_low, own.iou_high, int(own.n), 'images')}{_chance(found, 'iou', 2)}; "
            + (f"clearly better: {', '.join(better)}." if better else "no other map is clearly better.")
        )
        sentences += [
            f"{row.method} has converged for {format_number(100 * row.converged, 0)} % of the images."
            for row in found[found.converged < 1].itertuples()
        ]
    for baseline, rows in curves.groupby("baseline", sort=False) if curves is not None else ():
        own = rows.iloc[0]
        better = rows[rows.less_cid_high < 0].method.tolist()
        value = format_interval(own.area, own.area_low, own.area_high, int(own.n), "images", 3)
        sentences.append(
            f"Descriptive accuracy with {baseline} as baseline (low is better): {value} for {own.method}{_chance(rows, 'area', 3)}; "
            + (f"clearly lower: {', '.join(better)}." if better else "no other map is clearly lower.")
        )
    return sentences


def _chance(frame: pd.DataFrame, column: str, digits: int) -> str:
    """What a map that knows nothing reaches."""
    own = frame[frame.method == "random"]
    return f" (a random map: {format_number(own[column].iloc[0], digits)})" if len(own) else ""


def map_drawings(run: RunFolder) -> list[Drawing]:
    """The maps of the first images, all layers of all networks on one scale of nats.

    Examples
    --------
    >>> map_drawings(RunFolder(Path("/no/such/folder"), {}, {}))
    []
    """
    table = run.table("discarded")
    networks = [] if table is None else list(dict.fromkeys(table.network))
    grids = []
    for folder, title in (("maps", "What is discarded, image by image"), ("maps_compared", "The other network, on the same scale")):
        parts = {path.name: _first(path) for path in sorted((run.folder / folder).glob("*")) if list(path.glob("*.safetensors"))}
        if parts:
            own = None if table is None else table[table.network == networks[min(len(grids), len(networks) - 1)]]
            grids.append((folder, title, parts, own))
    maps = [part["maps"] for _, _, parts, _ in grids for part in parts.values()]
    scale = map_scale(maps)
    caption = (
        "Entropy of the noise that each place tolerates in nats per value, on one scale: bright places are not needed. "
        "Places far outside of the other values have the color of the scale's end. A star marks a map that has not converged."
    )
    return [Drawing(f"discarded_{folder}", title, map_grid(parts, own, scale), caption, "discarded") for folder, title, parts, own in grids]


def _first(layer: Path) -> dict[str, np.ndarray]:
    """The first batch of a layer: images (n, H, W, 3) in 0..1, maps (n, rows, columns), indices."""
    with safe_open(min(layer.glob("*.safetensors")), "np") as opened:
        pixels, values, index = (opened.get_tensor(name)[:MOST] for name in ("pixels", "entropy", "index"))
        side = json.loads(opened.metadata()["facts"])["rule"]["side"]
    height, width = pixels.shape[2:]
    return map_part(pixels, values, index, (min(side, height), min(side, width)))


def map_part(pixels: np.ndarray, entropy: np.ndarray, index: np.ndarray, shape: tuple[int, int]) -> dict[str, np.ndarray]:
    """Pictures and maps of a layer as `map_grid` draws them.

    Parameters
    ----------
    pixels
        Images (n, 1 or 3, H, W) in 0..1.
    entropy
        Nats of each cell (n, cells); −inf where a cell is left out.
    index
        Index of each image (n,).
    shape
        Rows and columns of the cells.

    Returns
    -------
    dict
        pixels (n, H, W, 3), maps (n, rows, columns) with nan where a cell is left out, and index.

    Examples
    --------
    >>> part = map_part(np.ones((1, 1, 2, 2)), np.array([[0.5, -np.inf]]), np.arange(1), (1, 2))
    >>> part["pixels"].shape, part["maps"].tolist()
    ((1, 2, 2, 3), [[[0.5, nan]]])
    """
    maps = np.where(np.isfinite(entropy), entropy, np.nan).reshape(len(entropy), *shape)
    color = np.repeat(pixels, 3, 1) if pixels.shape[1] == 1 else pixels
    return {"pixels": color.transpose(0, 2, 3, 1), "maps": maps, "index": index}


def map_scale(maps: Iterable[np.ndarray]) -> tuple[float, float]:
    """Ends of the colors: the extremes of the maps, but at most 1.5 interquartile ranges beyond the quartiles.

    Pixels that hardly vary over the data, such as an empty border, would take up most of the scale otherwise.

    Examples
    --------
    >>> map_scale([np.array([[0.0, 1.0, 2.0, np.nan]]), np.array([[3.0, -9.0]])])
    (-3.0, 3.0)
    >>> map_scale([])
    (0.0, 1.0)
    """
    values = np.concatenate([each[np.isfinite(each)] for each in maps] or [np.empty(0)])
    if not len(values):
        return 0.0, 1.0
    first, third = np.quantile(values, [0.25, 0.75])
    reach = FENCE * (third - first)
    return float(max(values.min(), first - reach)), float(min(values.max(), third + reach))


def map_grid(parts: dict[str, dict[str, np.ndarray]], table: pd.DataFrame | None, scale: tuple[float, float]) -> "Figure":
    """Images, a row each, beside what each layer discards of them.

    Parameters
    ----------
    parts
        Layer → what `map_part` makes, of the same images.
    table
        `discarded`: layers are drawn in order of its depths, and maps that have not converged get a star.
    scale
        Nats at both ends of the colors.

    Examples
    --------
    >>> part = map_part(np.ones((1, 1, 2, 2)), np.array([[0.5, -np.inf]]), np.arange(1), (1, 2))
    >>> [axes.get_title() for axes in map_grid({"conv": part}, None, (0.0, 1.0)).axes]
    ['image 0', 'conv', '']
    """
    depth = {} if table is None else dict(zip(table.layer, table.depth, strict=True))
    layers = sorted(parts, key=lambda name: depth.get(name, 0))
    low, high = scale
    count = len(parts[layers[0]]["maps"])
    doubtful = set() if table is None else {(row.layer, row.image) for row in table[~table.converged].itertuples()}
    with matplotlib.rc_context({"font.size": 8}):
        figure = mpl_figure.Figure(figsize=(1.5 * (len(layers) + 1) + 0.6, 1.6 * count), layout="constrained")
        axes = figure.subplots(count, len(layers) + 1, squeeze=False)
        drawn = None
        for row in range(count):
            axes[row, 0].imshow(parts[layers[0]]["pixels"][row])
            axes[row, 0].set_title(f"image {parts[layers[0]]['index'][row]}", fontsize=7)
            for column, name in enumerate(layers, start=1):
                drawn = axes[row, column].imshow(parts[name]["maps"][row], vmin=low, vmax=high, cmap="viridis", interpolation="nearest")
                star = " *" if (name, int(parts[name]["index"][row])) in doubtful else ""
                axes[row, column].set_title((name if row == 0 else "") + star, fontsize=7)
        for place in axes.flat:
            place.set_axis_off()
        assert drawn is not None
        maps = [each["maps"] for each in parts.values()]
        below, above = (any(bool(np.any(each < low)) for each in maps), any(bool(np.any(each > high)) for each in maps))
        extend = {(True, True): "both", (True, False): "min", (False, True): "max"}.get((below, above), "neither")
        figure.colorbar(drawn, ax=axes, shrink=0.6, label="H [nats/value]", extend=extend)
        return figure


DISCARDED = Section(
    "discarded_layers",
    "What layers throw away",
    "How much of each pixel's information has a layer discarded when it computed its feature, and where?",
    (
        Chart("Discarded by depth", "depth", "cid", by="network", low="cid_low", high="cid_high", of="images", label="CID [nats/value]",
              caption="Mean over images with 95 % t intervals. The curve is what was measured: it is not forced to rise."),
        Chart("Is the object kept?", "depth", "concentration", low="concentration_low", high="concentration_high", of="images", zero=True,
              table="concentration_layers", caption="Noise tolerated in the background less noise tolerated on the object."),
        Chart("Edges or color?", "depth", "rho", by="of", low="rho_low", high="rho_high", of="images", zero=True, table="discarded_edges",
              label="Spearman's ρ",
              caption="Rank correlation within images between what is kept (−H) and how strong edges, or colors, are there."),
        Chart("What can be had back", "depth", "ru", by="decoder", low="ru_low", high="ru_high", of="images", table="reconstruction",
              caption="Reconstruction uncertainty under the noise that the feature survives."),
    ),
    discarding_sentences,
    map_drawings,
    more=("discarded_difference", "concentration_layers", "discarded_edges", "reconstruction", "discarded", "concentration"),
)  # fmt: skip

FAITHFUL = Section(
    "localization",
    "What the maps are worth",
    "Does the class score fall where a map says the evidence is, and does the map find the object? CID beside other methods.",
    (
        Chart("Finding the object", "method", "iou", "rows", low="iou_low", high="iou_high", of="images",
              caption="Mean IoU with 95 % t intervals; thresholds were chosen on other images; center knows no image."),
        Chart("Taking the evidence away", "method", "area", "rows", panels=("baseline",), low="area_low", high="area_high", of="images",
              table="descriptive_accuracy", label="area [probability]",
              caption="Class probability while the most relevant cells are replaced, averaged over the share replaced; low is better."),
    ),
    faithfulness_sentences,
    more=("descriptive_accuracy",),
)  # fmt: skip
