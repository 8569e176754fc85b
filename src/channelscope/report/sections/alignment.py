"""The two axes: their alignment layer by layer, the quantities by depth, and clusters on each axis."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from channelscope import tables
from channelscope.report import verdict
from channelscope.report.section import Chart, Section
from channelscope.tables.frame import format_interval, format_number
from channelscope.tables.quantities import HEADLINE, QUANTITIES, Column
from channelscope.tables.run_folder import RunFolder, where

QUARTILES = {
    "quantity": Column(meaning="quantity", source="this library"),
    "median": Column(meaning="median over the layer's channels", source="this library"),
    "low": Column(meaning="lower quartile over the layer's channels", source="this library"),
    "high": Column(meaning="upper quartile over the layer's channels", source="this library"),
}


def by_depth(run: RunFolder) -> pd.DataFrame | None:
    """Median and quartiles of each headline quantity in each layer; channels without a finite value are left out of n.

    Examples
    --------
    >>> from pathlib import Path
    >>> channels = pd.DataFrame({"site": "conv1", "depth": 0, "channel": [0, 1, 2], "capture": [1.0, 2.0, 9.0]})
    >>> by_depth(RunFolder(Path(), {}, {"channels": channels}))["median"].tolist()
    [2.0]
    """
    channels = run.table("channels")
    if channels is None:
        return None
    rows = []
    keys = [each for each in ("stage", "site", "depth") if each in channels.columns]
    for _, layer in channels.groupby(keys, sort=False):
        where = {key: layer[key].iloc[0] for key in keys}
        for name in (each for each in HEADLINE if each in channels.columns):
            values = layer[name].to_numpy(float)
            finite = values[np.isfinite(values)]
            low, middle, high = np.quantile(finite, [0.25, 0.5, 0.75]) if len(finite) else [np.nan] * 3
            quantity = f"{verdict.title(name)} [{QUANTITIES[name].unit}]"
            rows.append(where | {"quantity": quantity, "median": middle, "low": low, "high": high, "n": len(finite)})
    return tables.table(rows, "by_depth", QUARTILES)


def layer_alignment(alignment: pd.DataFrame | None, facts: Mapping[str, Any]) -> list[str]:
    """How the first headline pair differs between layers.

    Examples
    --------
    >>> rows = [{"local": "capture", "target": "relevance", "site": f"conv{n}", "rho": n / 10, "low": n / 10 - 0.1,
    ...     "high": n / 10 + 0.1, "n": 16} for n in (1, 4)]
    >>> layer_alignment(pd.DataFrame(rows), {})[1]
    'In 1 of 2 layers the interval over images leaves out 0.'
    """
    if alignment is None:
        return []
    rows = where(alignment, stage=verdict.last(alignment, facts), local=verdict.PAIRS[0][0], target=verdict.PAIRS[0][1]).to_dict("records")
    rows = sorted((row for row in rows if not np.isnan(row["rho"])), key=lambda row: row["rho"])
    if len(rows) < 2:
        return []
    least, most = (f"{alignment_sentences(row)} in {row['site']}" for row in (rows[0], rows[-1]))
    said = (
        f"Layer by layer, {verdict.title(verdict.PAIRS[0][0])} and {verdict.title(verdict.PAIRS[0][1])} correlate from {least} to {most}."
    )
    known = [row for row in rows if not np.isnan(row["low"])]
    if not known:
        return [said + " There are no intervals over images: the profile has no shards."]
    sure = sum(row["low"] > 0 or row["high"] < 0 for row in known)
    return [said, f"In {sure} of {len(known)} layers the interval over images leaves out 0."]


def alignment_sentences(row: Mapping[str, Any]) -> str:
    """A layer's correlation with its interval and n.

    Examples
    --------
    >>> alignment_sentences({"rho": 0.3, "low": 0.2, "high": 0.4, "n": 16})
    '0.30 [0.20, 0.40] (n = 16 channels)'
    """
    return format_interval(row["rho"], row["low"], row["high"], row["n"], "channels", top=1.0)


def change_with_depth(by_depth: pd.DataFrame | None, facts: Mapping[str, Any]) -> list[str]:
    """In how many layers training raised the median channel's quantity; nothing when only one stage was measured.

    Input capture is left out: it compares within a layer only.

    Examples
    --------
    >>> rows = [{"stage": stage, "site": site, "quantity": "task information [nats]", "median": median, "n": 9} for stage,
    ...     median in (("start", 0.1), ("end", 0.3)) for site in ("conv1", "conv2")]
    >>> change_with_depth(pd.DataFrame(rows), {"stages": ["start", "end"]})
    ["From start to end, the median channel's task information rose in 2 of 2 layers."]
    """
    stages = tuple(facts.get("stages") or ())
    if by_depth is None or len(stages) < 2:
        return []
    said: list[str] = []
    for quantity in (each for each in by_depth["quantity"].unique() if not each.startswith(verdict.title("capture"))):
        before, after = (where(by_depth, quantity=quantity, stage=stage).set_index("site")["median"] for stage in (stages[0], stages[-1]))
        rise = np.asarray(after.sub(before).dropna())
        if len(rise):
            said.append(
                f"{quantity.split(' [')[0]} {'' if said else 'rose '}in {int((rise > 0).sum())} of {len(rise)}{'' if said else ' layers'}"
            )
    return [f"From {stages[0]} to {stages[-1]}, the median channel's {', '.join(said)}."] if said else []


ALIGNMENT = Section(
    "alignment",
    "Alignment by depth",
    "Within each layer, are the channels that rank high on a local quantity the ones that rank high on a target quantity?",
    (
        Chart(
            "Rank correlation within each layer",
            "depth",
            "rho",
            by="stage",
            panels=("local", "target"),
            only={"local": HEADLINE[:2], "target": HEADLINE[2:]},
            low="low",
            high="high",
            of="channels",
            label="Spearman ρ",
            zero=True,
            caption="Bars are 95 % intervals over images (jackknife over shards of the images). "
            "The shaded layer is the one in the map; click a point to show its layer there.",
        ),
    ),
    lambda run: layer_alignment(run.table("alignment"), run.facts),
    value="rho",
)

DEPTH = Section(
    "by_depth",
    "Quantities by depth",
    "How large the four quantities are in each layer, and what training did to them where both ends of it were measured.",
    (
        Chart(
            "Median channel of each layer",
            "depth",
            "median",
            by="stage",
            panels=("quantity",),
            low="low",
            high="high",
            of="channels",
            free=True,
            caption="Bars span the middle half of the layer's channels (quartiles); they are spread, not uncertainty. "
            "Input capture is measured against its layer's median variance, so its median is ½ ln 2 everywhere unless the noise is fixed.",
        ),
    ),
    lambda run: change_with_depth(by_depth(run), run.facts),
    value="median",
    derive=by_depth,
)


def cluster_sentences(frame: pd.DataFrame | None, facts: Mapping[str, Any]) -> list[str]:
    """Whether groups on one axis are groups on the other.

    Examples
    --------
    >>> groups = pd.DataFrame({"ari": [0.0, 0.5], "null_high": [0.1, 0.1]})
    >>> cluster_sentences(groups, {})[1]
    'In 1 of 2 layers they agree more than 95 % of shuffled clusters; by chance about 0.1 would.'
    """
    if frame is None or "ari" not in frame.columns:
        return []
    rows = where(frame, stage=verdict.last(frame, facts)).dropna(subset=["ari"])
    if not len(rows):
        return ["No layer has enough channels to be grouped."]
    values = rows["ari"].to_numpy(float)
    above = int((values > rows["null_high"].to_numpy(float)).sum())
    chance = format_number(0.05 * len(rows), 1)
    middle, least, most = (format_number(float(each), 2, top=1.0) for each in np.quantile(values, [0.5, 0, 1]))
    count = f"{len(rows)} {'layer' if len(rows) == 1 else 'layers'}"
    return [
        f"Groups of channels by local and by target quantities agree with a median adjusted Rand index of {middle} "
        f"(range {least} to {most}, n = {count}); 0 is chance, 1 is the same groups.",
        f"In {above} of {count} they agree more than 95 % of shuffled clusters; by chance about {chance} would.",
    ]


CLUSTERS = Section(
    "groups",
    "Clusters",
    "If channels are sorted into groups by their local quantities, and again by their target quantities, are these the same groups?",
    (
        Chart(
            "Agreement of the two sets of clusters",
            "depth",
            "ari",
            panels=("stage",),
            band=("null_mean", "null_high"),
            of="channels",
            label="adjusted Rand index",
            zero=True,
            caption="The grey band reaches from the mean to the 95th percentile of the index when channels are shuffled: "
            "points above it agree beyond chance.",
        ),
    ),
    lambda run: cluster_sentences(run.table("groups"), run.facts),
)
