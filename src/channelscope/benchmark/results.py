"""TrialStore: every ranking and every measured trial in one SQLite file, each row whole or absent."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from channelscope.benchmark.grid import Trial
from channelscope.ranking import Ranking
from channelscope.site import Site
from channelscope.storage import ResumableStore

TABLES = """
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


class TrialStore(ResumableStore):
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
    ...     store.close()
    >>> trial.score, back["accuracy"], back["hits"].tolist()
    ('l1', 0.5, [True, False])
    """

    def __init__(self, path: Path, facts: Mapping[str, Any]):
        super().__init__(path, facts, TABLES, "a benchmark")

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
        self.insert("rankings", seed, name, json.dumps(about), numbers)

    def rankings(self, seed: int) -> dict[str, Ranking | str]:
        """Score → its ranking for one seed, or the reason why there is none."""
        found: dict[str, Ranking | str] = {}
        for name, text, numbers in self.select("SELECT score, about, numbers FROM rankings WHERE seed = ?", seed):
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
        self.insert("cells", _key(cell), json.dumps(plain), row["hits"])

    def done(self) -> dict[Trial, dict[str, Any]]:
        """Every measured trial with its row; `hits` is bool (images,)."""
        found = {}
        for key, text, hits in self.select("SELECT cell, row, hits FROM cells"):
            row: dict[str, Any] = {name: math.nan if value is None else value for name, value in json.loads(text).items()}
            row["hits"] = np.unpackbits(np.frombuffer(hits, np.uint8), count=row["images"]).astype(bool)
            found[Trial(**json.loads(key))] = row
        return found


def _key(cell: Trial) -> str:
    return json.dumps(cell.as_dict(), sort_keys=True)
