"""The commands `train`, `profile`, `merge`, `scores`, `axes` and `demo`."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import Literal

import pandas as pd
from rich.text import Text
from torch import distributed, nn

from channelscope import scores as scoring
from channelscope import tables, zoo
from channelscope.circuits.pictures import CHANNEL_PICTURES, PixelNormalization, layer_sheet, strongest_images
from channelscope.cli.call import (
    NetworkOptions,
    ProfileOptions,
    ScoreFlags,
    batch_count,
    current_call,
    file_at,
    finish_run,
    load_network,
    load_or_collect,
    note_chance,
    open_run,
    profile_facts,
    read_profile,
    world_size,
)
from channelscope.cli.wording import announce_network
from channelscope.data.images import ImageSplits
from channelscope.data.sources import ImageSource
from channelscope.errors import InputError, MismatchError, first_line
from channelscope.evaluation import evaluate
from channelscope.experiments.axes import axis_alignment as alignment
from channelscope.experiments.axes import axis_clusters as groupings
from channelscope.experiments.axes import task_mass
from channelscope.network.module_state import weights_hash, zero_batch
from channelscope.network.sites import sites
from channelscope.profiling.collect import collect, rank_batches, sum_on_rank_zero
from channelscope.profiling.collect import save as save_profile
from channelscope.progress import Logger, console, logging_to, track
from channelscope.report import verdict
from channelscope.scores.score import ScoreOptions as Shared
from channelscope.scores.score_table import assumption
from channelscope.stats.profile import Profile
from channelscope.stats.tally import Tally
from channelscope.storage import atomic_file
from channelscope.tables.frame import counted
from channelscope.zoo.precision import TrainingPrecision
from channelscope.zoo.training_run import FEW, LOG, History, Schedule

OPTIMIZERS = {"sgd": "SGD", "adamw": "AdamW"}


@dataclass(frozen=True)
class TrainingOptions:
    """How long and how a network is trained."""

    epochs: int | None = None
    """passes over the training images; by default the recipe's"""
    lr: float | None = None
    """largest learning rate; by default the recipe's"""
    every: int = 1
    """epochs between checkpoints"""
    optimizer: Literal["auto", "sgd", "adamw"] = "auto"
    """SGD with momentum, or AdamW: auto takes AdamW for networks with LayerNorm or RMSNorm alone, such as transformers"""
    precision: TrainingPrecision = "auto"
    """of the layers' products: auto takes bfloat16 where a trial of two seconds shows that it is faster on this device"""

    def schedule(self, model: nn.Module, name: str, source: ImageSource) -> Schedule:
        """The recipe of a network for these images, with what was asked for."""
        optimizer = zoo.usual_optimizer(model) if self.optimizer == "auto" else self.optimizer
        usual = zoo.default_schedule(name, source.data, optimizer)
        asked = {name: value for name, value in (("epochs", self.epochs), ("lr", self.lr)) if value is not None}
        return replace(usual, **asked, every=self.every, seed=source.seed)


def train(
    network: NetworkOptions, source: ImageSource, how: TrainingOptions, out: Path = Path("runs/training"), log: Logger = "none"
) -> None:
    """Train a network, keep a checkpoint per epoch, and choose the best one on the validation images.

    Parameters
    ----------
    network
        Network, its weights and its device.
    source
        Images and their preparation.
    how
        How long and how it is trained.
    out
        Folder for the checkpoints, trained.safetensors and training.json; an interrupted run goes on from there.
    log
        Also log losses and accuracies in OUT/log, for TensorBoard or Weights & Biases (offline).

    Examples
    --------
    channelscope train resnet20 --out runs/training
    channelscope train torchvision:resnet18 --pretrained --lr 0.01 --epochs 10 -d folder:photos --out runs/mine
    """
    run = open_run(out, network=network.model)
    model, images = load_network(network, source, note=False)
    announce_network(network.title, network.place, model, images)
    schedule = how.schedule(model, network.model, source)
    images.require_training()
    console.print(f"{training_on(images, schedule.epochs)}, {OPTIMIZERS[schedule.optimizer]} with learning rate {schedule.lr:g}")
    call = current_call()
    call.unfinished[out / LOG] = "checkpoints and log of the epochs trained so far"
    with logging_to(log, out / "log", call.options):
        history = zoo.train(model, images, out, schedule, network.place, precision=how.precision)
    for line in chosen_epoch(history, len(images.validation), schedule.lr):
        console.print(line)
    facts = {"title": f"Training of {network.model}", "network": network.model, "data": source.data, "seed": source.seed}
    run.add({}, call.record(facts | network.origin))
    tested = {"test_accuracy": history.test_accuracy, "test_images": history.test_images}
    call.result(history.trained, kept=history.kept, **tested, epochs=[vars(epoch) for epoch in history.epochs])


