"""Partial correlation: what two columns share once others are known, for many samples of rows at once."""

import numpy as np
import torch
from scipy import stats

from channelscope.errors import ShapeError
from channelscope.types import Float, Tensor

DETERMINED = 1e-9
"""Share of a column's variance below which the other columns are said to determine it."""


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
    values = columns.double()
    if n <= k:
        return values.new_full(values.shape[:-2], torch.nan)
    constant = values.amax(-2, keepdim=True) == values.amin(-2, keepdim=True)
    centred = (values - values.mean(-2, keepdim=True)).masked_fill(constant, 0)  # the mean of equal numbers may round to another one
    scaled = centred / centred.norm(dim=-2, keepdim=True)
    rho = scaled.transpose(-1, -2) @ scaled
    left = rho[..., :2, :2]
    if k > 2:
        known, cross = rho[..., 2:, 2:].nan_to_num(nan=0), rho[..., :2, 2:].nan_to_num(nan=0)  # a constant says nothing
        left = left - cross @ torch.linalg.pinv(known, rtol=DETERMINED, hermitian=True) @ cross.transpose(-1, -2)
    spread = left.diagonal(dim1=-2, dim2=-1)
    value = (left[..., 0, 1] / spread.prod(-1).sqrt()).clamp(-1, 1)
    undefined = ~(spread > DETERMINED).all(-1)
    return value.masked_fill(undefined, torch.nan)


def ranked(values: Float[Tensor, "... n"]) -> Float[Tensor, "... n"]:
    """Ranks 1 … n along the last axis; ties share their mean rank, inf is the largest.

    Raises   ShapeError for nan, which has no rank: leave those rows out first.
    Source   Spearman 1904; checked by tests/pencil_experiments.py::ranked
    """
    if bool(values.isnan().any()):
        raise ShapeError("nan has no rank: leave those rows out before ranking")
    return torch.from_numpy(np.asarray(stats.rankdata(values.numpy(), axis=-1), dtype=np.float64))
