"""Budgets: what a smaller network may cost, in multiply-adds or in measured time, and the cut that meets a measured time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import nn

from channelscope.errors import BudgetError, InputError, check_choice
from channelscope.network.removal.comparison import kept_ids
from channelscope.network.removal.groups import Groups
from channelscope.network.removal.narrowing import narrow_pair
from channelscope.pruning.cut import remove_to_budget
from channelscope.pruning.latency import LatencyTable, TimeCounter
from channelscope.pruning.timing import latency_ratio

ROUNDS = 8
"""Cuts that are tried to meet a latency."""

TARGET_TOLERANCE = 0.05
"""Largest relative difference between the time that was asked for and the measured one."""


@dataclass(frozen=True)
class Budget:
    """What a smaller network may cost.

    Examples
    --------
    >>> Budget(0.6, "latency", batch=32).multiple is None  # widths are rounded as the device likes it
    True
    """

    fraction: float = 0.5
    """of the original's cost, above 0 and at most 1"""
    of: Literal["macs", "latency"] = "macs"
    """multiply-adds as executed, or the time of a pass on the device where the network is"""
    multiple: int | None = None
    """channels of a layer are kept in multiples of this; None: single channels, and for latency what costs no time on the device"""
    batch: int = 1
    """images of the pass that is timed"""
    blocks: bool = False
    """whether whole residual blocks may go"""
    closest: bool = False
    """where it cannot be met, whether the smallest that can is taken"""
    table: LatencyTable | None = None
    """the network's table of latencies; None: it is measured"""

    def __post_init__(self) -> None:
        """Refuse numbers out of range, and another kind of cost."""
        check_choice("kind of cost", self.of, ("macs", "latency"))
        if not 0 < self.fraction <= 1:
            cost = "multiply-adds" if self.of == "macs" else "time of a pass"
            raise InputError(f"{self.of}: expected a fraction of the {cost} above 0 and at most 1, received {self.fraction}")
        if (self.multiple is not None and self.multiple < 1) or self.batch < 1:
            raise InputError(f"multiple and batch: expected 1 or more, received {self.multiple} and {self.batch}")


@dataclass(frozen=True)
class LatencyReport:
    """How a network that was cut to a latency meets it."""

    target: float
    """fraction of the original's time that was asked for"""
    measured: float
    """median time of the smaller network as a fraction of the original's, in turns"""
    error: float
    """standard error of `measured`"""
    predicted: float
    """the same by the table of latencies"""
    multiple: int
    """widths were rounded to multiples of this"""
    rounds: int
    """cuts that were tried"""

    @property
    def is_met(self) -> bool:
        """Whether the measured time is within 5 % of the target."""
        return abs(self.measured / self.target - 1) <= TARGET_TOLERANCE


def cut_to_latency(
    scores: np.ndarray, found: Groups, budget: Budget, original: nn.Module, table: LatencyTable
) -> tuple[np.ndarray, LatencyReport]:
    """Which groups stay so that the measured time of the smaller network is a fraction of the original's, and how it is met.

    The cut is made by the table, the smaller network is timed in turns with the original, and the budget corrected by what was
    measured, until the two agree to 5 % or eight cuts were tried; the nearest is taken.

    Parameters
    ----------
    scores
        One number per group, larger is kept.
    found
        The `groups` of the network that is cut.
    budget
        The target.
    original
        The network whose time is 1; another one than that of `found` where blocks were left out.
    table
        Table of latencies of the network that is cut.

    Returns
    -------
    tuple
        Which groups stay, bool (groups,), and the report.

    Raises
    ------
    BudgetError
        If the target cannot be met, naming the smallest that can.

    Examples
    --------
    >>> import torch
    >>> from channelscope.network.removal.groups import groups
    >>> from channelscope.pruning.latency import measure_latency
    >>> model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 2, 3), nn.Flatten()).eval()
    >>> found = groups(model, torch.zeros(1, 3, 32, 32))
    >>> table = measure_latency(found, runs=3, max_noise=float("inf"))
    >>> kept, report = cut_to_latency(np.arange(64.0), found, Budget(0.5, "latency", closest=True), model, table)
    >>> 1 <= int(kept.sum()) < 64, report.target
    (True, 0.5)
    """
    multiple, shape = budget.multiple or table.multiple, tuple(found.example[0].shape[1:])
    whole, _ = latency_ratio(found.graph.model, original, shape, batch=budget.batch) if found.graph.model is not original else (1.0, 0.0)
    asked, best, tried = budget.fraction / whole, None, [(1.0, whole)]
    shares: dict[str, float] = {}
    for rounds in range(1, ROUNDS + 1):
        counter = TimeCounter(found, table)
        full = counter.total
        kept = remove_to_budget(scores, found, counter, min(max(asked, 0.0), 1.0), multiple=multiple, closest=True)
        at_end, shares = counter.total > asked * full, counter.shares()  # at the end nothing more can go
        small, _ = narrow_pair(found.labeled, ~kept_ids(found, found.to_subset(kept))[:-1], checked=False)
        measured, error = latency_ratio(small, original, shape, batch=budget.batch)
        report = LatencyReport(budget.fraction, measured, error, whole * counter.total / full, multiple, rounds)
        if best is None or abs(measured - budget.fraction) < abs(best[1].measured - budget.fraction):
            best = kept, report
        if report.is_met or (at_end and measured > budget.fraction) or (kept.all() and measured < budget.fraction):
            break
        tried.append((counter.total / full, measured))
        asked = _next_fraction(tried, budget.fraction)
    assert best is not None
    if best[1].measured > (1 + TARGET_TOLERANCE) * budget.fraction and not budget.closest:
        longest = ", ".join(f"{name} takes {share:.0%}" for name, share in list(shares.items())[:3])
        raise BudgetError(
            f"latency: {budget.fraction:g} of {1000 * table.total / whole:.3g} ms cannot be met by removing channels; the smallest "
            f"that can is {best[1].measured:.3f} (closest=True takes it, blocks=True leaves out blocks too): of "
            f"what is then left, {longest}"
        )
    return best


def _next_fraction(tried: Sequence[tuple[float, float]], target: float) -> float:
    """The predicted fraction at which the measured one is the target, on the line through the nearest that were tried."""
    slower = min((pair for pair in tried if pair[1] >= target), key=lambda pair: pair[1], default=None)
    faster = max((pair for pair in tried if pair[1] < target), key=lambda pair: pair[1], default=None)
    if slower is None or faster is None or slower[1] == faster[1]:
        predicted, measured = tried[-1]
        return predicted * target / measured
    return faster[0] + (target - faster[1]) / (slower[1] - faster[1]) * (slower[0] - faster[0])
