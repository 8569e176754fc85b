"""Section: one part of the report; Chart: a plot, declared once and drawn twice (in the page, and as PNG and SVG)."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from channelscope.report import verdict
from channelscope.tables.run_folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = ("#0a5fb4", "#b8420a", "#00805c", "#7a4fb5", "#8a6d00", "#b0147f", "#4a7a8c", "#565d66")
COLORS_ON_DARK = ("#6db3f8", "#ff9d66", "#4fd1a5", "#c0a0f5", "#e3c04f", "#ff7ac8", "#8cc4d8", "#a9b1bb")
"""of series, as in templates/page.css"""

NORMAL_QUANTILE = 1.96
"""standard errors to either end of a 95 % interval"""

Kind = Literal["line", "scatter", "rows", "bars"]


@dataclass(frozen=True)
class Chart:
    """One chart of one table. Columns that the table does not have are left out; without x or y there is no chart."""

    title: str
    """what it shows"""
    x: str
    """column on the horizontal axis"""
    y: str
    """column on the vertical axis"""
    kind: Kind = "line"
    """line joins the rows of a series in order of x; scatter does not; rows writes the values of x one below the other, largest y first;
    bars stand on zero"""
    by: str = ""
    """column whose values are the series, told apart by color and marker"""
    color: str = ""
    """column that gives the series their colors, where they belong to fewer kinds than there are series; by default `by`"""
    panels: tuple[str, ...] = ()
    """columns whose values each get a panel of their own; numbers are named only where they vary, and rows without a value have no panel"""
    only: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """column → the values drawn first; panels of other values are folded away"""
    where: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """column → the values that are drawn at all"""
    table: str = ""
    """which of the section's tables; by default the first"""
    low: str = ""
    """column with the lower end of y's interval; without it, 1.96 of y's standard errors where the table has them as NAME_se"""
    high: str = ""
    """column with the upper end"""
    band: tuple[str, str] = ("", "")
    """columns of a reference drawn as a grey band, such as a null distribution"""
    count: str = "n"
    """column that says what y is made of …"""
    of: str = ""
    """… and what it counts, in the plural"""
    label: str = ""
    """axis title of y, if not the column's own"""
    zero: bool = False
    """draw the zero line"""
    log: bool = False
    """the horizontal axis is logarithmic"""
    free: bool = False
    """each panel has its own vertical scale"""
    caption: str = ""
    """how to read it, and what the intervals are"""

    def rows(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The rows of the table that are drawn."""
        for column, values in self.where.items():
            frame = frame.loc[frame[column].isin(values)] if column in frame.columns else frame
        return frame

    def divided(self, frame: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
        """The rows of every panel, with its title."""
        columns = [column for column in self.panels if column in frame.columns]
        if not columns:
            return [("", frame)]
        frame = frame.loc[frame[columns].ne("").all(axis=1)]
        told = [column for column in columns if pd.api.types.is_numeric_dtype(frame[column]) and frame[column].nunique() > 1]
        words = [column for column in columns if not pd.api.types.is_numeric_dtype(frame[column])]
        found = []
        for _, rows in frame.groupby(columns, sort=False):
            first = rows.iloc[0]
            title = " with ".join(verdict.title(str(first[column])) for column in words)
            found.append(
                (", ".join([*([title] if title else []), *(f"{verdict.column_title(column)} {first[column]}" for column in told)]), rows)
            )
        return found

    def interval(self, frame: pd.DataFrame) -> tuple[pd.Series, pd.Series] | None:
        """Both ends of y's interval, if the table has one."""
        if {self.low, self.high} <= set(frame.columns):
            return frame[self.low], frame[self.high]
        if f"{self.y}_se" in frame.columns:
            reach = NORMAL_QUANTILE * frame[f"{self.y}_se"]
            return frame[self.y] - reach, frame[self.y] + reach
        return None

    def suits(self, frame: pd.DataFrame) -> bool:
        """Whether the table has what the chart needs, with a number to draw."""
        return {self.x, self.y} <= set(frame.columns) and bool(self.rows(frame)[self.y].notna().any())

    def as_dict(self) -> dict[str, Any]:
        """Plain dictionary for the page."""
        return asdict(self)


@dataclass(frozen=True)
class Drawing:
    """A picture that no chart can say: a matplotlib figure, or a PNG or SVG file of the run folder."""

    name: str
    """file name without its ending, in the run's figures folder"""
    title: str
    """what it shows; read out where the picture cannot be seen"""
    figure: "Figure | Path"
    """the picture"""
    caption: str = ""
    """how to read it"""
    table: str = ""
    """which of the section's tables has its numbers"""
    page: str = ""
    """file in the run folder that shows the picture with more than a picture can say"""


def _none(run: RunFolder) -> list:
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
    answer: Callable[[RunFolder], list[str]] = _none
    """the sentences that answer, every number with n and interval"""
    drawings: Callable[[RunFolder], list[Drawing]] = _none
    """further pictures, below the charts"""
    more: tuple[str, ...] = ()
    """further tables that belong here"""
    value: str = ""
    """column that the table's low and high belong to; the three are shown as one"""
    derive: Callable[[RunFolder], pd.DataFrame | None] | None = None
    """makes the table from the run's others, when it is not on disk"""
    anchor: str = ""
    """fragment of its address in the page, and start of its figures' file names; by default the table's name"""

    @property
    def id(self) -> str:
        """The anchor, or the table's name."""
        return self.anchor or self.table

    def frame(self, run: RunFolder) -> pd.DataFrame | None:
        """The section's table in this run, if it has one."""
        return self.derive(run) if self.derive else run.table(self.table)

    def frames(self, run: RunFolder) -> dict[str, pd.DataFrame]:
        """The section's tables in this run by name, its own first."""
        found = {self.table: self.frame(run)} | {name: run.table(name) for name in self.more}
        return {name: frame for name, frame in found.items() if frame is not None}

    def charted(self, run: RunFolder) -> list[tuple[Chart, pd.DataFrame]]:
        """The charts this run has numbers for, each with its table."""
        frames = self.frames(run)
        found = [(chart, frames.get(chart.table or self.table)) for chart in self.charts]
        return [(chart, frame) for chart, frame in found if frame is not None and chart.suits(frame)]
