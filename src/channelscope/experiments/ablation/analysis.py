"""Correlations, matched comparisons and recovered damage of an ablation run, with one set of bootstrap draws."""

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd
import torch

from channelscope import scores
from channelscope.experiments.ablation.damage import BootstrapDraws, Damage, LayerDamage, damage_summary, layer_damage
from channelscope.experiments.ablation.plan import AblationPlan, Replacement
from channelscope.experiments.ablation.tables import CONTROLS
from channelscope.formulas.ranks import ranks, spearman
from channelscope.tables.frame import fill
from channelscope.tables.quantities import OURS, PAPER, Column, Schema
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
"""replacement, what it is compared with, and for which channels"""

LEAST = 8
"""Channels below which a layer has no partial correlation."""


OUTCOME = {
    "outcome": Column.text("what the score is compared with: damage of silence, or the part of it that the hull recovers"),
    "rho": Column.correlation("rank correlation", "Spearman 1904"),
}

RECOVERED = Schema(
    "recovered",
    "site depth low high n",
    {
        "quantity": Column.text("quantity of damage: loss or kl"),
        "replacement": Column.text("what replaced the channel"),
        "baseline": Column.text("what its damage is compared with"),
        "subset": Column.text("all ablated channels, or those that have controls"),
        "recovered": Column.fraction("1 − summed damage with the replacement / summed damage of the baseline", PAPER),
        "damage": Column("nats", 4, "mean damage of the baseline per channel", OURS),
    },
)

CORRELATIONS = Schema("ablation_correlations", "score low high layers n pooled", OUTCOME)

MATCHED = Schema(
    "ablation_matched",
    "score low high n",
    {**OUTCOME, "bin": Column.text("cell of channels alike in task information and input capture, by thirds of the layer")},
)

PARTIAL = Schema(
    "ablation_partial",
    "score low high layers n",
    {
        **OUTCOME,
        "given": Column.text("scores held equal"),
        "plain": Column.correlation("the same rank correlation with nothing held equal"),
    },
)


def analyze(
    channels: pd.DataFrame, replacements: Mapping[str, list[Replacement]], damage: Mapping[str, Damage], plan: AblationPlan
) -> dict[str, pd.DataFrame]:
    """Recovered damage and correlations of damage with the scores, with bootstrap intervals over channels within layers and over images.

    Scores are taken as known: their own errors, over the calibration images, are in the tables of the scores.

    Parameters
    ----------
    channels
        Table `ablated_channels`.
    replacements
        Site → its interventions.
    damage
        Site → damage of its interventions, in the same order.
    plan
        Number of groups and draws, and the seed.

    Returns
    -------
    dict[str, DataFrame]
        `recovered`, `ablation_correlations`, `ablation_matched` and `ablation_partial`.

    Examples
    --------
    >>> from channelscope import collect, zoo
    >>> from channelscope.experiments import ablate
    >>> toy = zoo.toys.exact_copy()
    >>> tables = ablate(toy.model, collect(toy.model, toy.batches), toy.batches, AblationPlan(all=True, draws=20), progress=False)
    >>> hull = tables["recovered"].query("site == 'all layers' and quantity == 'kl' and replacement == 'hull' and baseline == 'silence'")
    >>> hull[["subset", "recovered", "n"]].round(2).values.tolist()
    [['all', 1.0, 4], ['controls', 1.0, 4]]
    """
    resamples = BootstrapDraws.of(plan.groups, plan.draws, plan.seed)
    layers, names = layer_damage(channels, replacements, damage, resamples), [name for name in channels.columns if name in scores.REGISTRY]
    return {
        "recovered": fill(RECOVERED, _recovered(layers, resamples)),
        "ablation_correlations": fill(CORRELATIONS, correlations(names, layers, resamples)),
        "ablation_matched": fill(MATCHED, _matched(layers, resamples)),
        "ablation_partial": fill(PARTIAL, _partial(layers, resamples)),
    }


