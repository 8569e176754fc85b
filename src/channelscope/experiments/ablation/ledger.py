"""AblationStore: the ablations already done, in one SQLite file, each batch and site whole or absent."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from channelscope.errors import MismatchError
from channelscope.experiments.ablation.damage import DAMAGE_QUANTITIES, Damage
from channelscope.storage import ResumableStore
from channelscope.types import Tensor

TABLES = """
CREATE TABLE IF NOT EXISTS measured (batch INTEGER, site TEXT, digest TEXT NOT NULL, damage BLOB NOT NULL, PRIMARY KEY (batch, site));
"""


class AblationStore(ResumableStore):
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
        super().__init__(path, facts, TABLES, "ablations")
        self.groups = groups

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
        rows = self.select("SELECT site, digest FROM measured WHERE batch = ?", batch)
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
        self.insert("measured", batch, site, digest, blob)

    def total(self) -> dict[str, Damage]:
        """Site → damage over all batches, added in their order."""
        found: dict[str, Damage] = {}
        for site, blob in self.select("SELECT site, damage FROM measured ORDER BY batch"):
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
        self.close(finished=kind is None)


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
