"""Rank correlations, plain and partial, for many samples of rows at once."""

import numpy as np
import scipy
import torch

from channelscope.errors import ShapeError
from channelscope.types import Bool, Float, Tensor

PINV_RTOL = 1e-9
"""Share of a column's variance below which it counts as determined by the other columns."""

ROUNDING = 2.0**-50
"""Range over largest size of a column that is constant up to rounding: four units in the last place of a float64."""


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
    """Correlation of the first two of k columns given the other k − 2.

        ρ_12·rest = S_12 / √(S_11 S_22)        S = R_12,12 − R_12,rest R_rest⁻¹ R_rest,12

    With k = 2 it is the plain correlation. On ranks (`ranks`) it is the partial Spearman correlation.

    Parameters
    ----------
    columns
        Rows are samples, the last axis holds the k columns; leading axes are independent problems.

    Returns
    -------
    Tensor
        −1 … 1, one value per leading index; nan where one of the two is constant or determined by the others, and with fewer
        than k + 1 rows.

    Raises
    ------
    ShapeError
        For fewer than two columns.

    Examples
    --------
    Both columns are the third one plus independent noise.

    >>> z, e, f = torch.tensor([1.0, 1, 1, 1, -1, -1, -1, -1]), torch.tensor([1.0, -1] * 4), torch.tensor([1.0, 1, -1, -1] * 2)
    >>> columns = torch.stack([z + e, z + f, z], 1)
    >>> round(float(partial_correlation(columns[:, :2])), 3), round(float(partial_correlation(columns)), 3)
    (0.5, 0.0)

    References
    ----------
    Anderson 2003, section 2.5.3. Checked against tests/pencil_experiments.py::partial_correlation.
    """
    n, k = columns.shape[-2:]
    if k < 2:
        raise ShapeError(f"a correlation needs two columns, received {k}")
    centred = columns.double() - columns.double().mean(-2, keepdim=True)
    scaled = (centred / centred.norm(dim=-2, keepdim=True)).masked_fill(constant(columns)[..., None, :], torch.nan)
    rho = scaled.transpose(-1, -2) @ scaled
    left = rho[..., :2, :2]
    if k > 2:
        known, cross = rho[..., 2:, 2:].nan_to_num(nan=0), rho[..., :2, 2:].nan_to_num(nan=0)  # constant columns carry no information
        left = left - cross @ torch.linalg.pinv(known, rtol=PINV_RTOL, hermitian=True) @ cross.transpose(-1, -2)
    spread = left.diagonal(dim1=-2, dim2=-1)
    value = (left[..., 0, 1] / spread.prod(-1).sqrt()).clamp(-1, 1)
    undefined = ~(spread > PINV_RTOL).all(-1)
    return value.masked_fill(undefined, torch.nan) if n > k else torch.full_like(value, torch.nan)


def ranks(values: Float[Tensor, "... n"]) -> Float[Tensor, "... n"]:
    """Ranks 1 … n along the last axis; ties share their mean rank, inf is the largest.

    Parameters
    ----------
    values
        Numbers without nan, on the CPU.

    Returns
    -------
    Tensor
        Float64, in the shape of `values`.

    Raises
    ------
    ShapeError
        For nan, which has no rank: leave those rows out first.

    Examples
    --------
    >>> ranks(torch.tensor([5.0, 1.0, 5.0, torch.inf])).tolist()
    [2.5, 1.0, 2.5, 4.0]

    References
    ----------
    Spearman 1904. Checked against tests/pencil_experiments.py::ranked.
    """
    if bool(values.isnan().any()):
        raise ShapeError("nan has no rank: leave those rows out before ranking")
    return torch.from_numpy(np.asarray(scipy.stats.rankdata(values.numpy(), axis=-1), dtype=np.float64))


MIN_ROWS = 3
"""Rows that a rank correlation needs."""


def spearman(x: Float[Tensor, "n *columns"], y: Float[Tensor, "n *columns"]) -> Float[Tensor, "*columns"]:
    """Spearman's rank correlation of two columns, or of many pairs of columns.

    It is `scipy.stats.spearmanr` without its p-value; nan pairs are left out column by column, and inf is the largest rank.

    Parameters
    ----------
    x, y
        Two columns, or two matrices of columns, or a matrix and a column.

    Returns
    -------
    Tensor
        Float64, −1 … 1: one number, or one per column; nan for fewer than three pairs, or where one column is constant.

    Raises
    ------
    ShapeError
        If the numbers of rows differ.

    Examples
    --------
    >>> round(float(spearman(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 9.0, torch.inf]))), 3)
    1.0

    References
    ----------
    Spearman 1904. Checked against tests/pencil.py::spearman.
    """
    if len(x) != len(y):
        raise ShapeError(f"a rank correlation needs pairs, received {len(x)} and {len(y)} rows")
    if x.dim() == y.dim() == 1:
        return _spearman(x, y)
    x, y = torch.broadcast_tensors(x if x.dim() > 1 else x[:, None], y if y.dim() > 1 else y[:, None])
    return torch.stack([_spearman(x[:, k], y[:, k]) for k in range(x.shape[1])])


def partial_spearman(x: Float[Tensor, "n"], y: Float[Tensor, "n"], covariates: Float[Tensor, "n k"]) -> Float[Tensor, ""]:
    """Partial Spearman correlation of x and y given some covariates: the partial correlation of their ranks.

    Parameters
    ----------
    x, y
        Two columns.
    covariates
        One covariate per column; rows with a nan anywhere are left out.

    Returns
    -------
    Tensor
        −1 … 1; nan with fewer than k + 3 rows for k covariates, and where a column is constant or determined by the others.

    Examples
    --------
    >>> z, e, f = torch.tensor([1.0, 1, 1, 1, -1, -1, -1, -1]), torch.tensor([1.0, -1] * 4), torch.tensor([1.0, 1, -1, -1] * 2)
    >>> round(abs(float(partial_spearman(3 * z + e, 3 * z + f, z[:, None]))), 3)
    0.0

    References
    ----------
    Spearman 1904; Anderson 2003, section 2.5.3. Checked against tests/pencil.py::partial_spearman.
    """
    columns = torch.cat([x[:, None], y[:, None], covariates], 1).double().cpu()
    known = columns[~columns.isnan().any(1)]
    return partial_correlation(ranks(known.T).T).to(x.device)


def _spearman(x: Tensor, y: Tensor) -> Tensor:
    undefined = torch.tensor(torch.nan, dtype=torch.float64, device=x.device)
    known = ~(x.isnan() | y.isnan())
    if int(known.sum()) < MIN_ROWS:
        return undefined
    a, b = (ranks(column[known].cpu()) for column in (x, y))
    a, b = a - a.mean(), b - b.mean()
    scale = a.norm() * b.norm()
    return (a @ b / scale).to(x.device) if scale > 0 else undefined
