"""Comparison of two run folders: their facts, the values of the tables that both have, and their channels' scores layer by layer."""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd
from pandas.api import types

from channelscope.errors import MismatchError
from channelscope.tables.frame import fill
from channelscope.tables.quantities import QUANTITIES
from channelscope.tables.run_folder import RunFolder
from channelscope.tables.schema import Column, Schema

KEYS = ("depth", "channel", "seed", "epochs", "epoch", "budget", "size", "cluster", "kept")
"""Columns of numbers that say which row it is, in the order in which they are needed where columns of text do not."""

PLACES = ("depth", "channel")
"""Columns that are no value of anything."""

REMARKS = {"note", "reason", "members", "sentence", "verdict"}
"""Columns of text that say nothing about which row it is."""

SAMPLES = ("n", "images", "channels", "layers")
"""Columns that give the sample size of a row, the first that a table has."""

MIN_CHANNELS = 3
"""Channels from which a rank correlation is computed."""

OTHER = ".second"
"""Ending of the second run's columns while rows are matched."""

Estimate = tuple[float, float, float]
"""value, lower and upper end of its interval"""

SPREAD = "Zou & Donner 2008"


def _of(which: str) -> dict[str, Column]:
    return {
        which: Column(meaning=f"value in the {which} run", source="the run's table"),
        f"n_{which}": Column.count(f"sample size in the {which} run"),
    }


FACTS = Schema(
    "compared_facts",
    columns={
        "fact": Column.text("what is stated in run.json"),
        "first": Column.text("what the first run states"),
        "second": Column.text("what the second run states"),
        "same": Column(meaning="whether both state the same", source="this library"),
    },
)

VALUES = Schema(
    "compared_values",
    columns={
        "table": Column.text("name of the table in both runs"),
        "row": Column.text("which row of it"),
        "quantity": Column.text("column of the table"),
        "unit": Column.text("unit of the values"),
        **_of("first"),
        **_of("second"),
        "difference": Column(meaning="second less first; its interval holds for independent runs and is too wide for shared images",
                             source=SPREAD),
        "apart": Column(meaning="whether the interval of the difference excludes zero", source=SPREAD),
    },
)  # fmt: skip

CHANNELS = Schema(
    "compared_channels",
    "site n",
    {
        "stage": Column.text("stage of both runs"),
        "score": Column.text("the score"),
        "rho": Column.correlation("Spearman correlation of the channels' scores in the two runs", "Spearman 1904"),
        "first": Column(meaning="mean over the layer's channels in the first run", source="this library"),
        "second": Column(meaning="mean over the layer's channels in the second run", source="this library"),
        "difference": Column(meaning="second less first", source="this library"),
    },
)

HIDDEN = {"calls", "seconds", "command"}
"""Facts that every run has its own of."""


def compare_runs(first: RunFolder, second: RunFolder) -> dict[str, pd.DataFrame]:
    """Facts, values and channels of two runs, side by side.

    Parameters
    ----------
    first, second
        Run folders, of one network or of two.

    Returns
    -------
    dict
        `compared_facts`: a row for each fact. `compared_values`: a row for each number that tables of both runs have, with its
        difference and, where both have intervals, the interval of the difference. `compared_channels`, where both runs have scores
        of layers of the same sizes: rank correlation and means by layer and score.

    Raises
    ------
    MismatchError
        If the runs have no table of the same name.

    Examples
    --------
    >>> from pathlib import Path
    >>> def run(rho):
    ...     frame = pd.DataFrame({"local": ["capture"], "rho": [rho], "low": [rho - 0.03], "high": [rho + 0.04], "n": [9]})
    ...     return RunFolder(Path(), {"target": "margin"}, {"alignment_mean": frame})
    >>> row = compare_runs(run(0.25), run(0.5))["compared_values"].iloc[0]
    >>> row["quantity"], float(row["difference"]), round(float(row["difference_low"]), 3), bool(row["apart"])
    ('rho', 0.25, 0.2, True)

    References
    ----------
    Intervals of differences: Zou & Donner 2008.
    """
    shared = [name for name in first.tables if name in second.tables]
    if not shared:
        raise MismatchError(
            f"the runs have no table in common: {first.folder} has {', '.join(first.tables) or 'none'}, "
            f"{second.folder} has {', '.join(second.tables) or 'none'}: compare runs of the same command"
        )
    facts = {"first_run": str(first.folder), "second_run": str(second.folder)}
    values = [row for name in shared if name != "channels" for row in _value_rows(name, first.tables[name], second.tables[name])]
    frames = {FACTS.name: fill(FACTS, _fact_rows(first, second), **facts), VALUES.name: fill(VALUES, values, **facts)}
    channels = _channel_rows(first.table("channels"), second.table("channels"))
    return frames | ({CHANNELS.name: fill(CHANNELS, channels, **facts)} if channels else {})


