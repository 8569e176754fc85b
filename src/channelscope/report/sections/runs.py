"""Sections about several runs: two of them side by side, and what they found about one channel."""

import pandas as pd

from channelscope import tables
from channelscope.report import verdict
from channelscope.report.section import Chart, Section
from channelscope.tables.frame import format_number
from channelscope.tables.quantities import HEADLINE, QUANTITIES, Column
from channelscope.tables.run_folder import RunFolder, where

SHOWN = 12
"""numbers that are drawn side by side"""

UNTOLD = {"title", "date", "version"}
"""facts in which runs always differ"""

LONGEST = 60
"""letters of the longest fact that a sentence repeats"""

VALUES = {
    "number": Column.text("table, row and column of the number"),
    "run": Column.text("first or second run"),
    "unit": Column.text("unit of the value"),
    "value": Column(meaning="value in the run", source="the run's table"),
}


def side_by_side(run: RunFolder) -> pd.DataFrame | None:
    """The numbers that differ most, in units of the width of their difference's interval, with a row for each run.

    Examples
    --------
    >>> from pathlib import Path
    >>> row = {"table": "alignment_mean", "row": "", "quantity": "rho", "unit": "", "difference": 0.2, "apart": True}
    >>> row |= {"difference_low": 0.1, "difference_high": 0.3, "n_first": 9, "n_second": 9}
    >>> row |= {f"{name}{end}": 0.1 for name in ("first", "second") for end in ("", "_low", "_high")}
    >>> side_by_side(RunFolder(Path(), {}, {"compared_values": pd.DataFrame([row])}))["run"].tolist()
    ['first', 'second']
    """
    frame = run.table("compared_values")
    if frame is None or frame.empty:
        return None
    known = frame.dropna(subset=["difference_low", "difference_high"])
    width = (known["difference_high"] - known["difference_low"]).where(lambda each: each > 0)
    chosen = known.loc[(known["difference"].abs() / width).sort_values(ascending=False).index[:SHOWN]].to_dict("records")
    rows = []
    for each in chosen:
        about = ", ".join(part for part in (_titled(each["row"]), verdict.title(each["quantity"])) if part)
        for name in ("first", "second"):
            ends = {f"value{end}": each[f"{name}{end}"] for end in ("", "_low", "_high")}
            rows.append(
                {"number": f"{each['table']}: {about}", "run": name, "unit": each["unit"] or "no unit", **ends, "n": each[f"n_{name}"]}
            )
    return tables.table(rows, "side_by_side", VALUES) if rows else None


def _titled(row: str) -> str:
    """A row's name, such as "site conv1, local overlap", with the titles of quantities in the place of column and name."""
    parts = [part.partition(" ") for part in row.split(", ")]
    return ", ".join(QUANTITIES[name].title if name in QUANTITIES else f"{column}{space}{name}" for column, space, name in parts)


def comparison_sentences(run: RunFolder) -> list[str]:
    """Sentences: how many numbers differ beyond their intervals, which facts differ, and whether channels keep their ranks.

    Examples
    --------
    >>> from pathlib import Path
    >>> values = pd.DataFrame({"difference_low": [0.1, -0.1, float("nan")], "apart": [True, False, False]})
    >>> comparison_sentences(RunFolder(Path(), {}, {"compared_values": values}))
    ['3 numbers are in both runs; of 2 with intervals, 1 differs beyond its interval, where chance alone would give about 0.1.']
    """
    values, facts, channels = (run.table(f"compared_{name}") for name in ("values", "facts", "channels"))
    said = []
    if values is not None:
        sure, apart = int(values["difference_low"].notna().sum()), int(values["apart"].sum())
        said.append(
            f"{len(values):,} numbers are in both runs; of {sure:,} with intervals, {apart:,} "
            f"{'differs beyond its interval' if apart == 1 else 'differ beyond their intervals'}, where chance alone would give about "
            f"{format_number(0.05 * sure, 1)}."
        )
    if facts is not None:
        rows = [row for row in where(facts, same=False).to_dict("records") if row["fact"] not in UNTOLD]
        short = [f"{row['fact']} ({row['first'] or 'none'}, {row['second'] or 'none'})" for row in rows if _fits(row)]
        long = [row["fact"] for row in rows if not _fits(row)]
        said.append(f"The runs differ in {', '.join([*short, *long])}." if rows else "What was run is the same.")
    if channels is not None:
        known = channels.loc[channels["score"].isin(HEADLINE)].dropna(subset=["rho"])
        middle = known.groupby("score", sort=False)["rho"].agg(["median", "size"])
        parts = [f"{verdict.title(str(name))} {format_number(row['median'], 2, top=1.0)}" for name, row in middle.iterrows()]
        count = int(middle["size"].max()) if len(middle) else 0
        if parts:
            layers = f"{count} {'layer' if count == 1 else 'layers'}"
            said.append(f"Median rank correlation of the channels of a layer between the runs (n = {layers}): {', '.join(parts)}.")
    return said


def _fits(row: dict) -> bool:
    return len(row["first"]) + len(row["second"]) <= LONGEST


SIDE_BY_SIDE = Section(
    "side_by_side",
    "Two runs side by side",
    "What was different about the two runs, which of their numbers differ beyond chance, and do channels keep their ranks?",
    (
        Chart(
            "Numbers that differ most",
            "number",
            "value",
            kind="rows",
            by="run",
            panels=("unit",),
            low="value_low",
            high="value_high",
            free=True,
            zero=True,
            caption="Bars are the 95 % intervals of each run. Largest differences first, relative to the interval of the difference, which "
            "treats the runs as independent.",
        ),
        Chart(
            "Rank correlation of channels between the runs",
            "depth",
            "rho",
            panels=("score",),
            only={"score": HEADLINE},
            table="compared_channels",
            of="channels",
            label="Spearman ρ",
            zero=True,
            caption="1: the channels of the layer have the same order in both runs. There are no intervals.",
        ),
    ),
    comparison_sentences,
    more=("compared_values", "compared_facts", "compared_channels"),
    derive=side_by_side,
    value="value",
    anchor="comparison",
)


def summary_sentences(run: RunFolder) -> list[str]:
    """Sentences: the answer, the finding of each run, and the runs that are missing.

    Examples
    --------
    >>> from pathlib import Path
    >>> import pandas as pd
    >>> summary_sentences(RunFolder(Path(), {}, {"explanation": pd.DataFrame({"sentence": ["conv1:3: kept by 1 of 1 pruning."]})}))
    ['conv1:3: kept by 1 of 1 pruning.']
    """
    frame = run.table("explanation")
    return [] if frame is None else [str(each) for each in frame["sentence"]]


CHANNEL_SUMMARY = Section(
    "explanation",
    "Why this channel?",
    "Was the channel kept, what happens without it, which circuits does it serve, and where does it stand in its layer?",
    (
        Chart(
            "Its place in its layer",
            "score",
            "above",
            kind="rows",
            by="run",
            table="explanation_scores",
            label="share of its layer with a smaller value",
            zero=True,
            caption="1: no channel of its layer has a larger value; 0: none has a smaller one.",
        ),
    ),
    summary_sentences,
    more=("explanation_scores",),
)
