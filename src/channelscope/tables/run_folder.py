"""RunFolder: the facts (run.json), tables and calls of the measurements of one network, on disk; and the comparison of two run folders."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.api import types

from channelscope.errors import FormatError, InputError, MismatchError
from channelscope.storage import atomic_file
from channelscope.tables.frame import EARLIER_NAMES, fill, read, write, write_json
from channelscope.tables.quantities import QUANTITIES, Column, Schema

FACTS, CONFIG = "run.json", "config.toml"

SHORT_HASH = 12
"""Characters of a hash of weights in a message."""


@dataclass(frozen=True)
class RunFolder:
    """What measurements of one network left: plain facts, described tables and the calls that made them; no tensor.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from channelscope.tables.frame import table
    >>> call = {"name": "axes", "options": {"images": 60}, "facts": {"title": "Two axes", "weights": "ab"}}
    >>> with TemporaryDirectory() as folder:
    ...     run = RunFolder.open(folder, weights="ab").add({"sizes": table([{"site": "conv1", "channels": 16}], "sizes")}, call)
    ...     again = RunFolder.read(folder)
    ...     sorted(path.name for path in Path(folder).iterdir())
    ['config.toml', 'run.json', 'sizes.columns.json', 'sizes.csv']
    >>> again.facts["title"], int(again.tables["sizes"].channels[0]), again.calls[0]["tables"]
    ('Two axes', 16, ['sizes'])
    """

    folder: Path
    """where it is"""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """run.json: title, network, weights, data, images, accuracy, target, assumption, stages, …, and the calls"""
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    """by name, which is the file's without its ending"""

    @classmethod
    def read(cls, folder: str | Path) -> "RunFolder":
        """The run folder with every table; tables of earlier versions have their present names.

        Parameters
        ----------
        folder
            The folder.

        Returns
        -------
        RunFolder
            Its facts and tables.

        Raises
        ------
        FormatError
            If it is no run folder, or for a damaged file in it.
        """
        folder = Path(folder)
        if not (folder / FACTS).is_file():
            raise FormatError(f"{folder}: expected a run folder with {FACTS}, such as `channelscope axes … --out {folder}` writes")
        return cls(folder, read_facts(folder / FACTS), {name: read(path) for name, path in _table_files(folder).items()})

    @classmethod
    def open(cls, folder: str | Path, weights: str = "", network: str = "") -> "RunFolder":
        """The folder to which tables of a network are added, without its tables; it may not exist yet.

        Parameters
        ----------
        folder
            The folder.
        weights
            `weights_hash` of the network; empty where its weights are still to change.
        network
            Its name; empty where it is not known.

        Returns
        -------
        RunFolder
            Its facts; nothing is written.

        Raises
        ------
        InputError
            If there is a file in the place of the folder.
        MismatchError
            If it holds a run of other weights or, where no weights are known, of a network of another name.
        FormatError
            For a damaged run.json.
        """
        folder = checked_folder(Path(folder))
        facts = read_facts(folder / FACTS) if (folder / FACTS).exists() else {}
        named, held = facts.get("network"), facts.get("weights")
        if weights and held and held != weights:
            raise MismatchError(
                f"{folder} holds a run of {named} with weights {held[:SHORT_HASH]}, this one has weights {weights[:SHORT_HASH]}: "
                "give another --out"
            )
        if network and named and named != network and not (weights and held):
            raise MismatchError(f"{folder} holds a run of {named}, this one is of {network}: give another --out")
        return cls(folder, facts)

    def table(self, name: str) -> pd.DataFrame | None:
        """A table, or None if the run has none of that name or it is empty."""
        frame = self.tables.get(name)
        return frame if frame is not None and len(frame) else None

    @property
    def stages(self) -> tuple[str, ...]:
        """Stages in order of training; a run of one network has one."""
        stated = tuple(self.facts.get("stages") or ())
        channels = self.table("channels")
        return stated or (tuple(channels["stage"].unique()) if channels is not None else ())

    @property
    def calls(self) -> tuple[Mapping[str, Any], ...]:
        """What was run, in order: name, command line, options, versions, device, threads, date, seconds, tables and facts.

        A folder that an earlier version wrote has one call without a name, with all tables.
        """
        if not self.facts:
            return ()
        stored = self.facts.get("calls")
        return tuple(stored) if stored else ({"name": "", "tables": sorted(_table_files(self.folder)), "facts": dict(self.facts)},)

    def call_of(self, table: str) -> Mapping[str, Any]:
        """The call that wrote a table.

        Parameters
        ----------
        table
            Name of the table.

        Returns
        -------
        Mapping
            One of `calls`; empty where none wrote it.
        """
        return next((call for call in self.calls if table in call["tables"]), {})

    def add(self, frames: Mapping[str, pd.DataFrame], call: Mapping[str, Any]) -> "RunFolder":
        """The folder after writing tables, run.json and config.toml.

        The facts of the folder are those of all its calls; where two calls state the same fact, the earlier one's is taken. A call
        whose tables are all written again is replaced by the new one.

        Parameters
        ----------
        frames
            Tables; each is written under its own name.
        call
            What was run: name, options and facts, and whatever else describes it; plain values.

        Returns
        -------
        RunFolder
            Facts and the tables added.
        """
        described = {str(frame.attrs.get("name", name)): frame for name, frame in frames.items()}
        for name, frame in described.items():
            write(frame, self.folder / f"{name}.csv")
        calls = _with_call(self.calls, {**call, "tables": list(described)})
        facts: dict[str, Any] = {}
        for each in reversed(calls):
            facts |= each["facts"]
        facts["command"] = "\n".join(each["command"] for each in calls if each.get("command"))
        write_json(facts | {"calls": calls}, self.folder / FACTS)
        with atomic_file(self.folder / CONFIG) as half:
            half.write_text(config_text({each["name"]: each["options"] for each in calls if each["name"]}), encoding="utf-8")
        return RunFolder(self.folder, facts | {"calls": calls}, {**self.tables, **described})


