"""Linear prediction from the channels of a layer: peer support, task credit, replacement weights, backward elimination."""

from dataclasses import dataclass

import torch

from channelscope.errors import InputError, ShapeError
from channelscope.formulas.gaussian import FLOAT32_RESOLUTION, correlation, solve
from channelscope.types import Float, Int, Tensor

RIDGE = 1e-3
"""Ridge on a correlation matrix: a peer counts as if a thousandth of its variance were noise of its own."""


def support(rho: Float[Tensor, "channels channels"], ridge: float = RIDGE) -> Float[Tensor, "channels"]:
    """Peer support: explained variance of each channel given all its peers, by ridge regression.

        P = (R + λI)⁻¹        E_i = 1 + λ − 1/P_ii

    With λ > 0 this is r'(R_peers + λI)⁻¹r, slightly below the explained variance. With λ = 0 and a singular R, eigenvalues
    below FLOAT32_RESOLUTION/C count as zero: a channel with more than the share FLOAT32_RESOLUTION in their span is determined
    by its peers and has E_i = 1; the others use the pseudo-inverse, which is the limit λ → 0.

    Parameters
    ----------
    rho
        Correlations of the channels; a silent channel has a nan row and is excluded as a peer.
    ridge
        λ, a share of each channel's variance.

    Returns
    -------
    Tensor
        Float64 (channels,), 0..1; nan for silent channels.

    Raises
    ------
    InputError
        If ridge is negative.

    Examples
    --------
    >>> rho = torch.tensor([[1.0, 0.6, 0.0], [0.6, 1.0, 0.0], [0.0, 0.0, 1.0]])
    >>> [round(share, 3) for share in support(rho, ridge=0).tolist()]
    [0.36, 0.36, 0.0]

    References
    ----------
    Safaai et al. 2026; Guttman 1953 (image analysis: 1 − 1/P_ii). Checked against tests/pencil.py::support.
    """
    if ridge < 0:
        raise InputError(f"ridge is at least 0, received {ridge:g}")
    alive = ~rho.diagonal().isnan()
    inner = rho[alive][:, alive].double()
    inner.diagonal().add_(ridge)
    lower, failed = torch.linalg.cholesky_ex(inner)
    if failed or bool((lower.diagonal().square() <= FLOAT32_RESOLUTION).any()):
        values, vectors = torch.linalg.eigh(inner)
        weights, null = vectors.square(), values <= FLOAT32_RESOLUTION / len(inner)
        left = (1 / weights[:, ~null].mv(1 / values[~null])).masked_fill(weights[:, null].sum(1) > FLOAT32_RESOLUTION, ridge)
    else:
        left = 1 / torch.cholesky_inverse(lower).diagonal()
    share = left - ridge
    explained = torch.full_like(rho.diagonal(), torch.nan, dtype=torch.float64)
    explained[alive] = (1 - share.masked_fill(share <= FLOAT32_RESOLUTION, 0)).clamp(min=0)
    return explained


