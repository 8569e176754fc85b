"""Trial: one measurement of a benchmark; Grid: all of them; Setup: the network and images that they are measured on, in any process."""

import itertools
import math
import re
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import nn

from channelscope import zoo
from channelscope.data.images import ImageSplits
from channelscope.data.sources import ImageSource
from channelscope.data.splits import Split
from channelscope.errors import BudgetError, DataError, InputError, check_choice
from channelscope.evaluation import Precision, evaluate_each
from channelscope.network.cost import cost
from channelscope.network.module_state import zero_batch
from channelscope.network.removal.groups import Groups, groups
from channelscope.pruning.budget import Budget
from channelscope.pruning.cut import cut, shrink
from channelscope.pruning.prune import prune
from channelscope.pruning.repair import Method
from channelscope.ranking import Ranking
from channelscope.scores.score import REGISTRY
from channelscope.zoo.training_run import FINETUNE_LR_DIVISOR

FROM_SCRATCH = "scratch"
"""Used as a repair: the pruned architecture with new weights, trained for as many epochs as the others are fine-tuned."""

RECONSTRUCTION = "reconstruction"
"""Name of the ranking by `pruning.optimal_brain_surgeon`."""


@dataclass(frozen=True, order=True)
class Trial:
    """A pruned network of the benchmark: score, budget, allocation, repair and seed; one row of the results.

    Examples
    --------
    >>> Trial(seed=0, score="l1", budget=0.5, allocation="as(l2)", repair="none").rankings
    ('l1', 'l2')
    """

    seed: int
    """of the calibration images, of random scores and of training"""
    score: str
    """name of the ranking; empty for the unpruned network"""
    budget: float
    """multiply-adds kept, as a fraction"""
    allocation: str
    """global, uniform or as(SCORE)"""
    repair: str
    """none, batchnorm, peers, least_squares, or scratch"""
    epochs: int = 0
    """of fine-tuning"""

    @property
    def rankings(self) -> tuple[str, ...]:
        """Scores whose rankings the trial needs."""
        other = allocated_as(self.allocation)
        return (self.score, other) if other else (self.score,)

    def as_dict(self) -> dict:
        """Fields as a plain dictionary."""
        return asdict(self)


ORIGINAL = Trial(0, "", 1.0, "", "none")
"""the unpruned network"""


def allocated_as(allocation: str) -> str:
    """Score that an allocation of the form as(SCORE) follows.

    Parameters
    ----------
    allocation
        global, uniform or as(SCORE).

    Returns
    -------
    str
        The score; empty for the other allocations.

    Examples
    --------
    >>> allocated_as("as(l2)"), allocated_as("global")
    ('l2', '')
    """
    match = re.fullmatch(r"as\((\w+)\)", allocation)
    return match[1] if match else ""


@dataclass(frozen=True)
class Grid:
    """All combinations of score, budget, allocation, repair and seed that a benchmark measures.

    Examples
    --------
    >>> grid = Grid(scores=("l1", "l2"), budgets=(0.5,), repairs=("none",), finetune=2)
    >>> [(trial.score, trial.repair, trial.epochs) for trial in grid.cells(("l1",))]
    [('l1', 'none', 0), ('l1', 'none', 2), ('l1', 'scratch', 2)]
    """

    scores: tuple[str, ...] = ("random", "l1", "l2", "bn_scale", "fpgm", "capture", "relevance", RECONSTRUCTION)
    """scores to compare, separated by commas; all for every score that the images suffice for"""
    budgets: tuple[float, ...] = (0.8, 0.6, 0.5, 0.4, 0.3)
    """multiply-adds kept, as fractions"""
    allocations: tuple[str, ...] = ("global",)
    """global, uniform, as(SCORE)"""
    repairs: tuple[str, ...] = ("none", "least_squares")
    """none, batchnorm, peers, least_squares"""
    seeds: tuple[float, ...] = (0,)
    """seeds of the calibration images"""
    finetune: int = 0
    """fine-tuning epochs; adds a measurement after fine-tuning and one of the same architecture trained from scratch"""

    def __post_init__(self) -> None:
        """Raise InputError for unknown names and invalid numbers."""
        self.named(self.scores, {*REGISTRY, RECONSTRUCTION, "all"}, "score")
        self.named(self.repairs, set(get_args(Method)), "repair")
        others = {*REGISTRY, RECONSTRUCTION}
        self.named(self.allocations, {"global", "uniform", *(f"as({name})" for name in others)}, "allocation")
        bad = [budget for budget in self.budgets if not 0 < budget < 1]
        if bad or not self.budgets:
            raise InputError(f"budgets: expected fractions between 0 and 1, received {', '.join(map(str, bad)) or 'none'}")
        if not self.seeds or any(seed != int(seed) or seed < 0 for seed in self.seeds):
            raise InputError(f"seeds: expected whole numbers from 0, received {', '.join(map(str, self.seeds)) or 'none'}")

    @staticmethod
    def named(given: tuple[str, ...], known: set[str], what: str) -> None:
        """Raise InputError for names that are unknown, repeated or missing.

        Parameters
        ----------
        given
            Names to check.
        known
            Allowed names.
        what
            What the names are of, for the message.
        """
        for name in given:
            check_choice(what, name, sorted(known))
        if not given or len(set(given)) < len(given):
            raise InputError(f"{what}s: expected different names, received {given}; there are: {', '.join(sorted(known))}")

    def cells(self, scores: tuple[str, ...]) -> list[Trial]:
        """Every combination, by seed and score; with fine-tuning also after it, and with the same architecture trained from scratch.

        Parameters
        ----------
        scores
            Scores to combine with the other fields; `all` must be resolved before.

        Returns
        -------
        list[Trial]
            The trials.
        """
        combinations = itertools.product(map(int, self.seeds), scores, self.allocations, self.repairs, self.budgets)
        plain = [Trial(seed, score, budget, allocation, repair) for seed, score, allocation, repair, budget in combinations]
        if not self.finetune:
            return plain
        tuned = [replace(cell, epochs=self.finetune) for cell in plain]
        scratch = itertools.product(map(int, self.seeds), scores, self.allocations, self.budgets)
        return plain + tuned + [Trial(seed, score, budget, kind, FROM_SCRATCH, self.finetune) for seed, score, kind, budget in scratch]


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
    ranking, budget = rankings[cell.score], Budget(cell.budget)
    small = prune(ranking, found, images.calibration, budget=budget, allocation=allocation, method=method, progress=False).model
    return _trained(small, bench, cell, images, FINETUNE_LR_DIVISOR) if cell.epochs else small


def _trained(small: nn.Module, bench: Setup, cell: Trial, images: ImageSplits, slower: int) -> nn.Module:
    """The network after the trial's epochs of training."""
    schedule = zoo.finetuning_schedule(bench.model, bench.source.data, cell.epochs, cell.seed, slower, zoo.usual_optimizer(small))
    with tempfile.TemporaryDirectory() as folder:
        return zoo.finetune(small, images, folder, schedule, bench.device, progress=False)