def training_on(images: ImageSplits, epochs: int) -> str:
    """What a training is about to do, as the beginning of a line."""
    return f"training on {counted(len(images.train), 'training image')} for {counted(epochs, 'epoch')}"


def chosen_epoch(history: History, images: int, lr: float) -> list[str]:
    """Which epoch a finished run keeps, and what speaks against it.

    Parameters
    ----------
    history
        The run.
    images
        Validation images.
    lr
        The largest learning rate.

    Returns
    -------
    list of str
        One sentence a line.
    """
    kept, best = history.epochs[history.kept], history.epochs[history.best]
    said = [f"{images:,} validation images are too few to choose an epoch by, unless accuracies differ widely"] if images < FEW else []
    if kept is best:
        said.append(f"best epoch {kept.epoch}: validation accuracy {kept.validation_accuracy:.1%} of {images:,} images")
    else:
        said.append(
            f"{images:,} validation images do not tell epoch {best.epoch} (validation accuracy {best.validation_accuracy:.1%}) from "
            f"the last: epoch {kept.epoch} is kept ({kept.validation_accuracy:.1%})"
        )
    if kept.epoch == 0 and len(history.epochs) > 1:
        said.append(f"no epoch is better than the weights before training, and these are kept: try --lr {lr / 10:g}, or more --epochs")
    return said


def profile(network: NetworkOptions, source: ImageSource, measure: ProfileOptions, out: Path) -> None:
    """Collect the statistics of every channel in one pass over the calibration images.

    Parameters
    ----------
    network
        Network, its weights and its device.
    source
        Images and their preparation.
    measure
        What the pass over the calibration images records.
    out
        File for the profile; an interrupted pass goes on from OUT.unfinished.

    Examples
    --------
    channelscope profile resnet20 -w runs/demo/trained.safetensors --out resnet20.profile
    channelscope profile timm:resnet18 -w mine.pt -d folder:photos --sensitivity --out mine.profile
    """
    file_at(out)
    model, images = load_network(network, source)
    if world_size() > 1:
        _profile_share(model, images, measure, out)
        return
    found = load_or_collect(model, images, measure, unfinished=_beside(out, ".unfinished"))
    _deliver(found, out)
    note_chance(network, found.tally.accuracy_interval()[0], images)


def _deliver(found: Profile, out: Path) -> None:
    """Write a profile, say what it holds, and print the result."""
    _skipped_note(found)
    current_call().result(save_profile(found, out), **profile_numbers(found))


def profile_numbers(found: Profile) -> dict:
    """What a profile holds, as plain values."""
    return {
        "network": found.network,
        "weights": found.weights_hash,
        "images": found.images,
        "sites": len(found.sites),
        "channels": sum(site.channels for site in found.sites),
        "input_shape": list(found.input_shape),
        "readout": found.readout,
        "shards": found.shards,
        "seed": found.seed,
        "targets": list(found.targets),
        "skipped": {name: current_call().wording(reason) for name, reason in found.skipped.items()},
        **(tally_numbers(found.tally) if found.tally.images else {}),
    }


