"""Ranks: rank correlation."""

import torch
from scipy import stats

from channelscope.types import Float, Tensor


def spearman(x: Float[Tensor, "n"], y: Float[Tensor, "n"]) -> Float[Tensor, ""]:
    """Spearman's rank correlation; ties share their mean rank, pairs with a nan are left out, inf is the largest rank.

    Undefined (nan) below three pairs, or where one column is constant.
    Source   Spearman 1904
    """
    known = ~(x.isnan() | y.isnan())
    if int(known.sum()) < 3:
        return torch.tensor(torch.nan, dtype=torch.float64)
    ranks = [torch.from_numpy(stats.rankdata(column[known].numpy())) for column in (x, y)]
    a, b = (rank - rank.mean() for rank in ranks)
    scale = a.norm() * b.norm()
    return (a @ b / scale) if scale > 0 else torch.tensor(torch.nan, dtype=torch.float64)
