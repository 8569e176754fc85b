"""Correlations, matched comparisons and recovered damage of an ablation run, with one set of bootstrap draws."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import torch

from channelscope import scores
from channelscope.experiments.ablation.damage import DAMAGE_QUANTITIES, Damage
from channelscope.experiments.ablation.plan import AblationPlan, Replacement
from channelscope.experiments.ablation.tables import CONTROLS
from channelscope.experiments.columns import table
from channelscope.formulas.ranks import partial_correlation, ranks, spearman
from channelscope.formulas.resampling import bootstrap_counts
from channelscope.types import Bool, Float, Int, Tensor


@dataclass(frozen=True, eq=False)
class BootstrapDraws:
    """Draw 0 is the data as it is; each other draw takes image groups with replacement, and channels within their stratum."""

    weights: Float[Tensor, "draws groups"]
    """how often each image group enters each draw"""
    seed: int
    """of all draws"""

    @classmethod
    def of(cls, groups: int, draws: int, seed: int) -> "BootstrapDraws":
        """Draws over so many image groups."""
        return cls(torch.cat([torch.ones(1, groups, dtype=torch.float64), bootstrap_counts(groups, draws, seed)]), seed)

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
        values = partial_correlation(ranks(drawn.masked_fill(lost[:, None, None], 0)).transpose(1, 2))
        return values.masked_fill(lost, torch.nan)


@dataclass(frozen=True, eq=False)
class LayerDamage:
    """Damage of one site's lesions in every draw, by intervention and channel."""

    site: str
    """the site"""
    every: list[Replacement]
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
        found = self.drawn[list(DAMAGE_QUANTITIES).index(quantity)]
        whole = torch.full((found.shape[0], len(self.channels)), torch.nan, dtype=torch.float64)
        columns = [column for column, channel in enumerate(self.channels) if channel in places]
        whole[:, columns] = found[:, [places[self.channels[column]] for column in columns]]
        return whole


def layer_damage(
    channels: pd.DataFrame, stand_ins: Mapping[str, list[Replacement]], damage: Mapping[str, Damage], resamples: BootstrapDraws
) -> list[LayerDamage]:
    """Damage of all sites in every draw, beside the scores of the lesioned channels."""
    names = channels.select_dtypes("number").columns
    values, sites = torch.tensor(channels[names].to_numpy(dtype=float)), channels["site"].to_numpy()
    found = []
    for site, every in stand_ins.items():
        own = values[torch.from_numpy(sites == site)]
        found.append(LayerDamage(site, every, resamples.damage(damage[site]), dict(zip(names, own.T, strict=True))))
    return found


def damage_summary(draws: Float[Tensor, "draws"], level: float = 0.95) -> dict[str, float]:
    """Value of the data (draw 0) and percentile interval over the others; no interval where more than half of them are nan."""
    rest = draws[1:][~draws[1:].isnan()].numpy()
    ends = np.quantile(rest, [(1 - level) / 2, (1 + level) / 2]) if 2 * len(rest) >= len(draws) - 1 and len(rest) else (np.nan, np.nan)
    return {"value": float(draws[0]), "low": float(ends[0]), "high": float(ends[1])}


QUANTITIES = ("loss", "kl")

PEERS = ("overlap", "support", "compactness")

MATCH = ("relevance", "capture")

BINS = 3

ALL = "all layers"

COMPARED = [
    ("hull", "silence", "all"),
    *((name, "silence", "controls") for name in CONTROLS),
    ("hull", "mean", "controls"),
    ("random", "mean", "controls"),
]
"""stand-in, what it is compared with, and for which channels"""

LEAST = 8
"""Channels below which a layer has no partial correlation."""


def analyze(
    channels: pd.DataFrame, stand_ins: Mapping[str, list[Replacement]], damage: Mapping[str, Damage], plan: AblationPlan
) -> dict[str, pd.DataFrame]:
    """Everything that is said of the damage, with bootstrap intervals over channels within layers and over image groups.

    Scores are taken as known: their own error, of the calibration images, is in their own tables.
    """
    resamples = BootstrapDraws.of(plan.groups, plan.draws, plan.seed)
    layers, names = layer_damage(channels, stand_ins, damage, resamples), [name for name in channels.columns if name in scores.REGISTRY]
    return {
        "repaid": table("repaid", recovered(layers, resamples)),
        "correlations": table("ablation_correlations", correlations(names, layers, resamples)),
        "matched": table("ablation_matched", matched(layers, resamples)),
        "partial": table("ablation_partial", partial(layers, resamples)),
    }