def _recovered(layers: list[LayerDamage], resamples: BootstrapDraws) -> Iterator[dict]:
    """1 − Σ damage(replacement)/Σ damage(baseline), layer by layer and over all layers.

    The hull is given for all ablated channels, and for those with controls so that it can be compared with these. Against silence
    a replacement also recovers the channel's mean; against the mean only its dependence on the images.
    """
    for quantity in QUANTITIES:
        for name, baseline, subset in COMPARED:
            total, count = torch.zeros(2, len(resamples.weights), dtype=torch.float64), 0
            for stratum, layer in enumerate(layers):
                columns = [layer.of(each, quantity) for each in (name, baseline)]
                there = _known(*(column[0] for column in columns), layer.of("silence" if subset == "all" else "mean", quantity)[0])
                picks, n = resamples.picks(int(there.sum()), stratum), int(there.sum())
                sums = torch.stack([column[:, there].gather(1, picks).sum(1) for column in columns])
                total, count = total + sums, count + n
                if n:
                    yield _recovered_row((layer.site, float(layer.columns["depth"][0])), quantity, (name, baseline, subset), n, sums)
            if count:
                yield _recovered_row((ALL, float("nan")), quantity, (name, baseline, subset), count, total)


def _recovered_row(place: tuple[str, float], quantity: str, compared: tuple[str, str, str], n: int, sums: Tensor) -> dict:
    """One row of `recovered`."""
    name, baseline, subset = compared
    summary = damage_summary(1 - sums[0] / sums[1])
    return {
        "site": place[0],
        "depth": place[1],
        "quantity": quantity,
        "replacement": name,
        "baseline": baseline,
        "subset": subset,
        "recovered": summary["value"],
        "low": summary["low"],
        "high": summary["high"],
        "n": n,
        "damage": float(sums[1, 0]) / n,
    }


def correlations(names: list[str], layers: list[LayerDamage], resamples: BootstrapDraws) -> Iterator[dict]:
    """Spearman's rho of damage and recovered part with every score.

    Parameters
    ----------
    names
        Scores.
    layers
        Damage and scores of each layer.
    resamples
        The draws.

    Yields
    ------
    dict
        One row per outcome and score: the mean over layers with its interval, and rho over all channels pooled.

    Examples
    --------
    >>> every = [Replacement("silence", channel) for channel in range(3)]
    >>> drawn = torch.arange(3).double().expand(4, 2, 3)  # the damage rises with the channel
    >>> nothing = torch.full((3,), torch.nan)
    >>> columns = {"capture": torch.tensor([0.1, 0.2, 0.3]), "recovered_hull_loss": nothing, "recovered_hull_kl": nothing}
    >>> rows = correlations(["capture"], [LayerDamage("conv", every, drawn, columns)], BootstrapDraws.of(2, 1, 0))
    >>> row = next(rows)
    >>> row["outcome"], row["score"], round(row["rho"], 3), row["layers"], row["n"]
    ('damage_loss', 'capture', 1.0, 1, 3)
    """
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
            summary = damage_summary(_mean(within))
            yield {
                "outcome": outcome,
                "score": name,
                "rho": summary["value"],
                "low": summary["low"],
                "high": summary["high"],
                "layers": len(within),
                "n": known,
                "pooled": float(spearman(*torch.cat(every, 1))),
            }


def _matched(layers: list[LayerDamage], resamples: BootstrapDraws) -> Iterator[dict]:
    """Rank correlation of damage with peers' quantities among channels alike in task information and input capture.

    Channels are placed by their percentile within the layer, so that layers can be pooled: a cell holds those in the same
    third on both. The last row of each pair, bin `all`, is the mean over cells weighted by their number of channels.
    """
    for outcome, values in _damages(layers):
        for name in PEERS:
            own, percentiles, layer_values = _percentiles(layers, values, name)
            cells = (percentiles * BINS).long().clamp(max=BINS - 1)
            total, count = torch.zeros(2, len(resamples.weights), dtype=torch.float64), 0
            for cell in np.ndindex(BINS, BINS):
                inside = (cells == torch.tensor(cell)[:, None]).all(0)
                n = int(inside.sum())
                rho = resamples.correlation(layer_values[:, inside], own[inside], stratum=BINS * cell[0] + cell[1])
                if not rho[0].isnan():
                    total, count = total + n * torch.stack([rho.nan_to_num(nan=0), ~rho.isnan()]), count + n
                yield _matched_row(outcome, name, f"{MATCH[0]} {cell[0] + 1}/{BINS}, {MATCH[1]} {cell[1] + 1}/{BINS}", rho, n)
            yield _matched_row(outcome, name, "all", total[0] / total[1], count)


