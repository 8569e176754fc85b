"""Intervals (jackknife, bootstrap, Student's t) and tests of significance (permutations, sign flips, corrections, effect sizes)."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy
import torch
from numpy.typing import ArrayLike

from channelscope.display import Facts, Shown, spread
from channelscope.errors import SampleError, ShapeError, check_choice
from channelscope.types import Float, Tensor

DRAWS_PER_BLOCK = 64
"""Bootstrap draws whose weights are held at once."""

MAX_EXACT_PATTERNS = 2**12
"""Sign patterns up to which all are tried instead of a sample of them."""

PATTERNS_PER_BLOCK = 1024
"""Sign patterns drawn at once."""

PATTERNS_PER_PRODUCT = 64
"""Sign patterns multiplied at once: their float64 form then stays in the cache."""

RELATIVE_TIE = 1e-12
"""Relative difference below which two permuted statistics are the same sum added up in another order."""


@dataclass(frozen=True)
class Interval:
    """An estimate with the ends of its interval and the number of independent units behind it; plain floats.

    Examples
    --------
    >>> print(Interval(0.312, 0.27, 0.354, 10, "jackknife over 10 groups of images"))
    0.312 [0.27, 0.354]
    """

    value: float
    """the estimate"""
    low: float
    """lower end; nan where no interval can be given"""
    high: float
    """upper end"""
    n: int
    """independent units behind it (images, groups, layers, seeds), never pixels"""
    method: str
    """how the ends were computed, in words for tables"""
    level: float = 0.95
    """coverage aimed at"""

    def __str__(self) -> str:
        """'0.312 [0.270, 0.354]'."""
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"

    def __contains__(self, number: float) -> bool:
        """Whether a number lies between the ends, ends included."""
        return self.low <= number <= self.high


@dataclass(frozen=True, repr=False)
class Jackknife(Shown):
    """A statistic of any shape with its delete-a-group standard error."""

    value: Float[Tensor, "..."]
    """the statistic of all groups together"""
    corrected: Float[Tensor, "..."]
    """value without its first-order bias: G·value − (G − 1)·mean of the replicates"""
    standard_error: Float[Tensor, "..."]
    """square root of (G − 1)/G times the replicates' sum of squared deviations"""
    groups: int
    """number of groups G"""

    def facts(self) -> Facts:
        """Number of groups, and the ranges of the statistic and its error."""
        return f"Jackknife({self.groups} groups)", [
            ("value", spread(self.value.flatten())),
            ("standard error", spread(self.standard_error.flatten())),
        ]

    def interval(self, level: float = 0.95) -> Interval:
        """Value ± Student's t quantile (G − 1 degrees of freedom) × standard error, for a statistic that is one number."""
        value, reach = float(self.value), student_reach(float(self.standard_error), self.groups - 1, level)
        return Interval(value, value - reach, value + reach, self.groups, f"jackknife over {self.groups} groups of images", level)


def student_reach(standard_error: float, freedom: float, level: float = 0.95) -> float:
    """Half the length of Student's interval around an estimate.

    Parameters
    ----------
    standard_error
        Standard error of the estimate.
    freedom
        Degrees of freedom behind the standard error.
    level
        Coverage of the interval.

    Returns
    -------
    float
        The unit of `standard_error`; nan without a degree of freedom.

    Examples
    --------
    >>> round(student_reach(1.0, 9), 3)
    2.262

    References
    ----------
    Student 1908. Checked by tests/formulas/test_intervals.py.
    """
    return float(scipy.stats.t.isf((1 - level) / 2, freedom)) * standard_error if freedom > 0 else float("nan")