def recovered(layers: list[LayerDamage], resamples: BootstrapDraws) -> Iterator[dict]:
    """1 − Σ damage(stand-in)/Σ damage(baseline), layer by layer and over all layers.

    The hull is given for all lesioned channels, and for those that have the controls to be set beside these. Against silence a
    stand-in is credited with the channel's mean as well; against the mean only with what it knows of the images.
    """
    for quantity in QUANTITIES:
        for name, baseline, which in COMPARED:
            total, count = torch.zeros(2, len(resamples.weights), dtype=torch.float64), 0
            for stratum, layer in enumerate(layers):
                columns = [layer.of(each, quantity) for each in (name, baseline)]
                there = _known(*(column[0] for column in columns), layer.of("silence" if which == "all" else "mean", quantity)[0])
                picks, n = resamples.picks(int(there.sum()), stratum), int(there.sum())
                sums = torch.stack([column[:, there].gather(1, picks).sum(1) for column in columns])
                total, count = total + sums, count + n
                if n:
                    yield _recovered_row((layer.site, float(layer.columns["depth"][0])), quantity, (name, baseline, which), n, sums)
            if count:
                yield _recovered_row((ALL, float("nan")), quantity, (name, baseline, which), count, total)


def _recovered_row(place: tuple[str, float], quantity: str, compared: tuple[str, str, str], n: int, sums: Tensor) -> dict:
    name, baseline, which = compared
    said = damage_summary(1 - sums[0] / sums[1])
    return {
        "site": place[0],
        "depth": place[1],
        "quantity": quantity,
        "stand_in": name,
        "baseline": baseline,
        "which": which,
        "repaid": said["value"],
        "low": said["low"],
        "high": said["high"],
        "n": n,
        "damage": float(sums[1, 0]) / n,
    }


def correlations(names: list[str], layers: list[LayerDamage], resamples: BootstrapDraws) -> Iterator[dict]:
    """Spearman's rho of damage and of repaid with every score: mean over layers, and pooled over all channels beside it."""
    for outcome, values in _outcomes(layers):
        for name in names:
            within, every, known = [], [], 0
            for stratum, (layer, value) in enumerate(zip(layers, values, strict=True)):
                score = layer.columns[name]
                there = ~(score.isnan() | value[0].isnan())
                every.append(torch.stack([score, value[0]]))
                rho = resamples.correlation(value[:, there], score[there], stratum=stratum)
                if not rho[0].isnan():
                    within.append(rho)
                    known += int(there.sum())
            said = damage_summary(_mean(within))
            yield {
                "outcome": outcome,
                "score": name,
                "rho": said["value"],
                "low": said["low"],
                "high": said["high"],
                "layers": len(within),
                "n": known,
                "pooled": float(spearman(*torch.cat(every, 1))),
            }


def matched(layers: list[LayerDamage], resamples: BootstrapDraws) -> Iterator[dict]:
    """Rank correlation of damage with peers' quantities among channels alike in task information and input capture.

    Channels are placed by their percentile within the layer, so that layers can be pooled: a cell holds those in the same
    third on both. The last row of each pair, bin `all`, is the mean over cells by their number of channels.
    """
    for outcome, values in _damages(layers):
        for name in PEERS:
            own, percentiles, harm = _percentiles(layers, values, name)
            cells = (percentiles * BINS).long().clamp(max=BINS - 1)
            total, count = torch.zeros(2, len(resamples.weights), dtype=torch.float64), 0
            for cell in np.ndindex(BINS, BINS):
                inside = (cells == torch.tensor(cell)[:, None]).all(0)
                n = int(inside.sum())
                rho = resamples.correlation(harm[:, inside], own[inside], stratum=BINS * cell[0] + cell[1])
                if not rho[0].isnan():
                    total, count = total + n * torch.stack([rho.nan_to_num(nan=0), ~rho.isnan()]), count + n
                yield _matched(outcome, name, f"{MATCH[0]} {cell[0] + 1}/{BINS}, {MATCH[1]} {cell[1] + 1}/{BINS}", rho, n)
            yield _matched(outcome, name, "all", total[0] / total[1], count)


