"""plot: a profile, a ranking, kept channels or a table as matplotlib axes, with the colors and the words of the report."""

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from channelscope import scores
from channelscope.errors import InputError, no_such
from channelscope.ranking import Ranking
from channelscope.report import figures
from channelscope.report.sections import SECTIONS
from channelscope.report.verdict import title as titled
from channelscope.stats.profile import Profile
from channelscope.subset import Subset

SPREAD = 0.6
"""Width of a layer's points, as a fraction of the distance between layers."""


def plot(
    result: Profile | Ranking | Subset | pd.DataFrame,
    x: str = "capture",
    y: str = "relevance",
    layers: list[str] | None = None,
    title: str | None = None,
) -> np.ndarray:
    """Axes of a drawing that suits the result; `axes[0].figure` is the figure, which a notebook shows and `savefig` writes.

    ==================  ===========================================================================================
    result              drawing
    ==================  ===========================================================================================
    Profile             the channels of each layer on two scores, one panel a layer
    Ranking             the values of each layer's channels, and their median
    Subset              the fraction of each layer's channels, or kernels, that is marked
    table               the chart that the report draws of a table of this name, such as `trajectory` or `benchmark`
    ==================  ===========================================================================================

    Parameters
    ----------
    result
        A profile, a ranking, a subset of channels or kernels, or a table, made by an experiment or read by `tables.read`.
    x, y
        Scores on the two axes; of a profile only.
    layers
        Names of the layers that are drawn; all by default. Not of a table.
    title
        Heading, or of a table the title of one of its charts; by default the first that the table has numbers for.

    Returns
    -------
    numpy.ndarray
        matplotlib Axes, object array (panels,).

    Raises
    ------
    InputError
        For a result that nothing draws, or a table or a title that no chart belongs to.
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
    with rc_context(figures.STYLE):
        if isinstance(result, Profile):
            return _two_axes(result, x, y, layers, title)
        if isinstance(result, Ranking):
            return _ranking(result, layers, title)
        if isinstance(result, Subset):
            return _fractions(result, layers, title)
        if isinstance(result, pd.DataFrame):
            return _table(result, title)
    raise InputError(f"plot draws a profile, a ranking, a subset or a table; received {type(result).__name__}")


def _two_axes(profile: Profile, x: str, y: str, layers: list[str] | None, title: str | None) -> np.ndarray:
    chosen = [profile.site(name).name for name in layers or [site.name for site in profile.sites]]
    frame = scores.table(profile, [x, y])
    figure = figures.two_axis_map(frame.loc[frame["site"].isin(chosen)], "", x, y)
    return _finished(figure, title)


def _ranking(ranking: Ranking, layers: list[str] | None, title: str | None) -> np.ndarray:
    names = [site.name for site in ranking.sites] if layers is None else layers
    values = [ranking[name] for name in names]
    figure, axes = _wide(names)
    for place, layer in enumerate(values):
        known = layer[np.isfinite(layer)]
        across = place + SPREAD * (np.linspace(0, 1, len(known)) - 0.5) if len(known) > 1 else [place] * len(known)
        axes.plot(across, known, ".", color=figures.COLORS[0], alpha=0.5, markersize=3, markeredgewidth=0)
        if len(known):
            axes.plot([place - SPREAD / 2, place + SPREAD / 2], [np.median(known)] * 2, color=figures.COLORS[1], linewidth=1.4)
    missing = sum(int((~np.isfinite(layer)).sum()) for layer in values)
    axes.set_ylabel(f"{titled(ranking.name)} [{ranking.unit}]" if ranking.unit else titled(ranking.name))
    left_out = f", {missing:,} without a finite value left out" if missing else ""
    return _finished(figure, title or f"A point is a channel, a line a layer's median ({ranking.keeps} is kept{left_out})")


def _fractions(subset: Subset, layers: list[str] | None, title: str | None) -> np.ndarray:
    names = list(subset.masks) if layers is None else layers
    figure, axes = _wide(names)
    shares = [float(subset[name].float().mean()) for name in names]
    axes.bar(range(len(names)), shares, color=figures.COLORS[0], width=SPREAD)
    axes.set_ylim(0, 1)
    unit = "channels" if subset.sites else "kernels"
    axes.set_ylabel(f"{unit} marked [fraction]")
    return _finished(figure, title or f"{subset.count:,} of {subset.total:,} {unit}")


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


def _finished(figure: Figure, title: str | None) -> np.ndarray:
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, fontsize=9.5, fontweight="bold")
    return np.array([axes for axes in figure.axes if axes.get_visible()], dtype=object)
