"""TrialStore: every ranking and every measured trial in one SQLite file, each row whole or absent."""

import json
import math
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from channelscope.benchmark.grid import Trial
from channelscope.errors import FormatError, MismatchError
from channelscope.ranking import Ranking
from channelscope.site import Site

TABLES = """
CREATE TABLE IF NOT EXISTS facts (facts TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS rankings (seed INTEGER, score TEXT, about TEXT NOT NULL, numbers BLOB NOT NULL, PRIMARY KEY (seed, score));
CREATE TABLE IF NOT EXISTS cells (cell TEXT PRIMARY KEY, row TEXT NOT NULL, hits BLOB NOT NULL);
"""

RANKING_FIELDS = {
    "name": "name",
    "unit": "unit",
    "keeps": "keeps",
    "family": "axis",
    "source": "source",
    "comparable_across_layers": "comparable",
}
"""Field of a ranking → its name in the file."""


class TrialStore:
    """Measured trials and rankings in one SQLite file; a file of another network, data or number of images is refused.

    Parameters
    ----------
    path
        The file, made if it does not exist.
    facts
        What the benchmark must agree in with the file.

    Raises
    ------
    FormatError
        If the file is damaged or holds no benchmark results.
    MismatchError
        If it holds another benchmark.

    Examples
    --------
    >>> import tempfile
    >>> row = {"accuracy": 0.5, "images": 2, "hits": np.packbits([True, False]).tobytes()}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = TrialStore(Path(folder) / "results.sqlite", {"model": "toy"})
    ...     store.add(Trial(0, "l1", 0.5, "global", "none"), row)
    ...     ((trial, back),) = store.done().items()
    ...     store.base.close()
    >>> trial.score, back["accuracy"], back["hits"].tolist()
    ('l1', 0.5, [True, False])
    """

    def __init__(self, path: Path, facts: Mapping[str, Any]):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.facts = path, dict(facts)
        self.base = sqlite3.connect(path)
        text = json.dumps(facts, sort_keys=True)
        try:
            self.base.executescript(TABLES)
            known = self.base.execute("SELECT facts FROM facts").fetchone()
        except sqlite3.DatabaseError as error:
            raise FormatError(f"{path} is damaged or not a file of benchmark results ({error}); delete it and start again") from error
        if known is None:
            with self.base:
                self.base.execute("INSERT INTO facts VALUES (?)", (text,))
        elif known[0] != text:
            old, new = json.loads(known[0]), json.loads(text)
            differ = [f"{key} {old.get(key)} there, {new.get(key)} here" for key in {**old, **new} if old.get(key) != new.get(key)]
            raise MismatchError(f"{path} holds another benchmark ({'; '.join(differ)}): name another folder")

    def add_ranking(self, seed: int, name: str, ranking: Ranking | None, reason: str = "") -> None:
        """Store a ranking, or the reason why there is none.

        Parameters
        ----------
        seed
            Seed of the calibration images.
        name
            Name of the score.
        ranking
            The ranking; None if it cannot be computed.
        reason
            Why it cannot be computed.
        """
        about, numbers = {"reason": reason}, b""
        if ranking is not None:
            about = {stored: vars(ranking)[field] for field, stored in RANKING_FIELDS.items()}
            about |= {"sites": [site.as_dict() for site in ranking.sites], "input_shape": list(ranking.input_shape)}
            numbers = np.concatenate([ranking[site.name] for site in ranking.sites]).astype("<f8").tobytes()
        with self.base:
            self.base.execute("INSERT OR REPLACE INTO rankings VALUES (?, ?, ?, ?)", (seed, name, json.dumps(about), numbers))

    def rankings(self, seed: int) -> dict[str, Ranking | str]:
        """Score → its ranking for one seed, or the reason why there is none."""
        found: dict[str, Ranking | str] = {}
        for name, text, numbers in self.base.execute("SELECT score, about, numbers FROM rankings WHERE seed = ?", (seed,)):
            about = json.loads(text)
            about |= {field: about.pop(stored) for field, stored in RANKING_FIELDS.items() if stored in about}
            if "reason" in about:
                found[name] = about["reason"]
                continue
            sites = tuple(Site.from_dict(site) for site in about.pop("sites"))
            ends = np.cumsum([site.channels for site in sites])
            parts = np.split(np.frombuffer(numbers, "<f8"), ends[:-1])
            values = {site.name: part.copy() for site, part in zip(sites, parts, strict=True)}
            found[name] = Ranking(values=values, sites=sites, input_shape=tuple(about.pop("input_shape")), **about)
        return found

    def add(self, cell: Trial, row: Mapping[str, Any]) -> None:
        """Store one measured trial.

        Parameters
        ----------
        cell
            The trial.
        row
            Its row, as `measure` returns it.
        """
        plain = {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items() if key != "hits"}
        with self.base:
            self.base.execute("INSERT OR REPLACE INTO cells VALUES (?, ?, ?)", (_key(cell), json.dumps(plain), row["hits"]))

    def done(self) -> dict[Trial, dict[str, Any]]:
        """Every measured trial with its row; `hits` is bool (images,)."""
        found = {}
        for key, text, hits in self.base.execute("SELECT cell, row, hits FROM cells"):
            row: dict[str, Any] = {name: math.nan if value is None else value for name, value in json.loads(text).items()}
            row["hits"] = np.unpackbits(np.frombuffer(hits, np.uint8), count=row["images"]).astype(bool)
            found[Trial(**json.loads(key))] = row
        return found


def _key(cell: Trial) -> str:
    return json.dumps(cell.as_dict(), sort_keys=True)