def t_interval(values: ArrayLike, level: float = 0.95) -> tuple[float, float, float]:
    """Mean of independent values and the two ends of its Student interval.

    Parameters
    ----------
    values
        One value per unit (image, seed, run); nan values are left out.
    level
        Coverage of the interval.

    Returns
    -------
    tuple[float, float, float]
        Mean, low end, high end, in the unit of the values; nan ends for fewer than two values.

    Examples
    --------
    >>> [round(end, 3) for end in t_interval([1.0, 2.0, 3.0])]
    [2.0, -0.484, 4.484]

    References
    ----------
    Student 1908. Checked by tests/formulas/test_intervals.py.
    """
    known = np.asarray(values, dtype=np.float64)
    known = known[~np.isnan(known)]
    if len(known) < 2:
        return float(known.mean()) if len(known) else float("nan"), float("nan"), float("nan")
    mean, reach = float(known.mean()), student_reach(float(known.std(ddof=1)) / len(known) ** 0.5, len(known) - 1, level)
    return mean, mean - reach, mean + reach


def jackknife_interval(value: Float[Tensor, ""], replicates: Sequence[Float[Tensor, ""]]) -> Interval:
    """Jackknife interval of one number; without replicates its ends are nan.

    Parameters
    ----------
    value
        The statistic of all groups together.
    replicates
        The statistic without each of the groups; empty where nothing was kept apart.

    Returns
    -------
    Interval
        In the unit of the value.

    Raises
    ------
    SampleError
        For one replicate.

    Examples
    --------
    >>> jackknife_interval(torch.tensor(2.0), [torch.tensor(each) for each in (2.5, 2.0, 1.5)]).n
    3
    >>> jackknife_interval(torch.tensor(2.0), []).low
    nan

    References
    ----------
    Efron & Tibshirani 1993, chapter 11.
    """
    if not replicates:
        return Interval(float(value), float("nan"), float("nan"), 0, "no shards")
    return jackknife(value, torch.stack([torch.as_tensor(each) for each in replicates])).interval()


def jackknife(value: Float[Tensor, "..."], replicates: Float[Tensor, "groups ..."]) -> Jackknife:
    """Delete-a-group jackknife of a statistic: its value, bias-corrected value and standard error.

        se² = (G − 1)/G · Σ_g (θ_(g) − θ̄)²

    Groups are of (nearly) equal size and independent of each other, such as shards of images.

    Parameters
    ----------
    value
        The statistic of all groups together, of any shape.
    replicates
        `replicates[g]` is the statistic computed without group g.

    Returns
    -------
    Jackknife
        Float64, in the shape of `value`; the standard error is nan where the value or any replicate is nan or infinite.

    Raises
    ------
    SampleError
        For fewer than two groups.
    ShapeError
        If the replicates have another shape than the value.

    Examples
    --------
    The mean of 1, 2 and 3 and its three means without one value; the standard error is 1/√3.

    >>> mean = jackknife(torch.tensor(2.0), torch.tensor([2.5, 2.0, 1.5]))
    >>> round(float(mean.standard_error), 3), float(mean.corrected)
    (0.577, 2.0)
    >>> mean.interval().n
    3

    References
    ----------
    Efron & Tibshirani 1993, chapter 11; Kott 2001 (groups). Checked against tests/pencil.py::jackknife.
    """
    value, replicates = torch.as_tensor(value).double(), torch.as_tensor(replicates).double()
    groups = len(replicates)
    if groups < 2:
        raise SampleError(f"a jackknife needs at least 2 groups, received {groups}: collect the profile with shards=10")
    if replicates.shape[1:] != value.shape:
        raise ShapeError(f"replicates of shape {tuple(replicates.shape[1:])} for a value of shape {tuple(value.shape)}")
    center = replicates.mean(0)
    error = ((groups - 1) / groups * (replicates - center).square().sum(0)).sqrt()
    return Jackknife(value, groups * value - (groups - 1) * center, error, groups)


