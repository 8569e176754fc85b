"""The two axes: their alignment layer by layer, the quantities by depth, clusters on each axis, training, and gradient directions."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from channelscope import tables
from channelscope.report import verdict
from channelscope.report.section import Chart, Drawing, Section
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


def mass_sentences(frame: pd.DataFrame | None, facts: Mapping[str, Any]) -> list[str]:
    """Which share of a layer's task information its peers duplicate, where it is least and most, and where nothing can be said.

    Examples
    --------
    >>> row = {"site": "conv1", "duplicate_share": 0.25, "duplicate_share_low": 0.2, "duplicate_share_high": 0.3, "n": 8, "note": ""}
    >>> mass_sentences(pd.DataFrame([row]), {})
    ["Peers duplicate 0.25 [0.20, 0.30] (n = 8 channels) of the channels' task information in conv1."]
    """
    if frame is None or "duplicate_share" not in frame.columns:
        return []
    every = where(frame, stage=verdict.last(frame, facts))
    rows = every.dropna(subset=["duplicate_share"]).sort_values("duplicate_share")
    without = _without_share(every, len(rows))
    if not len(rows):
        return without
    said = [
        format_interval(row.duplicate_share, row.duplicate_share_low, row.duplicate_share_high, int(row.n), "channels", top=1.0)
        for row in rows.itertuples()
    ]
    of, last = " of the channels' task information in ", rows["site"].iloc[-1]
    first = f"Peers duplicate {said[0]}{of}{rows['site'].iloc[0]}"
    return [f"{first}." if len(rows) == 1 else f"{first}, the least, and {said[-1]} in {last}, the most.", *without]


def _without_share(frame: pd.DataFrame, known: int) -> list[str]:
    """In how many layers the share is undefined, and why."""
    left = frame.loc[frame["duplicate_share"].isna()]
    if not len(left):
        return []
    unsure = int(left["task"].notna().sum()) if "task" in left.columns else 0
    reasons = [f"the channels' summed task information could be 0 in {unsure}"] if unsure else []
    reasons += [f"there are too few images in {len(left) - unsure}"] if unsure < len(left) else []
    where_not = f"in {len(left)} of {len(frame)} layers" if known else f"in any of the {len(frame)} layers" if len(frame) > 1 else "here"
    return [f"What peers duplicate cannot be said {where_not}: {' and '.join(reasons)}; the table has the numbers."]


MASS = Section(
    "task_mass",
    "Task information that peers have",
    "How much of what a layer's channels say about the task could be predicted from the layer's other channels?",
    (
        Chart(
            "Duplicate share of the task information",
            "depth",
            "duplicate_share",
            by="stage",
            low="duplicate_share_low",
            high="duplicate_share_high",
            of="channels",
            label="duplicate share",
            zero=True,
            caption="Task information of each channel times its peer support, summed over the layer, as a share of the summed task "
            "information. Bars are 95 % intervals over images (jackknife over shards of the images). Layers without a point are those "
            "where that sum could be 0, so that a share of it would say nothing.",
        ),
    ),
    lambda run: mass_sentences(run.table("task_mass"), run.facts),
    value="duplicate_share",
)


def picture_drawings(run: RunFolder) -> list[Drawing]:
    """A sheet for each layer: a row of images for each of its channels, whose numbers stand below.

    Examples
    --------
    >>> from pathlib import Path
    >>> picture_drawings(RunFolder(Path(), {}, {}))
    []
    """
    frame = run.table("channel_pictures")
    found = []
    for site in [] if frame is None else frame["site"].unique():
        path = run.folder / "channel_pictures" / f"{site}.svg"
        if path.is_file():
            numbers = [_pictured(run, site, int(channel)) for channel in where(frame, site=site)["channel"].unique()]
            said = f"{'; '.join(numbers).capitalize()}."
            found.append(Drawing(f"channel_pictures_{site}", str(site), path, said, "channel_pictures"))
    return found


def _pictured(run: RunFolder, site: str, channel: int) -> str:
    """A channel with what it says about the task and what it captures of its input."""
    channels = run.table("channels")
    rows = (
        []
        if channels is None
        else where(channels, stage=run.stages[-1] if run.stages else "", site=site, channel=channel).to_dict("records")
    )
    told = [
        f"{verdict.title(name)} {format_number(row[name], QUANTITIES[name].digits)} {QUANTITIES[name].unit}".rstrip()
        for row in rows
        for name in reversed(verdict.PAIRS[0])
        if name in row
    ]
    return f"channel {channel}: {', '.join(told)}" if told else f"channel {channel}"


PICTURES = Section(
    "channel_pictures",
    "Images that drive channels",
    "Which calibration images drive the channels with the most task information in each layer? A row is a channel, with its number before "
    "the images of its largest activations: the largest first, each cropped to what the channel sees where it is largest. Channels that "
    "are the same for all images are left out.",
    drawings=picture_drawings,
)


NAMES = {
    "hull_size": "Mean hull size",
    "saturated": "The saturated fraction",
    "ratio": "S3/S2",
    "capture_relevance": "The alignment of input capture and task information",
}


def trajectory_sentences(run: RunFolder) -> list[str]:
    """Sentences: the change of each quantity, and whether its published direction holds, is reversed, or is undecided.

    Examples
    --------
    >>> from pathlib import Path
    >>> row = {"quantity": "ratio", "first": 0.25, "last": 0.6, "change": 0.35, "change_low": 0.28, "change_high": 0.43, "n": 3}
    >>> row |= {"published_first": 0.19, "published_last": 0.38, "verdict": "holds"}
    >>> trajectory_sentences(RunFolder(Path(), {}, {"trajectory_change": pd.DataFrame([row])}))
    ['S3/S2 goes from 0.250 to 0.600, a change of 0.350 [0.280, 0.430] (n = 3 runs); published 0.190 to 0.380: the direction holds.']
    """
    frame, said = run.table("trajectory_change"), []
    for row in [] if frame is None else frame[frame["verdict"] != ""].to_dict("records"):
        change = format_interval(row["change"], row["change_low"], row["change_high"], int(row["n"]), "runs", digits=3)
        said.append(
            f"{NAMES.get(row['quantity'], row['quantity'])} goes from {format_number(row['first'], 3)} to {format_number(row['last'], 3)}, "
            f"a change of {change}; published {format_number(row['published_first'], 3)} to {format_number(row['published_last'], 3)}: "
            f"the direction {VERDICTS[row['verdict']]}."
        )
    return said


VERDICTS = {
    "holds": "holds",
    "reversed": "is reversed",
    "open": "is undecided: the interval over runs contains zero, or there is no interval",
}

TRAJECTORY = Section(
    "trajectory_change",
    "Over training",
    "How do hulls, synergy, communities and the alignment of the axes change from checkpoint to checkpoint? "
    "Beside them stands what was published.",
    (
        Chart(
            "Quantities over training",
            "epoch",
            "value",
            panels=("quantity",),
            only={"quantity": ("hull_size", "saturated", "ratio", "gap", "capture_relevance", "accuracy")},
            table="trajectory",
            low="low",
            high="high",
            of="runs",
            label="mean over runs",
            free=True,
            caption="Mean over runs of the mean over layers, with 95 % Student intervals over runs. Epoch 0 is the initialization.",
        ),
    ),
    trajectory_sentences,
    more=("trajectory", "trajectory_layers"),
    value="change",
)


def gradient_sentences(run: RunFolder) -> list[str]:
    """Sentences: the range of the angle over layers, the error of the identity w'g = 0, and the result of the simulation.

    Examples
    --------
    >>> from pathlib import Path
    >>> row = {"site": "conv1", "cosine": 0.57, "cosine_low": 0.5, "cosine_high": 0.64, "n": 64, "identity": 0.0}
    >>> gradient_sentences(RunFolder(Path(), {}, {"gradient_layers": pd.DataFrame([row])}))[1]
    "The identity w'g = 0 holds to 0.00 of |w| |g| or better."
    """
    layers, simulation = run.table("gradient_layers"), run.table("simulation")
    said = [] if layers is None else _layers(layers)
    return said + ([] if simulation is None else [_simulated(where(simulation, system=name)) for name in simulation["system"].unique()])


def _layers(layers: pd.DataFrame) -> list[str]:
    rows = layers.dropna(subset=["cosine"]).sort_values("cosine").to_dict("records")
    if not rows:
        return []
    ends = [
        f"{format_interval(row['cosine'], row['cosine_low'], row['cosine_high'], int(row['n']), 'channels', top=1.0)} in {row['site']}"
        for row in (rows[0], rows[-1])
    ]
    middle = rows[len(rows) // 2]["cosine"]
    return [
        f"The mean |cosine| of the two directions is {ends[0]}."
        if len(rows) == 1
        else f"The mean |cosine| of the two directions goes from {ends[0]} to {ends[1]}; "
        f"the median layer has {format_number(middle, 2)} (n = {len(rows)} layers).",
        f"The identity w'g = 0 holds to {format_number(max(row['identity'] for row in rows), 2)} of |w| |g| or better.",
    ]


def _simulated(rows: pd.DataFrame) -> str:
    first, *_, last = rows.sort_values("step").to_dict("records")
    start, end = (
        format_interval(row["alignment"], row["alignment_low"], row["alignment_high"], int(row["n"]), "starts") for row in (first, last)
    )
    return f"Simulation of {SYSTEMS[first['system']]}: alignment {start} at the start, {end} after {last['step']} steps."


SYSTEMS = {"channels": "channels that each follow their own task information", "network": "a linear network that descends its error"}

GRADIENTS = Section(
    "gradient_layers",
    "Gradient directions",
    "What is the angle between the weight gradients of input capture and of task information? If it is 90°, "
    "a small step along one does not change the other.",
    (
        Chart(
            "Angle of the two directions",
            "depth",
            "cosine",
            low="cosine_low",
            high="cosine_high",
            of="channels",
            label="mean |cosine|",
            zero=True,
            caption="0 is a right angle, which an input with equal variance in all directions would give. "
            "Bars are 95 % bootstrap intervals over channels.",
        ),
        Chart(
            "Simulated learning from a coupled start",
            "step",
            "alignment",
            by="system",
            table="simulation",
            low="alignment_low",
            high="alignment_high",
            of="starts",
            label="Spearman ρ of capture and task",
            zero=True,
            caption="Gaussian input with one strong direction that carries most of the target. Bars are 95 % intervals over random starts.",
        ),
    ),
    gradient_sentences,
    more=("gradients", "simulation", "gradient_skipped"),
    value="cosine",
    anchor="gradients",
)
