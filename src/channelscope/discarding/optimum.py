"""The noise of largest entropy under the constraint on the feature, and the passes spent to find it."""

from dataclasses import dataclass
from typing import Literal

import torch

from channelscope.discarding.jacobian import NoiseSamples, SensitivityEstimator
from channelscope.discarding.noise import entropy_gap, isotropic, mean_entropy, water_filling
from channelscope.discarding.smoothing import gamma_regression, image_regressors, multiscale_shrinkage
from channelscope.errors import InputError
from channelscope.types import Bool, Float, Tensor

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
class PassBudget:
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


BUDGETS: dict[str, PassBudget] = {
    "fast": PassBudget(1, 3, (3,), 3, 2),
    "exact": PassBudget(2, 4, (16, 24, 32, 32, 32), 60, 40, audit=True),
}

ROUND, FINAL, CHECK = 1_000, 10_000, 20_000  # where the numbers of a stage's draws start: no stage sees another's noise

ROUNDS_KEPT = 3
"""rounds whose draws are believed: older ones were taken at other noise"""

EXTRA_LOCAL_PROBES = 2
"""further probes under the local normalizer, which knows the level to start at and takes its references from the rounds' draws"""

MAX_STEP = 2.0
"""largest factor by which the noise power of a cell moves in a round"""

MAX_COUNTED_GAP = 0.1
"""nats of the gap that a CID takes in at most: beyond, a second order says no more how far the optimum is"""

MAX_NONLINEAR = 1e-3
"""share of a feature's squared change that its Jacobian may miss: beyond, fast mode does not take it for linear"""

MAX_LEVEL_JUMP = 20.0
"""largest factor by which the level of isotropic noise moves at once"""


@dataclass(frozen=True)
class OptimalNoise:
    """The noise found for a batch of images, and how sure it is."""

    noise_std: Float[Tensor, "images cells"]
    """standard deviation of the noise, 0 in cells that are left out"""
    cid: Float[Tensor, "images"]
    """largest mean entropy in nats per value: that of `sigma` plus `gap`, of which 0.1 is believed at most"""
    cid_se: Float[Tensor, "images"]
    """standard error of `cid`, from the draws that set the level"""
    entropy_gap: Float[Tensor, "images"]
    """entropy in nats that better-known noise could still gain, estimated"""
    isotropic_entropy: Float[Tensor, "images"]
    """entropy in nats of isotropic noise under the same constraint and the same caps"""
    constraint_ratio: Float[Tensor, "images"]
    """E|Δf|² over ε on fresh noise: 1 where the constraint is met"""
    ratio_error: Float[Tensor, "images"]
    """standard error of `ratio`"""
    capped: Float[Tensor, "images"]
    """share of the cells held by their cap"""
    outside_receptive_field: Float[Tensor, "images"]
    """share of the cells that do not reach the feature: outside its receptive field"""
    constraint_reached: Bool[Tensor, "images"]
    """False where the feature changes by less than ε with every cell at its cap, by more than two standard errors"""
    passes: int
    """passes per image, forward and backward, the check included"""
    degrees_of_freedom: int
    """degrees of freedom of the two standard errors"""


def optimal_noise(
    estimator: SensitivityEstimator, constraint: Constraint, cap: Float[Tensor, "cells"], mode: Mode | PassBudget = "fast"
) -> OptimalNoise:
    """Noise per cell that maximizes mean entropy subject to E|f(x + σe) − f(x)|² = κ σ_f² and σ ≤ cap.

    At the optimum every cell that no cap holds adds the same share n_i to the response, so σ_i² = θ n_i / γ_i with the
    effective sensitivity γ_i = ½ ∂E|Δf|²/∂ln σ_i / σ_i². For a linear feature γ is the squared Jacobian column g (the
    linearized optimum); elsewhere it differs by curvature. Each round measures both at the present noise, takes from γ
    what stands out against g, and allocates again; then θ alone is rescaled.

    fast    isotropic noise, then one round at the noise found: 20 passes an image, the check on fresh noise included
    exact   further rounds at the noise found: at most 600 passes; `gap` is measured on fresh noise

    Returns
    -------
    OptimalNoise
        An Optimum; where the constraint cannot be reached every cell is at its cap and `reached` is False.

    Raises
    ------
    InputError
        In fast mode for a feature of so few numbers that its Jacobian is known, if it does not answer linearly.
    NumericError
        If the gradients are not finite, or a cell without a cap is not seen.

    References
    ----------
    Ma et al. 2022, equations 2–4 (the problem); the solution is ours; checked by tests/pencil_discarding.py.
    """
    pass_budget = BUDGETS[mode] if isinstance(mode, str) else mode
    search = _FixedPoint(estimator, constraint, cap, pass_budget)
    search.isotropic_round()
    for number, draws in enumerate(pass_budget.rounds, start=1):
        search.refine(draws, ROUND * number)
    search.rescale()
    return search.check()


