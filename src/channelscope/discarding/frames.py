"""frames: tables of what was discarded, image by image and layer by layer; what has not converged says so."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from channelscope import tables
from channelscope.discarding.columns import COLUMNS
from channelscope.discarding.discard import Discarded
from channelscope.discarding.rule import Rule
from channelscope.errors import MismatchError
from channelscope.tables import Column

RATIO, NATS = 0.02, 0.02
"""a CID has converged if its constraint is met within 2 % and its level and distance from the optimum are below 0.02 nats"""


def by_image(found: Iterable[Discarded], rule: Rule, network: str) -> pd.DataFrame:
    """One row per image and layer: CID with its interval, the constraint on fresh noise, the cost, and what is wrong if anything is.

    Source   Ma et al. 2022 (convergence report); checked by tests/discarding/test_frames.py
    """
    rows = [row for each in found for row in _rows(each, rule, network)]
    rows.sort(key=lambda row: (row["depth"], row["image"]))
    return described("discarded", rows, rule)


def by_layer(images: pd.DataFrame) -> pd.DataFrame:
    """One row per layer: mean CID over the images with a t interval, the mean constraint ratio, and how many converged.

    Source   Student 1908 (t intervals over images)
    """
    rows = []
    for (network, layer), own in images.groupby(["network", "layer"], sort=False):
        known = own[own.reached]
        cid, ratio = t_interval(known.cid), t_interval(known.ratio)
        rows.append(
            {"network": network, "layer": layer, "depth": own.depth.iloc[0], "n": len(known)}
            | dict(zip(("cid", "cid_low", "cid_high"), cid, strict=True))
            | {"gain": known.gain.mean()}
            | dict(zip(("ratio", "ratio_low", "ratio_high"), ratio, strict=True))
            | {"gap": known.gap.mean(), "error": np.sqrt((known.error**2).mean()), "capped": own.capped.mean(), "unseen": own.unseen.mean()}
            | {"converged": own.converged.mean(), "unreached": int((~own.reached).sum())}
            | {"passes": own.passes.mean(), "seconds": own.seconds.mean()}
        )
    return tables.described(pd.DataFrame(rows), {**images.attrs, "name": "discarded_layers", "columns": COLUMNS})


def difference(images: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """CID of another network less CID of this one, layer by layer in order of depth, paired over images, with t intervals.

    Raises   MismatchError if the two tables mix normalizers, κ, caps, cells or images, or have other numbers of layers.
    Source   Ma et al. 2022 (comparability)
    """
    here, there = (frame.attrs["provenance"]["convention"] for frame in (images, other))
    differ = [f"{key} ({here[key]} and {there.get(key)})" for key in here if here[key] != there.get(key)]
    if differ:
        raise MismatchError(f"these CIDs are not on one scale: they differ in {', '.join(differ)}; run both under one rule")
    ours, theirs = (list(dict.fromkeys(frame.layer)) for frame in (images, other))
    if len(ours) != len(theirs):
        raise MismatchError(f"expected as many layers of both networks, received {len(ours)} and {len(theirs)}: name them")
    rows = []
    for mine, yours in zip(ours, theirs, strict=True):
        pair = images[images.layer == mine].merge(other[other.layer == yours], on="image", suffixes=("", "_other"))
        if not len(pair) == (images.layer == mine).sum() == (other.layer == yours).sum():
            raise MismatchError(f"at {mine}: the two tables are of different images; run both on the same ones")
        pair = pair[pair.reached & pair.reached_other]
        value, low, high = t_interval(pair.cid_other - pair.cid)
        rows.append(
            {"network": images.network.iloc[0], "other": other.network.iloc[0], "layer": mine, "other_layer": yours}
            | {"depth": pair.depth.iloc[0] if len(pair) else 0, "n": len(pair), "cid": pair.cid.mean(), "cid_other": pair.cid_other.mean()}
            | {"difference": value, "difference_low": low, "difference_high": high}
        )
    return tables.described(pd.DataFrame(rows), {**images.attrs, "name": "discarded_difference", "columns": COLUMNS})


def described(
    name: str, rows: Sequence[Mapping[str, Any]] | pd.DataFrame, rule: Rule, columns: Mapping[str, Column] | None = None, **facts: Any
) -> pd.DataFrame:
    """A table under a rule, which it names.

    Parameters
    ----------
    name
        Name of the table.
    rows
        Its rows, or a frame of them.
    rule
        The rule of its CIDs: normalizer, κ, caps and cells become `convention` in the table's provenance.
    columns
        Descriptions beside those of this package.
    **facts
        Whatever else the numbers were made from.

    Returns
    -------
    DataFrame
        The described table.

    References
    ----------
    Ma et al. 2022 (comparability).
    """
    frame = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows))
    known = {"name": name, "columns": {**COLUMNS, **(columns or {})}, "convention": rule.convention(), "mode": rule.mode}
    return tables.described(frame, known | facts)


def t_interval(values: pd.Series) -> tuple[float, float, float]:
    """Mean and 95 % t interval over images; nan ends for fewer than two.

    Source   Student 1908
    """
    known = values.dropna()
    if len(known) < 2:
        return float(known.mean()) if len(known) else float("nan"), float("nan"), float("nan")
    reach = float(stats.t.isf(0.025, len(known) - 1)) * float(known.std(ddof=1)) / len(known) ** 0.5
    return float(known.mean()), float(known.mean()) - reach, float(known.mean()) + reach


def _rows(found: Discarded, rule: Rule, network: str) -> Iterable[dict[str, Any]]:
    numbers = {name: values.double().tolist() for name, values in found.numbers.items()}
    reach = float(stats.t.isf(0.025, found.freedom)) if found.freedom > 0 else float("nan")
    for place, image in enumerate(found.index.tolist()):
        own = {name: values[place] for name, values in numbers.items()}
        reached = bool(found.reached[place])
        note = _note(own, reached, rule)
        if not reached:
            own |= {"gap": float("nan"), "error": float("nan")}
        yield (
            {"network": network, "layer": found.layer.name, "depth": found.layer.depth, "image": image, "cid": own["cid"]}
            | {"cid_low": own["cid"] - reach * own["error"], "cid_high": own["cid"] + reach * own["error"]}
            | {"gain": own["cid"] - own["uniform"], "ratio": own["ratio"], "ratio_se": own["ratio_error"], "error": own["error"]}
            | {name: own[name] for name in ("gap", "capped", "unseen")}
            | {"reached": reached, "converged": not note, "note": note, "passes": found.passes, "seconds": found.seconds}
        )


def _note(own: Mapping[str, float], reached: bool, rule: Rule) -> str:
    """What keeps the CID from having converged."""
    if not reached:
        return f"the feature changes by less than ε with all noise at its cap ({own['ratio']:.2f} of it): the CID is a bound"
    said = []
    if abs(own["ratio"] - 1) > RATIO + 2 * own["ratio_error"]:
        said.append(f"constraint at {own['ratio']:.3f} ± {own['ratio_error']:.3f}")
    if own["error"] > NATS:
        said.append(f"level known to ± {own['error']:.3f} nats")
    if rule.mode == "exact" and own["gap"] > NATS:
        said.append(f"{own['gap']:.3f} nats from the optimum")
    return "; ".join(said)
