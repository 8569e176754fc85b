"""Bench: the network and images of a benchmark, and the measurement of one cell; runs in any process."""

import math
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from channelscope import zoo
from channelscope.errors import BudgetError, DataError
from channelscope.net.batches import labeled, placed
from channelscope.net.budget import cut
from channelscope.net.cost import cost
from channelscope.net.edits import blank
from channelscope.net.graph import evaluating
from channelscope.net.groups import Groups, groups
from channelscope.net.surgery import shrink
from channelscope.prune.prune import prune
from channelscope.ranking import Ranking
from channelscope.stats.tally import Tally
from channelscope.study.cell import ORIGINAL, SCRATCH, Cell, allocated_as
from channelscope.zoo import Images, ImageSource
from channelscope.zoo.schedule import SLOWER
from channelscope.zoo.split import Split


@dataclass(frozen=True)
class Bench:
    """What every process opens for itself."""

    model: str
    """as `zoo.load` takes it"""
    weights: Path | None
    """weights file"""
    source: ImageSource
    """images; the seed is the cell's"""
    tests: int | None = None
    """first so many of the test images; None for all"""
    device: str = "cpu"
    """where it runs"""
    example: Path | None = None
    """file of the network's further inputs"""

    def open(self, seed: int) -> tuple[Groups, Images]:
        """Groups of the network, and its images with the calibration images of that seed; the last is remembered."""
        return _opened(self, seed)

    def test(self, images: Images) -> Split:
        """The images that are evaluated on: test images, or validation images where there are none."""
        split = images.test if len(images.test) else images.validation
        if not len(split):
            raise DataError(f"{self.source.data}: there are no labeled images to evaluate on")
        return split if self.tests is None else split.take(min(self.tests, len(split)))


@lru_cache(maxsize=1)
def _opened(bench: Bench, seed: int) -> tuple[Groups, Images]:
    torch.manual_seed(seed)
    model, images = zoo.load(bench.model, replace(bench.source, seed=seed), bench.weights, bench.device, seed, bench.example)
    return groups(model, blank(model, images.image_shape)), images


def measure(bench: Bench, cell: Cell, rankings: Mapping[str, Ranking]) -> dict[str, Any]:
    """One row: accuracy, loss, cost, which images were right, and the seconds it took; nan with a reason where it cannot be."""
    begun = time.perf_counter()
    found, images = bench.open(cell.seed)
    model = found.graph.model
    full = cost(model, found.image).total_macs
    try:
        small = model if cell == ORIGINAL else _made(bench, cell, rankings, found, images)
    except BudgetError as error:
        return {"accuracy": math.nan, "loss": math.nan, "kept": math.nan, "parameters": 0, "images": 0, "hits": b"", "reason": str(error)}
    tally, hits = judged(small, bench.test(images))
    spent = cost(small, found.image)
    return {
        "accuracy": tally.accuracy,
        "loss": tally.loss,
        "kept": spent.total_macs / full,
        "parameters": spent.total_parameters,
        "images": int(tally.images),
        "hits": np.packbits(hits).tobytes(),
        "reason": "",
        "seconds": time.perf_counter() - begun,
    }


def _made(bench: Bench, cell: Cell, rankings: Mapping[str, Ranking], found: Groups, images: Images) -> nn.Module:
    other = allocated_as(cell.allocation)
    allocation: Any = rankings[other] if other else cell.allocation
    if cell.repair == SCRATCH:
        card = zoo.card(found.graph.model)
        fresh = zoo.network(card.name, card.classes, card.channels, min(images.image_shape[1:]), cell.seed)
        fresh = zoo.fix_inputs(fresh, zoo.fixed_inputs(found.graph.model)).to(bench.device)
        kept = cut(rankings[cell.score], found, cell.budget, allocation)
        return _trained(shrink(fresh, kept), bench, cell, images, 1)
    small = prune(rankings[cell.score], found, images.calibration, cell.budget, allocation, cell.repair).model  # type: ignore[arg-type]
    return _trained(small, bench, cell, images, SLOWER) if cell.epochs else small


def _trained(small: nn.Module, bench: Bench, cell: Cell, images: Images, slower: int) -> nn.Module:
    schedule = zoo.tuning(bench.model, bench.source.data, cell.epochs, cell.seed, slower)
    with tempfile.TemporaryDirectory() as folder:
        return zoo.finetune(small, images, folder, schedule, bench.device, progress=False)


@torch.no_grad()
def judged(model: nn.Module, batches: Split) -> tuple[Tally, np.ndarray]:
    """Tally over labeled images, and for each of them whether it was right: bool (images,)."""
    tally, right = Tally(), []
    device = next(model.parameters()).device
    with evaluating(model):
        for images, labels, _ in labeled(batches):
            logits = model(placed(images, model))
            tally = tally + Tally.of(logits, labels.to(device))
            right.append((logits.argmax(1).cpu() == labels.cpu()).numpy())
    return tally, np.concatenate(right)