def difference_interval(first: Estimate, second: Estimate) -> Estimate:
    """Difference of two independent estimates, second less first, with its interval.

    Parameters
    ----------
    first, second
        Value, lower and upper end of its interval.

    Returns
    -------
    tuple
        Difference, lower and upper end; the ends are nan where an end of an interval is.

    Examples
    --------
    >>> difference_interval((1.0, 0.7, 1.4), (2.0, 1.7, 2.4))
    (1.0, 0.5, 1.5)

    References
    ----------
    Zou & Donner 2008: the distances from the estimates to the ends of their intervals add up in squares.
    """
    (a, low_a, high_a), (b, low_b, high_b) = first, second
    return b - a, b - a - math.hypot(high_a - a, b - low_b), b - a + math.hypot(a - low_a, high_b - b)


def _fact_rows(first: RunFolder, second: RunFolder) -> list[dict[str, Any]]:
    names = [name for name in dict.fromkeys([*first.facts, *second.facts]) if name not in HIDDEN]
    rows = []
    for name in names:
        one, other = (_fact_text(run.facts.get(name)) for run in (first, second))
        rows.append({"fact": name, "first": one, "second": other, "same": one == other})
    return rows


def _fact_text(value: Any) -> str:
    if value is None:
        return ""
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _value_rows(name: str, first: pd.DataFrame, second: pd.DataFrame) -> list[dict[str, Any]]:
    """The numbers of one table in both runs, matched by the columns that say which row it is."""
    columns = [column for column in first.columns if column in second.columns]
    keys = _keys(columns, first, second)
    values = {column: ends for column in columns if column not in keys and (ends := _ends(column, columns, first)) is not None}
    if not values:
        return []
    count = next((sample for sample in SAMPLES if sample in columns), None)
    units = first.attrs.get("columns", {})
    by: dict[str, Any] = {"on": keys} if keys else {"left_index": True, "right_index": True}
    both = first[columns].merge(second[columns], suffixes=("", OTHER), **by)
    rows = []
    for record in both.to_dict("records"):
        where = ", ".join(f"{key} {record[key]}" for key in keys if record[key] != "")
        for column, ends in values.items():
            one, other = _estimate(record, column, ends), _estimate(record, column, ends, OTHER)
            difference, low, high = difference_interval(one, other)
            row = {"table": name, "row": where, "quantity": column, "unit": units.get(column, {}).get("unit", "")}
            row |= {"first": one[0], "first_low": one[1], "first_high": one[2], "n_first": int(record[count]) if count else 0}
            row |= {"second": other[0], "second_low": other[1], "second_high": other[2]}
            row |= {"n_second": int(record[count + OTHER]) if count else 0, "difference": difference}
            rows.append(row | {"difference_low": low, "difference_high": high, "apart": low > 0 or high < 0})
    return rows


