"""Partial correlation: what two columns share once others are known, for many samples of rows at once."""

import numpy as np
import torch
from scipy import stats

from channelscope.errors import ShapeError
from channelscope.types import Bool, Float, Tensor

DETERMINED = 1e-9
"""Share of a column's variance below which the other columns are said to determine it."""

ROUNDING = 2.0**-50
"""Range over largest size of a column that only rounds: four units in the last place of a float64."""


def constant(columns: Float[Tensor, "... n k"]) -> Bool[Tensor, "... k"]:
    """Columns that have one value only, up to the rounding of float64.

    The mean of equal numbers can differ from them in the last place. Deviations from it are then no variation.

    Parameters
    ----------
    columns
        Rows are samples.

    Returns
    -------
    Tensor
        True for each column whose largest and smallest number are the same; False where one is nan.

    Examples
    --------
    >>> constant(torch.tensor([[0.1, 1.0], [0.1, 2.0]])).tolist()
    [True, False]

    References
    ----------
    Goldberg 1991 (rounding in sums of floating-point numbers).
    """
    if columns.shape[-2] == 0:
        return torch.zeros(*columns.shape[:-2], columns.shape[-1], dtype=torch.bool, device=columns.device)
    values = columns.double()
    return values.amax(-2) - values.amin(-2) <= ROUNDING * values.abs().amax(-2)


def partial_correlation(columns: Float[Tensor, "... n k"]) -> Float[Tensor, "..."]:
    """Correlation of the first two of k columns once the other k − 2 are known.

        ρ_12·rest = S_12 / √(S_11 S_22)        S = R_12,12 − R_12,rest R_rest⁻¹ R_rest,12

    With k = 2 it is the plain correlation. On ranks (`ranked`) it is Kendall's partial rank correlation in Spearman's form.

    Returns  −1 … 1, one value per leading index.
    Raises   ShapeError below two columns.
    Undefined (nan) where one of the two is constant or determined by the others, and with fewer than k + 1 rows.
    Source   Anderson 2003, section 2.5.3; checked by tests/pencil_experiments.py::partial_correlation
    """
    n, k = columns.shape[-2:]
    if k < 2:
        raise ShapeError(f"a correlation needs two columns, received {k}")
    centred = columns.double() - columns.double().mean(-2, keepdim=True)
    scaled = (centred / centred.norm(dim=-2, keepdim=True)).masked_fill(constant(columns)[..., None, :], torch.nan)
    rho = scaled.transpose(-1, -2) @ scaled
    left = rho[..., :2, :2]
    if k > 2:
        known, cross = rho[..., 2:, 2:].nan_to_num(nan=0), rho[..., :2, 2:].nan_to_num(nan=0)  # a constant says nothing
        left = left - cross @ torch.linalg.pinv(known, rtol=DETERMINED, hermitian=True) @ cross.transpose(-1, -2)
    spread = left.diagonal(dim1=-2, dim2=-1)
    value = (left[..., 0, 1] / spread.prod(-1).sqrt()).clamp(-1, 1)
    undefined = ~(spread > DETERMINED).all(-1)
    return value.masked_fill(undefined, torch.nan) if n > k else torch.full_like(value, torch.nan)


def ranked(values: Float[Tensor, "... n"]) -> Float[Tensor, "... n"]:
    """Ranks 1 … n along the last axis; ties share their mean rank, inf is the largest.

    Raises   ShapeError for nan, which has no rank: leave those rows out first.
    Source   Spearman 1904; checked by tests/pencil_experiments.py::ranked
    """
    if bool(values.isnan().any()):
        raise ShapeError("nan has no rank: leave those rows out before ranking")
    return torch.from_numpy(np.asarray(stats.rankdata(values.numpy(), axis=-1), dtype=np.float64))
