"""Ranks: rank correlation, plain, with covariates held equal, and inside matched cells."""

from dataclasses import dataclass

import torch
from scipy import stats

from channelscope.errors import InputError, ShapeError
from channelscope.formulas.partial import partial_correlation, ranked
from channelscope.types import Float, Int, Tensor

LEAST = 3
"""Rows below which a rank correlation says nothing."""


def spearman(x: Float[Tensor, "n *columns"], y: Float[Tensor, "n *columns"]) -> Float[Tensor, "*columns"]:
    """Spearman's rank correlation; ties share their mean rank, pairs with a nan are left out, inf is the largest rank.

    Two columns give one number; two matrices (or a matrix and a column) one number per column.

    Raises   ShapeError if the numbers of rows differ.
    Undefined (nan) below three pairs, or where one column is constant.
    Source   Spearman 1904; checked by tests/pencil.py::spearman
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
    Source   Spearman 1904; Anderson 2003, section 2.5.3; checked by tests/pencil.py::partial_spearman
    """
    columns = torch.cat([x[:, None], y[:, None], covariates], 1).double().cpu()
    known = columns[~columns.isnan().any(1)]
    return partial_correlation(ranked(known.T).T).to(x.device)


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
    Source   Cochran 1968 (subclassification); checked by tests/formulas/test_ranks.py
    """
    if bins < 1:
        raise InputError(f"bins is at least 1, received {bins}")
    known = ~covariates.isnan().any(1)
    cells = torch.full((len(covariates),), -1, dtype=torch.long, device=covariates.device)
    place = torch.zeros(int(known.sum()), dtype=torch.long)
    for column in covariates[known].T.cpu():
        share = (ranked(column) - 0.5) / len(column)
        place = place * bins + (share * bins).long()
    cells[known] = place.to(cells.device)
    return cells


def within_cells(x: Float[Tensor, "n"], y: Float[Tensor, "n"], cells: Int[Tensor, "n"], least: int = 5) -> Matched:
    """Does y go with x among rows of the same cell? Cells with fewer than `least` rows are left out, and so are nan rows.

    Undefined (nan) where no cell is left.
    Source   Cochran 1968 (subclassification); checked by tests/pencil.py::within_cells
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
