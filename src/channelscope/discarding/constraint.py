"""Constraint: how much of a feature may change, and the plan of passes that finds the noise for it."""

from dataclasses import dataclass
from typing import Literal

from channelscope.errors import InputError

Mode = Literal["fast", "exact"]


@dataclass(frozen=True)
class Constraint:
    """How much the feature may change: E|f(x + σe) − f(x)|² = κ σ_f²."""

    normalizer: Literal["data", "local"]
    """σ_f²: the feature's variance over the data, or its response to isotropic noise at the same image"""
    kappa: float
    """κ, the fraction of σ_f²"""
    variance: float | None = None
    """σ_f² under `data`"""
    noise: float = 0.01
    """standard deviation of the isotropic noise: what σ_f² is the response to under `local`, the start of the search under `data`"""

    def __post_init__(self) -> None:
        """Refuse what leaves the constraint undefined."""
        if self.normalizer not in ("data", "local"):
            raise InputError(f'normalizer is "data" or "local", received {self.normalizer!r}')
        if not self.kappa > 0 or not self.noise > 0:
            raise InputError(f"expected κ and the noise above zero, received κ = {self.kappa} and noise {self.noise}")
        if self.normalizer == "data" and not (self.variance is not None and self.variance > 0):
            raise InputError(f"the feature's variance over the data is {self.variance}: a feature that does not vary has no CID")

    @property
    def local(self) -> bool:
        """Whether σ_f² is measured at each image."""
        return self.normalizer == "local"


@dataclass(frozen=True)
class Plan:
    """How many noisy passes go where."""

    start: int
    """draws of isotropic noise"""
    probes: int
    """random vectors probed at each of them, one pass backward each"""
    rounds: tuple[int, ...]
    """draws of each round of the fixed point: a pass forward, a random vector probed, and the feature's own change pulled back"""
    final: int
    """passes on which the noise level is rescaled; a draw takes one (two under the local normalizer)"""
    check: int
    """passes on which the constraint is checked on fresh noise; a draw takes one (two under the local normalizer)"""
    audit: bool = False
    """measure the distance from the optimum on the check's draws; one more pass each"""


PLANS: dict[str, Plan] = {
    "fast": Plan(1, 3, (3,), 3, 2),
    "exact": Plan(2, 4, (16, 24, 32, 32, 32), 60, 40, audit=True),
}
