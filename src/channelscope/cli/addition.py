"""Addition: what one experiment adds to a run folder, beside whatever lies there of the same network."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from channelscope import store, tables
from channelscope.cli.folder import provenance
from channelscope.cli.sources import Measure, profiled
from channelscope.errors import FormatError, MismatchError
from channelscope.report import html
from channelscope.stats.profile import Profile
from channelscope.zoo import Images


class Addition:
    """A run folder to which tables are added when an experiment is over; until then nothing of it is written."""

    def __init__(self, path: Path):
        self.path = path
        self.begun = time.monotonic()
        self.facts = path / "run.json"

    def profiled(self, model: nn.Module, images: Images, given: Path | None) -> Profile:
        """The profile given, or the one an earlier call left in the folder, or a new pass, first-order effects included.

        Raises   MismatchError if it is of other weights or images than asked for, or the folder is of other weights.
        """
        own = self.path / "network.profile"
        if given is not None or own.exists():
            found = profiled(model, images, Measure(), given or own)
        else:
            found = profiled(model, images, Measure(sensitivity=True), unfinished=own.with_suffix(".profile.unfinished"))
        if given is None and (found.images, found.seed) != (len(images.calibration), images.source.seed):
            raise MismatchError(
                f"{own} is of {found.images:,} images with seed {found.seed}, asked for are {len(images.calibration):,} with seed "
                f"{images.source.seed}: give another --out, or the profile with --profile"
            )
        self.agrees(found.weights_hash)
        if given is None and not own.exists():
            store.save(found, own)
        return found

    def agrees(self, weights: str) -> None:
        """Refuse a folder that holds a run of other weights.

        Raises   MismatchError, or FormatError for a damaged run.json.
        """
        if not self.facts.exists():
            return
        try:
            there = json.loads(self.facts.read_text())
        except ValueError as error:
            raise FormatError(f"{self.facts} is damaged: {error}") from error
        if there.get("weights", weights) != weights:
            raise MismatchError(
                f"{self.path} holds a run of {there.get('network')} with weights {there['weights'][:12]}, this one has weights "
                f"{weights[:12]}: give another --out"
            )

    def write(self, profile: Profile, title: str, frames: Mapping[str, pd.DataFrame], **facts: Any) -> Path:
        """Write every table under its own name, run.json if there is none yet, and the report of all that lies in the folder."""
        for frame in frames.values():
            tables.write(frame, self.path / f"{frame.attrs['name']}.csv")
        if not self.facts.exists():
            tables.write_json(self._facts(profile, title) | facts, self.facts)
        return html.write(self.path)

    def _facts(self, profile: Profile, title: str) -> dict[str, Any]:
        return {
            "title": title,
            "network": profile.network,
            "images": profile.images,
            "labeled": bool(profile.tally.images),
            "readout": profile.readout,
            "seed": profile.seed,
            "weights": profile.weights_hash,
        } | provenance(self.begun)
