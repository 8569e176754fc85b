"""Replacement sets: the peers that predict each channel, and how many it takes (local axis)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import pandas as pd
import torch

from channelscope.errors import at
from channelscope.formulas.intervals import jackknife_interval
from channelscope.formulas.regression import RIDGE, Hulls
from channelscope.formulas.regression import hulls as grown
from channelscope.progress import track
from channelscope.scores.score import LayerStatistics, ScoreOptions
from channelscope.site import Site
from channelscope.stats.profile import Profile
from channelscope.tables.frame import fill
from channelscope.tables.quantities import PAPER, Column, Schema
from channelscope.types import Tensor


@dataclass(frozen=True)
class HullOptions:
    """How the replacement set (hull) of a channel grows, and when it is complete; calling it computes the hulls of a layer.

    Examples
    --------
    >>> HullOptions(max_size=3)
    HullOptions(max_size=3, threshold=0.95, absolute=False, order='forward', pool=None, ridge=0.001)
    """

    max_size: int = 10
    """most members of a hull"""
    threshold: float = 0.95
    """a hull is complete at this share of the channel's peer support"""
    absolute: bool = False
    """`threshold` is an explained variance, not a fraction of what all peers explain"""
    order: Literal["forward", "prefix"] = "forward"
    """forward: each member is the one that explains most; prefix: peers by |ρ| alone, as in the published code"""
    pool: int | None = None
    """only this many peers, those with the largest |ρ|, are candidates; by default all"""
    ridge: float = RIDGE
    """ridge of the regressions, as a fraction of a channel's variance"""

    def __call__(self, layer: LayerStatistics) -> Hulls:
        """Hulls of one layer.

        Parameters
        ----------
        layer
            Statistics of the layer.

        Returns
        -------
        Hulls
            Members, size and explained variance of the hull of every channel.

        Raises
        ------
        SampleError
            With fewer images than channels and no shrinkage.
        """
        layer.require_samples_for_peers()
        return grown(
            layer.correlation, self.max_size, self.threshold, relative=not self.absolute, ridge=self.ridge, order=self.order, pool=self.pool
        )


SATURATED = "whether the hull is full before the threshold is reached, or the share of channels where it is"

OWN = {
    "size": Column.count("members of the hull, or their mean", "members"),
    "saturated": Column.fraction(SATURATED, PAPER),
    "compactness": Column("fraction/member", 3, "peer support over hull size", PAPER, 0.0),
}

EXPLAINED = Column.fraction("explained variance with the hull's members")

HULLS = Schema("hulls", "site depth channel members support", {**OWN, "explained": EXPLAINED})

HULL_CURVE = Schema("hull_curve", "site depth n", {"size": OWN["size"], "explained": EXPLAINED})

HULL_LAYERS = Schema("hull_layers", "site depth channels", OWN)