def tally_numbers(tally: Tally) -> dict:
    """Accuracy with its interval, loss and margin, as plain values."""
    low, high = tally.accuracy_interval()
    return {"accuracy": tally.accuracy, "accuracy_low": low, "accuracy_high": high, "accuracy_images": int(tally.images)}


def _profile_share(model: nn.Module, images: ImageSplits, measure: ProfileOptions, out: Path) -> None:
    """This process's share of the pass; rank 0 adds all shares up and writes them."""
    try:
        distributed.init_process_group("gloo")
    except ValueError as error:
        raise InputError(f"the variables of torchrun are incomplete (WORLD_SIZE is set): {first_line(error)}") from error
    try:
        rank = distributed.get_rank()
        batches = rank_batches(images.calibration, rank, distributed.get_world_size())
        unfinished = _beside(out, f".unfinished.{rank}")
        own = collect(model, batches, measure.readout, measure.shards, images.source.seed, measure.sensitivity, measure.maps, unfinished)
        found = sum_on_rank_zero(own)
        if found is not None:
            _deliver(found, out)
    finally:
        distributed.destroy_process_group()


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


def merge(profiles: list[Path], out: Path) -> None:
    """Add profiles of disjoint images of the same network into one.

    Parameters
    ----------
    profiles
        Profile files.
    out
        File for their sum.

    Examples
    --------
    channelscope merge first.profile second.profile --out both.profile
    """
    file_at(out)
    places = [path.resolve() for path in profiles]
    twice = next((path for path, place in zip(profiles, places, strict=True) if places.count(place) > 1), None)
    if twice is not None:
        raise MismatchError(f"{twice} is given twice, and its images would be counted twice: give each profile once")
    _deliver(reduce(add, (read_profile(path) for path in profiles)), out)


def scores(
    profile: Path,
    convention: ScoreFlags,
    out: Path,
    scores: tuple[str, ...] = scoring.DEFAULT_SCORES,
    standard_errors: bool = False,
) -> None:
    """Write the scores of every channel of a profile as a table.

    Parameters
    ----------
    profile
        Profile, or a run folder that holds one.
    convention
        Options that all scores share.
    out
        File for the table: CSV, Parquet or JSON by its ending.
    scores
        Scores, separated by commas; `all` for every one (`channelscope list scores`).
    standard_errors
        Add the standard error of each score over image shards.

    Examples
    --------
    channelscope scores resnet20.profile --out channels.csv
    channelscope scores runs/axes --scores support,overlap --standard-errors --out channels.parquet
    """
    file_at(out)
    found = read_profile(profile)
    wanted = list(scoring.REGISTRY) if scores == ("all",) else list(scores)
    frame = _left_out(scoring.table(found, wanted, standard_errors, **convention.options()))
    described = tables.describe(frame, frame.attrs)
    current_call().result(tables.write(described, out), tables={"channels": described})


def axes(
    network: NetworkOptions,
    source: ImageSource,
    measure: ProfileOptions,
    convention: ScoreFlags,
    out: Path = Path("runs/axes"),
    profile: Path | None = None,
    pictures: Literal["strongest", "none"] = "none",
) -> None:
    """Measure both axes of every channel, test their alignment layer by layer, and write a report.

    Parameters
    ----------
    network
        Network, its weights and its device.
    source
        Images and their preparation.
    measure
        What the pass over the calibration images records.
    convention
        Options that all scores share.
    out
        Folder for the tables and report.html.
    profile
        A profile collected before, instead of a new pass.
    pictures
        Of the channels with the most task information: the calibration images that drive them most, which whoever has the report then sees.

    Examples
    --------
    channelscope axes resnet20 -w runs/demo/trained.safetensors --out runs/axes
    channelscope axes torchvision:resnet18 -w mine.pt -d folder:photos --pictures strongest --out runs/mine
    """
    run = open_run(out)
    model, images = load_network(network, source)
    run = open_run(out, weights_hash(model), network.model)
    found = load_or_collect(model, images, measure, profile, _beside(out / "network.profile", ".unfinished"))
    if profile is None:
        save_profile(found, out / "network.profile")
        current_call().whole[out / "network.profile"] = "statistics of all calibration images, which --profile takes"
    _skipped_note(found)
    note_chance(network, found.tally.accuracy_interval()[0], images)
    frames = stacked({network.stage: found}, convention)
    facts = axes_facts(found, images, convention, f"Two axes of {network.title}", [network.stage])
    console.print(verdict.answer(frames["alignment_mean"], facts))
    frames |= channel_pictures(out, model, images, frames["channels"] if pictures == "strongest" else None)
    finish_run(run, frames, facts | network.origin)


