"""plot: a result of the library or a table as matplotlib axes, with the colors and the words of the report."""

from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from channelscope import scores
from channelscope.circuits.circuit import Circuit
from channelscope.circuits.kernel_scores import KernelScores
from channelscope.discarding.analysis import DiscardingAnalysis
from channelscope.discarding.cid import CIDResult
from channelscope.errors import InputError, SiteError, no_such
from channelscope.lazy import LazyModule
from channelscope.pruning.prune import PruningResult
from channelscope.ranking import Ranking
from channelscope.report import figures
from channelscope.report.sections import SECTIONS
from channelscope.report.sections.discarding import MOST, map_grid, map_part, map_scale
from channelscope.report.sections.pruning import PRUNING
from channelscope.report.verdict import title as titled
from channelscope.stats.profile import Profile
from channelscope.stats.tally import Tally
from channelscope.subset import Subset

subplots = LazyModule("plotly.subplots")

SPREAD = 0.6
"""Width of a layer's points, as a fraction of the distance between layers."""

INTERACTIVE_COLUMNS = 4
"""Panels of an interactive drawing in a row."""

DOTS_PER_INCH = 130
"""Resolution of a drawing in a notebook."""

POINTS: dict[str, Any] = {
    "mode": "markers",
    "marker": {"color": figures.COLORS[0], "opacity": 0.6, "size": 6},
    "hovertemplate": "channel %{text}<br>%{x}<br>%{y}<extra></extra>",
}
"""Points of an interactive drawing, as plotly takes them."""

DRAWN = (Profile, Ranking, KernelScores, Subset, PruningResult, DiscardingAnalysis, pd.DataFrame)

Drawn = Profile | Ranking | KernelScores | Subset | PruningResult | DiscardingAnalysis | pd.DataFrame | Mapping[str, Tally]
"""What `plot` draws."""


class Panels(np.ndarray):
    """matplotlib Axes of one figure, an object array (panels,), which a notebook shows as the figure.

    Examples
    --------
    >>> axes = np.array(Figure().subplots(1, 2), dtype=object).view(Panels)
    >>> axes._repr_png_()[1:4]
    b'PNG'
    """

    def _repr_png_(self) -> bytes:
        buffer = BytesIO()
        with rc_context(figures.STYLE):
            self.flat[0].figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH)
        return buffer.getvalue()


def plot(
    result: Drawn,
    x: str = "capture",
    y: str = "relevance",
    layers: list[str] | None = None,
    title: str | None = None,
    errors: bool = False,
    interactive: bool = False,
) -> Any:
    """Axes of a drawing that suits the result, shown by a notebook; `axes[0].figure` is the figure, which `savefig` writes.

    ==================  ===========================================================================================
    result              drawing
    ==================  ===========================================================================================
    Profile             the channels of each layer on two scores, one panel a layer
    Ranking             the values of each layer's channels, and their median
    KernelScores        the values of each layer's kernels, and their median
    Subset, Circuit     the fraction of each layer's channels, or of the kernels that a feature depends on, that is marked
    PruningResult       the fraction of each layer's channels that is kept
    DiscardingAnalysis  the first images, and what each layer discards of them
    name → Tally        the accuracy of each network, with its interval
    table               the chart that the report draws of a table of this name, such as `trajectory` or `benchmark`
    ==================  ===========================================================================================

    Parameters
    ----------
    result
        One of these; a table is made by an experiment or a benchmark, or read by `tables.read`.
    x, y
        Scores on the two axes; of a profile only.
    layers
        Names of the layers that are drawn; all by default. Not of a table or tallies.
    title
        Heading, or of a table the title of one of its charts; by default the first that the table has numbers for.
    errors
        Bars of 1.96 standard errors over images at each point; of a profile only.
    interactive
        A plotly figure that tells each channel under the pointer; of a profile or a ranking only.

    Returns
    -------
    Panels
        matplotlib Axes, object array (panels,); a plotly Figure if it is interactive.

    Raises
    ------
    InputError
        For a result that nothing draws, an option that it does not have, or a table or a title that no chart belongs to.
    SiteError
        For a layer that the result does not have.

    Examples
    --------
    >>> from channelscope.site import Site
    >>> site = Site("conv", "conv", 2, (2, 8, 8), 0, "conv", "relu", 0, 3, (3, 3))
    >>> axes = plot(Ranking("overlap", "nats", "low", {"conv": np.array([0.25, 0.5])}, (site,), (3, 8, 8)))
    >>> axes[0].get_ylabel()
    'peer overlap [nats]'
    """
    _refuse_unused(result, {"x": x != "capture", "y": y != "relevance", "layers": layers is not None, "errors": errors}, interactive)
    with rc_context(figures.STYLE):
        if isinstance(result, Profile):
            return (_interactive_axes if interactive else _two_axes)(result, x, y, layers, title, errors)
        if isinstance(result, Ranking):
            return _interactive_ranking(result, layers, title) if interactive else _ranking(result, layers, title)
        if isinstance(result, KernelScores):
            return _kernels(result, layers, title)
        if isinstance(result, PruningResult):
            return _fractions(result.kept, layers, title)
        if isinstance(result, Subset):
            return _fractions(result, layers, title)
        if isinstance(result, DiscardingAnalysis):
            return _discarded(result, layers, title)
        if isinstance(result, pd.DataFrame):
            return _table(result, title)
        return _tallies(result, title)