def bootstrap_counts(shards: int, draws: int, seed: int = 0) -> Float[Tensor, "draws shards"]:
    """How often each shard enters each bootstrap sample; every sample is `shards` draws with replacement.

    A profile of draw b is the sum of the shards' moments, each as often as it was drawn.

    Parameters
    ----------
    shards
        Number of shards.
    draws
        Number of bootstrap samples.
    seed
        Of the draws.

    Returns
    -------
    Tensor
        Float64 (draws, shards); whole numbers that sum to `shards` in each row.

    Raises
    ------
    SampleError
        For fewer than two shards.

    Examples
    --------
    >>> counts = bootstrap_counts(10, 5)
    >>> counts.shape, counts.sum(1).tolist()
    (torch.Size([5, 10]), [10.0, 10.0, 10.0, 10.0, 10.0])

    References
    ----------
    Efron & Tibshirani 1993, chapter 6. Checked by tests/formulas/test_intervals.py.
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
    """Percentile interval of a statistic over resampled rows.

    A draw takes the same rows of every column. Draws on which the statistic is undefined (nan) are left out.

    Parameters
    ----------
    statistic
        Takes the resampled columns, returns one number.
    *columns
        Columns of equal length; the rows are independent units.
    strata
        Label of each row; rows are drawn within their own stratum.
    draws
        Number of resamples.
    level
        Coverage of the interval.
    seed
        Of the resamples.

    Returns
    -------
    Interval
        In the unit of the statistic; nan ends if the statistic is undefined on more than half of the draws.

    Raises
    ------
    SampleError
        Without rows.
    ShapeError
        For columns of different length.

    Examples
    --------
    >>> interval = bootstrap(lambda x: float(x.max()), torch.tensor([1.0, 2.0, 3.0]), draws=100)
    >>> interval.value, interval.high, interval.method
    (3.0, 3.0, 'bootstrap, 100 draws')

    References
    ----------
    Efron & Tibshirani 1993, chapter 13. Checked by tests/formulas/test_intervals.py.
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
    """Mean over independent units with its percentile bootstrap interval.

    Parameters
    ----------
    values
        One value per unit (layer, seed); nan values are left out.
    draws
        Number of resamples.
    level
        Coverage of the interval.
    seed
        Of the resamples.

    Returns
    -------
    Interval
        In the unit of the values; nan ends for fewer than two values.

    Examples
    --------
    >>> interval = bootstrap_mean(torch.tensor([1.0, 2.0, 3.0, torch.nan]))
    >>> interval.value, interval.n, 2.0 in interval
    (2.0, 3, True)

    References
    ----------
    Efron & Tibshirani 1993, chapter 13. Checked by tests/formulas/test_intervals.py.
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
    Efron & Tibshirani 1993, chapter 13. Checked by tests/formulas/test_intervals.py.
    """
    values = torch.as_tensor(columns).double().cpu().numpy()
    n = len(values)
    if n == 0:
        raise SampleError("a bootstrap of no rows: nothing to resample")
    generator, means = np.random.default_rng(seed), np.empty((draws, values.shape[1]))
    for start in range(0, draws, DRAWS_PER_BLOCK):
        count = min(DRAWS_PER_BLOCK, draws - start)
        picks = generator.integers(n, size=(count, n)) + n * np.arange(count)[:, None]
        weights = np.bincount(picks.ravel(), minlength=count * n).reshape(count, n)
        means[start : start + count] = weights.astype(float) @ values / n
    return torch.from_numpy(means)


