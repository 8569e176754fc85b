"""Resamples: the same draws of evaluation images and of channels for every statistic of a lesion study."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import torch

from channelscope.experiments.lesion.damage import QUANTITIES, Damage
from channelscope.experiments.lesion.stand_in import StandIn
from channelscope.formulas.partial import partial_correlation, ranked
from channelscope.formulas.resampling import shard_weights
from channelscope.types import Float, Int, Tensor


@dataclass(frozen=True, eq=False)
class Resamples:
    """Draw 0 is the data as it is; each other draw takes image groups with replacement, and channels within their stratum."""

    weights: Float[Tensor, "draws groups"]
    """how often each image group enters each draw"""
    seed: int
    """of all draws"""

    @classmethod
    def of(cls, groups: int, draws: int, seed: int) -> "Resamples":
        """Draws over so many image groups."""
        return cls(torch.cat([torch.ones(1, groups, dtype=torch.float64), shard_weights(groups, draws, seed)]), seed)

    def damage(self, damage: Damage) -> Float[Tensor, "quantities draws lesions"]:
        """Mean harm of every lesion in every draw of the images."""
        return torch.einsum("dg,lgq->qdl", self.weights, damage.sums) / (self.weights @ damage.images)[:, None]

    def picks(self, count: int, stratum: int = 0) -> Int[Tensor, "draws count"]:
        """Channels of a stratum that enter each draw."""
        source = torch.Generator().manual_seed(self.seed * 1_000_003 + stratum)
        picked = torch.randint(max(count, 1), (len(self.weights) - 1, count), generator=source)
        return torch.cat([torch.arange(count)[None], picked])

    def correlation(self, *columns: Tensor, stratum: int = 0) -> Float[Tensor, "draws"]:
        """Rank correlation of the first two columns given the others, in every draw; each column (n,) or (draws, n), without nan.

        A draw in which a column has become nan or constant is nan.
        """
        picks = self.picks(columns[0].shape[-1], stratum)
        drawn = torch.stack([column.expand(picks.shape).gather(1, picks) for column in columns], 1)
        lost = drawn.isnan().any(2).any(1)
        values = partial_correlation(ranked(drawn.masked_fill(lost[:, None, None], 0)).transpose(1, 2))
        return values.masked_fill(lost, torch.nan)


@dataclass(frozen=True, eq=False)
class Harms:
    """Damage of one site's lesions in every draw, by intervention and channel."""

    site: str
    """the site"""
    every: list[StandIn]
    """its interventions"""
    drawn: Float[Tensor, "quantities draws lesions"]
    """mean harm"""
    columns: Mapping[str, Float[Tensor, "channels"]]
    """every number of the table of lesioned channels, for the lesioned channels in order"""

    @cached_property
    def channels(self) -> list[int]:
        """The lesioned channels, in order."""
        return [each.channel for each in self.every if each.name == "silence"]

    def of(self, name: str, quantity: str) -> Float[Tensor, "draws channels"]:
        """Damage of one intervention for all lesioned channels; nan where it was not tried."""
        places = {each.channel: place for place, each in enumerate(self.every) if each.name == name}
        found = self.drawn[list(QUANTITIES).index(quantity)]
        whole = torch.full((found.shape[0], len(self.channels)), torch.nan, dtype=torch.float64)
        columns = [column for column, channel in enumerate(self.channels) if channel in places]
        whole[:, columns] = found[:, [places[self.channels[column]] for column in columns]]
        return whole


def harms(
    channels: pd.DataFrame, stand_ins: Mapping[str, list[StandIn]], damage: Mapping[str, Damage], resamples: Resamples
) -> list[Harms]:
    """Damage of all sites in every draw, beside the scores of the lesioned channels."""
    names = channels.select_dtypes("number").columns
    values, sites = torch.tensor(channels[names].to_numpy(dtype=float)), channels["site"].to_numpy()
    found = []
    for site, every in stand_ins.items():
        own = values[torch.from_numpy(sites == site)]
        found.append(Harms(site, every, resamples.damage(damage[site]), dict(zip(names, own.T, strict=True))))
    return found


def summary(draws: Float[Tensor, "draws"], level: float = 0.95) -> dict[str, float]:
    """Value of the data (draw 0) and percentile interval over the others; no interval where more than half of them are nan."""
    rest = draws[1:][~draws[1:].isnan()].numpy()
    ends = np.quantile(rest, [(1 - level) / 2, (1 + level) / 2]) if 2 * len(rest) >= len(draws) - 1 and len(rest) else (np.nan, np.nan)
    return {"value": float(draws[0]), "low": float(ends[0]), "high": float(ends[1])}
