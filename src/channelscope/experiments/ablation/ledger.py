"""AblationStore: the ablations already done, in one SQLite file, each batch and site whole or absent."""

import hashlib
import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from channelscope.errors import FormatError, MismatchError
from channelscope.experiments.ablation.damage import DAMAGE_QUANTITIES, Damage
from channelscope.types import Tensor

TABLES = """
CREATE TABLE IF NOT EXISTS run (facts TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS done (batch INTEGER, site TEXT, digest TEXT NOT NULL, damage BLOB NOT NULL, PRIMARY KEY (batch, site));
"""


class AblationStore:
    """Damage by batch and site, in one SQLite file, or in memory without a path; a file of another run is refused.

    Parameters
    ----------
    path
        The file; None to keep everything in memory.
    facts
        What the run must agree in with the file.
    groups
        Number of image groups.

    Raises
    ------
    FormatError
        If the file is damaged or no such file.
    MismatchError
        If it is of another run.

    Examples
    --------
    >>> damage = Damage.of(torch.ones(1, 4, 2).double(), torch.tensor([0, 1]), groups=2)
    >>> with AblationStore(None, {}, groups=2) as store:
    ...     store.write(0, "batch", "conv", damage)
    ...     store.known(0, "batch"), store.total()["conv"].mean.tolist()
    ({'conv'}, [[1.0, 1.0, 1.0, 1.0]])
    """

    def __init__(self, path: Path | None, facts: Mapping[str, Any], groups: int):
        self.path, self.groups = path, groups
        text = json.dumps(facts, sort_keys=True)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        self.base = sqlite3.connect(path or ":memory:")
        try:
            self.base.executescript(TABLES)
            known = self.base.execute("SELECT facts FROM run").fetchone()
        except sqlite3.DatabaseError as error:
            raise FormatError(f"{path} is damaged or not a file of unfinished ablations ({error}); delete it and start again") from error
        if known is None:
            with self.base:
                self.base.execute("INSERT INTO run VALUES (?)", (text,))
        elif known[0] != text:
            old = json.loads(known[0])
            differ = [key for key in {**old, **facts} if json.dumps(old.get(key)) != json.dumps(facts.get(key))]
            raise MismatchError(
                f"{path} holds another run of ablations: they differ in {', '.join(differ)}; delete it, or name another file"
            )

    def known(self, batch: int, digest: str) -> set[str]:
        """Sites whose ablations are done for a batch.

        Parameters
        ----------
        batch
            Number of the batch.
        digest
            Its `ablation_key`.

        Returns
        -------
        set[str]
            Names of sites.

        Raises
        ------
        MismatchError
            If that batch held other images.
        """
        rows = self.base.execute("SELECT site, digest FROM done WHERE batch = ?", (batch,)).fetchall()
        if any(old != digest for _, old in rows):
            raise MismatchError(
                f"batch {batch} holds other images than when {self.path} was written: resume with the same images and batch size"
            )
        return {site for site, _ in rows}

    def write(self, batch: int, digest: str, site: str, damage: Damage) -> None:
        """Add one site's ablations for one batch, all or nothing.

        Parameters
        ----------
        batch
            Number of the batch.
        digest
            Its `ablation_key`.
        site
            Name of the site.
        damage
            Damage of the site's ablations over the batch.
        """
        images = damage.images.expand(len(damage.sums), self.groups)[..., None]
        blob = torch.cat([images, damage.sums, damage.squares], 2).contiguous().numpy().tobytes()
        with self.base:
            self.base.execute("INSERT INTO done VALUES (?, ?, ?, ?)", (batch, site, digest, blob))

    def total(self) -> dict[str, Damage]:
        """Site → damage over all batches, added in their order."""
        found: dict[str, Damage] = {}
        for site, blob in self.base.execute("SELECT site, damage FROM done ORDER BY batch"):
            values = torch.from_numpy(np.frombuffer(blob).copy()).view(-1, self.groups, 1 + 2 * len(DAMAGE_QUANTITIES))
            sums, squares = values[..., 1:].chunk(2, 2)
            damage = Damage(values[0, :, 0], sums, squares)
            found[site] = found[site] + damage if site in found else damage
        return found

    def __enter__(self) -> "AblationStore":
        """The store itself."""
        return self

    def __exit__(self, kind: type | None, *rest: object) -> None:
        """Close the file, and delete it if the run has ended without an error."""
        self.base.close()
        if kind is None and self.path is not None:
            self.path.unlink(missing_ok=True)


def ablation_key(images: Tensor, labels: Tensor) -> str:
    """Fingerprint of a batch.

    Parameters
    ----------
    images, labels
        The batch.

    Returns
    -------
    str
        Sixteen hexadecimal digits.

    Examples
    --------
    >>> one, other = (ablation_key(torch.full((2, 1, 4, 4), value), torch.tensor([0, 1])) for value in (0.0, 1.0))
    >>> len(one), one == other
    (16, False)
    """
    return hashlib.sha256(images.cpu().contiguous().numpy().tobytes() + labels.cpu().numpy().tobytes()).hexdigest()[:16]