def replacement_sets(profile: Profile, rule: HullOptions | None = None, **options) -> dict[str, pd.DataFrame]:
    """Replacement sets (hulls) of all channels, from the profile alone.

    Parameters
    ----------
    profile
        Statistics of the network.
    rule
        How hulls grow; by default `HullOptions()`.
    **options
        Options of the scores that matter here: shrinkage.

    Returns
    -------
    dict[str, DataFrame]
        `hulls`: one row per channel: size, members in the order they were added, saturated (full before the threshold is
        reached), explained variance, support, compactness (support/size). `hull_curve`: explained variance by number of members,
        mean over a layer's channels, a complete hull keeping its value. `hull_layers`: mean size, saturated fraction and mean
        compactness of each layer with jackknife intervals over image shards.

    Raises
    ------
    SampleError
        With fewer images than channels and no shrinkage.

    Examples
    --------
    >>> from channelscope import collect, zoo
    >>> toy = zoo.toys.exact_copy()  # channel 3 is twice channel 0
    >>> frame = replacement_sets(collect(toy.model, toy.batches))["hulls"]
    >>> frame[["channel", "size", "members"]].values.tolist()
    [[0, 1, '3'], [1, 1, '0'], [2, 1, '0'], [3, 1, '0']]
    >>> frame["explained"].round(2).tolist()
    [1.0, 0.5, 0.5, 1.0]

    References
    ----------
    Safaai et al. 2026.
    """
    rule = rule or HullOptions()
    convention = ScoreOptions.of(options)
    channels, curves, layers = [], [], []
    for site in track(profile.sites, "replacement sets"):
        with at(site.name):
            found = rule(LayerStatistics(profile, site, profile.record(site), convention))
            left_out = profile.jackknife_records(site) if profile.shards > 1 else []
            replicates = [rule(LayerStatistics(profile, site, record, convention)) for record in left_out]
        channels.append(_channels(site, found))
        curves.append(_curve(site, found))
        layers.append({"site": site.name, "depth": site.depth, "channels": site.channels, **_summary(found, replicates)})
    return {
        "hulls": fill(HULLS, pd.concat(channels, ignore_index=True)),
        "hull_curve": fill(HULL_CURVE, pd.concat(curves, ignore_index=True)),
        "hull_layers": fill(HULL_LAYERS, layers),
    }


def _channels(site: Site, found: Hulls) -> pd.DataFrame:
    """Rows of `hulls` for one site."""
    members = [" ".join(str(peer) for peer in row if peer >= 0) for row in found.members.tolist()]
    return pd.DataFrame(
        {
            "site": site.name,
            "depth": site.depth,
            "channel": range(site.channels),
            "size": found.size.numpy(),
            "members": members,
            "saturated": found.saturated.numpy(),
            "explained": explained(found).numpy(),
            "support": found.support.numpy(),
            "compactness": found.compactness.numpy(),
        }
    )


def explained(found: Hulls) -> Tensor:
    """Explained variance of each channel with all members of its hull.

    Parameters
    ----------
    found
        Hulls of a layer.

    Returns
    -------
    Tensor
        (channels,), a fraction; 0 for an empty hull, nan for a channel without variance.

    Examples
    --------
    >>> correlation = torch.tensor([[1, 0.6, 0], [0.6, 1, 0], [0, 0, 1]], dtype=torch.float64)
    >>> explained(grown(correlation, ridge=0.0)).round(decimals=3).tolist()
    [0.36, 0.36, 0.0]
    """
    last = found.explained.gather(1, (found.size - 1).clamp(min=0)[:, None])[:, 0]
    return torch.where(found.size > 0, last, torch.where(found.support.isnan(), torch.nan, 0.0))


def _curve(site: Site, found: Hulls) -> pd.DataFrame:
    """Rows of `hull_curve` for one site."""
    steps = found.explained.shape[1]
    final = explained(found)[:, None].expand(-1, steps)
    reached = torch.where(torch.arange(steps) < found.size[:, None], found.explained, final)
    return pd.DataFrame(
        {
            "site": site.name,
            "depth": site.depth,
            "size": range(1, steps + 1),
            "explained": reached.nanmean(0).numpy(),
            "n": int((~found.support.isnan()).sum()),
        }
    )


SUMMARIES: dict[str, Callable[[Hulls], Tensor]] = {
    "size": lambda found: found.size[~found.support.isnan()].double().mean(),
    "saturated": lambda found: found.saturated[~found.support.isnan()].double().mean(),
    "compactness": lambda found: found.compactness.nanmean(),
}
"""summaries of a layer: means over the channels that vary"""


def _summary(found: Hulls, replicates: list[Hulls]) -> dict[str, float]:
    """Summaries of a layer with their intervals."""
    row = {}
    for name, summary in SUMMARIES.items():
        value = summary(found)
        interval = jackknife_interval(value, [summary(each) for each in replicates])
        most = 1.0 if name == "saturated" else math.inf
        row |= {name: float(value), f"{name}_low": max(interval.low, 0.0), f"{name}_high": min(interval.high, most)}
    return row
