"""EvidenceFolder: one run folder with its tables, circuits and pruned network."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from channelscope import tables
from channelscope.circuits import folder
from channelscope.circuits.circuit import Circuit
from channelscope.errors import FormatError
from channelscope.pruning.folder import Manifest

GROUP = "circuit_[0-9]*"
"""Pattern of the folders of circuits of groups of images."""


@dataclass(frozen=True)
class EvidenceFolder:
    """One run folder with its tables, circuits and pruned network."""

    path: Path
    """where it is"""
    facts: Mapping[str, Any]
    """its run.json"""

    @classmethod
    def read(cls, path: Path) -> "EvidenceFolder":
        """Run folder at a path.

        Parameters
        ----------
        path
            The folder.

        Returns
        -------
        EvidenceFolder
            The folder with its run.json.

        Raises
        ------
        FormatError
            If it is no run folder, or its run.json does not name the weights.
        """
        try:
            facts = json.loads((path / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise FormatError(
                f"{path}: expected a run folder with run.json, such as `channelscope axes … --out` writes: {error}"
            ) from error
        if not isinstance(facts, dict) or not facts.get("weights"):
            raise FormatError(f"{path / 'run.json'} does not say which weights the network had: make the run again with this version")
        return cls(path, facts)

    def table(self, name: str) -> pd.DataFrame | None:
        """Table of a name, or of the name that an earlier version gave it; None where the folder has none."""
        paths = (self.path / f"{each}.csv" for each in (name, tables.EARLIER_NAMES.get(name, name)))
        return next((tables.read(path) for path in paths if path.is_file()), None)

    @cached_property
    def circuits(self) -> dict[str, Circuit]:
        """Folder → circuit: its own, or those of groups of images."""
        files = [*self.path.glob(folder.RECIPE), *self.path.glob(f"{GROUP}/{folder.RECIPE}")]
        return {str(file.parent): folder.load_mask(file.parent) for file in sorted(files)}

    @cached_property
    def pruned(self) -> Manifest | None:
        """Manifest of the pruned network; None where the folder has none."""
        path = self.path / "recipe.json"
        return Manifest.read(path) if path.is_file() else None

    def layers(self) -> dict[str, int]:
        """Layer → number of channels, as far as the tables, circuits and the pruned network name them."""
        found: dict[str, int] = {}
        for frame in (self.table(name) for name in ("channels", "hulls", "ablations")):
            if frame is not None:
                for site, last in frame.groupby("site")["channel"].max().items():
                    found[str(site)] = max(found.get(str(site), 0), int(last) + 1)
        marks = [circuit.masks for circuit in self.circuits.values()] + ([self.pruned.kept.masks] if self.pruned else [])
        for each in marks:
            found |= {layer: len(rows) for layer, rows in each.items()}
        return found
