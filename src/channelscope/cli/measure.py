"""The commands `train`, `profile`, `merge`, `scores`, `axes`, `report` and `demo`."""

import time
from dataclasses import replace
from functools import reduce
from operator import add
from pathlib import Path

import pandas as pd
from rich.text import Text
from torch import distributed, nn

from channelscope import scores as scoring
from channelscope import tables, zoo
from channelscope.cli.options import NetworkOptions, ProfileOptions, ScoreFlags, console, load_network, load_or_collect, world_size
from channelscope.cli.run_folder import RunAddition, RunFolder, file_at, folder_at
from channelscope.data.images import ImageSplits
from channelscope.data.sources import ImageSource
from channelscope.errors import MismatchError
from channelscope.experiments.axes import axis_alignment as alignment
from channelscope.experiments.axes import axis_clusters as groupings
from channelscope.network.module_state import weights_hash
from channelscope.profiling import store
from channelscope.profiling.collect import collect, rank_batches, sum_on_rank_zero
from channelscope.report import page
from channelscope.report.page import write_report
from channelscope.stats.profile import Profile
from channelscope.zoo.history import FEW
from channelscope.zoo.training import Precision


def train(
    network: NetworkOptions,
    source: ImageSource,
    out: Path,
    epochs: int | None = None,
    lr: float | None = None,
    every: int = 1,
    precision: Precision = "auto",
) -> None:
    """Train a network, keep a checkpoint per epoch, and choose the best one on the validation images.

    Parameters
    ----------
    network
        Network, its weights and its device.
    source
        Images and their preparation.
    out
        Folder for the checkpoints, trained.safetensors and training.json; an interrupted run goes on from there.
    epochs
        Passes over the training images; by default the recipe's.
    lr
        Largest learning rate; by default the recipe's.
    every
        Epochs between checkpoints.
    precision
        Of the layers' products: auto takes bfloat16 where a trial of two seconds shows that it is faster on this device.
    """
    RunAddition(out).agrees("", network.model)
    model, images = load_network(network, source, note=False)
    schedule = replace(zoo.default_schedule(network.model, source.data), every=every, seed=source.seed)
    schedule = replace(schedule, epochs=epochs or schedule.epochs, lr=lr or schedule.lr)
    history = zoo.train(model, images, out, schedule, network.device, precision=precision)
    kept, count = history.epochs[history.kept], len(images.validation)
    if count < FEW:
        console.print(f"{count:,} validation images are too few to choose an epoch by, unless accuracies differ widely")
    if history.kept == history.best:
        console.print(f"best epoch {kept.epoch}: validation accuracy {kept.validation_accuracy:.1%} of {count:,} images")
    else:
        console.print(
            f"{count:,} validation images do not tell epoch {history.best} (validation accuracy "
            f"{history.epochs[history.best].validation_accuracy:.1%}) from the last: epoch {kept.epoch} is kept "
            f"({kept.validation_accuracy:.1%})"
        )
    print(history.trained)


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
    """
    file_at(out)
    model, images = load_network(network, source)
    if world_size() > 1:
        _profile_share(model, images, measure, out)
        return
    found = load_or_collect(model, images, measure, unfinished=_beside(out, ".unfinished"))
    _skipped_note(found)
    print(store.save(found, out))


def _profile_share(model: nn.Module, images: ImageSplits, measure: ProfileOptions, out: Path) -> None:
    """This process's share of the pass; rank 0 adds all shares up and writes them."""
    distributed.init_process_group("gloo")
    try:
        rank = distributed.get_rank()
        batches = rank_batches(images.calibration, rank, distributed.get_world_size())
        unfinished = _beside(out, f".unfinished.{rank}")
        own = collect(model, batches, measure.readout, measure.shards, images.source.seed, measure.sensitivity, measure.maps, unfinished)
        found = sum_on_rank_zero(own)
        if found is not None:
            _skipped_note(found)
            print(store.save(found, out))
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
    """
    file_at(out)
    places = [path.resolve() for path in profiles]
    twice = next((path for path, place in zip(profiles, places, strict=True) if places.count(place) > 1), None)
    if twice is not None:
        raise MismatchError(f"{twice} is given twice, and its images would be counted twice: give each profile once")
    found = reduce(add, (store.load(path) for path in profiles))
    _skipped_note(found)
    print(store.save(found, out))


def scores(profile: Path, convention: ScoreFlags, out: Path, names: str = ",".join(scoring.DEFAULT_SCORES), errors: bool = False) -> None:
    """Write the scores of every channel of a profile as a table.

    Parameters
    ----------
    profile
        Profile file.
    convention
        Options that all scores share.
    out
        Table to write: CSV, or Parquet by its ending.
    names
        scores, separated by commas; `all` for every one.
    errors
        Add the standard error of each score over image shards.
    """
    file_at(out)
    found = store.load(profile)
    wanted = list(scoring.REGISTRY) if names == "all" else [name.strip() for name in names.split(",")]
    frame = scoring.table(found, wanted, errors, **convention.options())
    _left_out(frame)
    print(tables.write(tables.describe(frame, frame.attrs), out))


def axes(
    network: NetworkOptions,
    source: ImageSource,
    measure: ProfileOptions,
    convention: ScoreFlags,
    out: Path = Path("runs/axes"),
    profile: Path | None = None,
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
    """
    begun = time.monotonic()
    folder_at(out)
    model, images = load_network(network, source)
    RunAddition(out).agrees(weights_hash(model), network.model)
    found = load_or_collect(model, images, measure, profile, _beside(out / "network.profile", ".unfinished"))
    if profile is None:
        store.save(found, out / "network.profile")
    _skipped_note(found)
    folder = RunFolder(out)
    folder.write_stage(found, network.stage, two_axes(found, convention))
    folder.write_facts(found, images, convention, f"Two axes of {network.title}", begun, origin=network.origin)
    console.print(folder.headline())
    print(page.write_report(out))


