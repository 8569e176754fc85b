"""Hulls: a small set of peers that predicts a channel, for all channels of a layer at once."""

from dataclasses import dataclass
from typing import Literal

import torch

from channelscope.display import Facts, Shown, spread
from channelscope.errors import InputError
from channelscope.formulas.gaussian import FLOAT32_RESOLUTION
from channelscope.formulas.regression import RIDGE, support
from channelscope.types import Bool, Float, Int, Tensor

BLOCK_CHANNELS = 256
"""Targets treated together: a block of a layer of 2,048 channels needs about 60 MB."""


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
    if max_size < 1 or not 0 < threshold <= 1 or order not in ("forward", "prefix") or (pool is not None and pool < 1):
        raise InputError(
            'expected max_size ≥ 1, 0 < threshold ≤ 1, order "forward" or "prefix" and pool ≥ 1 or None, '
            f"received {max_size}, {threshold:g}, {order!r} and {pool}"
        )
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
