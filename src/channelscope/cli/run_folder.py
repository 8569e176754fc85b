"""RunFolder: a run's tables and facts on disk, from which the report is written."""

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
from channelscope.cli.options import ProfileOptions, ScoreFlags, load_or_collect
from channelscope.data.images import ImageSplits
from channelscope.errors import FormatError, InputError, MismatchError
from channelscope.evaluation import evaluate
from channelscope.profiling import store
from channelscope.report import page, verdict
from channelscope.scores.layer_statistics import ScoreOptions as Shared
from channelscope.scores.score_table import assumption
from channelscope.stats.profile import Profile
from channelscope.zoo.history import LOG

VERSION = version("channelscope")


def provenance(begun: float) -> dict[str, Any]:
    """What every run.json says of the run itself; `begun` is the monotonic time of its beginning."""
    return {"version": VERSION, "date": date.today().isoformat(), "seconds": round(time.monotonic() - begun, 1)}


class RunFolder:
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
            tables.write(tables.describe(whole, {**attrs, "name": name}), self.path / f"{name}.csv")

    def write_facts(
        self,
        profile: Profile,
        images: ImageSplits,
        convention: ScoreFlags,
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
        return verdict.answer(
            tables.read(self.path / "alignment_mean.csv"), json.loads((self.path / "run.json").read_text(encoding="utf-8"))
        )


def folder_at(path: Path) -> Path:
    """A path that is a folder or may become one.

    Raises
    ------
    InputError
        If there is a file, there or in the place of a folder above.
    """
    at = next(each for each in (path, *path.absolute().parents) if each.exists())
    if not at.is_dir():
        raise InputError(f"--out {path}: expected a folder, found a file{'' if at == path else f' at {at}'}; give another")
    return path


def file_at(path: Path) -> Path:
    """A path that is a file or may become one.

    Raises
    ------
    InputError
        If there is a folder, or a file in the place of a folder above.
    """
    if path.is_dir():
        raise InputError(f"--out {path}: expected a file, found a folder; give a name in it, such as {path / 'out'}")
    folder_at(path.absolute().parent)
    return path


def _read(facts: Path) -> dict[str, Any]:
    """What a file of facts says; nothing where there is none."""
    if not facts.exists():
        return {}
    try:
        return dict(json.loads(facts.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise FormatError(f"{facts} is damaged: {error}") from error


class RunAddition:
    """A run folder to which tables are added when an experiment is over; until then nothing of it is written."""

    def __init__(self, path: Path):
        self.path = path
        self.begun = time.monotonic()
        self.facts = path / "run.json"

    def profiled(self, model: nn.Module, images: ImageSplits, given: Path | None) -> Profile:
        """The profile given, or the one an earlier call left in the folder, or a new pass, first-order effects included.

        Raises   MismatchError if it is of other weights or images than asked for, or the folder is of other weights.
        """
        own = self.path / "network.profile"
        if given is not None or own.exists():
            found = load_or_collect(model, images, ProfileOptions(), given or own)
        else:
            found = load_or_collect(model, images, ProfileOptions(sensitivity=True), unfinished=own.with_suffix(".profile.unfinished"))
        if given is None and (found.images, found.seed) != (len(images.calibration), images.source.seed):
            raise MismatchError(
                f"{own} is of {found.images:,} images with seed {found.seed}, asked for are {len(images.calibration):,} with seed "
                f"{images.source.seed}: give another --out, or the profile with --profile"
            )
        self.agrees(found.weights_hash, found.network)
        if given is None and not own.exists():
            store.save(found, own)
        return found

    def agrees(self, weights: str, network: str = "") -> None:
        """Refuse a folder that belongs to another network: it holds a run of other weights, or a training of another network.

        Parameters
        ----------
        weights
            `weights_hash` of the network; empty where its weights are still to change.
        network
            Its name; empty where it is not known.

        Raises
        ------
        InputError
            If there is a file in the place of the folder.
        MismatchError
            If the folder is another network's, naming it.
        FormatError
            For a damaged run.json.
        """
        folder_at(self.path)
        there = _read(self.facts)
        named, held = there.get("network"), there.get("weights")
        if weights and held and held != weights:
            raise MismatchError(
                f"{self.path} holds a run of {named} with weights {held[:12]}, this one has weights {weights[:12]}: give another --out"
            )
        trained = _read(self.path / LOG).get("network")
        for other in (named if not (weights and held) else None, trained):
            if network and other and other != network:
                raise MismatchError(f"{self.path} holds a run of {other}, this one is of {network}: give another --out")

    def write(self, profile: Profile, title: str, frames: Mapping[str, pd.DataFrame], **facts: Any) -> Path:
        """Write every table under its own name, run.json if there is none yet, and the report of all that lies in the folder."""
        for frame in frames.values():
            tables.write(frame, self.path / f"{frame.attrs['name']}.csv")
        if not self.facts.exists():
            tables.write_json(self._facts(profile, title) | facts, self.facts)
        return page.write_report(self.path)

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
