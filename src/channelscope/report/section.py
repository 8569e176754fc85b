"""section: a part of the report — a question, sentences that answer it, charts, drawings, and the table itself."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from channelscope.report.chart import Chart
from channelscope.report.run import Run


@dataclass(frozen=True)
class Drawing:
    """A picture that no chart can say: a matplotlib figure, or a PNG or SVG file of the run folder."""

    name: str
    """file name without its ending, in the run's figures folder"""
    title: str
    """what it shows; read out where the picture cannot be seen"""
    figure: Figure | Path
    """the picture"""
    caption: str = ""
    """how to read it"""


def _none(run: Run) -> list:
    return []


@dataclass(frozen=True)
class Section:
    """A part of the report about one table of the run folder, or several that belong together."""

    table: str
    """name of the run's table; the section appears when the run has it, or one of `more`"""
    title: str
    """heading"""
    question: str
    """what the section asks, in a sentence or two"""
    charts: tuple[Chart, ...] = ()
    """interactive in the page, and PNG and SVG files beside it; in order"""
    answer: Callable[[Run], list[str]] = _none
    """the sentences that answer, every number with n and interval"""
    drawings: Callable[[Run], list[Drawing]] = _none
    """further pictures, below the charts"""
    more: tuple[str, ...] = ()
    """further tables that belong here"""
    value: str = ""
    """column that the table's low and high belong to; the three are shown as one"""
    derive: Callable[[Run], pd.DataFrame | None] | None = None
    """makes the table from the run's others, when it is not on disk"""

    def frame(self, run: Run) -> pd.DataFrame | None:
        """The section's table in this run, if it has one."""
        return self.derive(run) if self.derive else run.table(self.table)

    def frames(self, run: Run) -> dict[str, pd.DataFrame]:
        """The section's tables in this run by name, its own first."""
        found = {self.table: self.frame(run)} | {name: run.table(name) for name in self.more}
        return {name: frame for name, frame in found.items() if frame is not None}

    def charted(self, run: Run) -> list[tuple[Chart, pd.DataFrame]]:
        """The charts this run has numbers for, each with its table."""
        frames = self.frames(run)
        found = [(chart, frames.get(chart.table or self.table)) for chart in self.charts]
        return [(chart, frame) for chart, frame in found if frame is not None and chart.suits(frame)]