def checked_folder(folder: Path) -> Path:
    """The path, which is a folder or may become one.

    Parameters
    ----------
    folder
        The path.

    Returns
    -------
    Path
        The same.

    Raises
    ------
    InputError
        If there is a file, there or in the place of a folder above.

    Examples
    --------
    >>> checked_folder(Path("no/such/folder")).name
    'folder'
    """
    place = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    if not place.is_dir():
        at = "" if place == folder else f" at {place}"
        raise InputError(f"--out {folder}: expected a folder, found a file{at}; give another")
    return folder


def read_facts(path: Path) -> dict[str, Any]:
    """Facts of a JSON file.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    dict
        Name → plain value.

    Raises
    ------
    FormatError
        If it is missing, damaged or holds something else.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     read_facts(write_json({"seed": 1}, Path(folder) / "run.json"))
    {'seed': 1}
    """
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise FormatError(f"{path} is damaged: {error}") from error
    if not isinstance(facts, dict):
        raise FormatError(f"{path} is damaged: expected facts by name, found {type(facts).__name__}")
    return facts


def where(frame: pd.DataFrame, **values: Any) -> pd.DataFrame:
    """The rows whose columns have these values; a column that the table does not have is not asked.

    Examples
    --------
    >>> where(pd.DataFrame({"site": ["a", "b"], "n": [1, 2]}), site="b", stage="trained")["n"].tolist()
    [2]
    """
    chosen = pd.Series(True, index=frame.index)
    for column, value in values.items():
        if column in frame.columns:
            chosen &= frame[column] == value
    return frame.loc[chosen]


def config_text(sections: Mapping[str, Mapping[str, Any]]) -> str:
    """Options of commands as TOML: a section a command, a line an option; options without a value are left out.

    Parameters
    ----------
    sections
        Command → option → value: text, number, truth value, path or a sequence of these.

    Returns
    -------
    str
        Text that `tomllib` reads.

    Examples
    --------
    >>> print(config_text({"axes": {"model": "resnet20", "images": 60, "size": None}}), end="")
    [axes]
    model = "resnet20"
    images = 60
    """
    parts = []
    for name, options in sections.items():
        lines = [f"{key} = {_toml_value(value)}" for key, value in options.items() if value is not None]
        parts.append("\n".join([f"[{name}]", *lines, ""]))
    return "\n".join(parts)


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{', '.join(map(_toml_value, value))}]"
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def _table_files(folder: Path) -> dict[str, Path]:
    """Present name of a table → its file."""
    found = {each.stem: each for each in sorted(folder.iterdir()) if each.suffix in (".csv", ".parquet")} if folder.is_dir() else {}
    for name, earlier in EARLIER_NAMES.items():
        if earlier in found:
            found.setdefault(name, found[earlier])
            del found[earlier]
    return dict(sorted(found.items()))


def _with_call(calls: Iterable[Mapping[str, Any]], new: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The calls with a new one, which takes the place of the first that has no table left."""
    written, place, kept = set(new["tables"]), None, []
    for each in calls:
        left = [name for name in each["tables"] if name not in written]
        if left or (not each["tables"] and each["name"] != new["name"]):
            kept.append({**each, "tables": left})
        elif place is None:
            place = len(kept)
    kept.insert(len(kept) if place is None else place, new)
    return kept


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


FACT_PAIRS = Schema(
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
    frames = {FACT_PAIRS.name: fill(FACT_PAIRS, _fact_rows(first, second), **facts), VALUES.name: fill(VALUES, values, **facts)}
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