PICTURED = 3
"""Channels of each layer that are shown in pictures."""


def channel_pictures(out: Path, model: nn.Module, images: ImageSplits, channels: pd.DataFrame | None) -> dict[str, pd.DataFrame]:
    """The images that drive the channels with the most task information: their table, and a sheet for each layer in the folder.

    A channel that is the same for all images, such as one that is always 0 behind its ReLU, has none, and the next takes its place; the
    images are then read once more. Without channels, those that an earlier call left are taken away.
    """
    folder = out / CHANNEL_PICTURES.name
    for left in folder.glob("*.svg"):
        left.unlink()
    if channels is None:
        return {CHANNEL_PICTURES.name: tables.fill(CHANNEL_PICTURES, [])} if (out / f"{CHANNEL_PICTURES.name}.csv").exists() else {}
    found = sites(model, zero_batch(model, images.image_shape))
    waiting = strongest_first(channels)
    shown: dict[str, list[int]] = {site: [] for site in waiting}
    rows, files = [], {}
    while wanted := {site: numbers for site, all_of in waiting.items() if (numbers := all_of[: PICTURED - len(shown[site])])}:
        batches = track(images.calibration, "pictures of channels", batch_count(images.calibration))
        frame, more = strongest_images(found, wanted, batches, PixelNormalization(*images.normalization))
        rows, files = [*rows, frame], {**files, **more}
        for site, numbers in wanted.items():
            shown[site] += [number for number in numbers if more[f"{site}:{number}"]]
            waiting[site] = waiting[site][len(numbers) :]
    for site, numbers in shown.items():
        if numbers:
            with atomic_file(folder / f"{site}.svg") as half:
                half.write_text(layer_sheet({number: files[f"{site}:{number}"] for number in numbers}), encoding="utf-8")
    return {CHANNEL_PICTURES.name: tables.fill(CHANNEL_PICTURES, pd.concat(rows)) if rows else tables.fill(CHANNEL_PICTURES, [])}


def strongest_first(channels: pd.DataFrame) -> dict[str, list[int]]:
    """Layer → its channels, the one with the most task information first, without those of which that is undefined.

    Examples
    --------
    >>> strongest_first(pd.DataFrame({"site": "conv", "channel": [0, 1, 2], "relevance": [0.1, float("nan"), 0.2]}))
    {'conv': [2, 0]}
    """
    ordered = channels.dropna(subset=["relevance"]).sort_values("relevance", ascending=False, kind="stable")
    return {str(site): ordered.loc[ordered["site"] == site, "channel"].tolist() for site in channels["site"].unique()}


def stacked(stages: Mapping[str, Profile], convention: ScoreFlags) -> dict[str, pd.DataFrame]:
    """Tables of both axes, with the rows of each stage below those of the one before; skipped layers are the last stage's."""
    found: dict[str, list[pd.DataFrame]] = {}
    for profile in stages.values():
        for name, frame in two_axes(profile, convention).items():
            found.setdefault(name, []).append(frame)
    frames = {}
    for name, parts in found.items():
        staged = pd.concat(
            [part.assign(stage=stage)[["stage", *part.columns]] for stage, part in zip(stages, parts, strict=True)], ignore_index=True
        )
        frames[name] = tables.describe(staged, {**parts[-1].attrs, "name": name})
    last = list(stages.values())[-1]
    skipped = pd.DataFrame(list(last.skipped.items()), columns=["site", "reason"])
    return frames | {"skipped": tables.describe(skipped, {"name": "skipped"})}


