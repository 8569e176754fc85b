"""Intervals and tests: jackknife, bootstrap, permutations, and the summaries they are applied to."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from scipy import stats

from channelscope.errors import InputError, SampleError, ShapeError
from channelscope.types import Float, Tensor


def t_interval(values: pd.Series) -> tuple[float, float, float]:
    """Mean and 95 % t interval over images; nan ends for fewer than two.

    References
    ----------
    Student 1908.
    """
    known = values.dropna()
    if len(known) < 2:
        return float(known.mean()) if len(known) else float("nan"), float("nan"), float("nan")
    reach = float(stats.t.isf(0.025, len(known) - 1)) * float(known.std(ddof=1)) / len(known) ** 0.5
    return float(known.mean()), float(known.mean()) - reach, float(known.mean()) + reach


MAX_EXACT_PATTERNS = 2**12

PATTERNS_PER_BLOCK = 1024
"""Sign patterns up to which all are tried instead of a sample of them."""

RESAMPLES = 64
"""Bootstrap draws whose weights are held at once."""

TOGETHER = 64
"""Sign patterns multiplied at once: their float64 form then stays in the cache."""

RELATIVE_TIE = 1e-12
"""Relative difference below which two permuted statistics are the same sum added up in another order."""


@dataclass(frozen=True)
class Interval:
    """A number, how sure it is, and from how many independent units; plain floats."""

    value: float
    """the estimate"""
    low: float
    """lower end; nan where no interval can be given"""
    high: float
    """upper end"""
    n: int
    """independent units behind it (images, groups, layers, seeds), never pixels"""
    method: str
    """how the ends were found, in words for tables"""
    level: float = 0.95
    """coverage aimed at"""

    def __str__(self) -> str:
        """'0.312 [0.270, 0.354]'."""
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"

    def __contains__(self, number: float) -> bool:
        """Whether a number lies between the ends, ends included."""
        return self.low <= number <= self.high


@dataclass(frozen=True)
class Jackknife:
    """A statistic of any shape with its delete-a-group standard error."""

    value: Float[Tensor, "..."]
    """the statistic of all groups together"""
    corrected: Float[Tensor, "..."]
    """value without its first-order bias: G·value − (G − 1)·mean of the replicates"""
    standard_error: Float[Tensor, "..."]
    """square root of (G − 1)/G times the replicates' sum of squared deviations"""
    groups: int
    """number of groups G"""

    def interval(self, level: float = 0.95) -> Interval:
        """Value ± Student's t quantile (G − 1 degrees of freedom) × standard error, for a statistic that is one number."""
        value, reach = float(self.value), float(stats.t.ppf((1 + level) / 2, self.groups - 1)) * float(self.standard_error)
        return Interval(value, value - reach, value + reach, self.groups, f"jackknife over {self.groups} groups of images", level)


def jackknife(value: Float[Tensor, "..."], replicates: Float[Tensor, "groups ..."]) -> Jackknife:
    """Delete-a-group jackknife: `replicates[g]` is the statistic computed without group g.

        se² = (G − 1)/G · Σ_g (θ_(g) − θ̄)²

    Groups are of (nearly) equal size and independent of each other, such as shards of images.

    Undefined (nan) where the value or any replicate is nan or infinite.

    Raises
    ------
    SampleError
        Below two groups.
    ShapeError
        If the replicates have another shape than the value.

    References
    ----------
    Efron & Tibshirani 1993, chapter 11; Kott 2001 (groups); checked by tests/pencil.py::jackknife.
    """
    value, replicates = torch.as_tensor(value).double(), torch.as_tensor(replicates).double()
    groups = len(replicates)
    if groups < 2:
        raise SampleError(f"a jackknife needs at least 2 groups, received {groups}: keep shards in the profile (shards=10)")
    if replicates.shape[1:] != value.shape:
        raise ShapeError(f"replicates of shape {tuple(replicates.shape[1:])} for a value of shape {tuple(value.shape)}")
    center = replicates.mean(0)
    error = ((groups - 1) / groups * (replicates - center).square().sum(0)).sqrt()
    return Jackknife(value, groups * value - (groups - 1) * center, error, groups)


