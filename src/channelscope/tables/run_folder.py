"""RunFolder: the facts (run.json), tables and calls of the measurements of one network, on disk."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from channelscope.errors import FormatError, InputError, MismatchError
from channelscope.storage import atomic_file
from channelscope.tables.frame import EARLIER_NAMES, read, write, write_json

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
            raise FormatError(f"no run at {folder}: expected a folder with {FACTS}, such as `channelscope axes … --out {folder}` writes")
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