class _FixedPoint:
    """The state of one optimization: what was measured so far, the noise it implies, and its level."""

    def __init__(self, estimator: SensitivityEstimator, constraint: Constraint, cap: Tensor, pass_budget: PassBudget):
        self.estimator, self.constraint, self.pass_budget = estimator, constraint, pass_budget
        self.cap = cap.to(estimator.images)
        self.images = len(estimator.images)
        cost = 2 if constraint.local else 1
        self.reference_per_draw = constraint.local and not pass_budget.audit
        self.rescaling_draws, self.check_draws = pass_budget.final // cost, pass_budget.check // cost
        self.round_ratios: list[Tensor] = []
        self.epsilon = self._constant(constraint.kappa * (constraint.variance or 1.0))
        self.regressors = image_regressors(estimator.images, estimator.cells)

    def isotropic_round(self) -> None:
        """First round: isotropic noise; under `data` its level follows the responses."""
        pass_budget, estimator, local = self.pass_budget, self.estimator, self.constraint.local
        level = start = self._constant(self.constraint.noise)
        first = response = None if local else estimator.response(self._isotropic(start), 0)
        levels, draws = [], []
        for draw in range(pass_budget.start):
            if response is not None:
                level = level * (self.epsilon / response).sqrt().clamp(1 / MAX_LEVEL_JUMP, MAX_LEVEL_JUMP)
            levels.append(level)
            draws.append(
                estimator.jacobian_sample(self._isotropic(level), draw, pass_budget.probes + EXTRA_LOCAL_PROBES * self.reference_per_draw)
            )
            response = None if local else draws[-1].response[0]
        if first is None or estimator.mean_jacobian is not None:
            self.exponent = torch.ones_like(self.epsilon)
        else:  # the same noise at two levels: a linear feature has power 1 whatever the draw
            self.exponent = _exponent(start, first, levels[0], draws[0].response[0])
        self._refuse_nonlinear()
        self.history = [sum(draws[1:], start=draws[0])]
        self._estimate_sensitivity(self.history[0])
        if local:
            self.epsilon = self.constraint.kappa * self.draws.response.mean(0)
        self.uniform = self._uniform(levels)
        self._allocate(self.exponent * self.epsilon)

    def refine(self, draws: int, first: int) -> None:
        """A further round, at the noise found so far."""
        fresh = self._draws(range(first, first + draws))
        self._refuse_nonlinear()
        numbers = range(first + draws - len(fresh.response), first + draws)
        references = torch.stack([self._reference(draw) if self.reference_per_draw else self.epsilon for draw in numbers])
        self.exponent = (fresh.spent.mean(0) / fresh.response.mean(0)).clamp(0.2, 2)
        self.history = [*self.history, fresh][-ROUNDS_KEPT:]
        self._estimate_sensitivity(sum(self.history[1:], start=self.history[0]))
        self._limit_step()
        spent = (self.sensitivity * self.sigma.square()).sum(1)
        ratio, self.residuals = _ratio(fresh.response, references)
        self.round_ratios = [ratio / spent**self.exponent] * (len(numbers) if self.reference_per_draw else 0)
        self._allocate(self._level([], []) if self.round_ratios else self.exponent * self.epsilon)

    def _refuse_nonlinear(self) -> None:
        """Few passes know a small feature's Jacobian, and the level is then measured against it: wrong where that does not predict it."""
        missed = self.estimator.nonlinear_fraction
        if not self.pass_budget.audit and missed is not None and not bool((missed < MAX_NONLINEAR).all()):
            raise InputError(
                f"the feature has {self.estimator.size} numbers and does not answer linearly to noise (a linear one misses "
                f"{float(missed.max()):.0%} of its change): the few passes of fast mode cannot tell its noise level; "
                'pass mode "exact", or name an earlier layer'
            )

    def _uniform(self, levels: list[Tensor]) -> Tensor:
        """Mean entropy of isotropic noise, below the same caps, that meets the constraint."""
        estimator, weights = self.estimator, torch.where(self.seen, self.sensitivity, 0)
        spent = torch.stack([(weights * self._isotropic(level).square()).sum(1) for level in levels])
        budget = (self.epsilon / (self.draws.response / spent**self.exponent).mean(0)) ** (1 / self.exponent)
        level = isotropic(weights, budget, self.cap, estimator.values)
        return mean_entropy(torch.minimum(level[:, None], self.cap).expand(self.images, -1), estimator.values)

    def _draws(self, numbers: range) -> NoiseSamples:
        """The draws of a round. From the one at which the Jacobian becomes known, only those that it has made quiet are believed."""
        drawn: list[NoiseSamples] = []
        for draw in numbers:
            uncontrolled = self.estimator.mean_jacobian is None
            found = (
                self.estimator.effective_sample(self.sigma, draw)
                if self.reference_per_draw
                else self.estimator.jacobian_sample(self.sigma, draw, 1, curvature=True)
            )
            if uncontrolled and self.estimator.mean_jacobian is not None:
                drawn, self.history = ([each.without_responses for each in before] for before in (drawn, self.history))
            drawn.append(found)
        return sum(drawn[1:], start=drawn[0])

    def rescale(self) -> None:
        """Set θ so that the constraint holds on fresh draws."""
        ratios, references = [], []
        for draw in range(self.rescaling_draws):
            if draw == max(1, self.rescaling_draws // 3):
                self._allocate(self._level(ratios, references))
            ratios.append(self.estimator.response(self.sigma, FINAL + draw) / self.budget**self.exponent)
            references.append(self._reference(FINAL + draw))
        if self.rescaling_draws:
            _, residuals = _ratio(torch.stack(ratios), torch.stack(references))
            self.residuals = torch.cat([self.residuals, residuals]) if self.round_ratios else residuals
            self._allocate(self._level(ratios, references))

    def check(self) -> OptimalNoise:
        """The constraint, and where asked the distance from the optimum, on noise nobody has seen."""
        pass_budget, estimator, draws = self.pass_budget, self.estimator, range(CHECK, CHECK + self.check_draws)
        references = torch.stack([self._reference(draw) for draw in draws])
        samples = [estimator.effective_sample(self.sigma, draw) for draw in draws] if pass_budget.audit else []
        again = not samples or estimator.mean_jacobian is not None
        responses = (
            torch.stack([estimator.response(self.sigma, draw) for draw in draws])
            if again
            else torch.cat([each.response for each in samples])
        )
        ratio, fresh = _ratio(responses, references)
        spread = (torch.cat([self.residuals, fresh]).square().sum(0) / self._degrees_of_freedom()).sqrt()
        free = 1 - self.capped.float().mean(1)
        error = spread / self.check_draws**0.5
        reached = self.reached | ((1 + 2 * error) * ratio >= (self.constraint.kappa if self.constraint.local else 1))
        gap = (self._measured_gap(torch.cat([each.effective for each in samples])) if samples else self.estimated_gap).clamp(min=0) * free
        return OptimalNoise(
            noise_std=self.sigma,
            cid=mean_entropy(self.sigma, estimator.values) + gap.clamp(max=MAX_COUNTED_GAP),
            cid_se=torch.where(reached, self._error(spread), 0),
            entropy_gap=gap,
            isotropic_entropy=self.uniform,
            constraint_ratio=ratio / (self.constraint.kappa if self.constraint.local else 1),
            ratio_error=ratio * error / (self.constraint.kappa if self.constraint.local else 1),
            capped=1 - free,
            outside_receptive_field=(~self.seen & (estimator.values > 0)).float().mean(1),
            constraint_reached=reached,
            passes=estimator.passes,
            degrees_of_freedom=self._degrees_of_freedom(),
        )

    def _degrees_of_freedom(self) -> int:
        """Degrees of freedom of the scatter of responses: each group of draws less its mean."""
        return sum(max(0, draws - 1) for draws in (len(self.round_ratios), self.rescaling_draws, self.check_draws))

    def _error(self, spread: Tensor) -> Tensor:
        """Standard error of the level in nats, and of the gap where it is only estimated."""
        level = spread / (len(self.round_ratios) + self.rescaling_draws) ** 0.5 / 2 / self.exponent
        return (level.square() + (0 if self.pass_budget.audit else self.estimated_gap / 2) ** 2).sqrt()

    def _estimate_sensitivity(self, draws: NoiseSamples) -> None:
        """Sensitivities from probes and the picture; from them, as far as it stands out, the effective sensitivities."""
        self.draws = draws
        squares = _cycles(self.draws.sensitivity, self.estimator.size)
        self.seen = (squares > 0).any(0) & (self.estimator.values > 0)
        values = self.estimator.values.expand(self.images, -1)
        jacobian_squares, relative_variance = self._denoise(squares, values, with_regressors=self.estimator.mean_jacobian is None)
        curvature = values
        if len(self.draws.effective) > 1:
            relative = self.draws.effective * values / jacobian_squares.where(self.seen, 1)
            curvature, more = self._denoise(relative, values)
            positive_total = (relative.mean(0).sum(1) > 0)[:, None]
            curvature, relative_variance = torch.where(positive_total, curvature, values), relative_variance + more
        self.sensitivity = torch.where(self.seen, jacobian_squares * curvature / values, 0)
        self.estimated_gap = relative_variance.log1p() / 4  # the mean of ½ (s − 1 − ln s) for a log-normal share s of that variance

    def _limit_step(self) -> None:
        """Let the σ² of no cell below its cap move by more than STEP at once: what is measured holds near its own noise."""
        if self.pass_budget.audit or self.estimator.mean_jacobian is None:
            share = self.sensitivity * self.sigma.square() / self.estimator.values.clamp(min=1)
            free = self.seen & ~self.capped
            mean = (share.where(free, 0).sum(1) / free.sum(1).clamp(min=1))[:, None]
            bounded = torch.minimum(torch.maximum(share, mean / MAX_STEP), mean * MAX_STEP)
            self.sensitivity = self.sensitivity * torch.where(free, bounded / share.where(free, 1), 1)

    def _denoise(self, samples: Tensor, start: Tensor, with_regressors: bool = False) -> tuple[Tensor, Tensor]:
        """An estimate on the grid of cells, flattened again, and its mean squared relative error."""
        grid = self.estimator.cells.grid
        samples, start, seen = samples.unflatten(-1, grid), start.unflatten(-1, grid), self.seen.unflatten(-1, grid)
        if with_regressors:
            start = gamma_regression(samples, start, seen, self.regressors)
        if with_regressors and len(samples) == 1:
            return start.flatten(1), torch.zeros_like(self.epsilon)
        field, relative_variance = multiscale_shrinkage(samples, start, seen)
        return field.flatten(1), relative_variance

    def _allocate(self, budget: Tensor) -> None:
        found = water_filling(self.sensitivity, budget, self.cap, self.estimator.values)
        self.sigma, self.capped, self.reached, self.budget = found.noise_std, found.capped, found.reached, budget

    def _level(self, ratios: list[Tensor], references: list[Tensor]) -> Tensor:
        """The budget at which the response E|Δf|² = a · budget^power meets the constraint; the round's draws have their say."""
        measured = [torch.stack(ratios).mean(0) / torch.stack(references).mean(0)] * len(ratios) if ratios else []
        scale = torch.stack([*self.round_ratios, *measured]).log().mean(0).exp()
        target = self.constraint.kappa if self.constraint.local else 1.0
        return (target / scale) ** (1 / self.exponent)

    def _reference(self, draw: int) -> Tensor:
        """What the response is compared with: ε, or under `local` the response to the same draw's isotropic noise."""
        return (
            self.estimator.response(self._isotropic(self._constant(self.constraint.noise)), draw) if self.constraint.local else self.epsilon
        )

    def _measured_gap(self, effective: Tensor) -> Tensor:
        """What the free cells would gain if each value spent the same."""
        return entropy_gap(effective * self.sigma.square() / self.estimator.values.clamp(min=1), self.seen & ~self.capped)

    def _isotropic(self, level: Tensor) -> Tensor:
        return torch.where(self.estimator.values > 0, torch.minimum(level[:, None], self.cap), 0)

    def _constant(self, value: float) -> Tensor:
        return torch.full((self.images,), value, device=self.estimator.images.device)


def _exponent(level: Tensor, response: Tensor, other: Tensor, other_response: Tensor) -> Tensor:
    """Exponent p of E|Δf|² ~ (σ²)^p between two levels of isotropic noise; 1 where they are too close to tell."""
    apart = 2 * (other / level).log()
    distinct = apart.abs() > 0.5
    return torch.where(distinct, (other_response / response).log() / apart.where(distinct, 1), 1).clamp(0.2, 2)


def _cycles(samples: Tensor, size: int) -> Tensor:
    """Means over whole cycles of orthogonal probes, where there are any: each cycle has met every direction once."""
    cycles = len(samples) // size
    if cycles == 0 or size == 1:
        return samples
    return samples[: cycles * size].unflatten(0, (cycles, size)).mean(1)


def _ratio(responses: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
    """Ratio of the means of two rows of draws, and each draw's relative departure from it."""
    ratio = responses.mean(0) / references.mean(0)
    return ratio, responses / responses.mean(0) - references / references.mean(0)