def bootstrap_counts(shards: int, draws: int, seed: int = 0) -> Float[Tensor, "draws shards"]:
    """How often each shard enters each bootstrap sample: rows of `shards` draws with replacement.

    A profile of draw b is the sum of the shards' moments, each as often as its weight.

    Returns
    -------
    Tensor
        Whole numbers that sum to `shards` in each row.

    References
    ----------
    Efron & Tibshirani 1993, chapter 6; checked by tests/formulas/test_resampling.py.
    """
    if shards < 2:
        raise SampleError(f"a bootstrap over shards needs at least 2 of them, received {shards}")
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(shards, (draws, shards), generator=generator)
    return torch.zeros(draws, shards, dtype=torch.float64).scatter_add(1, picks, torch.ones(draws, shards, dtype=torch.float64))


def bootstrap(
    statistic: Callable[..., float],
    *columns: Float[Tensor, "n"],
    strata: Tensor | None = None,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile interval of a statistic over resampled rows; the same rows of every column, within strata if given.

    Draws on which the statistic is undefined (nan) are left out; above half of them the ends are nan.

    Raises
    ------
    SampleError
        Without rows.
    ShapeError
        For columns of different length.

    References
    ----------
    Efron & Tibshirani 1993, chapter 13; checked by tests/formulas/test_resampling.py.
    """
    n = len(columns[0])
    labels = np.zeros(n, dtype=int) if strata is None else np.unique(torch.as_tensor(strata).cpu(), return_inverse=True)[1]
    if any(len(column) != n for column in columns) or len(labels) != n:
        raise ShapeError(f"columns of different length: {[len(column) for column in columns]}, strata {len(labels)}")
    if n == 0:
        raise SampleError("a bootstrap of no rows: nothing to resample")
    value = float(statistic(*columns))
    rows = [np.flatnonzero(labels == label) for label in range(labels.max() + 1)]
    generator = np.random.default_rng(seed)
    results = np.empty(draws)
    for draw in range(draws):
        chosen = torch.from_numpy(np.concatenate([generator.choice(stratum, len(stratum)) for stratum in rows]))
        results[draw] = float(statistic(*(column[chosen] for column in columns)))
    kept = results[~np.isnan(results)]
    low, high = _percentiles(kept if 2 * len(kept) >= draws else kept[:0], level)
    within = "" if strata is None else f" within {len(rows)} strata"
    return Interval(value, low, high, n, f"bootstrap{within}, {draws:,} draws", level)


def bootstrap_mean(values: Float[Tensor, "n"], draws: int = 10_000, level: float = 0.95, seed: int = 0) -> Interval:
    """Mean over independent units (layers, seeds) with its percentile bootstrap interval; nan values are left out.

    Below two values the ends are nan.

    References
    ----------
    Efron & Tibshirani 1993, chapter 13; checked by tests/formulas/test_resampling.py.
    """
    kept = torch.as_tensor(values).double().flatten().cpu().numpy()
    kept = kept[~np.isnan(kept)]
    value = float(kept.mean()) if len(kept) else float("nan")
    picks = np.random.default_rng(seed).integers(len(kept), size=(draws, len(kept))) if len(kept) > 1 else np.empty((0, 1), dtype=int)
    low, high = _percentiles(kept[picks].mean(1), level)
    return Interval(value, low, high, len(kept), f"bootstrap, {draws:,} draws", level)


def bootstrap_means(columns: Float[Tensor, "n k"], draws: int = 10_000, seed: int = 0) -> Float[Tensor, "draws k"]:
    """Means of several columns over the same resampled rows: any difference of means is the difference of their draws.

    A draw gives each row a multinomial weight, and all means are one product of weights and columns. The rows drawn are those
    that `bootstrap_mean` draws for each column.

    Parameters
    ----------
    columns
        Independent units such as images in the rows, without nan.
    draws
        Number of resamples.
    seed
        Of the resamples.

    Returns
    -------
    Tensor
        Float64 (draws, columns), in the unit of the columns.

    Raises
    ------
    SampleError
        Without rows.

    Examples
    --------
    >>> means = bootstrap_means(torch.tensor([[0.0, 1.0], [4.0, 5.0]]), draws=50)
    >>> sorted(set(means[:, 0].tolist())), bool((means[:, 1] - means[:, 0] == 1).all())
    ([0.0, 2.0, 4.0], True)

    References
    ----------
    Efron & Tibshirani 1993, chapter 13. Checked by tests/formulas/test_resampling.py.
    """
    values = torch.as_tensor(columns).double().cpu().numpy()
    n = len(values)
    if n == 0:
        raise SampleError("a bootstrap of no rows: nothing to resample")
    generator, means = np.random.default_rng(seed), np.empty((draws, values.shape[1]))
    for start in range(0, draws, RESAMPLES):
        count = min(RESAMPLES, draws - start)
        picks = generator.integers(n, size=(count, n)) + n * np.arange(count)[:, None]
        weights = np.bincount(picks.ravel(), minlength=count * n).reshape(count, n)
        means[start : start + count] = weights.astype(float) @ values / n
    return torch.from_numpy(means)


def permutation_p(
    observed: Float[Tensor, "..."], null: Float[Tensor, "permutations ..."], side: Literal["greater", "less", "both"] = "greater"
) -> Float[Tensor, "..."]:
    """Permutation p-value: p = (1 + hits) / (1 + permutations), so never zero.

    A hit is a permuted value at least as extreme as the observed one; "both" compares distances from the null's mean.

    Undefined (nan) where the observed or a permuted value is nan.

    References
    ----------
    Phipson & Smyth 2010; checked by tests/pencil.py::permutation_p.
    """
    if side not in ("greater", "less", "both"):
        raise InputError(f'side is "greater", "less" or "both", received {side!r}')
    observed, null = torch.as_tensor(observed).double(), torch.as_tensor(null).double()
    if side == "both":
        observed, null = (observed - null.mean(0)).abs(), (null - null.mean(0)).abs()
    elif side == "less":
        observed, null = -observed, -null
    slack = RELATIVE_TIE * observed.abs().nan_to_num(posinf=0)
    hits = (null >= observed - slack).sum(0)
    unknown = observed.isnan() | null.isnan().any(0)
    return ((1 + hits).double() / (1 + len(null))).masked_fill(unknown, torch.nan)


def sign_flip(differences: Float[Tensor, "... n"], permutations: int = 10_000, seed: int = 0) -> Float[Tensor, "..."]:
    """Two-sided sign-flip permutation p-values for paired differences with mean zero, of one test or of many.

    Every sign pattern is tried when there are at most 2¹² (then p is exact, and at least 2/2ⁿ: .0625 with five pairs); otherwise a
    seeded sample of them, p = (1 + hits)/(1 + permutations); no p is smaller than 1/(1 + permutations), so take many more of them
    than there are tests. Each difference is one independent cluster, such as an image or a training seed; all tests flip the same ones.

    Undefined (nan) for a test in which a difference is nan.

    Raises
    ------
    SampleError
        Without differences.

    References
    ----------
    Fisher 1935, section 21; Phipson & Smyth 2010; checked by tests/pencil.py::sign_flip.
    """
    given = torch.as_tensor(differences).double().cpu()
    if given.shape[-1] == 0:
        raise SampleError("a sign-flip test needs at least one paired difference")
    tests = given.reshape(-1, given.shape[-1]).T
    return sign_flip_contrasts(tests, torch.eye(tests.shape[1], dtype=torch.float64), permutations, seed).reshape(given.shape[:-1])


def sign_flip_contrasts(
    columns: Float[Tensor, "n k"], contrasts: Float[Tensor, "k tests"], permutations: int = 10_000, seed: int = 0
) -> Float[Tensor, "tests"]:
    """Sign-flip p-values of many differences between the same columns, such as all pairs of scores.

    The sum of a difference under a pattern of signs is the difference of the columns' sums, so that the patterns are
    multiplied with the columns once, whatever the number of tests.

    Parameters
    ----------
    columns
        Independent units such as images in the rows.
    contrasts
        One column a test: the differences tested are `columns @ contrasts`.
    permutations
        Sign patterns, where not all of them are tried.
    seed
        Of the sign patterns.

    Returns
    -------
    Tensor
        Float64 (tests,): p as `sign_flip` defines it; nan where a difference is nan.

    Raises
    ------
    SampleError
        Without rows.

    Examples
    --------
    >>> columns = torch.tensor([[3.0, 1.0, 3.0], [5.0, 2.0, 5.0], [4.0, 3.0, 4.0]])
    >>> pairs = torch.tensor([[1.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    >>> sign_flip_contrasts(columns, pairs).tolist()
    [0.25, 1.0]

    References
    ----------
    Fisher 1935, section 21; Phipson & Smyth 2010. Checked against tests/pencil.py::sign_flip.
    """
    values, between = (torch.as_tensor(part).double().cpu().numpy() for part in (columns, contrasts))
    count = len(values)
    if count == 0:
        raise SampleError("a sign-flip test needs at least one paired difference")
    known = ~np.isnan(values).any(0)
    undefined = (between[~known] != 0).any(0)
    values, between = values[:, known], between[known]
    bound = np.abs(values.sum(0) @ between) - RELATIVE_TIE * (np.abs(values).sum(0) @ np.abs(between))
    if 2**count <= MAX_EXACT_PATTERNS:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=count)))
        p = (np.abs(signs @ values @ between) >= bound).mean(0)
    else:
        draws, hits = np.random.default_rng(seed), np.zeros(between.shape[1])
        for start in range(0, permutations, PATTERNS_PER_BLOCK):
            coins = draws.integers(0, 2, size=(min(PATTERNS_PER_BLOCK, permutations - start), count), dtype=np.int8)
            heads = np.concatenate([part.astype(float) @ values for part in np.array_split(coins, -(-len(coins) // TOGETHER))])
            hits += (np.abs((2 * heads - values.sum(0)) @ between) >= bound).sum(0)
        p = (1 + hits) / (1 + permutations)
    return torch.from_numpy(np.where(undefined, np.nan, p))


def holm(p: Float[Tensor, "tests"]) -> Float[Tensor, "tests"]:
    """Holm's step-down adjusted p-values; nan stays nan and is not counted as a test.

    References
    ----------
    Holm 1979; checked by tests/pencil.py::holm.
    """
    p = torch.as_tensor(p).double()
    asked = (~p.isnan()).nonzero().flatten()
    order = asked[p[asked].argsort()]
    factor = torch.arange(len(order), 0, -1, dtype=torch.float64, device=p.device)
    adjusted = p.clone()
    adjusted[order] = (factor * p[order]).cummax(0).values.clamp(max=1) if len(order) else p[order]
    return adjusted


def effect_size(differences: Float[Tensor, "n"]) -> float:
    """Paired effect size, Cohen's d_z: mean difference over the standard deviation of the differences (n − 1).

    Undefined (nan) below two pairs and where all differences are equal.

    References
    ----------
    Cohen 1988, section 2.3.5; checked by tests/pencil.py::effect_size.
    """
    pairs = torch.as_tensor(differences).double().flatten()
    if len(pairs) < 2 or bool((pairs == pairs[0]).all()):
        return float("nan")
    return float(pairs.mean() / pairs.std())


def flops_auc(removed: Float[Tensor, "budgets"], accuracy: Float[Tensor, "budgets"], upto: float | None = None) -> float:
    """FLOPs-AUC: mean accuracy over the removed-MACs fraction from 0 (the unpruned network) to `upto`.

    Trapezoid area under the curve divided by its span; `upto` is the largest budget that every compared score reached (by
    default this curve's last), and the curve is interpolated there.

    Returns
    -------
    float
        The unit of `accuracy`.

    Raises
    ------
    InputError
        Without the unpruned point, for repeated or missing numbers, or if the curve ends before `upto`.

    References
    ----------
    Safaai et al. 2026; checked by tests/pencil.py::flops_auc.
    """
    x, y = (torch.as_tensor(column).double().flatten().cpu().numpy() for column in (removed, accuracy))
    if len(x) != len(y):
        raise ShapeError(f"{len(x)} budgets and {len(y)} accuracies")
    order = np.argsort(x)
    x, y = x[order], y[order]
    if len(x) < 2 or np.isnan(x).any() or np.isnan(y).any() or x[0] != 0 or (np.diff(x) <= 0).any():
        raise InputError(f"expected different removed fractions from 0 (the unpruned network) on, without nan; received {x.tolist()}")
    end = float(x[-1]) if upto is None else upto
    if not 0 < end <= x[-1]:
        raise InputError(f"the curve ends at {x[-1]:g} removed; choose upto within (0, {x[-1]:g}], received {end:g}")
    inside = x < end
    return float(np.trapezoid(np.append(y[inside], np.interp(end, x, y)), np.append(x[inside], end)) / end)


def _percentiles(draws: np.ndarray, level: float) -> tuple[float, float]:
    if len(draws) == 0:
        return float("nan"), float("nan")
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
