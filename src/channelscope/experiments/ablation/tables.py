"""The tables of an ablation run."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from channelscope import scores
from channelscope.errors import DataError, SampleError
from channelscope.experiments.ablation.damage import DAMAGE_QUANTITIES, Damage
from channelscope.experiments.ablation.plan import Replacement
from channelscope.network.sites import Sites, consumers
from channelscope.scores.score import ScoreOptions
from channelscope.site import Site
from channelscope.stats.profile import Profile
from channelscope.tables.frame import fill
from channelscope.tables.quantities import OURS, PAPER, Column, Schema

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


CONTINUOUS = {"task_credit"}
"""Scores that have no form for the class label."""


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
