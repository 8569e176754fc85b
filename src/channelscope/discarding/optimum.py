"""Maximum-entropy noise under a constraint on the feature, by fixed-point iteration: one round (fast) or five (exact)."""

from dataclasses import dataclass
from typing import Literal

import torch

from channelscope.discarding.jacobian import NoiseSamples, SensitivityEstimator
from channelscope.discarding.noise import (
    entropy_gap,
    gamma_regression,
    image_regressors,
    isotropic,
    mean_entropy,
    multiscale_shrinkage,
    water_filling,
)
from channelscope.errors import InputError, check_choice
from channelscope.types import Bool, Float, Tensor

Mode = Literal["fast", "exact"]


@dataclass(frozen=True)
class Constraint:
    """How much the feature may change: E|f(x + σe) − f(x)|² = κ σ_f².

    Examples
    --------
    >>> Constraint("data", 0.1, variance=4.0).local
    False

    References
    ----------
    Ma et al. 2022, equations 3 and 4.
    """

    normalizer: Literal["data", "local"]
    """σ_f²: the feature's variance over the data, or its response to isotropic noise at the same image"""
    kappa: float
    """κ, the fraction of σ_f²"""
    variance: float | None = None
    """σ_f² under `data`"""
    noise: float = 0.01
    """standard deviation of isotropic noise, in pixels of 0 to 1: it defines σ_f² under `local` and starts the search under `data`"""

    def __post_init__(self) -> None:
        """Refuse values that leave the constraint undefined."""
        check_choice("normalizer", self.normalizer, ("data", "local"))
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
    """Number of noisy passes in each stage of the optimization."""

    start: int
    """draws of isotropic noise"""
    probes: int
    """random vectors probed at each of them, one pass backward each"""
    rounds: tuple[int, ...]
    """draws of each round: one forward pass and two backward passes, for the Jacobian's norms and for the effective sensitivities"""
    final: int
    """passes on which the noise level is rescaled; a draw takes one (two under the local normalizer)"""
    check: int
    """passes on which the constraint is checked on fresh noise; a draw takes one (two under the local normalizer)"""
    audit: bool = False
    """measure the distance from the optimum on the draws of the check, by one more pass each"""


BUDGETS: dict[str, PassBudget] = {
    "fast": PassBudget(1, 3, (3,), 3, 2),
    "exact": PassBudget(2, 4, (16, 24, 32, 32, 32), 60, 40, audit=True),
}

ROUND, FINAL, CHECK = 1_000, 10_000, 20_000  # number of each stage's first draw; stages use disjoint draws

ROUNDS_KEPT = 3
"""rounds whose samples are used; older ones were drawn at different noise"""

EXTRA_LOCAL_PROBES = 2
"""extra probes under the local normalizer, which needs no search for the initial noise level"""

MAX_STEP = 2.0
"""largest factor by which the noise variance of a cell changes in a round"""

MAX_COUNTED_GAP = 0.1
"""at most this much of the estimated gap, in nats, is added to a CID: the second-order estimate is not reliable beyond"""

MAX_NONLINEAR = 1e-3
"""largest fraction of a feature's squared change outside of its linear prediction that fast mode accepts in small features"""

MAX_LEVEL_JUMP = 20.0
"""largest factor by which the level of isotropic noise changes at once"""


