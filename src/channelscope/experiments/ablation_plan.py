"""AblationPlan: which channels are ablated and what replaces them; Damage: what that changes, image by image, and its bootstrap."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F

from channelscope.errors import InputError, at, check_choice
from channelscope.experiments.hulls import HullOptions
from channelscope.formulas.intervals import bootstrap_counts
from channelscope.formulas.ranks import partial_correlation, ranks
from channelscope.formulas.regression import replacement_weights
from channelscope.network.sites import site_named
from channelscope.scores.score import LayerStatistics, ScoreOptions
from channelscope.site import Site
from channelscope.stats.moments import Moments
from channelscope.stats.profile import Profile
from channelscope.stats.tally import margin
from channelscope.types import Float, Int, Tensor

Silence = Literal["zero", "mean"]

DAMAGE_QUANTITIES = {"loss": "nats", "accuracy": "fraction", "margin": "logits", "kl": "nats"}
"""Quantity → unit; positive is worse."""


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
    """layers to ablate; by default all"""
    groups: int = 10
    """groups of evaluation images (index mod groups) that are resampled for intervals"""
    draws: int = 500
    """resamples behind each interval"""
    seed: int = 0
    """of the drawn channels, the random peers and the resampling"""

    def __post_init__(self) -> None:
        """Raise InputError for numbers out of range and an unknown kind of silence."""
        check_choice("silence", self.silence, get_args(Silence))
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


def image_damage(
    before: Float[Tensor, "images classes"], after: Float[Tensor, "images classes"], labels: Int[Tensor, "images"]
) -> Float[Tensor, "quantities images"]:
    """Change of the output of each image, for every quantity of `DAMAGE_QUANTITIES`; positive is worse.

    Parameters
    ----------
    before, after
        Logits of the intact and of the ablated network, (images, classes).
    labels
        Class of each image.

    Returns
    -------
    Tensor
        (quantities, images), float64: rise of the cross-entropy [nats]; 1 if the image is no longer right, −1 if it has become
        so; fall of the logit margin; Kullback-Leibler divergence of the output from the intact network's [nats].

    Examples
    --------
    >>> before, after = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    >>> image_damage(before, after, torch.tensor([0])).round(decimals=3).flatten().tolist()
    [1.0, 1.0, 2.0, 0.462]
    """
    before, after = before.double(), after.double()
    was, now = before.log_softmax(1), after.log_softmax(1)
    right = (before.argmax(1) == labels).double() - (after.argmax(1) == labels).double()
    loss = F.nll_loss(now, labels, reduction="none") - F.nll_loss(was, labels, reduction="none")
    kl = (was.exp() * (was - now)).sum(1)
    return torch.stack([loss, right, margin(before, labels) - margin(after, labels), kl])


@dataclass(frozen=True, eq=False)
class Damage:
    """Sums over images of each ablation's damage and of its square; `+` merges disjoint image sets.

    Examples
    --------
    >>> values = torch.tensor([[[1.0, 3.0], [0.0, 1.0], [2.0, 2.0], [0.0, 0.0]]]).double()  # (ablations, quantities, images)
    >>> damage = Damage.of(values, torch.tensor([0, 1]), groups=2)
    >>> damage.mean.tolist(), damage.error.tolist()
    ([[2.0, 0.5, 2.0, 0.0]], [[1.0, 0.5, 0.0, 0.0]])
    """

    images: Float[Tensor, "groups"]
    """images of each group"""
    sums: Float[Tensor, "ablations groups quantities"]
    """sum of the damage, float64"""
    squares: Float[Tensor, "ablations groups quantities"]
    """sum of its square"""

    @classmethod
    def of(cls, values: Float[Tensor, "ablations quantities images"], group_of_image: Int[Tensor, "images"], groups: int) -> "Damage":
        """Damage over some images.

        Parameters
        ----------
        values
            Damage of every image, (ablations, quantities, images).
        group_of_image
            Group of each image, from 0.
        groups
            Number of groups.

        Returns
        -------
        Damage
            Sums by group.
        """
        member = F.one_hot(group_of_image, groups).double().to(values.device)
        sums, squares = (torch.einsum("lqi,ig->lgq", each, member).cpu() for each in (values, values.square()))
        return cls(member.sum(0).cpu(), sums, squares)

    def __add__(self, other: "Damage") -> "Damage":
        """Damage over the union of two disjoint image sets."""
        return Damage(self.images + other.images, self.sums + other.sums, self.squares + other.squares)

    @property
    def mean(self) -> Float[Tensor, "ablations quantities"]:
        """Mean damage over the images."""
        return self.sums.sum(1) / self.images.sum()

    @property
    def error(self) -> Float[Tensor, "ablations quantities"]:
        """Standard error of `mean` over images; nan for a single image."""
        n = self.images.sum()
        if n < 2:
            return torch.full_like(self.mean, torch.nan)
        return ((self.squares.sum(1) - n * self.mean.square()).clamp(min=0) / (n - 1) / n).sqrt()


@dataclass(frozen=True, eq=False)
class BootstrapDraws:
    """Bootstrap draws: draw 0 is the data; each other draw takes image groups with replacement, and channels within their stratum.

    Examples
    --------
    >>> draws = BootstrapDraws.of(groups=3, draws=2, seed=0)
    >>> draws.weights.shape, draws.weights[0].tolist(), draws.weights.sum(1).tolist()
    (torch.Size([3, 3]), [1.0, 1.0, 1.0], [3.0, 3.0, 3.0])
    >>> rising = torch.arange(8).double()
    >>> round(float(draws.correlation(rising, rising.square())[0]), 3)
    1.0
    """

    weights: Float[Tensor, "draws groups"]
    """number of times each image group enters each draw"""
    seed: int
    """of all draws"""

    @classmethod
    def of(cls, groups: int, draws: int, seed: int) -> "BootstrapDraws":
        """Draws over image groups.

        Parameters
        ----------
        groups
            Number of image groups.
        draws
            Number of draws besides the data.
        seed
            Seed of all draws.

        Returns
        -------
        BootstrapDraws
            Their weights.
        """
        return cls(torch.cat([torch.ones(1, groups, dtype=torch.float64), bootstrap_counts(groups, draws, seed)]), seed)

    def damage(self, damage: Damage) -> Float[Tensor, "quantities draws ablations"]:
        """Mean damage of every ablation in every draw of the images, (quantities, draws, ablations)."""
        return torch.einsum("dg,lgq->qdl", self.weights, damage.sums) / (self.weights @ damage.images)[:, None]

    def picks(self, count: int, stratum: int = 0) -> Int[Tensor, "draws count"]:
        """Numbers of the channels of a stratum that enter each draw.

        Parameters
        ----------
        count
            Channels of the stratum.
        stratum
            Number of the stratum, which gives its own random numbers.

        Returns
        -------
        Tensor
            (draws, count), row 0 all channels in order.
        """
        source = torch.Generator().manual_seed(self.seed * 1_000_003 + stratum)
        picked = torch.randint(max(count, 1), (len(self.weights) - 1, count), generator=source)
        return torch.cat([torch.arange(count)[None], picked])

    def correlation(self, *columns: Tensor, stratum: int = 0) -> Float[Tensor, "draws"]:
        """Rank correlation of the first two columns given the others, in every draw.

        Parameters
        ----------
        *columns
            Each (n,) or (draws, n), without nan.
        stratum
            Number of the stratum the channels belong to.

        Returns
        -------
        Tensor
            (draws,); nan for a draw in which a column is constant or has a nan.
        """
        picks = self.picks(columns[0].shape[-1], stratum)
        drawn = torch.stack([column.expand(picks.shape).gather(1, picks) for column in columns], 1)
        lost = drawn.isnan().any(2).any(1)
        values = partial_correlation(ranks(drawn.masked_fill(lost[:, None, None], 0)).transpose(1, 2))
        return values.masked_fill(lost, torch.nan)


@dataclass(frozen=True, eq=False)
class LayerDamage:
    """Damage of one site's ablations in every draw, by intervention and channel."""

    site: str
    """name of the site"""
    every: list[Replacement]
    """its interventions"""
    drawn: Float[Tensor, "quantities draws ablations"]
    """mean damage"""
    columns: Mapping[str, Float[Tensor, "channels"]]
    """numeric columns of `ablated_channels`, in the order of the ablated channels"""

    @cached_property
    def channels(self) -> list[int]:
        """The ablated channels, in order."""
        return [each.channel for each in self.every if each.name == "silence"]

    def of(self, name: str, quantity: str) -> Float[Tensor, "draws channels"]:
        """Damage of one intervention for all ablated channels.

        Parameters
        ----------
        name
            silence, hull, random or mean.
        quantity
            One of `DAMAGE_QUANTITIES`.

        Returns
        -------
        Tensor
            (draws, channels); nan where the channel had no such intervention.
        """
        places = {each.channel: place for place, each in enumerate(self.every) if each.name == name}
        found = self.drawn[list(DAMAGE_QUANTITIES).index(quantity)]
        whole = torch.full((found.shape[0], len(self.channels)), torch.nan, dtype=torch.float64)
        columns = [column for column, channel in enumerate(self.channels) if channel in places]
        whole[:, columns] = found[:, [places[self.channels[column]] for column in columns]]
        return whole


