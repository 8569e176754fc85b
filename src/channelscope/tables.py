"""tables: data frames that know their units, on disk as CSV with a JSON beside it."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from channelscope.errors import FormatError


def described(frame: pd.DataFrame, facts: Mapping[str, Any]) -> pd.DataFrame:
    """The frame with facts (name, units, assumption, …) added to its `attrs`."""
    frame.attrs |= dict(facts)
    return frame


def write(frame: pd.DataFrame, path: str | Path) -> Path:
    """Write a frame as CSV (Parquet where the path ends in .parquet) and its `attrs` as JSON beside it, all or nothing."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        if path.suffix == ".parquet":
            frame.to_parquet(partial, index=False)
        else:
            frame.to_csv(partial, index=False)
        write_json(frame.attrs, path.with_suffix(".json"))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def read(path: str | Path) -> pd.DataFrame:
    """Read a frame written by `write`, its `attrs` included.

    Raises   FormatError if it is missing or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise FormatError(f"no table at {path}")
    try:
        frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
        facts = path.with_suffix(".json")
        if facts.is_file():
            frame.attrs |= json.loads(facts.read_text())
    except (ValueError, OSError) as error:
        raise FormatError(f"{path} is damaged or not a table: {error}") from error
    return frame


def write_json(facts: Mapping[str, Any], path: str | Path) -> Path:
    """Write plain facts, all or nothing."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(json.dumps(facts, indent=1, default=str) + "\n")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path
