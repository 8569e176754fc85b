"""Options that many commands share: a network with its images, and how it is profiled and scored."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from torch import nn

from channelscope import zoo
from channelscope.data.images import ImageSplits
from channelscope.data.sources import ImageSource
from channelscope.data.splits import Split
from channelscope.errors import DataError, MismatchError
from channelscope.network.module_state import weights_hash
from channelscope.profiling import store
from channelscope.profiling.collect import collect
from channelscope.progress import progress_bar
from channelscope.stats.profile import Profile

console = Console(stderr=True, markup=False, emoji=False, highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class NetworkOptions:
    """Which network, with which weights, on which device."""

    model: str
    """resnet18 (zoo), timm:NAME, torchvision:NAME or path/to/file.py:Class"""
    weights: Path | None = None
    """weights file: safetensors, or a state dict saved by torch"""
    device: str = "cpu"
    """where it runs: cpu, cuda, cuda:1, …"""
    example: Path | None = None
    """safetensors file with the further inputs of a network that needs more than images, by the names of its forward pass"""

    @property
    def title(self) -> str:
        """Its name without the folder of its file."""
        return self.model.rsplit("/", 1)[-1]

    @property
    def untrained(self) -> str:
        """Where the weights come from when no file is given; empty with a file."""
        if self.weights is not None:
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
    shards: int = 10
    """groups of images kept apart for intervals; 0 for none"""
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


def load_network(network: NetworkOptions, source: ImageSource, note: bool = True) -> tuple[nn.Module, ImageSplits]:
    """The network and its images; with `note`, weights that come from no file are said first."""
    if note:
        noted(network)
    torch.manual_seed(source.seed)
    return zoo.load(network.model, source, network.weights, network.device, source.seed, network.example)


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
    """Say where the weights come from when no file is given."""
    if network.untrained:
        console.print(f"{network.title}: no --weights, so its weights are {network.untrained}")


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
        profile = store.load(given)
        if profile.weights_hash != weights_hash(model):
            raise MismatchError(
                f"the profile {given} is of {profile.network} with weights {profile.weights_hash[:12]}, "
                f"the network given has weights {weights_hash(model)[:12]}: collect it again"
            )
        return profile
    batches = images.calibration
    with progress_bar(note, -(-len(batches) // batches.batch_size)) as step:
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


def world_size() -> int:
    """Processes started by torchrun; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))