def layer_damage(
    channels: pd.DataFrame, replacements: Mapping[str, list[Replacement]], damage: Mapping[str, Damage], resamples: BootstrapDraws
) -> list[LayerDamage]:
    """Damage of all sites in every draw, with the scores of the ablated channels.

    Parameters
    ----------
    channels
        Table `ablated_channels`.
    replacements
        Site → its interventions.
    damage
        Site → damage of its interventions, in the same order.
    resamples
        The draws.

    Returns
    -------
    list[LayerDamage]
        One per site.

    Examples
    --------
    >>> damage = {"conv": Damage.of(torch.ones(1, 4, 2).double(), torch.tensor([0, 1]), groups=2)}
    >>> channels = pd.DataFrame({"site": ["conv"], "capture": [0.5]})
    >>> (layer,) = layer_damage(channels, {"conv": [Replacement("silence", 0)]}, damage, BootstrapDraws.of(2, 1, 0))
    >>> layer.of("silence", "loss").tolist(), layer.columns["capture"].tolist()
    ([[1.0], [1.0]], [0.5])
    """
    names = channels.select_dtypes("number").columns
    values, sites = torch.tensor(channels[names].to_numpy(dtype=float)), channels["site"].to_numpy()
    found = []
    for site, every in replacements.items():
        own = values[torch.from_numpy(sites == site)]
        found.append(LayerDamage(site, every, resamples.damage(damage[site]), dict(zip(names, own.T, strict=True))))
    return found


def damage_summary(draws: Float[Tensor, "draws"], level: float = 0.95) -> dict[str, float]:
    """Value of the data (draw 0) with a percentile interval over the other draws.

    Parameters
    ----------
    draws
        (draws,), the data first.
    level
        Coverage of the interval.

    Returns
    -------
    dict[str, float]
        value, low and high; the ends are nan where more than half of the draws are nan.

    Examples
    --------
    >>> damage_summary(torch.tensor([7.0, 1.0, 2.0, 3.0]), level=0.5)
    {'value': 7.0, 'low': 1.5, 'high': 2.5}
    """
    rest = draws[1:][~draws[1:].isnan()].numpy()
    ends = np.quantile(rest, [(1 - level) / 2, (1 + level) / 2]) if 2 * len(rest) >= len(draws) - 1 and len(rest) else (np.nan, np.nan)
    return {"value": float(draws[0]), "low": float(ends[0]), "high": float(ends[1])}
