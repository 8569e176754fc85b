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
    singular R the eigenvalues stand in for the inverse: those below EXACT/C, which float32 statistics cannot tell from zero, span the
    linear dependences. A channel that takes part in one (with more than the share EXACT) is determined by its peers, E_i = 1 sharp, and
    so is a copy; the others are computed without them, which is the limit λ → 0.

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
        weights, null = vectors.square(), values <= EXACT / len(inner)
        left = (1 / weights[:, ~null].mv(1 / values[~null])).masked_fill(weights[:, null].sum(1) > EXACT, ridge)
    else:
        left = 1 / torch.cholesky_inverse(lower).diagonal()
    share = left - ridge
    explained = torch.full_like(rho.diagonal(), torch.nan, dtype=torch.float64)
    explained[alive] = (1 - share.masked_fill(share <= EXACT, 0)).clamp(min=0)
    return explained
