"""The tables of an ablation run; correlations, matched comparisons and recovered damage, with one set of bootstrap draws."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch

from channelscope import scores
from channelscope.errors import DataError, SampleError
from channelscope.experiments.ablation_plan import (
    DAMAGE_QUANTITIES,
    AblationPlan,
    BootstrapDraws,
    Damage,
    LayerDamage,
    Replacement,
    damage_summary,
    layer_damage,
)
from channelscope.formulas.ranks import ranks, spearman
from channelscope.network.sites import Sites, consumers
from channelscope.scores.score import ScoreOptions
from channelscope.site import Site
from channelscope.stats.profile import Profile
from channelscope.tables.frame import fill
from channelscope.tables.quantities import OURS, PAPER, Column, Schema
from channelscope.types import Bool, Float, Tensor

CONTROLS = ("hull", "random", "mean")

LEAST_RATIO = 0.01
"""Smallest ratio of damage to standard error that the number of images needed is computed from."""

KEYS = ["site", "depth", "channel"]

DAMAGE = {
    "loss": Column("nats", 4, "rise of the cross-entropy", OURS),
    "accuracy": Column("fraction", 4, "fall of the accuracy", OURS),
    "margin": Column("logits", 4, "fall of the logit margin", OURS),
    "kl": Column("nats", 4, "Kullback-Leibler divergence of the output from the intact network's", OURS, 0.0),
}
"""columns of damage: positive is worse"""

ABLATIONS = Schema(
    "ablations",
    "site depth channel members",
    {
        **DAMAGE,
        "intervention": Column.text("silence, or what replaces the channel: hull, random (as many random peers), mean"),
        "size": Column.count("peers in the replacement", "members"),
    },
)

ABLATED_CHANNELS = Schema(
    "ablated_channels",
    "site depth channel",
    {
        **DAMAGE,
        **{
            f"recovered_{name}_{quantity}": Column.fraction(
                f"1 − damage in {quantity} with {name} in its place / damage of silence; nan where that does not exceed its standard error",
                PAPER,
            )
            for name in CONTROLS
            for quantity in ("loss", "kl")
        },
        "hull_size": Column("members", 3, "peers in a channel's replaceability hull", PAPER, 0.0),
    },
)

CONSUMERS = Schema("consumers", "site depth note", {"consumers": Column.text("layers that see the channel with no layer in between")})

NOTES = Schema("notes", columns={"note": Column.text("remark about the measurement, such as too few images")})

CONTINUOUS = {"task_credit"}
"""Scores that have no form for the class label."""

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


def ablation_tables(
    found: Sites, profile: Profile, replacements: Mapping[str, list[Replacement]], damage: Mapping[str, Damage], **options
) -> dict[str, pd.DataFrame]:
    """Tables of an ablation run that need no statistics over channels.

    Parameters
    ----------
    found
        Sites of the traced network.
    profile
        Statistics of the network.
    replacements
        Site → its interventions.
    damage
        Site → damage of its interventions, in the same order.
    **options
        Options of the scores: target, shrinkage, ….

    Returns
    -------
    dict[str, DataFrame]
        `ablations`, one row per channel and intervention; `ablated_channels`, one row per channel; `consumers`, one row per site;
        `notes`, remarks about the measurement.

    Raises
    ------
    DataError
        Without images.
    SampleError
        With fewer images than groups.

    Examples
    --------
    >>> import torch
    >>> from channelscope import collect, zoo
    >>> from channelscope.network.sites import sites
    >>> toy = zoo.toys.exact_copy()
    >>> profile = collect(toy.model, toy.batches)
    >>> damage = Damage.of(torch.ones(1, 4, 2).double(), torch.tensor([0, 1]), groups=2)
    >>> found = sites(toy.model, toy.batches[0][0])
    >>> tables = ablation_tables(found, profile, {"conv": [Replacement("silence", 0)]}, {"conv": damage})
    >>> tables["ablations"][["site", "channel", "intervention", "loss", "loss_se"]].values.tolist()
    [['conv', 0, 'silence', 1.0, 0.0]]
    """
    _enough(damage)
    ablations = pd.concat([_ablation_rows(found[name], every, damage[name]) for name, every in replacements.items()], ignore_index=True)
    values = scores.table(profile, applicable(profile, ScoreOptions.of(options).target), **options)
    channels = _channels(ablations).merge(values.drop(columns=["kind", "note"]), on=KEYS, how="left", validate="one_to_one")
    return {
        "ablations": fill(ABLATIONS, ablations, images=_images(damage)),
        "ablated_channels": fill(ABLATED_CHANNELS, channels, units=values.attrs["units"], assumption=values.attrs["assumption"]),
        "consumers": fill(CONSUMERS, _consumer_rows(found, list(replacements))),
        "notes": fill(NOTES, [{"note": line} for line in _notes(channels, _images(damage))]),
    }


def applicable(profile: Profile, target: str = "margin") -> list[str]:
    """Names of the scores that a profile has the statistics for.

    Parameters
    ----------
    profile
        Statistics of a network.
    target
        The target that is asked about; scores of a continuous target are left out for the class label.

    Returns
    -------
    list[str]
        In the order of the registry.

    Examples
    --------
    >>> from channelscope import collect, zoo
    >>> toy = zoo.toys.exact_copy()  # no BatchNorm; the pass recorded neither gradients nor maps
    >>> names = applicable(collect(toy.model, toy.batches))
    >>> [name in names for name in ("capture", "bn_scale", "fisher", "hrank")]
    [True, False, False, False]
    """
    record = profile.record(profile.sites[0])
    missing = set() if record.maps is not None else {"hrank", "chip"}
    if record.sensitivity is None:
        missing |= {name for name, each in scores.REGISTRY.items() if each.family == "gradient"}
    if any("gamma" not in profile.weight_norms[site.name] for site in profile.sites):
        missing.add("bn_scale")
    if target == "label":
        missing |= CONTINUOUS
    return [name for name in scores.REGISTRY if name not in missing]


def _ablation_rows(site: Site, every: list[Replacement], damage: Damage) -> pd.DataFrame:
    """Rows of `ablations` for one site."""
    columns = {}
    for place, name in enumerate(DAMAGE_QUANTITIES):
        columns[name], columns[f"{name}_se"] = damage.mean[:, place].numpy(), damage.error[:, place].numpy()
    named = {
        "site": site.name,
        "depth": site.depth,
        "channel": [each.channel for each in every],
        "intervention": [each.name for each in every],
        "members": [" ".join(map(str, each.members)) for each in every],
        "size": [len(each.members) for each in every],
    }
    return pd.DataFrame(named | columns)


def _channels(ablations: pd.DataFrame) -> pd.DataFrame:
    """One row per channel: damage of silence, and the part each replacement recovers where it exceeds its standard error."""
    silent = ablations[ablations.intervention == "silence"].drop(columns=["intervention", "members", "size"]).set_index(KEYS)
    for name in CONTROLS:
        other = ablations[ablations.intervention == name].set_index(KEYS)
        for quantity in ("loss", "kl"):
            column = f"recovered_{name}_{quantity}"
            silent[column] = (1 - other[quantity] / silent[quantity]).where(silent[quantity] > silent[f"{quantity}_se"])
        if name == "hull":
            silent["hull_size"] = other["size"]
    return silent.reset_index()


def _consumer_rows(found: Sites, names: list[str]) -> list[dict[str, Any]]:
    """Rows of `consumers`: the layers that read each site, and which of them through a residual sum."""
    rows = []
    for name in names:
        every = consumers(found.graph, found[name])
        summed = [each.layer for each in every if each.through_sum]
        note = f"tied into a residual sum: seen through it by {', '.join(summed)}" if summed else ""
        rows.append({"site": name, "depth": found[name].depth, "consumers": " ".join(each.layer for each in every), "note": note})
    return rows


def _images(damage: Mapping[str, Damage]) -> int:
    """Number of evaluated images."""
    return round(float(next(iter(damage.values())).images.sum()))


def _enough(damage: Mapping[str, Damage]) -> None:
    """Refuse to go on without images, or with an empty group."""
    if not damage:
        raise DataError("there are no images to ablate on: the batches are empty")
    images = next(iter(damage.values())).images
    if bool((images == 0).any()):
        raise SampleError(
            f"{_images(damage):,} evaluation images leave some of {len(images)} groups empty: intervals over images need one or more "
            "in each; give more images, or fewer groups"
        )


def _notes(channels: pd.DataFrame, images: int) -> list[str]:
    """Number of ablations that change nothing, number within the noise, and the images it would take to resolve half of them."""
    notes, total = [], len(channels)
    column = {name: channels[name].to_numpy(dtype=float) for name in ("kl", "kl_se", "loss", "loss_se", "accuracy", "accuracy_se")}
    unchanged = (column["kl"] == 0) & (column["kl_se"] == 0)
    if unchanged.any():
        notes.append(f"{unchanged.sum():,} of {total:,} channels are silent on these images already: taking them away changes nothing")
    for name in ("loss", "accuracy"):
        damage, error = column[name][~unchanged], column[f"{name}_se"][~unchanged]
        unresolved = int((~(damage > error)).sum())
        if unresolved:
            ratio = np.median(np.abs(damage[error > 0]) / error[error > 0]) if (error > 0).any() else 0.0
            wanted = 4 * images / max(ratio, LEAST_RATIO) ** 2
            more = (
                f"; half of all channels would stand out by two standard errors with about {wanted:,.0f} images" if wanted > images else ""
            )
            notes.append(
                f"{images:,} images are too few for {unresolved:,} of {total:,} channels: their damage in {name} does not exceed its "
                f"standard error, and nothing is said of what is recovered there{more}"
            )
    return notes


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
        "recovered": summary.pop("value"),
        **summary,
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
    return {"outcome": outcome, "score": name, "bin": which, "rho": summary.pop("value"), **summary, "n": n}


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
