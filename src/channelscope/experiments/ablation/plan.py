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
from channelscope.scores.score import LayerStatistics, ScoreOptions
from channelscope.site import Site
from channelscope.stats.moments import Moments
from channelscope.stats.profile import Profile
from channelscope.types import Float, Tensor


@dataclass(frozen=True, eq=False)
class Replacement:
    """A weighted sum of peers' maps plus a constant: `Σ_j weights_j · map_j + intercept`; silence has neither.

    Examples
    --------
    >>> maps = torch.tensor([[1.0, 2.0, 3.0]])  # one image, three channels
    >>> Replacement("hull", 2, members=(0, 1), weights=torch.tensor([2.0, 0.5]), intercept=1.0).standing_in(maps, axis=0).tolist()
    [[1.0, 2.0, 4.0]]
    """

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
        """Best linear prediction of a channel from some peers at the activation; peers without variance there are left out.

        Parameters
        ----------
        name
            Name of the replacement.
        cut
            Moments of the site's activation.
        channel
            Channel that is predicted.
        members
            Peers that predict it.
        ridge
            Ridge of the regression on channels scaled to variance 1, as in the hull, so that a peer's scale does not matter.

        Returns
        -------
        Replacement
            Its weights and intercept; without members, the channel's mean.

        Raises
        ------
        SingularError
            If the peers determine each other and `ridge` is 0.
        """
        varying = [peer for peer in members if cut.variance[peer] > 0]
        scale = cut.variance.sqrt()
        unit = cut.scaled(1 / scale.masked_fill(scale == 0, 1), torch.zeros_like(scale))
        weights, _ = replacement_weights(unit.covariance, unit.mean, channel, varying, ridge)
        weights = weights * scale[channel] / scale[varying]
        return cls(name, channel, tuple(varying), weights, float(cut.mean[channel] - weights @ cut.mean[varying]))

    def maps(self, maps: Float[Tensor, "images ..."], axis: int) -> Float[Tensor, "images ..."]:
        """Map of the replacement in a batch of the site's maps.

        Parameters
        ----------
        maps
            Maps of all channels of the site, (images, …).
        axis
            Axis of the channels, counted without the batch axis.

        Returns
        -------
        Tensor
            `maps` without the axis of channels.
        """
        own = maps.select(axis + 1, self.channel)
        if not self.members:
            return torch.full_like(own, self.intercept)
        peers = maps.index_select(axis + 1, torch.tensor(self.members, device=maps.device))
        return torch.tensordot(peers.movedim(axis + 1, -1), self.weights.to(peers), 1) + self.intercept

    def standing_in(self, maps: Float[Tensor, "images ..."], axis: int) -> Float[Tensor, "images ..."] | None:
        """All maps of the site with the channel replaced; None if that changes nothing.

        Parameters
        ----------
        maps
            Maps of all channels of the site, (images, …).
        axis
            Axis of the channels, counted without the batch axis.

        Returns
        -------
        Tensor or None
            A changed copy.
        """
        own, other = maps.select(axis + 1, self.channel), self.maps(maps, axis)
        if torch.equal(own, other):
            return None
        changed = maps.clone()
        changed.select(axis + 1, self.channel).copy_(other)
        return changed


Silence = Literal["zero", "mean"]


