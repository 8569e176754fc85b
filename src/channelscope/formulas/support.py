"""Peer support: how much of a channel its peers explain."""

import torch

from channelscope.errors import InputError
from channelscope.formulas.gaussian import EXACT
from channelscope.types import Float, Tensor

RIDGE = 1e-3
"""Ridge on a correlation matrix: a peer counts as if a thousandth of its variance were noise of its own."""


def support(rho: Float[Tensor, "channels channels"], ridge: float = RIDGE) -> Float[Tensor, "channels"]:
    """Peer support: explained variance of each channel given all its peers, by ridge regression.

        P = (R + λI)⁻¹        E_i = 1 + λ − 1/P_ii

    One inverse for the layer. With λ > 0 this is r'(R_peers + λI)⁻¹r, a little below the explained variance. With λ = 0 and a
    singular R the eigenvalues stand in for the inverse: 1/P_ii is then exactly the residual variance, zero for whoever takes part in
    a linear dependence, and E_i = 1 wherever at most the share EXACT is left.

    Returns  0..1; nan for silent channels (nan in R), which are nobody's peers.
    Raises   InputError if ridge is negative.
    Source   Safaai et al. 2026; Guttman 1953 (image analysis: 1 − 1/P_ii); checked by tests/pencil.py::support
    """
    if ridge < 0:
        raise InputError(f"ridge is at least 0, received {ridge:g}")
    alive = ~rho.diagonal().isnan()
    inner = rho[alive][:, alive].double()
    inner.diagonal().add_(ridge)
    lower, failed = torch.linalg.cholesky_ex(inner)
    if failed or bool((lower.diagonal().square() <= EXACT).any()):
        values, vectors = torch.linalg.eigh(inner)
        floor = torch.finfo(torch.float64).eps * len(inner)
        left = 1 / vectors.square().mv(1 / values.clamp(min=floor))
    else:
        left = 1 / torch.cholesky_inverse(lower).diagonal()
    share = left - ridge
    explained = torch.full_like(rho.diagonal(), torch.nan, dtype=torch.float64)
    explained[alive] = (1 - share.masked_fill(share <= EXACT, 0)).clamp(min=0)
    return explained