def _matched_row(outcome: str, name: str, which: str, rho: Tensor, n: int) -> dict:
    """One row of `ablation_matched`."""
    summary = damage_summary(rho)
    return {
        "outcome": outcome,
        "score": name,
        "bin": which,
        "rho": summary["value"],
        "low": summary["low"],
        "high": summary["high"],
        "n": n,
    }


def _percentiles(
    layers: list[LayerDamage], values: list[Tensor], name: str
) -> tuple[Float[Tensor, "n"], Float[Tensor, "2 n"], Float[Tensor, "draws n"]]:
    """Percentiles within the layer of one score, of the matched quantities, and of the damage in every draw; all layers concatenated."""
    parts = []
    for layer, value in zip(layers, values, strict=True):
        columns = torch.stack([layer.columns[each] for each in (name, *MATCH)])
        there = ~columns.isnan().any(0)
        if bool(there.any()):
            placed = [(ranks(each[..., there]) - 0.5) / int(there.sum()) for each in (columns, value)]
            parts.append((placed[0][0], placed[0][1:], placed[1]))
    if not parts:
        return torch.zeros(0), torch.zeros(2, 0), torch.zeros(len(values[0]), 0)
    score, match, layer_values = (torch.cat(each, -1) for each in zip(*parts, strict=True))
    return score, match, layer_values


def _partial(layers: list[LayerDamage], resamples: BootstrapDraws) -> Iterator[dict]:
    """Partial rank correlation of damage and recovered part with a score, controlling for task information and input capture.

    Mean over the layers with at least eight channels; `plain` is the correlation without control.
    """
    for outcome, values in _outcomes(layers):
        for name, given in [(MATCH[0], MATCH[1:]), (MATCH[1], MATCH[:1]), *((name, MATCH) for name in (*PEERS, "excess", "unique"))]:
            held, plain, known = [], [], 0
            for stratum, (layer, value) in enumerate(zip(layers, values, strict=True)):
                columns = [layer.columns[each] for each in (name, *given)]
                there = _known(value[0], *columns)
                if int(there.sum()) >= LEAST:
                    layer_values, score, *rest = (each[..., there] for each in (value, *columns))
                    rho = resamples.correlation(layer_values, score, *rest, stratum=stratum)
                    if not rho[0].isnan():
                        held.append(rho)
                        plain.append(resamples.correlation(layer_values, score, stratum=stratum))
                        known += int(there.sum())
            summary = damage_summary(_mean(held))
            yield {
                "outcome": outcome,
                "score": name,
                "given": " ".join(given),
                "rho": summary["value"],
                "low": summary["low"],
                "high": summary["high"],
                "plain": float(_mean(plain)[0]),
                "layers": len(held),
                "n": known,
            }


def _damages(layers: list[LayerDamage]) -> Iterator[tuple[str, list[Float[Tensor, "draws channels"]]]]:
    """Damage of silence layer by layer in every draw, by quantity."""
    for quantity in QUANTITIES:
        yield f"damage_{quantity}", [layer.of("silence", quantity) for layer in layers]


def _outcomes(layers: list[LayerDamage]) -> Iterator[tuple[str, list[Float[Tensor, "draws channels"]]]]:
    """Damage, and the part the hull recovers of it where it exceeds its standard error (nan elsewhere), in every draw."""
    yield from _damages(layers)
    for quantity in QUANTITIES:
        name, values = f"recovered_hull_{quantity}", []
        for layer in layers:
            share = 1 - layer.of("hull", quantity) / layer.of("silence", quantity)
            values.append(share.masked_fill(layer.columns[name].isnan(), torch.nan))
        yield name, values


def _mean(layers: list[Float[Tensor, "draws"]]) -> Float[Tensor, "draws"]:
    """Mean over layers in every draw."""
    return torch.stack(layers).nanmean(0) if layers else torch.full((1,), torch.nan)


def _known(*columns: Tensor) -> Bool[Tensor, "channels"]:
    """Channels that have all columns."""
    return ~torch.stack([column.isnan() for column in columns]).any(0)
