"""Linear prediction from the channels of a layer: peer support, task credit, replacement weights, elimination, and hulls.

A hull is a small set of peers that predicts a channel; hulls are found for all channels of a layer at once.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from channelscope.display import Facts, Shown, spread
from channelscope.errors import InputError, ShapeError
from channelscope.formulas.gaussian import FLOAT32_RESOLUTION, correlation, solve
from channelscope.types import Bool, Float, Int, Tensor

RIDGE = 1e-3
"""Ridge on a correlation matrix: a peer counts as if a thousandth of its variance were noise of its own."""

BLOCK_CHANNELS = 256
"""Targets treated together: a block of a layer of 2,048 channels needs about 60 MB."""


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


@dataclass(frozen=True, repr=False)
class Hulls(Shown):
    """The replaceability hull of every channel of a layer; silent channels have size 0 and nan numbers."""

    members: Int[Tensor, "channels max_size"]
    """peers in the order they were added, padded with −1"""
    size: Int[Tensor, "channels"]
    """number of members; 0 where nothing is to be explained or nothing explains"""
    explained: Float[Tensor, "channels max_size"]
    """explained variance (0..1) with the first member, the first two, …; nan beyond the size"""
    saturated: Bool[Tensor, "channels"]
    """True where the threshold was not reached"""
    support: Float[Tensor, "channels"]
    """explained variance given all peers (0..1)"""

    def facts(self) -> Facts:
        """How many channels, and the ranges of the sizes and of the explained variance."""
        return f"Hulls({len(self.size)} channels, {int(self.saturated.sum())} saturated)", [
            ("size", spread(self.size)),
            ("support", spread(self.support)),
        ]

    @property
    def compactness(self) -> Float[Tensor, "channels"]:
        """Peer support per member: support/size; nan where the hull is empty."""
        return self.support / self.size.double().masked_fill(self.size == 0, torch.nan)


def hulls(
    rho: Float[Tensor, "channels channels"],
    max_size: int = 10,
    threshold: float = 0.95,
    *,
    relative: bool = True,
    ridge: float = RIDGE,
    order: Literal["forward", "prefix"] = "forward",
    pool: int | None = None,
) -> Hulls:
    """The replaceability hull of every channel: a small peer set that explains enough of its variance.

    For each target the correlations of all candidates with the residual are updated by rank-one steps (a Cholesky factor per
    target, grown by one column at a time): O(C² · max_size²) for a layer, without a loop over channels.

    Parameters
    ----------
    rho
        Correlations of the layer's channels; a silent channel has a nan row and is excluded as a peer.
    max_size
        Largest number of members.
    threshold
        A hull is complete when it explains this share.
    relative
        Whether the threshold is a share of the channel's peer support, or of its variance.
    ridge
        Ridge on the correlations, as in `regression.support`.
    order
        "forward" adds at each step the peer that raises the explained variance most; "prefix" takes the peers by |ρ| alone.
    pool
        Only the peers with the largest |ρ|, this many, are candidates; None for all.

    Returns
    -------
    Hulls
        Members, size and explained variance of each channel.

    Raises
    ------
    InputError
        For a size below 1, a threshold outside (0, 1], an unknown order.

    Examples
    --------
    Channel 0 is the sum of the independent channels 1 and 2 (scaled to variance 1); channel 3 is independent of them.

    >>> half = 0.5**0.5
    >>> rho = torch.tensor([[1.0, half, half, 0.0], [half, 1.0, 0.0, 0.0], [half, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    >>> result = hulls(rho, max_size=3)
    >>> result.size.tolist(), sorted(result.members[0, :2].tolist())
    ([2, 2, 2, 0], [1, 2])

    References
    ----------
    Safaai et al. 2026; Pati, Rezaiifar, Krishnaprasad 1993 (orthogonal updates). Checked against tests/pencil.py::hull.
    """
    for name, fits, least, received in (
        ("max_size", max_size >= 1, "at least 1", max_size),
        ("threshold", 0 < threshold <= 1, "a share above 0 and up to 1", threshold),
        ("order", order in ("forward", "prefix"), "forward or prefix", order),
        ("pool", pool is None or pool >= 1, "at least 1", pool),
    ):
        if not fits:
            raise InputError(f"{name}: expected {least}, received {received}")
    peer_support = support(rho, ridge)
    alive = (~peer_support.isnan()).nonzero().flatten()
    alive_rho = rho[alive][:, alive].double()
    goal = threshold * peer_support[alive] if relative else torch.full_like(peer_support[alive], threshold)
    members = torch.full((len(rho), max_size), -1, dtype=torch.long, device=rho.device)
    explained = torch.full((len(rho), max_size), torch.nan, dtype=torch.float64, device=rho.device)
    complete = torch.zeros(len(rho), dtype=torch.bool, device=rho.device)
    for block in torch.arange(len(alive), device=rho.device).split(BLOCK_CHANNELS):
        selection = _ForwardSelection(alive_rho, block, ridge, min(max_size, max(len(alive) - 1, 0)), pool)
        for step in range(selection.steps):
            pick, active = selection.choose(order, goal[block])
            if not bool(active.any()):
                break
            total = selection.add(pick, active, step)
            rows = alive[block[active]]
            members[rows, step] = alive[pick[active]]
            explained[rows, step] = total[active]
        complete[alive[block]] = selection.reached(goal[block])
    size = (members >= 0).sum(1)
    return Hulls(members, size, explained, ~complete & ~peer_support.isnan(), peer_support)


class _ForwardSelection:
    """Forward selection of the hulls of a block of targets: residual covariance and variance of each candidate."""

    def __init__(self, rho: Tensor, targets: Tensor, ridge: float, steps: int, pool: int | None) -> None:
        rows = torch.arange(len(targets), device=rho.device)
        self.rho, self.rows, self.steps = rho, rows, steps
        self.abs_rho = rho[targets].abs()
        self.abs_rho[rows, targets] = -1
        if pool is not None and pool < len(rho) - 1:
            keep = self.abs_rho.topk(pool, dim=1).indices
            self.abs_rho = torch.full_like(self.abs_rho, -1).scatter(1, keep, self.abs_rho.gather(1, keep))
            self.steps = min(steps, pool)
        self.residual_covariance = rho[targets].clone()
        """covariance of each candidate with the residual of the target"""
        self.residual_variance = torch.full_like(self.residual_covariance, 1 + ridge)
        """variance of each candidate that the members do not explain"""
        self.cholesky_rows = rho.new_zeros(len(targets), steps, len(rho))
        """rows of the Cholesky factor, one per member"""
        self.explained = rho.new_zeros(len(targets))
        """explained variance so far"""

    def reached(self, goal: Tensor) -> Tensor:
        """True where the explained variance has come to the goal, up to float32 resolution."""
        return self.explained >= goal - FLOAT32_RESOLUTION

    def choose(self, order: str, goal: Tensor) -> tuple[Tensor, Tensor]:
        """The next member of every target, and which targets are active: not complete, with a useful candidate."""
        available = self.abs_rho >= 0
        independent = self.residual_variance > FLOAT32_RESOLUTION
        gain = (self.residual_covariance.square() / self.residual_variance).masked_fill(~(available & independent), -1)
        pick = gain.argmax(1) if order == "forward" else self.abs_rho.argmax(1)
        useful = gain[self.rows, pick] > 0 if order == "forward" else available.any(1)
        return pick, useful & ~self.reached(goal)

    def add(self, pick: Tensor, active: Tensor, step: int) -> Tensor:
        """Add one more member to the hulls of the active targets; returns the explained variance with it."""
        pivot = self.residual_variance[self.rows, pick]
        column = self.rho[pick]
        if step:
            past = self.cholesky_rows[:, :step]
            weight = past[self.rows, :, pick]
            column = column - torch.bmm(weight[:, None], past)[:, 0]
        column = (column / pivot.sqrt()[:, None]).masked_fill((pivot <= FLOAT32_RESOLUTION)[:, None], 0)
        taken = (self.residual_covariance[self.rows, pick] / pivot.sqrt()).masked_fill((pivot <= FLOAT32_RESOLUTION) | ~active, 0)
        self.cholesky_rows[:, step] = column
        self.residual_variance -= column.square()
        self.residual_covariance -= taken[:, None] * column
        self.explained = self.explained + taken.square()
        self.abs_rho[self.rows, pick] = -1
        return self.explained
