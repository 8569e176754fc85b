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

        ρ_12·rest = −P_12 / √(P_11 P_22)        P = R⁻¹, R the correlation matrix of the columns

    With k = 2 it is the plain correlation. On ranks (`ranked`) it is Kendall's partial rank correlation in Spearman's form.

    Returns  −1 … 1, one value per leading index.
    Raises   ShapeError below two columns.
    Undefined (nan) where a column is constant or determined by the others, and with fewer than k + 1 rows.
    Source   Anderson 2003, section 2.5.3; checked by tests/pencil_experiments.py::partial_correlation
    """
    n, k = columns.shape[-2:]
    if k < 2:
        raise ShapeError(f"a correlation needs two columns, received {k}")
    centred = columns.double() - columns.double().mean(-2, keepdim=True)
    spread = centred.norm(dim=-2, keepdim=True)
    scaled = centred / spread.masked_fill(spread == 0, torch.nan)
    rho = scaled.transpose(-1, -2) @ scaled
    eye = torch.eye(k, dtype=torch.float64, device=rho.device)
    defined = ~rho.isnan().any(-1).any(-1)
    rho = torch.where(defined[..., None, None], rho, eye)
    lower, failed = torch.linalg.cholesky_ex(rho)
    defined &= (failed == 0) & (lower.diagonal(dim1=-2, dim2=-1).square() > DETERMINED).all(-1)
    if n < k + 1:
        defined = torch.zeros_like(defined)
    inverse = torch.cholesky_inverse(torch.where(defined[..., None, None], lower, eye))
    value = -inverse[..., 0, 1] / (inverse[..., 0, 0] * inverse[..., 1, 1]).sqrt()
    return value.masked_fill(~defined, torch.nan)


def ranked(values: Float[Tensor, "... n"]) -> Float[Tensor, "... n"]:
    """Ranks 1 … n along the last axis; ties share their mean rank, inf is the largest.

    Raises   ShapeError for nan, which has no rank: leave those rows out first.
    Source   Spearman 1904; checked by tests/pencil_experiments.py::ranked
    """
    if bool(values.isnan().any()):
        raise ShapeError("nan has no rank: leave those rows out before ranking")
    return torch.from_numpy(np.asarray(stats.rankdata(values.numpy(), axis=-1), dtype=np.float64))
