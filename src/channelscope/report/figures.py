"""The report's charts as PNG and SVG, for papers and slides."""

import math
import re
from base64 import b64encode
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from channelscope.errors import FormatError
from channelscope.lazy import LazyModule
from channelscope.report import verdict
from channelscope.report.section import COLORS, COLORS_ON_DARK, NORMAL_QUANTILE, Chart, Drawing, Section
from channelscope.report.sections import sections
from channelscope.storage import atomic_file
from channelscope.tables.quantities import QUANTITIES
from channelscope.tables.run_folder import RunFolder, where

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

matplotlib = LazyModule("matplotlib")
agg = LazyModule("matplotlib.backends.backend_agg")
mpl_colors = LazyModule("matplotlib.colors")
mpl_figure = LazyModule("matplotlib.figure")
ticker = LazyModule("matplotlib.ticker")

BEFORE = "#8a929c"

MARKERS = "osD^xP*v"

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.edgecolor": "#8a929c",
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "svg.hashsalt": "channelscope",
    "svg.fonttype": "none",
}

GRADIENT = ["#d3dfee", "#08306b"]
"""first and last color of series in order"""

DASHES: tuple[Any, ...] = ("-", "--", ":", "-.")

MOST_COLUMNS = 6

MOST_NAMES = 24
"""longest list of layers that is written along an axis"""

ON_DARK = "".join(
    (
        "<style>@media screen and (prefers-color-scheme: dark) {",
        'text { fill: #e9ebee } [style*="fill: #ffffff"] { fill: none !important }',
        '[style*="stroke: #000000"] { stroke: #a9b1bb !important }',
        *(f'[style*="fill: {color}"] {{ fill: {light} !important }}' for color, light in zip(COLORS, COLORS_ON_DARK, strict=True)),
        "}</style>",
    )
)
"""what a drawing of matplotlib changes on a dark page: no ground of its own, light letters and ticks, lighter colors"""

KINDS = {".svg": "image/svg+xml", ".png": "image/png"}