def _refuse_unused(result: Drawn, asked: Mapping[str, bool], interactive: bool) -> None:
    """Refuse what nothing draws, and options that would change nothing."""
    tallies = isinstance(result, Mapping) and bool(result) and all(isinstance(each, Tally) for each in result.values())
    if not tallies and not isinstance(result, DRAWN):
        kinds = ", ".join(each.__name__ for each in DRAWN)
        raise InputError(f"plot draws {kinds}, or a mapping of names to Tally; received {type(result).__name__}")
    allowed = {"x", "y", "layers", "errors"} if isinstance(result, Profile) else set()
    allowed |= set() if tallies or isinstance(result, pd.DataFrame) else {"layers"}
    unused = [name for name, given in asked.items() if given and name not in allowed]
    unused += ["interactive"] if interactive and not isinstance(result, Profile | Ranking) else []
    if unused:
        raise InputError(f"a drawing of {type(result).__name__} has no {unused[0]}: leave it out")


def _two_axes(profile: Profile, x: str, y: str, layers: list[str] | None, title: str | None, errors: bool) -> np.ndarray:
    return _finished(figures.two_axis_map(_on_two_axes(profile, x, y, layers, errors), "", x, y, errors), title)


def _on_two_axes(profile: Profile, x: str, y: str, layers: list[str] | None, errors: bool) -> pd.DataFrame:
    chosen = [profile.site(name).name for name in layers or [site.name for site in profile.sites]]
    frame = scores.table(profile, [x, y], errors=errors)
    return frame.loc[frame["site"].isin(chosen)]


