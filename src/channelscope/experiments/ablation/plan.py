"""AblationPlan: which channels are ablated, and what replaces each of them."""

import hashlib
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import torch

from channelscope.errors import InputError, at, no_such
from channelscope.experiments.hulls import HullOptions
from channelscope.formulas.regression import replacement_weights
from channelscope.network.sites import site_named
from channelscope.scores.layer_statistics import LayerStatistics, ScoreOptions
from channelscope.site import Site
from channelscope.stats.moments import Moments
from channelscope.stats.profile import Profile
from channelscope.types import Float, Tensor


@dataclass(frozen=True, eq=False)
class Replacement:
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
    def predicting(cls, name: str, cut: Moments, channel: int, members: list[int], ridge: float) -> "Replacement":
        """The best linear prediction of a channel from some peers at the cut point; peers silent there are left out.

        Parameters
        ----------
        ridge
            On the correlation scale, as in the hull: a peer's own scale does not matter.

        Raises
        ------
        SingularError
            If the peers determine each other and ridge is 0.
        """
        loud = [peer for peer in members if cut.variance[peer] > 0]
        scale = cut.variance.sqrt()
        unit = cut.scaled(1 / scale.masked_fill(scale == 0, 1), torch.zeros_like(scale))
        weights, _ = replacement_weights(unit.covariance, unit.mean, channel, loud, ridge)
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


Silence = Literal["zero", "mean"]


@dataclass(frozen=True)
class AblationPlan:
    """Which channels are ablated and how."""

    channels: int = 200
    """channels to ablate, spread evenly over the layers"""
    all: bool = False
    """ablate every channel"""
    controls: int = 200
    """of these, how many also get the controls: as many random peers, and the mean"""
    silence: Silence = "zero"
    """what an ablated channel shows: nothing, or its mean over the calibration images"""
    sites: tuple[str, ...] | None = None
    """sites to ablate; by default every one"""
    groups: int = 10
    """groups of evaluation images (index mod groups) that are resampled for intervals"""
    draws: int = 500
    """resamples behind each interval"""
    seed: int = 0
    """of the drawn channels, the random peers and the resampling"""

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense, and a silence that does not exist."""
        if self.silence not in get_args(Silence):
            raise InputError(no_such("silence", self.silence, get_args(Silence)))
        for name, value, least in (
            ("channels", self.channels, 1),
            ("controls", self.controls, 0),
            ("groups", self.groups, 2),
            ("draws", self.draws, 1),
        ):
            if value < least:
                raise InputError(f"ablate: expected {name} of at least {least}, received {value}")

    def chosen(self, profile: Profile) -> tuple[Site, ...]:
        """The sites to lesion, in execution order; SiteError lists near matches of a name that is none."""
        if self.sites is None:
            return profile.sites
        names = {site_named(profile.sites, name).name for name in self.sites}
        return tuple(site for site in profile.sites if site.name in names)

    def stand_ins(self, profile: Profile, rule: HullOptions, convention: ScoreOptions) -> dict[str, list[Replacement]]:
        """Site → every intervention on it: silence and hull for each drawn channel, random peers and mean for the controls."""
        sites = self.chosen(profile)
        sizes = [site.channels for site in sites]
        lesioned = sizes if self.all else split_evenly(sizes, self.channels)
        controlled = np.minimum(split_evenly(sizes, self.controls), lesioned)
        plan = {}
        for site, count, controls in zip(sites, lesioned, controlled, strict=True):
            with at(site.name):
                order = torch.randperm(site.channels, generator=_generator(self.seed, site.name)).tolist()[:count]
                plan[site.name] = self._at(profile, site, order, set(order[:controls]), rule, convention)
        return {name: each for name, each in plan.items() if each}

    def _at(
        self, profile: Profile, site: Site, order: list[int], controls: set[int], rule: HullOptions, convention: ScoreOptions
    ) -> list[Replacement]:
        if not order:
            return []
        record = profile.record(site)
        cut, found = record.activation, rule(LayerStatistics(profile, site, record, convention))
        loud = set((cut.variance > 0).nonzero()[:, 0].tolist())
        every = []
        for channel in sorted(order):
            hull = Replacement.predicting("hull", cut, channel, [peer for peer in found.members[channel].tolist() if peer >= 0], rule.ridge)
            mean = float(cut.mean[channel])
            every += [Replacement("silence", channel, intercept=mean if self.silence == "mean" else 0.0), hull]
            if channel in controls:
                peers = sorted(loud - {channel})
                draw = torch.randperm(len(peers), generator=_generator(self.seed, f"{site.name}/{channel}"))
                random = [peers[place] for place in draw[: len(hull.members)].tolist()]
                every.append(Replacement.predicting("random", cut, channel, random, rule.ridge))
                every.append(Replacement("mean", channel, intercept=mean))
        return every


def split_evenly(sizes: list[int], total: int) -> list[int]:
    """How many of `total` each layer gets: equally many, no more than it has; what is left over goes to layers spaced evenly."""
    total = min(total, sum(sizes))
    level = 0
    while sum(min(size, level + 1) for size in sizes) <= total and level < max(sizes):
        level += 1
    counts = [min(size, level) for size in sizes]
    room = [place for place, size in enumerate(sizes) if size > level]
    left = total - sum(counts)
    for step in range(left):
        counts[room[step * len(room) // left]] += 1
    return counts


def _generator(seed: int, place: str) -> torch.Generator:
    own = int.from_bytes(hashlib.sha256(f"{seed}/{place}".encode()).digest()[:7], "big")
    return torch.Generator().manual_seed(own)