def write(run: RunFolder, folder: str | Path) -> list[Path]:
    """Write every chart of the run, and the two-axis map of its last stage, as PNG and SVG.

    Examples
    --------
    >>> import tempfile
    >>> frame = pd.DataFrame({"depth": [0, 1], "modularity": [0.1, 0.3], "edges": [4, 4], "graph": "R"})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     [path.name for path in write(RunFolder(Path(), {}, {"communities": frame}), folder)]
    ['communities.png', 'communities.svg']
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    with matplotlib.rc_context(STYLE):
        for section in sections(run):
            for drawing in drawings(section, run):
                paths += _save(drawing.figure, folder / drawing.name) if not isinstance(drawing.figure, Path) else []
            for index, (chart, frame) in enumerate(section.charted(run)):
                name = section.id + (f"_{index + 1}" if index else "")
                paths += _save(drawn(chart, frame, run.stages), folder / name)
        channels = run.table("channels")
        if channels is not None and {"capture", "relevance"} <= set(channels.columns):
            paths += _save(two_axis_map(channels, run.stages[-1] if run.stages else ""), folder / "map")
    return paths


def drawings(section: Section, run: RunFolder) -> list[Drawing]:
    """A section's drawings, in the report's style.

    Examples
    --------
    >>> drawings(Section("notes", "Notes", ""), RunFolder(Path(), {}, {}))
    []
    """
    with matplotlib.rc_context(STYLE):
        return section.drawings(run)


def embedded(figure: "Figure | Path") -> str:
    """A picture as an address that holds the picture itself.

    Examples
    --------
    >>> embedded(mpl_figure.Figure())[:26]
    'data:image/svg+xml;base64,'
    """
    if not isinstance(figure, Path):
        buffer = BytesIO()
        with matplotlib.rc_context(STYLE):
            agg.FigureCanvasAgg(figure)
            figure.savefig(buffer, format="svg", metadata={"Date": None})
        drawing = buffer.getvalue().decode().replace("</svg>", f"{ON_DARK}</svg>")
        return f"data:image/svg+xml;base64,{b64encode(drawing.encode()).decode()}"
    if figure.suffix not in KINDS:
        raise FormatError(f"{figure} is no picture that a page can hold: expected {' or '.join(KINDS)}")
    return f"data:{KINDS[figure.suffix]};base64,{b64encode(figure.read_bytes()).decode()}"


def drawn(chart: Chart, frame: pd.DataFrame, stages: Iterable[str] = ()) -> "Figure":
    """One declared chart: a panel for each of its first panel values.

    Examples
    --------
    >>> frame = pd.DataFrame({"depth": [0, 1], "rho": [0.1, 0.3], "n": [4, 4]})
    >>> len(drawn(Chart("Correlation", "depth", "rho"), frame).axes)
    1
    """
    frame = chart.rows(frame)
    for column, values in chart.only.items():
        if column in frame.columns:
            frame = frame.loc[frame[column].isin(values)]
    groups = chart.divided(frame)
    wide = min(len(groups), 2)
    tall = math.ceil(len(groups) / wide)
    high = 0.8 + 0.17 * frame[chart.x].nunique() if chart.kind == "rows" else 2.3
    figure = mpl_figure.Figure(figsize=(3.6 * wide + (1.6 if wide == 1 else 0), high * tall + 0.5))
    axes = figure.subplots(
        tall, wide, squeeze=False, sharex=chart.kind != "rows" or not chart.free, sharey=chart.kind == "rows" or not chart.free
    )
    hue = chart.color if chart.color in frame.columns else chart.by
    whole = pd.concat([rows for _, rows in groups])
    series, hues = (list(whole[column].unique()) if column in whole.columns else [""] for column in (chart.by, hue))
    order = frame.groupby(chart.x)[chart.y].max().sort_values().index if chart.kind == "rows" else None
    for place, (title, rows) in zip(axes.flat, groups, strict=False):
        _panel(place, chart, rows, (series, hues), list(stages), order)
        place.set_title(title)
    for place in axes.flat[len(groups) :]:
        place.set_visible(False)
    if len(hues) > 1:
        found: dict[str, Any] = {}
        for place in axes.flat[: len(groups)]:
            found |= dict(zip(*reversed(place.get_legend_handles_labels()), strict=True))
        labels = [str(name) for name in hues if str(name) in found]
        handles = [found[name] for name in labels]
        if _graded(hues):
            handles, labels = handles[:: len(handles) - 1], [labels[0], f"… {labels[-1]}"]
        titles = [verdict.title(label) for label in labels]
        figure.legend(handles, titles, loc="outside lower center", ncols=min(len(labels), 5 if wide > 1 else 4))
    figure.suptitle(chart.title, fontsize=9.5, fontweight="bold")
    return figure


def _panel(place: "Axes", chart: Chart, rows: pd.DataFrame, told: tuple[list, list], stages: list[str], order: pd.Index | None) -> None:
    series, hues = told
    if chart.zero:
        (place.axvline if chart.kind == "rows" else place.axhline)(0, color="#8a929c", linewidth=0.7, zorder=0)
    if set(chart.band) <= set(rows.columns):
        known = rows.sort_values(chart.x)
        place.fill_between(known[chart.x], known[chart.band[0]], known[chart.band[1]], color="#dfe3e8", linewidth=0, zorder=0)
    lying = chart.kind == "rows"
    for index, name in enumerate(series):
        own = rows.loc[rows[chart.by] == name] if chart.by in rows.columns else rows
        own = own.sort_values(chart.x) if chart.kind == "line" else own
        if own.empty:
            continue
        kind = own[chart.color].iloc[0] if chart.color in own.columns else name
        earlier = len(stages) > 1 and name in stages and name != stages[-1]
        hue = 0 if name in stages else hues.index(kind)
        color = BEFORE if earlier else _color(hue, hues)
        cycle = 0 if _graded(hues) else hue // len(COLORS)
        bars = None
        if ends := chart.interval(own):
            bars = np.abs(np.stack([own[chart.y] - ends[0], ends[1] - own[chart.y]]))
        if chart.kind == "bars":
            place.bar(own[chart.x], own[chart.y], width=0.7, yerr=bars, label=str(kind), color=color, error_kw={"elinewidth": 0.8})
            continue
        at = own[chart.x] if order is None else order.get_indexer(own[chart.x]) - 0.5 * index / len(series)
        place.errorbar(
            *((own[chart.y], at) if lying else (at, own[chart.y])),
            xerr=bars if lying else None,
            yerr=None if lying else bars,
            label=str(kind),
            color=color,
            linestyle=DASHES[cycle % len(DASHES)] if chart.kind == "line" else "none",
            linewidth=0.8,
            elinewidth=0.8,
            marker=MARKERS[0 if _graded(hues) else (hue + 3 * cycle) % len(MARKERS)],
            markersize=3.2,
            markerfacecolor="white" if earlier else color,
        )
    _titled(place, chart, rows)
    if order is not None:
        place.set_yticks(range(len(order)), [verdict.title(str(each)) for each in order])


def _graded(hues: list) -> bool:
    """Whether the series are many numbers, which are colored from light to dark in their order."""
    return len(hues) > len(COLORS) and all(re.fullmatch(r"-?[\d.]+", str(name)) for name in hues)


def _color(index: int, hues: list) -> Any:
    return (
        mpl_colors.LinearSegmentedColormap.from_list("depth", GRADIENT)(0.2 + 0.8 * index / (len(hues) - 1))
        if _graded(hues)
        else COLORS[index % len(COLORS)]
    )


def _layers(rows: pd.DataFrame) -> dict[int, str]:
    """Depth → layer, where there is room to write the layers along an axis."""
    name = next((column for column in ("site", "layer") if column in rows.columns), None)
    found = {} if name is None else dict(sorted(zip(rows["depth"], rows[name].astype(str), strict=True)))
    return found if len(found) <= MOST_NAMES else {}


def _titled(place: "Axes", chart: Chart, rows: pd.DataFrame) -> None:
    value = chart.label or named(rows, chart.y)
    layers = _layers(rows) if chart.x == "depth" else {}
    depth = "layer" if layers else "depth (layer in execution order)"
    place.set_xlabel(value if chart.kind == "rows" else depth if chart.x == "depth" else named(rows, chart.x))
    place.set_ylabel("" if chart.kind == "rows" else value)
    if chart.log:
        place.set_xscale("log")
        place.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        place.xaxis.set_major_formatter("{x:g}")
        place.xaxis.set_minor_locator(ticker.NullLocator())
    elif layers:
        tilted: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if len(layers) > 4 else {}
        place.set_xticks(list(layers), list(layers.values()), fontsize=5.5, **tilted)
    elif chart.kind != "rows" and pd.api.types.is_integer_dtype(rows[chart.x]):
        place.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    if chart.kind == "rows" or not chart.free:
        place.label_outer()


def two_axis_map(channels: pd.DataFrame, stage: str, x: str = "capture", y: str = "relevance", errors: bool = False) -> "Figure":
    """Every layer's channels on one local and one target quantity; what is not finite is left out and counted.

    With errors, bars of 1.96 standard errors show the uncertainty of the quantities that the table has as NAME_se.

    Examples
    --------
    >>> channels = pd.DataFrame({"site": ["a", "b"], "depth": [0, 1], "capture": [0.1, 0.2], "relevance": [0.3, 0.4]})
    >>> len(two_axis_map(channels, "").axes)
    2
    """
    rows = where(channels, stage=stage)
    layers = list(rows.groupby("site", sort=False))
    wide = min(len(layers), MOST_COLUMNS)
    tall = math.ceil(len(layers) / wide)
    figure = mpl_figure.Figure(figsize=(1.5 * wide + 0.6, 1.45 * tall + 0.7))
    axes = figure.subplots(tall, wide, squeeze=False)
    for place, (site, layer) in zip(axes.flat, layers, strict=False):
        finite = layer[np.isfinite(layer[x]) & np.isfinite(layer[y])]
        if errors:
            across, up = (NORMAL_QUANTILE * finite[f"{name}_se"] if f"{name}_se" in finite.columns else None for name in (x, y))
            place.errorbar(finite[x], finite[y], up, across, fmt="none", ecolor=BEFORE, elinewidth=0.4, zorder=0)
        place.scatter(finite[x], finite[y], s=5, color=COLORS[0], alpha=0.6, linewidths=0, rasterized=True)
        left = len(layer) - len(finite)
        place.set_title(f"{site}\nn = {len(finite)}" + (f", {left} not finite" if left else ""), fontsize=6)
        place.tick_params(labelsize=5.5)
        place.locator_params(nbins=3)
    for place in axes.flat[len(layers) :]:
        place.set_visible(False)
    figure.supxlabel(named(rows, x))
    figure.supylabel(named(rows, y))
    figure.suptitle(f"Channels of each layer{', ' + stage if stage else ''}", fontsize=9.5, fontweight="bold")
    return figure


def named(frame: pd.DataFrame, column: str) -> str:
    """A column's axis title with its unit, unless that says the same.

    Examples
    --------
    >>> named(pd.DataFrame(), "capture")
    'input capture [nats]'
    """
    unit = frame.attrs.get("columns", {}).get(column, {}).get("unit") or (QUANTITIES[column].unit if column in QUANTITIES else "")
    title = verdict.column_title(column)
    return title + (f" [{unit}]" if unit and unit not in (title, f"{title}s") else "")


def _save(figure: "Figure", stem: Path) -> list[Path]:
    agg.FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # both files are laid out at once
    paths = []
    for ending in (".png", ".svg"):
        path = stem.with_name(stem.name + ending)
        with atomic_file(path) as half:
            figure.savefig(half, dpi=200, metadata={"Date": None} if ending == ".svg" else None)
        paths.append(path)
    return paths