def _percentiles(draws: np.ndarray, level: float) -> tuple[float, float]:
    if len(draws) == 0:
        return float("nan"), float("nan")
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def permutation_p(
    observed: Float[Tensor, "..."], null: Float[Tensor, "permutations ..."], side: Literal["greater", "less", "both"] = "greater"
) -> Float[Tensor, "..."]:
    """Permutation p-values, p = (1 + hits) / (1 + permutations), which are never zero.

    A hit is a permuted value at least as extreme as the observed one.

    Parameters
    ----------
    observed
        Observed statistics, of any shape.
    null
        The statistics of each permutation, in the same shape.
    side
        Which values are extreme; "both" compares distances from the mean of `null`.

    Returns
    -------
    Tensor
        Float64, in the shape of `observed`; nan where the observed or a permuted value is nan.

    Raises
    ------
    InputError
        For another side.

    Examples
    --------
    >>> float(permutation_p(torch.tensor(2.5), torch.tensor([1.0, 2.0, 3.0])))
    0.5

    References
    ----------
    Phipson & Smyth 2010. Checked against tests/pencil.py::permutation_p.
    """
    check_choice("side", side, ("greater", "less", "both"))
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
    """Two-sided sign-flip permutation p-values of one or many tests that paired differences have mean zero.

    Every sign pattern is tried when there are at most 2¹²; then p is exact, and at least 2/2ⁿ (.0625 with five pairs).
    Otherwise p = (1 + hits)/(1 + permutations) over a seeded sample of patterns: no p is smaller than 1/(1 + permutations),
    so take many more of them than there are tests. All tests share the patterns.

    Parameters
    ----------
    differences
        The last axis holds the n paired differences, each of one independent unit such as an image or a training seed.
    permutations
        Number of sampled sign patterns, where not all of them are tried.
    seed
        Of the sign patterns.

    Returns
    -------
    Tensor
        Float64, in the shape of the leading axes; nan for a test in which a difference is nan.

    Raises
    ------
    SampleError
        Without differences.

    Examples
    --------
    >>> sign_flip(torch.tensor([[1.0, 2.0, 3.0], [1.0, -2.0, 1.0]])).tolist()
    [0.25, 1.0]

    References
    ----------
    Fisher 1935, section 21; Phipson & Smyth 2010. Checked against tests/pencil.py::sign_flip.
    """
    values = torch.as_tensor(differences).double().cpu()
    if values.shape[-1] == 0:
        raise SampleError("a sign-flip test needs at least one paired difference")
    tests = values.reshape(-1, values.shape[-1]).T
    return sign_flip_contrasts(tests, torch.eye(tests.shape[1], dtype=torch.float64), permutations, seed).reshape(values.shape[:-1])


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
            heads = np.concatenate([part.astype(float) @ values for part in np.array_split(coins, -(-len(coins) // PATTERNS_PER_PRODUCT))])
            hits += (np.abs((2 * heads - values.sum(0)) @ between) >= bound).sum(0)
        p = (1 + hits) / (1 + permutations)
    return torch.from_numpy(np.where(undefined, np.nan, p))


def holm(p: Float[Tensor, "tests"]) -> Float[Tensor, "tests"]:
    """Holm's step-down adjusted p-values.

    Parameters
    ----------
    p
        Unadjusted p-values; a nan is not counted as a test.

    Returns
    -------
    Tensor
        Float64 (tests,), in the order of `p`; nan stays nan.

    Examples
    --------
    >>> holm(torch.tensor([0.04, 0.01], dtype=torch.float64)).tolist()
    [0.04, 0.02]

    References
    ----------
    Holm 1979. Checked against tests/pencil.py::holm.
    """
    p = torch.as_tensor(p).double()
    tested = (~p.isnan()).nonzero().flatten()
    order = tested[p[tested].argsort()]
    factor = torch.arange(len(order), 0, -1, dtype=torch.float64, device=p.device)
    adjusted = p.clone()
    adjusted[order] = (factor * p[order]).cummax(0).values.clamp(max=1) if len(order) else p[order]
    return adjusted


def effect_size(differences: Float[Tensor, "n"]) -> float:
    """Paired effect size, Cohen's d_z: mean difference over the standard deviation of the differences.

    Parameters
    ----------
    differences
        One paired difference per independent unit.

    Returns
    -------
    float
        A pure number; nan for fewer than two pairs and where all differences are equal.

    Examples
    --------
    >>> effect_size(torch.tensor([1.0, 2.0, 3.0]))
    2.0

    References
    ----------
    Cohen 1988, section 2.3.5. Checked against tests/pencil.py::effect_size.
    """
    pairs = torch.as_tensor(differences).double().flatten()
    if len(pairs) < 2 or bool((pairs == pairs[0]).all()):
        return float("nan")
    return float(pairs.mean() / pairs.std())
