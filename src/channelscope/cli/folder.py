"""Folder: a run's tables and facts on disk, from which the report is written."""

import json
import time
from collections.abc import Mapping
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from channelscope import tables
from channelscope.cli.sources import Convention
from channelscope.evaluate import evaluate
from channelscope.report import text
from channelscope.scores import Convention as Shared
from channelscope.scores.table import assumption
from channelscope.stats.profile import Profile
from channelscope.zoo import Images

VERSION = version("channelscope")


def provenance(begun: float) -> dict[str, Any]:
    """What every run.json says of the run itself; `begun` is the monotonic time of its beginning."""
    return {"version": VERSION, "date": date.today().isoformat(), "seconds": round(time.monotonic() - begun, 1)}


class Folder:
    """Collects the tables of one or more stages (initialization, trained) of a network and writes them."""

    def __init__(self, path: Path):
        self.path = path
        self.stages: list[str] = []
        self.frames: dict[str, list[pd.DataFrame]] = {}

    def write_stage(self, profile: Profile, stage: str, frames: dict[str, pd.DataFrame]) -> None:
        """Write a stage's tables, below those of earlier stages."""
        self.stages.append(stage)
        skipped = pd.DataFrame(list(profile.skipped.items()), columns=["site", "reason"])
        for name, frame in (*frames.items(), ("skipped", skipped)):
            attrs = frame.attrs
            if name == "skipped":
                self.frames[name] = [frame]
            else:
                staged = frame.copy()
                staged.insert(0, "stage", stage)
                self.frames.setdefault(name, []).append(staged)
            whole = pd.concat(self.frames[name], ignore_index=True)
            tables.write(tables.described(whole, {**attrs, "name": name}), self.path / f"{name}.csv")

    def write_facts(
        self,
        profile: Profile,
        images: Images,
        convention: Convention,
        title: str,
        begun: float,
        model: nn.Module | None = None,
        origin: Mapping[str, str] | None = None,
    ) -> None:
        """Write run.json: what was measured, on what, under which assumptions.

        The accuracy is that on the test images when the network is given, else that on the calibration images.
        """
        tally = evaluate(model, images.test) if model is not None and len(images.test) else profile.tally
        low, high = tally.accuracy_interval()
        facts = {
            "title": title,
            "network": profile.network,
            "data": images.source.data,
            "images": profile.images,
            "labeled": bool(profile.tally.images),
            "accuracy": tally.accuracy,
            "accuracy_low": low,
            "accuracy_high": high,
            "accuracy_images": int(tally.images),
            "accuracy_split": "test" if model is not None and len(images.test) else "calibration",
            "readout": profile.readout,
            "target": convention.target,
            "assumption": assumption(profile, Shared(**convention.options())),
            "seed": images.source.seed,
            "stages": self.stages,
            "weights": profile.weights_hash,
        }
        tables.write_json(facts | dict(origin or {}) | provenance(begun), self.path / "run.json")

    def headline(self) -> str:
        """The answer in one sentence."""
        return text.answer(tables.read(self.path / "alignment_mean.csv"), json.loads((self.path / "run.json").read_text(encoding="utf-8")))