def two_axes(found: Profile, convention: ScoreFlags) -> dict[str, pd.DataFrame]:
    """Channels, alignment and groupings of one profile."""
    options = convention.options()
    channels = scoring.table(found, **options)
    _left_out(channels)
    return {"channels": channels, **alignment(found, **options), "groups": groupings(found, **options)}


def report(folder: Path) -> None:
    """Write the report of a run folder again from its tables.

    Parameters
    ----------
    folder
        Run folder, such as runs/demo.
    """
    print(page.write_report(folder))


def demo(out: Path = Path("runs/demo"), epochs: int = 12, seed: int = 0) -> None:
    """Train a small residual network on scanned digits, profile it before and after, and write a report.

    Parameters
    ----------
    out
        Folder for everything it makes.
    epochs
        Passes over the training images.
    seed
        Of the initialization and the training.
    """
    begun = time.monotonic()
    network, source = NetworkOptions("resnet20"), ImageSource("digits", seed=seed)
    RunAddition(out).agrees("", network.model)
    model, images = load_network(network, source, note=False)
    schedule = replace(zoo.default_schedule("resnet20", "digits"), epochs=epochs, seed=seed)
    history = zoo.train(model, images, out, schedule)
    folder, convention = RunFolder(out), ScoreFlags()
    for stage, weights in (("initialization", out / "epoch_000.safetensors"), ("trained", history.trained)):
        model, images = load_network(replace(network, weights=weights), source)
        found = load_or_collect(model, images, ProfileOptions(), note=f"profile at {stage}")
        store.save(found, out / f"{stage}.profile")
        folder.write_stage(found, stage, two_axes(found, convention))
    folder.write_facts(found, images, convention, "ResNet-20 on scanned digits", begun, model)
    console.print(folder.headline())
    page = write_report(out)
    console.print(Text.assemble("the report is at ", (str(page), "bold"), ": open it in a browser"))
    print(page)


def _left_out(frame: pd.DataFrame) -> None:
    """Say which scores were refused, and where."""
    for place, reason in frame.attrs["refused"].items():
        console.print(Text.assemble(("left out ", "yellow"), f"{place}: {reason}"))


def _skipped_note(found: Profile) -> None:
    accuracy = f"; {found.tally}" if found.tally.images else ""
    console.print(
        f"{found.network}: {len(found.sites)} sites, {sum(s.channels for s in found.sites):,} channels, {found.images:,} images{accuracy}"
    )
    for name, reason in found.skipped.items():
        console.print(f"  skipped {name}: {reason}", style="dim")
