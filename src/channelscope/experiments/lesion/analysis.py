"""What the damage goes with: scores, peers that stand in, and peers once what a channel says is held equal."""

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd
import torch

from channelscope import scores
from channelscope.experiments.columns import table
from channelscope.experiments.lesion.damage import Damage
from channelscope.experiments.lesion.frames import CONTROLS
from channelscope.experiments.lesion.plan import Plan
from channelscope.experiments.lesion.resample import Harms, Resamples, harms, summary
from channelscope.experiments.lesion.stand_in import StandIn
from channelscope.formulas.partial import ranked
from channelscope.formulas.ranks import spearman
from channelscope.types import Bool, Float, Tensor

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


def analyzed(
    channels: pd.DataFrame, stand_ins: Mapping[str, list[StandIn]], damage: Mapping[str, Damage], plan: Plan
) -> dict[str, pd.DataFrame]:
    """Everything that is said of the damage, with bootstrap intervals over channels within layers and over image groups.

    Scores are taken as known: their own error, of the calibration images, is in their own tables.
    """
    resamples = Resamples.of(plan.groups, plan.draws, plan.seed)
    layers, names = harms(channels, stand_ins, damage, resamples), [name for name in channels.columns if name in scores.REGISTRY]
    return {
        "repaid": table("repaid", repaid(layers, resamples)),
        "correlations": table("lesion_correlations", correlations(names, layers, resamples)),
        "matched": table("lesion_matched", matched(layers, resamples)),
        "partial": table("lesion_partial", partial(layers, resamples)),
    }


def repaid(layers: list[Harms], resamples: Resamples) -> Iterator[dict]:
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
                    yield _repaid((layer.site, float(layer.columns["depth"][0])), quantity, (name, baseline, which), n, sums)
            if count:
                yield _repaid((ALL, float("nan")), quantity, (name, baseline, which), count, total)


def _repaid(place: tuple[str, float], quantity: str, compared: tuple[str, str, str], n: int, sums: Tensor) -> dict:
    name, baseline, which = compared
    said = summary(1 - sums[0] / sums[1])
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


def correlations(names: list[str], layers: list[Harms], resamples: Resamples) -> Iterator[dict]:
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
            said = summary(_mean(within))
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


def matched(layers: list[Harms], resamples: Resamples) -> Iterator[dict]:
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
    said = summary(rho)
    return {"outcome": outcome, "score": name, "bin": which, "rho": said["value"], "low": said["low"], "high": said["high"], "n": n}


def _percentiles(
    layers: list[Harms], values: list[Tensor], name: str
) -> tuple[Float[Tensor, "n"], Float[Tensor, "2 n"], Float[Tensor, "draws n"]]:
    """Places 0..1 within the layer of one score, of what is matched, and of the damage in every draw; all layers side by side."""
    parts = []
    for layer, value in zip(layers, values, strict=True):
        columns = torch.stack([layer.columns[each] for each in (name, *MATCH)])
        there = ~columns.isnan().any(0)
        if bool(there.any()):
            placed = [(ranked(each[..., there]) - 0.5) / int(there.sum()) for each in (columns, value)]
            parts.append((placed[0][0], placed[0][1:], placed[1]))
    if not parts:
        return torch.zeros(0), torch.zeros(2, 0), torch.zeros(len(values[0]), 0)
    score, match, harm = (torch.cat(each, -1) for each in zip(*parts, strict=True))
    return score, match, harm


def partial(layers: list[Harms], resamples: Resamples) -> Iterator[dict]:
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
            said = summary(_mean(held))
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


def _damages(layers: list[Harms]) -> Iterator[tuple[str, list[Float[Tensor, "draws channels"]]]]:
    """Damage layer by layer in every draw."""
    for quantity in QUANTITIES:
        yield f"damage_{quantity}", [layer.of("silence", quantity) for layer in layers]


def _outcomes(layers: list[Harms]) -> Iterator[tuple[str, list[Float[Tensor, "draws channels"]]]]:
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