def _interactive_axes(profile: Profile, x: str, y: str, layers: list[str] | None, title: str | None, errors: bool) -> Any:
    frame = _on_two_axes(profile, x, y, layers, errors)
    sites = list(frame.groupby("site", sort=False))
    wide = min(len(sites), INTERACTIVE_COLUMNS)
    figure = subplots.make_subplots(-(-len(sites) // wide), wide, subplot_titles=[name for name, _ in sites])
    for place, (_, own) in enumerate(sites):
        bars = {f"error_{axis}": {"array": figures.NORMAL_QUANTILE * own[f"{score}_se"], "color": figures.BEFORE, "thickness": 0.5}
                for axis, score in (("x", x), ("y", y)) if errors and f"{score}_se" in own.columns}  # fmt: skip
        figure.add_scatter(x=own[x], y=own[y], text=own["channel"], row=place // wide + 1, col=place % wide + 1, **POINTS, **bars)
    figure.update_xaxes(title_text=figures.named(frame, x)).update_yaxes(title_text=figures.named(frame, y))
    return _interactive(figure, title or "Channels of each layer")


def _interactive_ranking(ranking: Ranking, layers: list[str] | None, title: str | None) -> Any:
    figure = subplots.make_subplots(1, 1)
    for name in [site.name for site in ranking.sites] if layers is None else layers:
        values = ranking[name]
        figure.add_scatter(x=[name] * len(values), y=values, text=np.arange(len(values)), **POINTS)
    figure.update_yaxes(title_text=_value_title(ranking))
    return _interactive(figure, title or f"Channels of each layer ({ranking.keeps} is kept)")


def _interactive(figure: Any, title: str) -> Any:
    return figure.update_layout(title=title, template="plotly_white", showlegend=False)


def _ranking(ranking: Ranking, layers: list[str] | None, title: str | None) -> np.ndarray:
    names = [site.name for site in ranking.sites] if layers is None else layers
    axes, missing = _points(names, [ranking[name] for name in names])
    axes.set_ylabel(_value_title(ranking))
    left_out = f", {missing:,} without a finite value left out" if missing else ""
    return _finished(axes.figure, title or f"A point is a channel, a line a layer's median ({ranking.keeps} is kept{left_out})")


def _value_title(ranking: Ranking) -> str:
    return f"{titled(ranking.name)} [{ranking.unit}]" if ranking.unit else titled(ranking.name)


def _kernels(scored: KernelScores, layers: list[str] | None, title: str | None) -> np.ndarray:
    names = _chosen(layers, scored.values)
    axes, _ = _points(names, [scored.values[name][scored.eligible[name]].cpu().numpy() for name in names])
    axes.set_ylabel(f"{titled(scored.criterion)} score of kernels")
    return _finished(axes.figure, title or f"A point is a kernel, a line a layer's median ({scored.feature.feature})")


def _chosen(layers: list[str] | None, known: Mapping[str, Any]) -> list[str]:
    for name in layers or ():
        if name not in known:
            raise SiteError(no_such("layer", name, known))
    return list(known) if layers is None else layers


def _points(names: list[str], values: list[np.ndarray]) -> tuple[Axes, int]:
    """Every layer's finite values and their median, and how many are not finite."""
    _, axes = _wide(names)
    for place, layer in enumerate(values):
        known = layer[np.isfinite(layer)]
        across = place + SPREAD * (np.linspace(0, 1, len(known)) - 0.5) if len(known) > 1 else [place] * len(known)
        axes.plot(across, known, ".", color=figures.COLORS[0], alpha=0.5, markersize=3, markeredgewidth=0)
        if len(known):
            axes.plot([place - SPREAD / 2, place + SPREAD / 2], [np.median(known)] * 2, color=figures.COLORS[1], linewidth=1.4)
    return axes, sum(int((~np.isfinite(layer)).sum()) for layer in values)


def _fractions(subset: Subset, layers: list[str] | None, title: str | None) -> np.ndarray:
    names = list(subset.masks) if layers is None else layers
    figure, axes = _wide(names)
    possible = {name: int(marks.sum()) for name, marks in subset.relevant.items()} if isinstance(subset, Circuit) else {}
    shares = [int(subset[name].sum()) / max(possible.get(name, subset[name].numel()), 1) for name in names]
    axes.bar(range(len(names)), shares, color=figures.COLORS[0], width=SPREAD)
    axes.set_ylim(0, 1)
    axes.set_ylabel(f"{subset.unit} marked [fraction]")
    of = f" that {subset.feature} depends on" if isinstance(subset, Circuit) else ""
    return _finished(figure, title or f"{subset.count:,} of {subset.total:,} {subset.unit}{of}")


def _discarded(analysis: DiscardingAnalysis, layers: list[str] | None, title: str | None) -> np.ndarray:
    found: dict[str, list[CIDResult]] = {}
    for result in analysis.results:
        found.setdefault(result.layer.name, []).append(result)
    pixels = analysis.images.pixels(torch.arange(min(MOST, len(analysis.images)))).numpy() / 255
    height, width = (min(analysis.options.side, each) for each in analysis.images.image_shape[1:])
    parts = {}
    for name in _chosen(layers, found):
        entropy, index = (torch.cat(each)[:MOST].cpu().numpy() for each in zip(*[(r.entropy, r.index) for r in found[name]], strict=True))
        parts[name] = map_part(pixels, entropy, index, (height, width))
    figure = map_grid(parts, analysis.by_image, map_scale(each["maps"] for each in parts.values()))
    return _finished(figure, title or "What each layer discards: bright places are not needed, * has not converged")


def _tallies(tallies: Mapping[str, Tally], title: str | None) -> np.ndarray:
    rows = [(name, each.accuracy, *each.accuracy_interval(), int(each.images)) for name, each in tallies.items()]
    frame = pd.DataFrame(rows, columns=["state", "accuracy", "accuracy_low", "accuracy_high", "images"])
    return _finished(figures.drawn(PRUNING.charts[0], frame), title)


def _table(frame: pd.DataFrame, title: str | None) -> np.ndarray:
    name = str(frame.attrs.get("name", ""))
    charts = {chart.title: chart for section in SECTIONS for chart in section.charts if (chart.table or section.table) == name}
    if title is not None and title not in charts:
        raise InputError(no_such("chart", title, charts))
    fitting = [charts[title]] if title else [chart for chart in charts.values() if chart.suits(frame)]
    if not fitting:
        raise InputError(f"no chart is declared for the table '{name}'" if not charts else f"the table '{name}' has no numbers to draw")
    stages = tuple(frame["stage"].unique()) if "stage" in frame.columns else ()
    return _finished(figures.drawn(fitting[0], frame, stages), None)


def _wide(names: list[str]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(max(4.0, 0.28 * len(names) + 1.2), 2.8))
    axes = figure.subplots()
    if len(names) <= figures.MOST_NAMES:
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=6)
    axes.set_xlabel("layer" if len(names) <= figures.MOST_NAMES else "layer, in execution order")
    return figure, axes


def _finished(figure: Any, title: str | None) -> np.ndarray:
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, fontsize=9.5, fontweight="bold")
    return np.array([axes for axes in figure.axes if axes.get_visible()], dtype=object).view(Panels)