def _keys(columns: list[str], first: pd.DataFrame, second: pd.DataFrame) -> list[str]:
    """Columns that say which row it is: those of text, and as many of KEYS as are needed; all columns where none suffice.

    A stage that differs in name only, because each run has a single one, does not count.
    """
    one_stage = all("stage" in frame and frame["stage"].nunique() == 1 for frame in (first, second))
    text = [name for name in columns if not types.is_numeric_dtype(first[name]) and name not in REMARKS]
    keys = [name for name in text if not (name == "stage" and one_stage)]
    for name in (None, *KEYS):
        keys += [name] if name is not None and name in columns else []
        if not any(frame.duplicated(keys).any() if keys else len(frame) > 1 for frame in (first, second)):
            return keys
    return columns


def _estimate(record: Mapping[Any, Any], column: str, ends: tuple[str, str] | tuple[None, None], run: str = "") -> Estimate:
    """A value of one of the runs with the ends of its interval."""
    low, high = (math.nan if end is None else float(record[end + run]) for end in ends)
    return float(record[column + run]), low, high


def _ends(column: str, columns: list[str], frame: pd.DataFrame) -> tuple[str, str] | tuple[None, None] | None:
    """Columns of the ends of a value's interval; None for a column that is no value."""
    endings = ("_low", "_high", "_se")
    derived = column in ("low", "high", *SAMPLES, *PLACES) or any(
        column.endswith(ending) and column.removesuffix(ending) in columns for ending in endings
    )
    if derived or not types.is_numeric_dtype(frame[column]) or types.is_bool_dtype(frame[column]):
        return None
    if {f"{column}_low", f"{column}_high"} <= set(columns):
        return f"{column}_low", f"{column}_high"
    if {"low", "high"} <= set(columns) and columns.index("low") == columns.index(column) + 1:
        return "low", "high"
    return None, None


def _channel_rows(first: pd.DataFrame | None, second: pd.DataFrame | None) -> list[dict[str, Any]]:
    """Rank correlation and means of every score both runs have, in layers with the same channels."""
    if first is None or second is None:
        return []
    scores = [name for name in QUANTITIES if name in first.columns and name in second.columns]
    rows = []
    for stage, one, other in _stages(first, second):
        theirs = dict(list(other.groupby("site", sort=False)))
        for site, part in one.groupby("site", sort=False):
            if site not in theirs or len(theirs[site]) != len(part):
                continue
            pair = part.merge(theirs[site], on="channel", suffixes=("", OTHER))
            rows += [_channel_row(stage, str(site), score, pair) for score in scores]
    return rows


def _channel_row(stage: str, site: str, score: str, pair: pd.DataFrame) -> dict[str, Any]:
    defined = pair[[score, score + OTHER]].replace([math.inf, -math.inf], math.nan).dropna()
    one, other = defined[score], defined[score + OTHER]
    varies = len(defined) >= MIN_CHANNELS and one.nunique() > 1 and other.nunique() > 1
    return {
        "stage": stage,
        "site": site,
        "score": score,
        "rho": float(one.rank().corr(other.rank())) if varies else math.nan,
        "first": float(one.mean()),
        "second": float(other.mean()),
        "difference": float(other.mean() - one.mean()),
        "n": len(defined),
    }


def _stages(first: pd.DataFrame, second: pd.DataFrame) -> list[tuple[str, pd.DataFrame, pd.DataFrame]]:
    """Stages of the same name with their rows; the only stages of two runs belong together whatever they are called."""
    parts: list[Mapping[str, pd.DataFrame]] = [
        {str(stage): part for stage, part in frame.groupby("stage", sort=False)} if "stage" in frame else {"": frame}
        for frame in (first, second)
    ]
    if all(len(each) == 1 for each in parts):
        (one, mine), (other, theirs) = (next(iter(each.items())) for each in parts)
        return [(one if one == other else f"{one} / {other}", mine, theirs)]
    return [(stage, part, parts[1][stage]) for stage, part in parts[0].items() if stage in parts[1]]