def task_credit(
    target_rho: Float[Tensor, "channels"], rho: Float[Tensor, "channels channels"], ridge: float = RIDGE
) -> Float[Tensor, "channels"]:
    """Residualized task credit: what the joint linear prediction of the target loses without the channel.

        P = (R + λI)⁻¹        credit_i = (P r)_i² / P_ii

    At λ = 0 it is the fall of the layer's R² when channel i is left out. With λ = 0 and a singular R, eigenvalues below
    FLOAT32_RESOLUTION/C count as zero, as in `support`: a channel that its peers determine has credit 0, which is the limit λ → 0.

    Parameters
    ----------
    target_rho
        Correlation r of each channel with the target.
    rho
        Correlations R of the channels; a silent channel has a nan row and is left out.
    ridge
        λ, a share of each channel's variance.

    Returns
    -------
    Tensor
        Float64 (channels,), a share of the target's variance, 0..1; nan for silent channels.

    Raises
    ------
    InputError
        If ridge is negative.

    Examples
    --------
    Two independent channels keep their own share; a copy of a channel takes its credit.

    >>> [round(share, 3) for share in task_credit(torch.tensor([0.6, 0.8]), torch.eye(2), ridge=0).tolist()]
    [0.36, 0.64]
    >>> task_credit(torch.tensor([0.6, 0.6]), torch.ones(2, 2), ridge=0).tolist()
    [0.0, 0.0]

    References
    ----------
    Later configurations of the code of Safaai et al. 2026; Darlington 1968 (usefulness of a predictor). Checked against
    tests/pencil.py::task_credit.
    """
    if ridge < 0:
        raise InputError(f"ridge is at least 0, received {ridge:g}")
    alive = ~rho.diagonal().isnan()
    inner, aim = rho[alive][:, alive].double(), target_rho[alive].double()
    inner.diagonal().add_(ridge)
    lower, failed = torch.linalg.cholesky_ex(inner)
    if failed or bool((lower.diagonal().square() <= FLOAT32_RESOLUTION).any()):
        values, vectors = torch.linalg.eigh(inner)
        null = values <= FLOAT32_RESOLUTION / len(inner)
        known = vectors[:, ~null]
        weights, own = (known / values[~null]).mv(known.T.mv(aim)), known.square().mv(1 / values[~null])
        share = (weights.square() / own).masked_fill(vectors[:, null].square().sum(1) > FLOAT32_RESOLUTION, 0)
    else:
        precision = torch.cholesky_inverse(lower)
        share = precision.mv(aim).square() / precision.diagonal()
    credit = torch.full_like(rho.diagonal(), torch.nan, dtype=torch.float64)
    credit[alive] = share
    return credit


def replacement_weights(
    covariance: Float[Tensor, "channels channels"],
    mean: Float[Tensor, "channels"],
    target: int,
    members: list[int] | Int[Tensor, "members"],
    ridge: float = 0.0,
) -> tuple[Float[Tensor, "members"], Float[Tensor, ""]]:
    """Weights and intercept of the best linear prediction of a channel from some peers.

        Ŷ_i = a'Y_M + b        a = (Σ_MM + λI)⁻¹ Σ_Mi        b = μ_i − a'μ_M

    Parameters
    ----------
    covariance
        Covariance Σ of the layer's channels.
    mean
        Their means μ.
    target
        The channel i to predict.
    members
        The peers M; padding (−1) is ignored, and without members the prediction is the mean.
    ridge
        λ as a share of the mean variance of the members.

    Returns
    -------
    tuple[Tensor, Tensor]
        Weights a (members,) and intercept b.

    Raises
    ------
    ShapeError
        If the channel is its own member.
    SingularError
        If the members' covariance has no inverse and ridge is 0.

    Examples
    --------
    Channel 0 is twice channel 1, plus 3.

    >>> weights, intercept = replacement_weights(torch.tensor([[4.0, 2.0], [2.0, 1.0]]), torch.tensor([5.0, 1.0]), 0, [1])
    >>> weights.tolist(), float(intercept)
    ([2.0], 3.0)

    References
    ----------
    Safaai et al. 2026 (peer replacement). Checked against tests/pencil.py::replacement.
    """
    peers = torch.as_tensor(members, dtype=torch.long, device=covariance.device)
    peers = peers[peers >= 0]
    if bool((peers == target).any()):
        raise ShapeError(f"channel {target} is among the members that should replace it: leave it out")
    weights = peer_regression(covariance, torch.tensor([target], device=peers.device), peers, ridge)[0]
    return weights, mean[target] - weights @ mean[peers]


def peer_regression(
    covariance: Float[Tensor, "channels channels"],
    dropped: Int[Tensor, "dropped"],
    kept: Int[Tensor, "kept"],
    ridge: float = RIDGE,
) -> Float[Tensor, "dropped kept"]:
    """Weights of the linear prediction of the dropped channels D from the kept ones K.

        A = Σ_DK (Σ_KK + λI)⁻¹

    Parameters
    ----------
    covariance
        Covariance Σ of the layer's channels.
    dropped, kept
        Channels D and K.
    ridge
        λ as a share of the mean variance of the kept channels.

    Returns
    -------
    Tensor
        A (dropped, kept); zeros for silent dropped channels.

    Raises
    ------
    SingularError
        If Σ_KK has no inverse and ridge is 0.
    InputError
        If ridge is negative.

    Examples
    --------
    >>> covariance = torch.tensor([[4.0, 2.0], [2.0, 1.0]])
    >>> peer_regression(covariance, torch.tensor([0]), torch.tensor([1]), ridge=0).tolist()
    [[2.0]]

    References
    ----------
    Hoerl & Kennard 1970. Checked against tests/pencil.py::peers_matrix.
    """
    if ridge < 0:
        raise InputError(f"ridge is a share of the mean variance, at least 0, received {ridge:g}")
    inner = covariance[kept][:, kept].clone()
    inner.diagonal().add_(ridge * inner.diagonal().mean())
    if ridge == 0 or not bool((inner.diagonal() > 0).all()):
        return solve(inner, covariance[kept][:, dropped]).T
    return torch.linalg.solve(inner, covariance[kept][:, dropped]).T


