"""Tests of significance: permutation p-values, sign flips, corrections for many tests, effect sizes."""

import itertools
from typing import Literal

import numpy as np
import torch

from channelscope.errors import InputError, SampleError
from channelscope.types import Float, Tensor

MAX_EXACT_PATTERNS = 2**12
"""Sign patterns up to which all are tried instead of a sample of them."""

PATTERNS_PER_BLOCK = 1024
"""Sign patterns drawn at once."""

PATTERNS_PER_PRODUCT = 64
"""Sign patterns multiplied at once: their float64 form then stays in the cache."""

RELATIVE_TIE = 1e-12
"""Relative difference below which two permuted statistics are the same sum added up in another order."""


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