def axes_facts(
    profile: Profile, images: ImageSplits, convention: ScoreFlags, title: str, stages: list[str], model: nn.Module | None = None
) -> dict:
    """What run.json says of the two axes: what was measured, on what, under which assumptions.

    The accuracy is that on the test images when the network is given, else that on the calibration images.
    """
    tested = model is not None and len(images.test) > 0
    tally = evaluate(model, images.test) if model is not None and tested else profile.tally
    return profile_facts(
        profile,
        title,
        data=images.source.data,
        **tally_numbers(tally),
        chance=images.chance,
        accuracy_split="test" if tested else "calibration",
        target=convention.target,
        assumption=assumption(profile, Shared(**convention.options())),
        stages=stages,
    )


def two_axes(found: Profile, convention: ScoreFlags) -> dict[str, pd.DataFrame]:
    """Channels, alignment, groupings and task masses of one profile."""
    options = convention.options()
    channels = _left_out(scoring.table(found, **options))
    tables_of_axes = alignment(found, **options)
    return {"channels": channels, **tables_of_axes, "groups": groupings(found, **options), "task_mass": task_mass(found, **options)}


def demo(out: Path = Path("runs/demo"), epochs: int = 12, seed: int = 0) -> None:
    """Train a small residual network on scanned digits, profile it before and after, and write a report.

    Parameters
    ----------
    out
        Folder for everything it makes.
    epochs
        Passes over the training images.
    seed
        Seed of the initialization and the training.

    Examples
    --------
    channelscope demo --out runs/demo
    """
    network, source = NetworkOptions("resnet20"), ImageSource("digits", seed=seed)
    run = open_run(out, network=network.model)
    model, images = load_network(network, source, note=False)
    announce_network(network.title, network.place, model, images)
    schedule = replace(zoo.default_schedule("resnet20", "digits"), epochs=epochs, seed=seed)
    console.print(f"{training_on(images, epochs)}; then profiles before and after, and the report")
    current_call().unfinished[out / LOG] = "checkpoints and log of the epochs trained so far"
    history = zoo.train(model, images, out, schedule, network.place)
    stages: dict[str, Profile] = {}
    for stage, weights in (("initialization", out / "epoch_000.safetensors"), ("trained", history.trained)):
        model, images = load_network(replace(network, weights=weights), source, note=False)
        stages[stage] = load_or_collect(model, images, ProfileOptions(), note=f"profile at {stage}")
        save_profile(stages[stage], out / f"{stage}.profile")
    frames = stacked(stages, ScoreFlags())
    facts = axes_facts(stages["trained"], images, ScoreFlags(), "ResNet-20 on scanned digits", list(stages), model)
    console.print(verdict.answer(frames["alignment_mean"], facts))
    console.print(Text.assemble("the report is at ", (str(out / "report.html"), "bold"), ": open it in a browser"))
    finish_run(run, frames, facts)


def _left_out(frame: pd.DataFrame) -> pd.DataFrame:
    """Say which scores were refused, and where; the table with these reasons in the words of the command line."""
    worded = current_call().worded(frame)
    for place, reason in worded.attrs["refused"].items():
        console.print(Text.assemble(("left out ", "yellow"), f"{place}: {reason}"))
    return worded


def _skipped_note(found: Profile) -> None:
    accuracy = f"; {found.tally}" if found.tally.images else ""
    console.print(
        f"{found.network}: {len(found.sites)} sites, {sum(s.channels for s in found.sites):,} channels, {found.images:,} images{accuracy}"
    )
    for name, reason in found.skipped.items():
        console.print(f"  skipped {name}: {current_call().wording(reason)}", style="dim")
