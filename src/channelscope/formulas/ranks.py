"""Rank correlations, plain and partial, for many samples of rows at once."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats

from channelscope.errors import InputError, ShapeError
from channelscope.types import Bool, Float, Int, Tensor

PINV_RTOL = 1e-9
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

    Undefined (nan) where one of the two is constant or determined by the others, and with fewer than k + 1 rows.

    Returns
    -------
    Tensor
        −1 … 1, one value per leading index.

    Raises
    ------
    ShapeError
        Below two columns.

    References
    ----------
    Anderson 2003, section 2.5.3; checked by tests/pencil_experiments.py::partial_correlation.
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
        left = left - cross @ torch.linalg.pinv(known, rtol=PINV_RTOL, hermitian=True) @ cross.transpose(-1, -2)
    spread = left.diagonal(dim1=-2, dim2=-1)
    value = (left[..., 0, 1] / spread.prod(-1).sqrt()).clamp(-1, 1)
    undefined = ~(spread > PINV_RTOL).all(-1)
    return value.masked_fill(undefined, torch.nan) if n > k else torch.full_like(value, torch.nan)


def ranks(values: Float[Tensor, "... n"]) -> Float[Tensor, "... n"]:
    """Ranks 1 … n along the last axis; ties share their mean rank, inf is the largest.

    Raises
    ------
    ShapeError
        For nan, which has no rank: leave those rows out first.

    References
    ----------
    Spearman 1904; checked by tests/pencil_experiments.py::ranked.
    """
    if bool(values.isnan().any()):
        raise ShapeError("nan has no rank: leave those rows out before ranking")
    return torch.from_numpy(np.asarray(stats.rankdata(values.numpy(), axis=-1), dtype=np.float64))


LEAST = 3
"""Rows below which a rank correlation says nothing."""


def spearman(x: Float[Tensor, "n *columns"], y: Float[Tensor, "n *columns"]) -> Float[Tensor, "*columns"]:
    """Spearman's rank correlation; ties share their mean rank, pairs with a nan are left out, inf is the largest rank.

    Two columns give one number; two matrices (or a matrix and a column) one number per column.

    Undefined (nan) below three pairs, or where one column is constant.

    Raises
    ------
    ShapeError
        If the numbers of rows differ.

    References
    ----------
    Spearman 1904; checked by tests/pencil.py::spearman.
    """
    if len(x) != len(y):
        raise ShapeError(f"a rank correlation needs pairs, received {len(x)} and {len(y)} rows")
    if x.dim() == y.dim() == 1:
        return _spearman(x, y)
    x, y = torch.broadcast_tensors(x if x.dim() > 1 else x[:, None], y if y.dim() > 1 else y[:, None])
    return torch.stack([_spearman(x[:, k], y[:, k]) for k in range(x.shape[1])])


def partial_spearman(x: Float[Tensor, "n"], y: Float[Tensor, "n"], covariates: Float[Tensor, "n k"]) -> Float[Tensor, ""]:
    """Rank correlation of x and y once the ranks of the covariates are known; rows with a nan anywhere are left out.

    Undefined (nan) with fewer than k + 3 rows, where a column is constant, or determined by the others.

    References
    ----------
    Spearman 1904; Anderson 2003, section 2.5.3; checked by tests/pencil.py::partial_spearman.
    """
    columns = torch.cat([x[:, None], y[:, None], covariates], 1).double().cpu()
    known = columns[~columns.isnan().any(1)]
    return partial_correlation(ranks(known.T).T).to(x.device)


@dataclass(frozen=True)
class Matched:
    """Two columns compared inside cells whose rows are alike in other respects."""

    correlation: float
    """mean of the cells' rank correlations, weighted by rows − 1"""
    difference: float
    """mean of y where x is above its cell's median minus where it is below, weighted by rows − 1; unit of y"""
    cells: int
    """cells that had enough rows and some variation"""
    rows: int
    """rows in them"""


def matched_cells(covariates: Float[Tensor, "n k"], bins: int = 3) -> Int[Tensor, "n"]:
    """The cell of each row when every covariate is cut at its quantiles into equally full bins; −1 where one is nan.

    Equal values share a bin. k covariates make up to bins^k cells.

    References
    ----------
    Cochran 1968 (subclassification); checked by tests/formulas/test_ranks.py.
    """
    if bins < 1:
        raise InputError(f"bins is at least 1, received {bins}")
    known = ~covariates.isnan().any(1)
    cells = torch.full((len(covariates),), -1, dtype=torch.long, device=covariates.device)
    place = torch.zeros(int(known.sum()), dtype=torch.long)
    for column in covariates[known].T.cpu():
        share = (ranks(column) - 0.5) / len(column)
        place = place * bins + (share * bins).long()
    cells[known] = place.to(cells.device)
    return cells


def within_cells(x: Float[Tensor, "n"], y: Float[Tensor, "n"], cells: Int[Tensor, "n"], least: int = 5) -> Matched:
    """Does y go with x among rows of the same cell? Cells with fewer than `least` rows are left out, and so are nan rows.

    Undefined (nan) where no cell is left.

    References
    ----------
    Cochran 1968 (subclassification); checked by tests/pencil.py::within_cells.
    """
    known = (cells >= 0) & ~x.isnan() & ~y.isnan()
    found = []
    for cell in cells[known].unique():
        a, b = x[known & (cells == cell)], y[known & (cells == cell)]
        middle = a.quantile(0.5)
        rho, gap = float(spearman(a, b)), float(b[a > middle].mean() - b[a < middle].mean())
        if len(a) >= least and rho == rho and gap == gap:
            found.append((len(a), rho, gap))
    if not found:
        return Matched(float("nan"), float("nan"), 0, 0)
    weight = sum(n - 1 for n, _, _ in found)
    correlation, difference = (sum((each[0] - 1) * each[k] for each in found) / weight for k in (1, 2))
    return Matched(correlation, difference, len(found), sum(n for n, _, _ in found))


def _spearman(x: Tensor, y: Tensor) -> Tensor:
    undefined = torch.tensor(torch.nan, dtype=torch.float64, device=x.device)
    known = ~(x.isnan() | y.isnan())
    if int(known.sum()) < LEAST:
        return undefined
    ranks = [torch.from_numpy(stats.rankdata(column[known].cpu().numpy())) for column in (x, y)]
    a, b = (rank - rank.mean() for rank in ranks)
    scale = a.norm() * b.norm()
    return (a @ b / scale).to(x.device) if scale > 0 else undefined
