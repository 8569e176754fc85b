"""Run: a run folder read back — its facts (run.json) and its tables."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from channelscope import tables
from channelscope.errors import FormatError


@dataclass(frozen=True)
class Run:
    """What a report is made of: plain facts and described tables, no tensor."""

    folder: Path
    """where it was read"""
    facts: Mapping[str, Any]
    """run.json: title, network, data, images, accuracy, target, assumption, stages, …"""
    tables: Mapping[str, pd.DataFrame]
    """by name, which is the file's without its ending"""

    @classmethod
    def read(cls, folder: str | Path) -> "Run":
        """The run of a folder, with every table; tables of earlier versions have their present names.

        Raises
        ------
        FormatError
            If it is no run folder, or for a damaged file in it.
        """
        folder = Path(folder)
        path = folder / "run.json"
        if not path.is_file():
            raise FormatError(f"no run at {folder}: expected a folder with run.json, such as `channelscope axes … --out {folder}` writes")
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise FormatError(f"{path} is damaged: {error}") from error
        found = {each.stem: each for each in sorted(folder.iterdir()) if each.suffix in (".csv", ".parquet")}
        for name, earlier in tables.EARLIER_NAMES.items():
            if earlier in found:
                found.setdefault(name, found[earlier])
                del found[earlier]
        return cls(folder, facts, {name: tables.read(found[name]) for name in sorted(found)})

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