@dataclass(frozen=True)
class AblationPlan:
    """Which channels are ablated and how.

    Examples
    --------
    >>> plan = AblationPlan(channels=50, silence="mean")
    >>> plan.channels, plan.controls, plan.silence
    (50, 200, 'mean')
    """

    channels: int = 200
    """number of channels to ablate, spread evenly over the layers"""
    all: bool = False
    """ablate every channel"""
    controls: int = 200
    """number of these channels that also get the two controls: equally many random peers, and the channel's mean"""
    silence: Silence = "zero"
    """ablation value: zero, or the channel's mean over the calibration images"""
    sites: tuple[str, ...] | None = None
    """sites to ablate; by default all"""
    groups: int = 10
    """groups of evaluation images (index mod groups) that are resampled for intervals"""
    draws: int = 500
    """resamples behind each interval"""
    seed: int = 0
    """of the drawn channels, the random peers and the resampling"""

    def __post_init__(self) -> None:
        """Raise InputError for numbers out of range and an unknown kind of silence."""
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
        """Sites to ablate, in execution order.

        Parameters
        ----------
        profile
            Statistics of the network.

        Returns
        -------
        tuple[Site, ...]
            All sites, or those of `sites`.

        Raises
        ------
        SiteError
            With near matches, for a name that is no site.
        """
        if self.sites is None:
            return profile.sites
        names = {site_named(profile.sites, name).name for name in self.sites}
        return tuple(site for site in profile.sites if site.name in names)

    def replacements(self, profile: Profile, rule: HullOptions, convention: ScoreOptions) -> dict[str, list[Replacement]]:
        """Site → all interventions on it: silence and hull for each drawn channel, random peers and mean for those with controls.

        Parameters
        ----------
        profile
            Statistics of the network.
        rule
            How hulls grow.
        convention
            Options of the scores.

        Returns
        -------
        dict[str, list[Replacement]]
            By site, in the order of the channels.
        """
        sites = self.chosen(profile)
        sizes = [site.channels for site in sites]
        ablated = sizes if self.all else split_evenly(sizes, self.channels)
        controlled = np.minimum(split_evenly(sizes, self.controls), ablated)
        plan = {}
        for site, count, controls in zip(sites, ablated, controlled, strict=True):
            with at(site.name):
                order = torch.randperm(site.channels, generator=_generator(self.seed, site.name)).tolist()[:count]
                plan[site.name] = self._at(profile, site, order, set(order[:controls]), rule, convention)
        return {name: each for name, each in plan.items() if each}

    def _at(
        self, profile: Profile, site: Site, order: list[int], controls: set[int], rule: HullOptions, convention: ScoreOptions
    ) -> list[Replacement]:
        """Interventions on one site."""
        if not order:
            return []
        record = profile.record(site)
        cut, found = record.activation, rule(LayerStatistics(profile, site, record, convention))
        varying = set((cut.variance > 0).nonzero()[:, 0].tolist())
        every = []
        for channel in sorted(order):
            hull = Replacement.predicting("hull", cut, channel, [peer for peer in found.members[channel].tolist() if peer >= 0], rule.ridge)
            mean = float(cut.mean[channel])
            every += [Replacement("silence", channel, intercept=mean if self.silence == "mean" else 0.0), hull]
            if channel in controls:
                peers = sorted(varying - {channel})
                draw = torch.randperm(len(peers), generator=_generator(self.seed, f"{site.name}/{channel}"))
                random = [peers[place] for place in draw[: len(hull.members)].tolist()]
                every.append(Replacement.predicting("random", cut, channel, random, rule.ridge))
                every.append(Replacement("mean", channel, intercept=mean))
        return every


def split_evenly(sizes: list[int], total: int) -> list[int]:
    """Number of channels each layer gets of a total: equally many, but no more than it has.

    Parameters
    ----------
    sizes
        Channels of each layer.
    total
        Channels to distribute.

    Returns
    -------
    list[int]
        One number per layer, `min(total, sum(sizes))` in sum; a remainder goes to layers evenly spaced in depth.

    Examples
    --------
    >>> split_evenly([4, 4, 4], 6), split_evenly([1, 9, 9], 10), split_evenly([5] * 6, 2)
    ([2, 2, 2], [1, 5, 4], [1, 0, 0, 1, 0, 0])
    """
    total = min(total, sum(sizes))
    per_layer = 0
    while sum(min(size, per_layer + 1) for size in sizes) <= total and per_layer < max(sizes):
        per_layer += 1
    counts = [min(size, per_layer) for size in sizes]
    larger = [place for place, size in enumerate(sizes) if size > per_layer]
    remainder = total - sum(counts)
    for step in range(remainder):
        counts[larger[step * len(larger) // remainder]] += 1
    return counts


def _generator(seed: int, place: str) -> torch.Generator:
    """Random numbers that depend on the seed and the place alone."""
    digest = int.from_bytes(hashlib.sha256(f"{seed}/{place}".encode()).digest()[:7], "big")
    return torch.Generator().manual_seed(digest)