@dataclass(frozen=True)
class Elimination:
    """The order in which the channels of a layer are removed, and the cost of each removal."""

    order: Int[Tensor, "channels"]
    """channels, first removed first"""
    cost: Float[Tensor, "channels"]
    """cost of each channel (by channel, not by place) at its removal: weight × residual variance; `cost[order]` never falls"""


def backward_elimination(
    covariance: Float[Tensor, "channels channels"], weights: Float[Tensor, "channels"], ridge: float = RIDGE
) -> Elimination:
    """Order of removal in which each step takes the channel that costs least given the peers that are left.

        cost_i = weight_i · Var(Y_i) · (1 − E_i)        E_i = explained variance given the channels left

    With weight_i = |W_next[:, i]|² the cost is the mean squared change of the consumers (by tap) when i is replaced by its
    linear prediction. One inverse for the layer; removing j updates it by P ← P − P_:j P_j: / P_jj, so O(C³) in all.

    Parameters
    ----------
    covariance
        Covariance of the layer's channels.
    weights
        Squared norm of each channel's outgoing weights.
    ridge
        On the correlation scale, as in `support`.

    Returns
    -------
    Elimination
        Silent channels are removed first and cost nothing.

    Raises
    ------
    SingularError
        If ridge is 0 and channels determine each other.
    InputError
        For negative weights.

    Examples
    --------
    >>> elimination = backward_elimination(torch.diag(torch.tensor([3.0, 0.0, 1.0])), torch.ones(3), ridge=0)
    >>> elimination.order.tolist(), elimination.cost.tolist()
    ([1, 2, 0], [3.0, 0.0, 1.0])

    References
    ----------
    Cotter, Kreutz-Delgado, Rao 2001 (backward elimination by Schur updates). Checked against
    tests/pencil.py::backward_elimination.
    """
    if not bool((weights >= 0).all()):
        raise InputError("weights are squared norms of outgoing weights, at least 0 and not nan")
    variance = covariance.diagonal()
    alive = (variance > 0).nonzero().flatten()
    silent = (~(variance > 0)).nonzero().flatten()
    rho = correlation(covariance[alive][:, alive])
    rho.diagonal().add_(ridge)
    inverse = solve(rho, torch.eye(len(alive), dtype=rho.dtype, device=rho.device))
    remaining, scale = torch.arange(len(alive), device=rho.device), (weights * variance)[alive]
    order, costs = [], torch.zeros_like(scale)
    while len(remaining):
        diagonal, factor, barred = inverse.diagonal(), scale[remaining], torch.zeros_like(remaining, dtype=rho.dtype)
        picks = []
        for _ in range(-(-len(remaining) // 4)):  # then the rows and columns of what has gone are dropped
            cost = diagonal.reciprocal().sub_(ridge).mul_(factor).clamp_(min=0).add_(barred)
            pick = int(cost.argmin())
            costs[remaining[pick]], barred[pick] = cost[pick], torch.inf
            picks.append(pick)
            row = inverse[pick] / diagonal[pick].sqrt()
            inverse.addr_(row, row, alpha=-1)
            diagonal[pick] = 1  # a removed channel has an empty row; its diagonal is not divided by
        order.append(remaining[picks])
        left = barred == 0
        remaining, inverse = remaining[left], inverse[left][:, left].contiguous()
    cost_of_channel = torch.zeros_like(variance)
    cost_of_channel[alive] = costs
    return Elimination(torch.cat([silent, alive[torch.cat(order)] if order else alive]), cost_of_channel)