def _matched(outcome: str, name: str, which: str, rho: Tensor, n: int) -> dict:
    said = damage_summary(rho)
    return {"outcome": outcome, "score": name, "bin": which, "rho": said["value"], "low": said["low"], "high": said["high"], "n": n}


def _percentiles(
    layers: list[LayerDamage], values: list[Tensor], name: str
) -> tuple[Float[Tensor, "n"], Float[Tensor, "2 n"], Float[Tensor, "draws n"]]:
    """Places 0..1 within the layer of one score, of what is matched, and of the damage in every draw; all layers side by side."""
    parts = []
    for layer, value in zip(layers, values, strict=True):
        columns = torch.stack([layer.columns[each] for each in (name, *MATCH)])
        there = ~columns.isnan().any(0)
        if bool(there.any()):
            placed = [(ranks(each[..., there]) - 0.5) / int(there.sum()) for each in (columns, value)]
            parts.append((placed[0][0], placed[0][1:], placed[1]))
    if not parts:
        return torch.zeros(0), torch.zeros(2, 0), torch.zeros(len(values[0]), 0)
    score, match, harm = (torch.cat(each, -1) for each in zip(*parts, strict=True))
    return score, match, harm


def partial(layers: list[LayerDamage], resamples: BootstrapDraws) -> Iterator[dict]:
    """Partial rank correlation of damage and repaid with a score once task information and input capture are known.

    Mean over the layers with at least eight channels; `plain` is the correlation without anything held equal.
    """
    for outcome, values in _outcomes(layers):
        for name, given in [(MATCH[0], MATCH[1:]), (MATCH[1], MATCH[:1]), *((name, MATCH) for name in (*PEERS, "excess", "unique"))]:
            held, plain, known = [], [], 0
            for stratum, (layer, value) in enumerate(zip(layers, values, strict=True)):
                columns = [layer.columns[each] for each in (name, *given)]
                there = _known(value[0], *columns)
                if int(there.sum()) >= LEAST:
                    harm, score, *rest = (each[..., there] for each in (value, *columns))
                    rho = resamples.correlation(harm, score, *rest, stratum=stratum)
                    if not rho[0].isnan():
                        held.append(rho)
                        plain.append(resamples.correlation(harm, score, stratum=stratum))
                        known += int(there.sum())
            said = damage_summary(_mean(held))
            yield {
                "outcome": outcome,
                "score": name,
                "given": " ".join(given),
                "rho": said["value"],
                "low": said["low"],
                "high": said["high"],
                "plain": float(_mean(plain)[0]),
                "layers": len(held),
                "n": known,
            }


def _damages(layers: list[LayerDamage]) -> Iterator[tuple[str, list[Float[Tensor, "draws channels"]]]]:
    """Damage layer by layer in every draw."""
    for quantity in QUANTITIES:
        yield f"damage_{quantity}", [layer.of("silence", quantity) for layer in layers]


def _outcomes(layers: list[LayerDamage]) -> Iterator[tuple[str, list[Float[Tensor, "draws channels"]]]]:
    """Damage, and what the hull repays of it where it exceeds its standard error (nan elsewhere), in every draw."""
    yield from _damages(layers)
    for quantity in QUANTITIES:
        name, values = f"repaid_hull_{quantity}", []
        for layer in layers:
            share = 1 - layer.of("hull", quantity) / layer.of("silence", quantity)
            values.append(share.masked_fill(layer.columns[name].isnan(), torch.nan))
        yield name, values


def _mean(layers: list[Float[Tensor, "draws"]]) -> Float[Tensor, "draws"]:
    """Mean over layers in every draw."""
    return torch.stack(layers).nanmean(0) if layers else torch.full((1,), torch.nan)


def _known(*columns: Tensor) -> Bool[Tensor, "channels"]:
    return ~torch.stack([column.isnan() for column in columns]).any(0)
