"""Call: one call of a command, with its result; and the options that many commands share, such as a network with its images."""

import json
import os
import platform
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from torch import nn

from channelscope import tables, zoo
from channelscope.cli import WITHOUT_WEIGHTS, without_weights
from channelscope.cli.wording import announce_network, remark
from channelscope.data.images import ImageSplits
from channelscope.data.sources import ImageSource
from channelscope.data.splits import Split
from channelscope.errors import DataError, InputError, MismatchError
from channelscope.network.module_state import weights_hash
from channelscope.profiling.collect import collect
from channelscope.profiling.collect import load as load_profile
from channelscope.profiling.collect import save as save_profile
from channelscope.progress import console, paused, progress_bar
from channelscope.pruning.folder import RECIPE, Manifest, load_pruned
from channelscope.report import page
from channelscope.stats.profile import Profile
from channelscope.tables.run_folder import REMARKS, RunFolder, checked_folder, read_facts
from channelscope.zoo.models import comes_trained, pretrained_name
from channelscope.zoo.training_run import LOG

VERSION = version("channelscope")


@dataclass
class Call:
    """One call of a command.

    Examples
    --------
    >>> call = Call("scores", {"profile": "net.profile", "errors": True}, ("net.profile", "--errors"))
    >>> call.command_line
    'channelscope scores net.profile --errors'
    >>> call.result(Path("scores.csv"))
    scores.csv
    """

    name: str = ""
    """of the command"""
    options: Mapping[str, Any] = field(default_factory=dict)
    """every option by its flag, without the dashes; defaults included"""
    words: tuple[str, ...] = ()
    """what a user types after the command's name: arguments, and options that have another value than the default"""
    as_json: bool = False
    """print the result as JSON"""
    device: str = "cpu"
    """where the network runs"""
    begun: float = field(default_factory=time.monotonic)
    """when it began, as `time.monotonic` counts"""
    unfinished: dict[Path, str] = field(default_factory=dict)
    """file or folder from which the same command goes on → what it holds"""
    whole: dict[Path, str] = field(default_factory=dict)
    """file that stays when the call is interrupted, though the same command does not go on from it → what it holds"""
    wording: Callable[[str], str] = str
    """a message of the library in the words of the command line"""

    @property
    def command_line(self) -> str:
        """The command as a user types it."""
        return shlex.join(["channelscope", self.name, *self.words])

    def record(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """What run.json says of this call.

        Parameters
        ----------
        facts
            What the tables are about: title, network, weights, data, images, target, …; plain values.

        Returns
        -------
        dict
            Plain values.
        """
        now, seconds = datetime.now().isoformat(timespec="seconds"), round(time.monotonic() - self.begun, 1)
        return {
            "name": self.name,
            "command": self.command_line,
            "options": dict(self.options),
            "versions": {"channelscope": VERSION, "torch": torch.__version__, "python": platform.python_version()},
            "device": self.device,
            "threads": torch.get_num_threads(),
            "date": now,
            "seconds": seconds,
            "facts": {"version": VERSION, "date": now.partition("T")[0], "seconds": seconds, **facts},
        }

    def worded(self, frame: pd.DataFrame) -> pd.DataFrame:
        """A table with its remarks, and the reasons why scores were refused, in the words of the command line.

        Parameters
        ----------
        frame
            A table of the library.

        Returns
        -------
        DataFrame
            A copy.

        Examples
        --------
        >>> frame = pd.DataFrame({"site": ["conv"], "reason": ["pass shrinkage='oas'"]})
        >>> Call(wording=lambda said: said.replace("shrinkage='oas'", "--shrinkage oas")).worded(frame)["reason"].item()
        'pass --shrinkage oas'
        """
        said = {name: frame[name].map(lambda text: self.wording(text) if isinstance(text, str) else text) for name in REMARKS & {*frame}}
        found = frame.assign(**said)
        for facts in (found.attrs, found.attrs.get("provenance", {})):
            if "refused" in facts:
                facts["refused"] = {place: self.wording(reason) for place, reason in facts["refused"].items()}
        return found

    def result(self, path: Path | None = None, text: str = "", **numbers: Any) -> None:
        """Print the result on standard output: the text and the path, or with --json one object with command, path and numbers.

        Parameters
        ----------
        path
            What the command made.
        text
            The result in words.
        **numbers
            Plain values and tables; `tables` is a mapping from name to frame.
        """
        lines = [str(each) for each in (text, path) if each]
        if self.as_json:
            made = {"command": self.name, **({} if path is None else {"path": path}), **numbers}
            lines = [json.dumps(tables.plain_values(made), ensure_ascii=False, allow_nan=False)]
        with paused():
            for line in lines:
                print(line, flush=True)

    def interrupted(self) -> str:
        """What is left when the call is interrupted, in one sentence."""
        whole, left = ([f"{path} ({what})" for path, what in each.items() if path.exists()] for each in (self.whole, self.unfinished))
        again = ": give the same command again to go on from there" if left else ""
        return f"interrupted; kept {', '.join([*whole, *left])}{again}" if whole or left else "interrupted; nothing was kept"


_CURRENT: ContextVar[Call | None] = ContextVar("call", default=None)


def current_call() -> Call:
    """The call that is being answered; outside of one, a call without a name."""
    return _CURRENT.get() or Call()


@contextmanager
def answering(call: Call) -> Iterator[Call]:
    """Context in which `current_call` gives a call.

    Parameters
    ----------
    call
        The call.

    Examples
    --------
    >>> with answering(Call("axes")):
    ...     current_call().name
    'axes'
    """
    token = _CURRENT.set(call)
    try:
        yield call
    finally:
        _CURRENT.reset(token)


@dataclass(frozen=True)
class NetworkOptions:
    """Which network, with which weights, on which device."""

    model: str
    """resnet18 (zoo), timm:NAME, torchvision:NAME, hf:FOLDER, path/to/file.py:Class, or a folder that prune left"""
    weights: Path | None = None
    """weights file: safetensors, or a state dict saved by torch"""
    pretrained: bool = False
    """take the published weights of a network of timm, torchvision or transformers"""
    device: str = "auto"
    """where it runs: cpu, cuda, cuda:1, …; auto is cuda where there is one, else cpu"""
    example: Path | None = None
    """safetensors file with the further inputs of a network that needs more than images, by the names of its forward pass"""

    def __post_init__(self) -> None:
        """With `pretrained`, the name is the one by which the zoo takes published weights; InputError where there are none."""
        if self.pretrained:
            if self.weights is not None or self.pruned is not None:
                own = "the file of --weights" if self.weights is not None else f"the weights in {self.model}"
                raise InputError(f"--pretrained takes the published weights, and {own} would replace them: give one of the two")
            object.__setattr__(self, "model", pretrained_name(self.model))

    @property
    def place(self) -> str:
        """The device of its name, and the one that auto takes."""
        return chosen_device(self.device)

    @property
    def pruned(self) -> Path | None:
        """The folder of a pruned network, if it names one."""
        return Path(self.model) if (Path(self.model) / RECIPE).is_file() else None

    @property
    def title(self) -> str:
        """Its name without the folder of its file."""
        return self.model.rsplit("/", 1)[-1]

    @property
    def untrained(self) -> str:
        """Where the weights come from when no file is given; empty with a file."""
        if self.weights is not None or self.pruned is not None or comes_trained(self.model):
            return ""
        return "as its class makes them" if ".py:" in self.model else "random"

    @property
    def stage(self) -> str:
        """What tables call the network's state."""
        return f"weights {self.untrained}" if self.untrained else "trained"

    @property
    def origin(self) -> dict[str, str]:
        """What run.json says of weights that come from no file."""
        return {"untrained": self.untrained} if self.untrained else {}


@dataclass(frozen=True)
class ProfileOptions:
    """What the pass over the calibration images keeps."""

    readout: str = "positions(16)"
    """samples of the local axis: positions(16), positions(all) or pooled"""
    shards: int | None = None
    """groups of images kept apart for intervals, 0 for none; by default ten, or as many as memory allows"""
    sensitivity: bool = False
    """also sum first-order effects on the loss, for the gradient scores"""
    maps: bool = False
    """also sum feature-map ranks and independences, for HRank and CHIP (slow)"""


@dataclass(frozen=True)
class ScoreFlags:
    """The choices all scores share."""

    target: Literal["margin", "correct_logit", "top_margin", "label"] = "margin"
    """what the target axis is about"""
    target_readout: Literal["pooled", "positions"] = "pooled"
    """one sample per image, or positions with the target repeated"""
    shrinkage: str | float | None = None
    """of correlation matrices: a number from 0 to 1, or oas"""
    noise: str | float = "median"
    """noise variance of input capture: median (of the layer), or a number"""
    preset: Literal["default", "paper"] = "default"
    """paper: the conventions of the published code"""

    def options(self) -> dict:
        """Keyword arguments for scores and experiments."""
        return dict(self.__dict__)


OPTIONS_OF_A_PROFILE = (ImageSource, NetworkOptions, ProfileOptions, ScoreFlags)
"""whose fields messages name in commands that have not these flags, such as how a profile has to be collected again"""


def chosen_device(name: str) -> str:
    """The device of a name; auto takes cuda where there is one, else the cpu.

    Metal (mps) is not taken by itself: it has no float64, in which statistics are summed.
    """
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def load_network(network: NetworkOptions, source: ImageSource, note: bool = True) -> tuple[nn.Module, ImageSplits]:
    """The network and its images; with `note`, weights that come from no file are said first, then where it runs."""
    if note:
        noted(network)
    torch.manual_seed(source.seed)
    current_call().device = network.place
    with progress_bar("network and images", None):
        if network.pruned is not None:
            model, images = _load_pruned(network, network.pruned, source)
        else:
            model, images = zoo.load(network.model, source, network.weights, network.place, source.seed, network.example)
    if note:
        announce_network(network.title, network.place, model, images)
    return model, images


def _load_pruned(network: NetworkOptions, folder: Path, source: ImageSource) -> tuple[nn.Module, ImageSplits]:
    """The network of a folder, and the images as the network that it was cut from takes them."""
    factory = Manifest.read(folder / RECIPE).factory
    if network.weights is not None or factory is None:
        why = "--weights cannot be given with it" if factory is not None else "it names no network of the zoo to build it from"
        raise InputError(f"{folder} holds a pruned network with weights of its own; {why}")
    _, images = zoo.load(factory.name, source, None, network.place, source.seed, network.example)
    return load_pruned(folder).to(network.place), images


def at_least(least: int, **counts: int | None) -> None:
    """Refuse numbers of flags that are too small, before anything is loaded; flags that were not given are not looked at.

    Raises
    ------
    DataError
        For a smaller number, naming its flag.
    """
    for name, count in counts.items():
        if count is not None and count < least:
            raise DataError(f"expected --{name.replace('_', '-')} of at least {least}, received {count}")


def fitted(split: Split, asked: int | None, usual: int, flag: str) -> Split:
    """The first images of a split: as many as asked for; else the usual number, or all there are, which is said.

    Raises
    ------
    DataError
        If more are asked for than there are, naming the flag.
    """
    if asked is None and len(split) < usual:
        console.print(f"{flag}: {len(split):,} {split.name} images, for that is all there are; {usual:,} where there are so many")
    count = min(usual, len(split)) if asked is None else asked
    if not 1 <= count <= len(split):
        raise DataError(f"{flag}: expected at least 1 and at most {len(split)} images of the {split.name} split, asked for {count}")
    return split.take(count)


def noted(network: NetworkOptions) -> None:
    """Say where the weights come from when no file is given, if the first line of the call has not said it."""
    if network.untrained and network.model != WITHOUT_WEIGHTS.get():
        console.print(without_weights(network.model))


def note_chance(network: NetworkOptions, low: float, images: ImageSplits) -> None:
    """Say so where the interval of accuracy of a network with weights begins at chance or below."""
    if not network.untrained and low <= images.chance:
        said = (
            f"accuracy is not beyond chance, 1 of {images.classes:,} classes: are the weights those of these classes, in this order, and "
            "--mean, --std and --size what the network was trained with?"
        )
        remark(said)


def load_or_collect(
    model: nn.Module,
    images: ImageSplits,
    measure: ProfileOptions,
    given: Path | None = None,
    unfinished: Path | None = None,
    note: str = "profile",
) -> Profile:
    """The profile in a file, checked against the network, or a new one over the calibration images."""
    if given is not None:
        profile = read_profile(given)
        if profile.weights_hash != weights_hash(model):
            raise MismatchError(
                f"the profile {given} is of {profile.network} with weights {profile.weights_hash[:12]}, "
                f"the network given has weights {weights_hash(model)[:12]}: collect it again"
            )
        return profile
    batches = images.calibration
    if unfinished is not None:
        current_call().unfinished[unfinished] = "statistics of the batches seen so far"
    effects = " and first-order effects" if measure.sensitivity else ""
    console.print(f"{note}: statistics{effects} of {len(batches):,} calibration images")
    with progress_bar(note, batch_count(batches)) as step:
        return collect(
            model,
            with_progress(batches, step),
            measure.readout,
            measure.shards,
            images.source.seed,
            measure.sensitivity,
            measure.maps,
            unfinished,
        )


def with_progress(batches: Iterable, step) -> Iterator:
    """The batches, moving the bar after each."""
    for batch in batches:
        yield batch
        step()


def batch_count(split: Split) -> int:
    """Number of batches of a split."""
    return -(-len(split) // split.batch_size)


def read_profile(path: Path) -> Profile:
    """The profile in a file, or the last stage's in a run folder."""
    if path.is_dir():
        names = ("network", "trained", "initialization")
        found = [each for each in (path / f"{name}.profile" for name in names) if each.is_file()]
        if not found:
            raise InputError(f"{path}: expected a profile, or a run folder with network.profile; found neither")
        path = found[0]
    return load_profile(path)


def file_at(path: Path) -> Path:
    """A path that is a file or may become one.

    Raises
    ------
    InputError
        If there is a folder, or a file in the place of a folder above.
    """
    if path.is_dir():
        raise InputError(f"--out {path}: expected a file, found a folder; give a name in it, such as {path / 'out'}")
    checked_folder(path.absolute().parent)
    return path


def open_run(folder: Path, weights: str = "", network: str = "") -> RunFolder:
    """The run folder to which this call adds; refused if it holds a run of other weights, or the training of another network.

    Parameters
    ----------
    folder
        The folder, which may not exist yet.
    weights
        `weights_hash` of the network; empty where its weights are still to change.
    network
        Its name.
    """
    run = RunFolder.open(folder, weights, network)
    trained = read_facts(folder / LOG).get("network") if (folder / LOG).is_file() else None
    if network and trained and trained != network:
        raise MismatchError(f"{folder} holds a run of {trained}, this one is of {network}: give another --out")
    return run


def run_profile(run: RunFolder, model: nn.Module, images: ImageSplits, given: Path | None) -> Profile:
    """The profile given, or the one an earlier call left in the folder, or a new pass, first-order effects included.

    Raises
    ------
    MismatchError
        If it is of other weights or images than asked for, or the folder is of other weights.
    """
    own = run.folder / "network.profile"
    if given is not None or own.exists():
        found = load_or_collect(model, images, ProfileOptions(), given or own)
    else:
        open_run(run.folder, weights_hash(model))
        found = load_or_collect(model, images, ProfileOptions(sensitivity=True), unfinished=own.with_suffix(".profile.unfinished"))
    if given is None and (found.images, found.seed) != (len(images.calibration), images.source.seed):
        raise MismatchError(
            f"{own} is of {found.images:,} images with seed {found.seed}, asked for are {len(images.calibration):,} with seed "
            f"{images.source.seed}: give another --out, or the profile with --profile"
        )
    open_run(run.folder, found.weights_hash, found.network)
    if given is None:
        if not own.exists():
            save_profile(found, own)
        current_call().unfinished[own] = "statistics of all calibration images"
    return found


def profile_facts(profile: Profile, title: str, **more: Any) -> dict[str, Any]:
    """What run.json says of tables that were made from a profile."""
    return {
        "title": title,
        "network": profile.network,
        "images": profile.images,
        "labeled": bool(profile.tally.images),
        "readout": profile.readout,
        "seed": profile.seed,
        "weights": profile.weights_hash,
        **more,
    }


def network_facts(
    network: NetworkOptions, model: nn.Module, images: ImageSplits, title: str, weights: str | None = None, **more: Any
) -> dict[str, Any]:
    """What run.json says of tables that were made from a network, whose weights may have been hashed before, and images."""
    return {
        **network.origin,
        "network": network.model,
        "weights": weights or weights_hash(model),
        "data": images.source.data,
        "images": len(images.calibration),
        "chance": images.chance,
        "seed": images.source.seed,
        "title": title,
        **more,
    }


def finish_run(run: RunFolder, frames: Mapping[str, pd.DataFrame], facts: Mapping[str, Any], shown: Path | None = None) -> None:
    """Write tables, facts and config.toml of this call into the folder, then the report of all that lies there, and print the result.

    Parameters
    ----------
    run
        The folder.
    frames
        Tables of this call.
    facts
        What they are about.
    shown
        The file to print; by default the report.
    """
    call = current_call()
    frames = {name: call.worded(frame) for name, frame in frames.items()}
    run.add(frames, call.record(facts))
    with progress_bar("report", None):
        report = page.write_report(run.folder)
    call.result(shown or report, tables=frames)


def world_size() -> int:
    """Processes started by torchrun; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))
