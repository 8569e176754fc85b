"""Trial: one measurement of a benchmark; Grid: all of them."""

import itertools
import re
from dataclasses import asdict, dataclass, replace
from typing import get_args

from channelscope.errors import InputError, no_such
from channelscope.pruning.recovery.repair import Method
from channelscope.scores.registry import REGISTRY

FROM_SCRATCH = "scratch"
"""In the place of a repair: the same shape with new weights, trained for as long as the others are fine-tuned."""

RECONSTRUCTION = "reconstruction"


@dataclass(frozen=True, order=True)
class Trial:
    """What is pruned how, and what is done about it; one row of the results."""

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
        """The scores whose rankings it needs."""
        other = allocated_as(self.allocation)
        return (self.score, other) if other else (self.score,)

    def as_dict(self) -> dict:
        """Plain dictionary."""
        return asdict(self)


ORIGINAL = Trial(0, "", 1.0, "", "none")
"""the unpruned network"""


def allocated_as(allocation: str) -> str:
    """The score in as(SCORE), or nothing."""
    found = re.fullmatch(r"as\((\w+)\)", allocation)
    return found[1] if found else ""


@dataclass(frozen=True)
class Grid:
    """All combinations that are measured."""

    scores: tuple[str, ...] = ("random", "l1", "l2", "bn_scale", "fpgm", "capture", "relevance", RECONSTRUCTION)
    """scores to compare, separated by commas; all for every one that the images suffice for"""
    budgets: tuple[float, ...] = (0.8, 0.6, 0.5, 0.4, 0.3)
    """multiply-adds kept, as fractions"""
    allocations: tuple[str, ...] = ("global",)
    """global, uniform, as(SCORE)"""
    repairs: tuple[str, ...] = ("none", "least_squares")
    """none, batchnorm, peers, least_squares"""
    seeds: tuple[float, ...] = (0,)
    """seeds of the calibration images"""
    finetune: int = 0
    """epochs of fine-tuning; everything is then measured before and after, and the shape trained from scratch as well"""

    def __post_init__(self) -> None:
        """Refuse what there is not."""
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
        """Refuse names that are not known, repeated, or none at all."""
        for name in given:
            if name not in known:
                raise InputError(no_such(what, name, sorted(known)))
        if not given or len(set(given)) < len(given):
            raise InputError(f"{what}s: expected different names, received {given}; there are: {', '.join(sorted(known))}")

    def cells(self, scores: tuple[str, ...]) -> list[Trial]:
        """Every combination, seed after seed and score after score; what is fine-tuned also as it is before."""
        whole = itertools.product(map(int, self.seeds), scores, self.allocations, self.repairs, self.budgets)
        plain = [Trial(seed, score, budget, allocation, repair) for seed, score, allocation, repair, budget in whole]
        if not self.finetune:
            return plain
        tuned = [replace(cell, epochs=self.finetune) for cell in plain]
        scratch = itertools.product(map(int, self.seeds), scores, self.allocations, self.budgets)
        return plain + tuned + [Trial(seed, score, budget, kind, FROM_SCRATCH, self.finetune) for seed, score, kind, budget in scratch]
