"""The tables of an ablation run."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from channelscope import scores
from channelscope.errors import DataError, SampleError
from channelscope.experiments.ablation.damage import DAMAGE_QUANTITIES, Damage
from channelscope.experiments.ablation.plan import Replacement
from channelscope.experiments.columns import table
from channelscope.network.consumers import consumers
from channelscope.network.sites import Sites
from channelscope.site import Site
from channelscope.stats.profile import Profile

CONTROLS = ("hull", "random", "mean")

LEAST_RATIO = 0.01
"""Damage over its standard error below which the number of images needed is not worth stating more exactly."""

KEYS = ["site", "depth", "channel"]


def ablation_tables(
    found: Sites, profile: Profile, stand_ins: Mapping[str, list[Replacement]], damage: Mapping[str, Damage], **options
) -> dict[str, pd.DataFrame]:
    """`ablations`, one row per channel and intervention; `channels`, one row per channel; `readers`, one row per site; `said`.

    Raises
    ------
    DataError
        Without images.
    SampleError
        With fewer images than groups.
    """
    _enough(damage)
    lesions = pd.concat([_ablation_rows(found[name], every, damage[name]) for name, every in stand_ins.items()], ignore_index=True)
    values = scores.table(profile, applicable(profile), **options)
    channels = _channels(lesions).merge(values.drop(columns=["kind", "note"]), on=KEYS, how="left", validate="one_to_one")
    return {
        "ablations": table("ablations", lesions, images=_images(damage)),
        "channels": table("ablated_channels", channels, units=values.attrs["units"], assumption=values.attrs["assumption"]),
        "readers": table("readers", _consumer_rows(found, list(stand_ins))),
        "said": table("said", [{"said": line} for line in _notes(channels, _images(damage))]),
    }


def applicable(profile: Profile) -> list[str]:
    """The scores this profile has everything for."""
    record = profile.record(profile.sites[0])
    missing = set() if record.maps is not None else {"hrank", "chip"}
    if record.sensitivity is None:
        missing |= {name for name, each in scores.REGISTRY.items() if each.family == "gradient"}
    if any("gamma" not in profile.weight_norms[site.name] for site in profile.sites):
        missing.add("bn_scale")
    return [name for name in scores.REGISTRY if name not in missing]


def _ablation_rows(site: Site, every: list[Replacement], damage: Damage) -> pd.DataFrame:
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


def _channels(lesions: pd.DataFrame) -> pd.DataFrame:
    """One row per channel: damage of silence, and what each stand-in repays where that damage exceeds its standard error."""
    silent = lesions[lesions.intervention == "silence"].drop(columns=["intervention", "members", "size"]).set_index(KEYS)
    for name in CONTROLS:
        other = lesions[lesions.intervention == name].set_index(KEYS)
        for quantity in ("loss", "kl"):
            column = f"repaid_{name}_{quantity}"
            silent[column] = (1 - other[quantity] / silent[quantity]).where(silent[quantity] > silent[f"{quantity}_se"])
        if name == "hull":
            silent["hull_size"] = other["size"]
    return silent.reset_index()


def _consumer_rows(found: Sites, names: list[str]) -> list[dict[str, Any]]:
    """Which layers see a lesion, and whether in a residual sum: the shortcut then still carries what it carries."""
    rows = []
    for name in names:
        every = consumers(found.graph, found[name])
        summed = [each.layer for each in every if each.through_sum]
        note = f"tied into a residual sum: seen through it by {', '.join(summed)}" if summed else ""
        rows.append({"site": name, "depth": found[name].depth, "readers": " ".join(each.layer for each in every), "note": note})
    return rows


def _images(damage: Mapping[str, Damage]) -> int:
    return round(float(next(iter(damage.values())).images.sum()))


def _enough(damage: Mapping[str, Damage]) -> None:
    if not damage:
        raise DataError("there are no images to ablate on: the batches are empty")
    images = next(iter(damage.values())).images
    if bool((images == 0).any()):
        raise SampleError(
            f"{_images(damage):,} evaluation images leave some of {len(images)} groups empty: intervals over images need one or more "
            "in each; give more images, or fewer groups"
        )


def _notes(channels: pd.DataFrame, images: int) -> list[str]:
    """What the reader must be told: how many lesions change nothing, how many are lost in the noise, and what would resolve them."""
    said, total = [], len(channels)
    column = {name: channels[name].to_numpy(dtype=float) for name in ("kl", "kl_se", "loss", "loss_se", "accuracy", "accuracy_se")}
    still = (column["kl"] == 0) & (column["kl_se"] == 0)
    if still.any():
        said.append(f"{still.sum():,} of {total:,} channels are silent on these images already: taking them away changes nothing")
    for name in ("loss", "accuracy"):
        damage, error = column[name][~still], column[f"{name}_se"][~still]
        lost = int((~(damage > error)).sum())
        if lost:
            ratio = np.median(np.abs(damage[error > 0]) / error[error > 0]) if (error > 0).any() else 0.0
            need = 4 * images / max(ratio, LEAST_RATIO) ** 2
            more = f"; half of all channels would stand out by two standard errors with about {need:,.0f} images" if need > images else ""
            said.append(
                f"{images:,} images are too few for {lost:,} of {total:,} channels: their damage in {name} does not exceed its "
                f"standard error, and nothing is said of what is repaid there{more}"
            )
    return said
