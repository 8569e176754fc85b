"""StandIn: what takes the place of one channel's map while it is lesioned."""

from dataclasses import dataclass, field

import torch

from channelscope.formulas.regression import replacement
from channelscope.stats.moments import Moments
from channelscope.types import Float, Tensor


@dataclass(frozen=True, eq=False)
class StandIn:
    """A weighted sum of peers' maps plus a constant: `Σ_j weights_j · map_j + intercept`; silence is the empty one."""

    name: str
    """silence, hull, random or mean"""
    channel: int
    """the channel it replaces"""
    members: tuple[int, ...] = ()
    """peers, of the same site"""
    weights: Float[Tensor, "members"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    """their weights, float64"""
    intercept: float = 0.0
    """the constant"""

    @classmethod
    def predicting(cls, name: str, cut: Moments, channel: int, members: list[int], ridge: float) -> "StandIn":
        """The best linear prediction of a channel from some peers at the cut point; peers silent there are left out.

        ridge   on the correlation scale, as in the hull: a peer's own scale does not matter
        Raises   SingularError if the peers determine each other and ridge is 0.
        """
        loud = [peer for peer in members if cut.variance[peer] > 0]
        scale = cut.variance.sqrt()
        unit = cut.scaled(1 / scale.masked_fill(scale == 0, 1), torch.zeros_like(scale))
        weights, _ = replacement(unit.covariance, unit.mean, channel, loud, ridge)
        weights = weights * scale[channel] / scale[loud]
        return cls(name, channel, tuple(loud), weights, float(cut.mean[channel] - weights @ cut.mean[loud]))

    def maps(self, maps: Float[Tensor, "images ..."], axis: int) -> Float[Tensor, "images ..."]:
        """The replacement's map in a batch of the site's maps; `axis` holds the channels, counted without the batch axis."""
        own = maps.select(axis + 1, self.channel)
        if not self.members:
            return torch.full_like(own, self.intercept)
        peers = maps.index_select(axis + 1, torch.tensor(self.members, device=maps.device))
        return torch.tensordot(peers.movedim(axis + 1, -1), self.weights.to(peers), 1) + self.intercept

    def standing_in(self, maps: Float[Tensor, "images ..."], axis: int) -> Float[Tensor, "images ..."] | None:
        """All maps of the site with the channel replaced; None if that changes nothing."""
        own, other = maps.select(axis + 1, self.channel), self.maps(maps, axis)
        if torch.equal(own, other):
            return None
        changed = maps.clone()
        changed.select(axis + 1, self.channel).copy_(other)
        return changed