@dataclass(frozen=True)
class OptimalNoise:
    """Maximum-entropy noise of a batch of images, with its CID and their standard errors."""

    noise_std: Float[Tensor, "images cells"]
    """standard deviation of the noise, 0 in cells that are left out"""
    cid: Float[Tensor, "images"]
    """CID in nats per value: mean entropy of `noise_std` plus `entropy_gap`, of which at most 0.1 is added"""
    cid_se: Float[Tensor, "images"]
    """standard error of `cid` in nats, from the draws that set the level"""
    entropy_gap: Float[Tensor, "images"]
    """estimated distance from the largest entropy, in nats"""
    isotropic_entropy: Float[Tensor, "images"]
    """entropy in nats of isotropic noise under the same constraint and the same caps"""
    constraint_ratio: Float[Tensor, "images"]
    """E|Δf|² over ε on fresh noise: 1 where the constraint is met"""
    ratio_error: Float[Tensor, "images"]
    """standard error of `constraint_ratio`"""
    capped: Float[Tensor, "images"]
    """fraction of the cells at their cap"""
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

    At the optimum every value of a cell below its cap adds the same amount to the response: σ_i² = θ n_i / γ_i with the
    effective sensitivity γ_i = ½ ∂E|Δf|²/∂ln σ_i / σ_i². For a linear feature γ is the squared norm g of the Jacobian's
    columns; curvature makes the two differ. Each round samples both at the present noise, estimates γ by shrinking γ/g toward 1,
    and allocates again. At the end only θ is rescaled.

    Parameters
    ----------
    estimator
        Images in front of the layer.
    constraint
        Allowed change of the feature.
    cap
        Largest standard deviation of each cell, in pixels of 0 to 1; may be infinite.
    mode
        fast: isotropic noise, then one round: 20 passes per image, the check on fresh noise included. exact: five rounds, at
        most 600 passes, `entropy_gap` measured on fresh noise. Or a budget of passes.

    Returns
    -------
    OptimalNoise
        The noise; where the constraint cannot be reached every cell is at its cap and `constraint_reached` is False.

    Raises
    ------
    InputError
        In fast mode, if the feature has so few numbers that its Jacobian is known and its response is not linear.
    NumericError
        If gradients are not finite, or a cell without cap does not change the feature.

    Examples
    --------
    A linear feature of two values with weights 1 and 3 and ε = 0.02: each value spends half, so σ = 0.1 and 0.1 / 3.

    >>> from channelscope.discarding.jacobian import PerImageRandom
    >>> from channelscope.discarding.noise import Cells
    >>> everywhere, random = torch.ones(1, 1, 2) > 0, PerImageRandom(0, torch.arange(1))
    >>> feature = lambda images: images.flatten(1) * torch.tensor([1.0, 3.0])
    >>> estimator = SensitivityEstimator(feature, torch.zeros(1, 1, 1, 2), Cells.of((1, 2)), everywhere, random)
    >>> noise = optimal_noise(estimator, Constraint("data", 0.1, variance=0.2), torch.full((2,), torch.inf))
    >>> [round(float(each), 4) for each in noise.noise_std[0]], round(float(noise.constraint_ratio), 3)
    ([0.1, 0.0333], 1.0)

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
    """State of one optimization: samples so far, estimated sensitivities, and the noise allocated from them."""

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
        """Run the first round with isotropic noise; under `data` its level is adapted to the responses."""
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
        """Run a further round at the present noise."""
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
        """Refuse a small feature whose known Jacobian does not predict its response: fast mode measures the level against it."""
        missed = self.estimator.nonlinear_fraction
        if not self.pass_budget.audit and missed is not None and not bool((missed < MAX_NONLINEAR).all()):
            raise InputError(
                f"the feature has {self.estimator.size} numbers and does not answer linearly to noise (a linear one misses "
                f"{float(missed.max()):.0%} of its change): the few passes of fast mode cannot tell its noise level; "
                "pass mode='exact', or name an earlier layer"
            )

    def _uniform(self, levels: list[Tensor]) -> Tensor:
        """Mean entropy of isotropic noise that meets the constraint under the same caps."""
        estimator, weights = self.estimator, torch.where(self.seen, self.sensitivity, 0)
        spent = torch.stack([(weights * self._isotropic(level).square()).sum(1) for level in levels])
        budget = (self.epsilon / (self.draws.response / spent**self.exponent).mean(0)) ** (1 / self.exponent)
        level = isotropic(weights, budget, self.cap, estimator.values)
        return mean_entropy(torch.minimum(level[:, None], self.cap).expand(self.images, -1), estimator.values)

    def _draws(self, numbers: range) -> NoiseSamples:
        """The samples of a round; once the control variate is available, responses drawn without it are dropped."""
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
        """The noise with the constraint, and on request the distance from the optimum, measured on fresh noise."""
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
        """Degrees of freedom of the responses' scatter about the mean of each group of draws."""
        return sum(max(0, draws - 1) for draws in (len(self.round_ratios), self.rescaling_draws, self.check_draws))

    def _error(self, spread: Tensor) -> Tensor:
        """Standard error of the CID in nats: of the level, and of the gap where it is estimated and not measured."""
        level = spread / (len(self.round_ratios) + self.rescaling_draws) ** 0.5 / 2 / self.exponent
        return (level.square() + (0 if self.pass_budget.audit else self.estimated_gap / 2) ** 2).sqrt()

    def _estimate_sensitivity(self, draws: NoiseSamples) -> None:
        """Estimate g from probes and image regressors, then γ as g times the shrunken ratio γ/g."""
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
        """Limit the change of σ² per round to a factor MAX_STEP, for estimates hold near the noise they were drawn at."""
        if self.pass_budget.audit or self.estimator.mean_jacobian is None:
            share = self.sensitivity * self.sigma.square() / self.estimator.values.clamp(min=1)
            free = self.seen & ~self.capped
            mean = (share.where(free, 0).sum(1) / free.sum(1).clamp(min=1))[:, None]
            bounded = torch.minimum(torch.maximum(share, mean / MAX_STEP), mean * MAX_STEP)
            self.sensitivity = self.sensitivity * torch.where(free, bounded / share.where(free, 1), 1)

    def _denoise(self, samples: Tensor, start: Tensor, with_regressors: bool = False) -> tuple[Tensor, Tensor]:
        """Denoised samples (images, cells) and their mean squared relative error."""
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
        """The budget at which the response E|Δf|² = a · budget^exponent meets the constraint, from the ratios measured so far."""
        measured = [torch.stack(ratios).mean(0) / torch.stack(references).mean(0)] * len(ratios) if ratios else []
        scale = torch.stack([*self.round_ratios, *measured]).log().mean(0).exp()
        target = self.constraint.kappa if self.constraint.local else 1.0
        return (target / scale) ** (1 / self.exponent)

    def _reference(self, draw: int) -> Tensor:
        """Reference of the response: ε, or under `local` the response to the same draw's isotropic noise."""
        return (
            self.estimator.response(self._isotropic(self._constant(self.constraint.noise)), draw) if self.constraint.local else self.epsilon
        )

    def _measured_gap(self, effective: Tensor) -> Tensor:
        """Entropy that equal shares of the free cells would gain."""
        return entropy_gap(effective * self.sigma.square() / self.estimator.values.clamp(min=1), self.seen & ~self.capped)

    def _isotropic(self, level: Tensor) -> Tensor:
        return torch.where(self.estimator.values > 0, torch.minimum(level[:, None], self.cap), 0)

    def _constant(self, value: float) -> Tensor:
        return torch.full((self.images,), value, device=self.estimator.images.device)


def _exponent(level: Tensor, response: Tensor, other: Tensor, other_response: Tensor) -> Tensor:
    """Exponent p of E|Δf|² ~ (σ²)^p between two levels of isotropic noise; 1 if the levels differ by less than a factor e^¼."""
    apart = 2 * (other / level).log()
    distinct = apart.abs() > 0.5
    return torch.where(distinct, (other_response / response).log() / apart.where(distinct, 1), 1).clamp(0.2, 2)


def _cycles(samples: Tensor, size: int) -> Tensor:
    """Means over complete cycles of orthogonal probes; the samples themselves where no cycle is complete."""
    cycles = len(samples) // size
    if cycles == 0 or size == 1:
        return samples
    return samples[: cycles * size].unflatten(0, (cycles, size)).mean(1)


def _ratio(responses: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
    """Ratio of the means of two rows of draws, and each draw's relative departure from it."""
    ratio = responses.mean(0) / references.mean(0)
    return ratio, responses / responses.mean(0) - references / references.mean(0)
