"""Storage: files that are written completely or not at all, and runs that go on where they were interrupted."""

import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from channelscope.errors import FormatError, MismatchError

SHORT = 40
"""Longest value that a message about a difference shows."""


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Temporary path to write to, with the suffix of `path`, which replaces `path` at the end of the block.

    If anything fails before, a full disk included, the file at `path` is unchanged and the temporary file is deleted.

    Parameters
    ----------
    path
        The file to write; missing folders are made.

    Yields
    ------
    Path
        The temporary file, in the same folder.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     with atomic_file(Path(folder) / "numbers.txt") as temporary:
    ...         _ = temporary.write_text("1 2 3", encoding="utf-8")
    ...     [path.name for path in Path(folder).iterdir()]
    ['numbers.txt']
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.stem}.partial{path.suffix}")
    temporary.touch()
    mode = temporary.stat().st_mode
    temporary.unlink()
    try:
        yield temporary
        temporary.chmod(mode)  # as any new file: some libraries make theirs readable by nobody else
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class ResumableStore:
    """The finished parts of a run in one SQLite file, each whole or absent; a file of another run is refused.

    Parameters
    ----------
    path
        The file, made if it does not exist; None keeps everything in memory.
    facts
        What the run must agree in with the file, as plain JSON values.
    tables
        `CREATE TABLE IF NOT EXISTS` statements of the tables that hold the parts.
    what
        What the file is of, for messages.

    Raises
    ------
    FormatError
        If the file is damaged or no such file.
    MismatchError
        If it is of another run.

    Examples
    --------
    >>> store = ResumableStore(None, {"seed": 0}, "CREATE TABLE IF NOT EXISTS parts (name TEXT PRIMARY KEY, value REAL)", "numbers")
    >>> store.insert("parts", "one", 1.0)
    >>> store.select("SELECT value FROM parts")
    [(1.0,)]
    >>> store.close()
    """

    def __init__(self, path: Path | None, facts: Mapping[str, Any], tables: str, what: str):
        self.path, self.facts = path, dict(facts)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        self.base = sqlite3.connect(path or ":memory:")
        text = json.dumps(facts, sort_keys=True)
        try:
            self.base.executescript(f"CREATE TABLE IF NOT EXISTS facts (facts TEXT NOT NULL);{tables}")
            known = self.base.execute("SELECT facts FROM facts").fetchone()
        except sqlite3.DatabaseError as error:
            raise FormatError(f"{path} is damaged or not a file of {what} ({error}); delete it and start again") from error
        if known is None:
            self.insert("facts", text)
        elif known[0] != text:
            differ = ", ".join(_differences(json.loads(known[0]), json.loads(text)))
            raise MismatchError(f"{path} holds another run of {what}: they differ in {differ}; delete it, or name another folder")

    def insert(self, table: str, *values: Any) -> None:
        """Write one row, all or nothing; it takes the place of a row with the same key."""
        marks = ", ".join("?" * len(values))
        with self.base:
            self.base.execute(f"INSERT OR REPLACE INTO {table} VALUES ({marks})", values)

    def select(self, query: str, *values: Any) -> list[tuple]:
        """The rows of a query."""
        return self.base.execute(query, values).fetchall()

    def close(self, finished: bool = False) -> None:
        """Close the file, and delete it if the run is finished and its results are elsewhere."""
        self.base.close()
        if finished and self.path is not None:
            self.path.unlink(missing_ok=True)


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[str]:
    for key in dict.fromkeys((*there, *here)):
        old, new = there.get(key), here.get(key)
        if old != new:
            yield f"{key} ({old} there, {new} here)" if max(len(str(old)), len(str(new))) <= SHORT else key
