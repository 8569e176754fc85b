"""Trial: one measurement of a benchmark; Grid: all of them."""

import itertools
import re
from dataclasses import asdict, dataclass, replace
from typing import get_args

from channelscope.errors import InputError, no_such
from channelscope.pruning.repair import Method
from channelscope.scores.registry import REGISTRY

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
            if name not in known:
                raise InputError(no_such(what, name, sorted(known)))
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
