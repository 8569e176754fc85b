"""Setup: the network and images of a benchmark, and the measurement of one trial; runs in any process."""

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
from channelscope.benchmark.grid import FROM_SCRATCH, ORIGINAL, Trial, allocated_as
from channelscope.data.images import ImageSplits
from channelscope.data.sources import ImageSource
from channelscope.data.splits import Split
from channelscope.errors import BudgetError, DataError
from channelscope.evaluation import Precision, evaluate_each
from channelscope.network.cost import cost
from channelscope.network.module_state import zero_batch
from channelscope.network.removal.groups import Groups, groups
from channelscope.pruning.cut import cut
from channelscope.pruning.prune import prune
from channelscope.pruning.shrink import shrink
from channelscope.ranking import Ranking
from channelscope.zoo.training_run import FINETUNE_LR_DIVISOR


@dataclass(frozen=True)
class Setup:
    """Network, weights and images of a benchmark, as every process opens them.

    Examples
    --------
    >>> setup = Setup("resnet20(width=2)", None, ImageSource("digits", images=60), tests=90)
    >>> groups, images = setup.open(0)
    >>> len(images.calibration), len(setup.test(images))
    (60, 90)
    """

    model: str
    """as `zoo.load` takes it"""
    weights: Path | None
    """weights file"""
    source: ImageSource
    """images; the seed is replaced by the trial's"""
    tests: int | None = None
    """number of test images, the first; None for all"""
    device: str = "cpu"
    """device"""
    example: Path | None = None
    """file of the network's further inputs"""
    precision: Precision = "float32"
    """in which networks are evaluated; `benchmark` takes bfloat16 only where the network's accuracy hardly changes"""

    def open(self, seed: int) -> tuple[Groups, ImageSplits]:
        """Channel groups of the network, and its images with the calibration images of one seed; the last result is kept.

        Parameters
        ----------
        seed
            Seed of the calibration images.

        Returns
        -------
        tuple[Groups, ImageSplits]
            The traced network and the images.
        """
        return _open_network(self, seed)

    def test(self, images: ImageSplits) -> Split:
        """Images of the evaluation: the test images, or the validation images where there are none.

        Parameters
        ----------
        images
            All images.

        Returns
        -------
        Split
            The first `tests` of them.

        Raises
        ------
        DataError
            Without labeled images.
        """
        split = images.test if len(images.test) else images.validation
        if not len(split):
            raise DataError(f"{self.source.data}: there are no labeled images to evaluate on")
        return split if self.tests is None else split.take(min(self.tests, len(split)))


@lru_cache(maxsize=1)
def _open_network(bench: Setup, seed: int) -> tuple[Groups, ImageSplits]:
    """Network and images of one seed."""
    torch.manual_seed(seed)
    model, images = zoo.load(bench.model, replace(bench.source, seed=seed), bench.weights, bench.device, seed, bench.example)
    return groups(model, zero_batch(model, images.image_shape)), images


def measure(bench: Setup, cell: Trial, rankings: Mapping[str, Ranking]) -> dict[str, Any]:
    """Row of one trial: the network is pruned, repaired, evaluated and counted.

    Parameters
    ----------
    bench
        Network and images.
    cell
        The trial.
    rankings
        Score → ranking, for the scores the trial needs.

    Returns
    -------
    dict
        accuracy, loss [nats], kept (multiply-adds, as a fraction), parameters, images, hits (one bit an image, packed), reason
        and seconds; numbers are nan, with the reason, where the budget cannot be met.

    Examples
    --------
    >>> bench = Setup("resnet20(width=2)", None, ImageSource("digits", images=60), tests=90)
    >>> row = measure(bench, ORIGINAL, {})
    >>> row["kept"], row["images"], len(row["hits"])  # 90 bits in 12 bytes
    (1.0, 90, 12)
    """
    started = time.perf_counter()
    found, images = bench.open(cell.seed)
    model = found.graph.model
    full = cost(model, found.example).total_macs
    try:
        small = model if cell == ORIGINAL else _pruned_network(bench, cell, rankings, found, images)
    except BudgetError as error:
        return {"accuracy": math.nan, "loss": math.nan, "kept": math.nan, "parameters": 0, "images": 0, "hits": b"", "reason": str(error)}
    tally, hits = evaluate_each(small, bench.test(images), bench.precision)
    pruned_cost = cost(small, found.example)
    return {
        "accuracy": tally.accuracy,
        "loss": tally.loss,
        "kept": pruned_cost.total_macs / full,
        "parameters": pruned_cost.total_parameters,
        "images": int(tally.images),
        "hits": np.packbits(hits).tobytes(),
        "reason": "",
        "seconds": time.perf_counter() - started,
    }


def _pruned_network(bench: Setup, cell: Trial, rankings: Mapping[str, Ranking], found: Groups, images: ImageSplits) -> nn.Module:
    """The pruned, repaired and trained network of a trial."""
    other = allocated_as(cell.allocation)
    allocation: Any = rankings[other] if other else cell.allocation
    if cell.repair == FROM_SCRATCH:
        info = zoo.model_info(found.graph.model)
        fresh = zoo.build(info.name, info.classes, info.channels, min(images.image_shape[1:]), cell.seed)
        fresh = zoo.bind_extra_inputs(fresh, zoo.extra_inputs(found.graph.model)).to(bench.device)
        kept = cut(rankings[cell.score], found, macs=cell.budget, allocation=allocation)
        return _trained(shrink(fresh, kept), bench, cell, images, 1)
    method: Any = cell.repair
    small = prune(rankings[cell.score], found, images.calibration, macs=cell.budget, allocation=allocation, method=method).model
    return _trained(small, bench, cell, images, FINETUNE_LR_DIVISOR) if cell.epochs else small


def _trained(small: nn.Module, bench: Setup, cell: Trial, images: ImageSplits, slower: int) -> nn.Module:
    """The network after the trial's epochs of training."""
    schedule = zoo.finetuning_schedule(bench.model, bench.source.data, cell.epochs, cell.seed, slower)
    with tempfile.TemporaryDirectory() as folder:
        return zoo.finetune(small, images, folder, schedule, bench.device, progress=False)
