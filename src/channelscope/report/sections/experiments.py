"""Experiments on channels: the damage of silenced ones, sets that replace one, communities, and propagation between layers."""

from typing import TYPE_CHECKING

import pandas as pd

from channelscope.lazy import LazyModule
from channelscope.report import verdict
from channelscope.report.section import COLORS, Chart, Drawing, Section
from channelscope.tables.frame import format_interval, format_number, format_percent
from channelscope.tables.run_folder import RunFolder, where

if TYPE_CHECKING:
    from matplotlib.axes import Axes

mpl_collections = LazyModule("matplotlib.collections")
mpl_figure = LazyModule("matplotlib.figure")

DAMAGE, RECOVERED = "damage_kl", "recovered_hull_kl"

PEERS = ("overlap", "support", "compactness")


def ablation_sentences(run: RunFolder) -> list[str]:
    """Sentences: the recovered share, the scores that correlate with the damage, and the partial correlations of the peer scores.

    Examples
    --------
    >>> from pathlib import Path
    >>> rows = [{"outcome": "damage_kl", "score": "l2", "rho": 0.7, "low": 0.65, "high": 0.75, "n": 40}]
    >>> ablation_sentences(RunFolder(Path(), {}, {"ablation_correlations": pd.DataFrame(rows)}))
    ['Damage correlates most with L2 norm 0.70 [0.65, 0.75] (n = 40 channels); means over layers.']
    """
    recovered, correlations, partial = (run.table(name) for name in ("recovered", "ablation_correlations", "ablation_partial"))
    said = [] if recovered is None else _recovered(recovered)
    said += [] if correlations is None else _scores(correlations)
    said += [] if partial is None else _beyond(partial)
    notes = run.table("notes")
    return said + ([] if notes is None else [f"{verdict.capitalized(line)}." for line in notes["note"]])


def _recovered(frame: pd.DataFrame) -> list[str]:
    whole = where(frame, site="all layers", quantity="kl")
    said = []
    for name, subset, words in (
        ("hull", "all", "Of the KL divergence that ablation causes, replacement sets (hulls) recover"),
        ("hull", "controls", "among the channels with controls they recover"),
        ("random", "controls", "as many random peers"),
        ("mean", "controls", "and the mean"),
    ):
        for row in where(whole, replacement=name, baseline="silence", subset=subset).to_dict("records"):
            said.append(f"{words} {format_interval(row['recovered'], row['low'], row['high'], row['n'], 'channels')}")
    return [", ".join(said) + "."] if said else []


def _scores(frame: pd.DataFrame) -> list[str]:
    said = []
    for outcome, words in ((DAMAGE, "Damage correlates most with"), (RECOVERED, "The share that hulls recover correlates most with")):
        rows = where(frame, outcome=outcome).dropna(subset=["rho"])
        rows = rows.reindex(rows["rho"].abs().sort_values(ascending=False).index)
        if len(rows):
            said.append(f"{words} {', '.join(_spoken(row) for row in rows.head(3).to_dict('records'))}; means over layers.")
    return said


def _beyond(frame: pd.DataFrame) -> list[str]:
    rows = where(frame, outcome=DAMAGE).to_dict("records")
    peers = [_spoken(row) for row in rows if row["score"] in PEERS and row["rho"] == row["rho"]]
    return [f"Partial correlation of the damage, controlling for task information and input capture: {', '.join(peers)}."] if peers else []


def _spoken(row: dict) -> str:
    return f"{verdict.title(row['score'])} {format_interval(row['rho'], row['low'], row['high'], int(row['n']), 'channels', top=1.0)}"


ABLATION = Section(
    "ablation_correlations",
    "Ablations",
    "Each channel is set to zero at its cut point; then it is replaced by a prediction from its hull, from as many random "
    "peers, or by its mean. "
    "How large is the damage, how much of it does each replacement recover, and which scores predict it?",
    (
        Chart(
            "Rank correlation with the damage of ablation",
            "score",
            "rho",
            kind="rows",
            where={"outcome": (DAMAGE,)},
            low="low",
            high="high",
            of="channels",
            label="Spearman ρ, mean over layers",
            zero=True,
            caption="Damage is the divergence of the output. Bars are 95 % intervals over channels within layers and over images.",
        ),
        Chart(
            "Rank correlation with the share that hulls recover",
            "score",
            "rho",
            kind="rows",
            where={"outcome": (RECOVERED,)},
            low="low",
            high="high",
            of="channels",
            label="Spearman ρ, mean over layers",
            zero=True,
            caption="Only channels whose damage exceeds its standard error have a recovered share.",
        ),
        Chart(
            "Recovered share of the damage, layer by layer",
            "depth",
            "recovered",
            by="replacement",
            where={"quantity": ("kl",), "baseline": ("silence",), "subset": ("controls",)},
            table="recovered",
            low="low",
            high="high",
            of="channels",
            zero=True,
            caption="Hull, as many random peers, and the mean, for the same channels. "
            "Below zero, the replacement is worse than zero-ablation.",
        ),
        Chart(
            "Damage against peer support",
            "support",
            "kl",
            kind="scatter",
            table="ablated_channels",
            caption="One point per channel; the KL divergence of the output in nats when it is ablated.",
        ),
    ),
    ablation_sentences,
    more=("recovered", "ablation_partial", "ablation_matched", "ablated_channels", "ablations", "consumers", "notes"),
    value="rho",
    anchor="ablations",
)


def hull_sentences(run: RunFolder) -> list[str]:
    """Sentences: the mean hull size of the layers, and how many hulls are full before they reach their threshold.

    Examples
    --------
    >>> from pathlib import Path
    >>> hulls = pd.DataFrame({"support": [0.9, 0.5, None], "saturated": [True, False, False]})
    >>> hull_sentences(RunFolder(Path(), {}, {"hulls": hulls}))
    ['1 of 2 hulls (50.0 %) are full before they reach their threshold.', '1 channel does not vary and has no hull.']
    """
    frame = run.table("hulls")
    if frame is None:
        return []
    known = frame.dropna(subset=["support"])
    silent, full = len(frame) - len(known), int(known["saturated"].sum())
    said = [
        _hull_layers(run.table("hull_layers")),
        f"{full:,} of {len(known):,} hulls ({format_percent(full / len(known)) if len(known) else 'none'}) are full before they reach "
        f"their threshold.",
    ]
    if silent:
        said.append(
            f"{silent:,} {'channel does' if silent == 1 else 'channels do'} not vary and {'has' if silent == 1 else 'have'} no hull."
        )
    return [line for line in said if line]


def _hull_layers(layers: pd.DataFrame | None) -> str:
    rows = [] if layers is None else layers.dropna(subset=["size"]).sort_values("size").to_dict("records")
    if not rows:
        return ""
    least, middle, most = (f"{_size(row)} in {row['site']}" for row in (rows[0], rows[len(rows) // 2], rows[-1]))
    return f"Mean number of members of a hull: {middle}, the median layer; from {least} to {most}."


def _size(row: dict) -> str:
    return format_interval(row["size"], row["size_low"], row["size_high"], int(row["channels"]), "channels")


HULLS = Section(
    "hull_layers",
    "Replaceability hulls",
    "How many same-layer channels are needed to predict a channel? Peers are added greedily, by explained variance, until "
    "the hull reaches its share of the variance that all peers explain.",
    (
        Chart(
            "Mean hull size",
            "depth",
            "size",
            low="size_low",
            high="size_high",
            count="channels",
            of="channels",
            label="members",
            caption="Bars are 95 % intervals over images (jackknife over shards).",
        ),
        Chart(
            "Hulls that are full before they reach the threshold",
            "depth",
            "saturated",
            low="saturated_low",
            high="saturated_high",
            count="channels",
            of="channels",
            label="fraction of channels",
            caption="Bars are 95 % intervals over images (jackknife over shards).",
        ),
        Chart(
            "Explained variance with one, two, three, five and ten members",
            "depth",
            "explained",
            by="size",
            where={"size": (1, 2, 3, 5, 10)},
            of="channels",
            table="hull_curve",
            label="explained variance",
            caption="Mean over the channels of a layer; complete hulls keep their final value.",
        ),
    ),
    hull_sentences,
    more=("hulls", "hull_curve"),
    anchor="hulls",
)


GRAPH_NAMES = ("R", "S")

LEGENDS = {"R": "shared information (R)", "S": "synergy about the target (S)", "R − S": "the gap between the two"}


def community_sentences(run: RunFolder) -> list[str]:
    """Sentences: mean modularity of both graphs, their gap, and the correlation of each with depth.

    Examples
    --------
    >>> from pathlib import Path
    >>> rows = [{"graph": "R", "modularity": 0.48, "modularity_low": 0.43, "modularity_high": 0.52, "n": 22, "rho": -0.45}]
    >>> community_sentences(RunFolder(Path(), {}, {"community_depth": pd.DataFrame(rows)}))
    ["Modularity of shared information (R): 0.48 [0.43, 0.52] (n = 22 layers); Spearman's ρ with depth −0.45."]
    """
    frame = run.table("community_depth")
    said = []
    for row in [] if frame is None else frame.to_dict("records"):
        mean = format_interval(row["modularity"], row["modularity_low"], row["modularity_high"], int(row["n"]), "layers")
        said.append(f"Modularity of {LEGENDS[row['graph']]}: {mean}; Spearman's ρ with depth {format_number(row['rho'], 2, top=1.0)}.")
    return said


def community_drawings(run: RunFolder) -> list[Drawing]:
    """Both graphs of the first, the middle and the last layer.

    Examples
    --------
    >>> from pathlib import Path
    >>> nodes = pd.DataFrame({"site": "conv1", "depth": 0, "graph": "R", "channel": [0, 1], "community": 0, "x": [0, 1], "y": [0, 1]})
    >>> edges = pd.DataFrame({"site": ["conv1"], "graph": ["R"], "channel": [0], "peer": [1]})
    >>> [each.name for each in community_drawings(RunFolder(Path(), {}, {"community_nodes": nodes, "community_edges": edges}))]
    ['communities_drawn']
    """
    nodes, edges = run.table("community_nodes"), run.table("community_edges")
    if nodes is None or edges is None:
        return []
    sites = list(dict.fromkeys(nodes.sort_values("depth")["site"]))
    chosen = list(dict.fromkeys(sites[place] for place in (0, len(sites) // 2, -1)))
    figure = mpl_figure.Figure(figsize=(2.4 * len(chosen), 5.0), layout="constrained")
    axes = figure.subplots(2, len(chosen), squeeze=False)
    for line, graph in zip(axes, GRAPH_NAMES, strict=True):
        for place, site in zip(line, chosen, strict=True):
            _draw(place, *(where(frame, site=site, graph=graph) for frame in (nodes, edges)))
            place.set_title(f"{site}, {graph}")
    caption = (
        "Above, edges join the channels with the most shared information; below, those with the most synergy about the target. "
        "Colors are communities; "
        "channels without an edge are omitted; positions come from a spring layout and have no other meaning."
    )
    return [Drawing("communities_drawn", "Communities in the first, the middle and the last layer", figure, caption, "community_nodes")]


def _draw(axes: "Axes", nodes: pd.DataFrame, edges: pd.DataFrame) -> None:
    places = {channel: (x, y) for channel, x, y in zip(nodes["channel"], nodes["x"], nodes["y"], strict=True)}
    lines = [(places[one], places[other]) for one, other in zip(edges["channel"], edges["peer"], strict=True)]
    axes.add_collection(mpl_collections.LineCollection(lines, colors="#c9ced4", linewidths=0.5, zorder=1))
    colors = [COLORS[int(each) % len(COLORS)] for each in nodes["community"]]
    axes.scatter(nodes["x"], nodes["y"], s=14, c=colors, zorder=2, linewidths=0)
    axes.set_axis_off()


COMMUNITIES = Section(
    "communities",
    "Communities",
    "Do channels with shared information form communities, and do channels with synergy about the target? The strongest tenth of the "
    "pairs are the edges of each graph.",
    (
        Chart(
            "Modularity by depth",
            "depth",
            "modularity",
            by="graph",
            low="modularity_low",
            high="modularity_high",
            count="edges",
            of="edges",
            zero=True,
            caption="R − S is the gap. Bars are 95 % intervals over images (jackknife over shards); "
            "partitions can change abruptly, so intervals of single layers are wide.",
        ),
    ),
    community_sentences,
    community_drawings,
    more=("community_depth", "community_nodes", "community_edges"),
    value="modularity",
)


def propagation_sentences(run: RunFolder) -> list[str]:
    """Sentences: the correlation from each axis to each axis.

    Examples
    --------
    >>> from pathlib import Path
    >>> rows = [{"axes": "local → target", "rho": 0.01, "low": -0.03, "high": 0.05, "n": 42, "p": 0.73}]
    >>> propagation_sentences(RunFolder(Path(), {}, {"propagation_axes": pd.DataFrame(rows)}))
    ['From local to target: mean partial rank correlation 0.01 [−0.03, 0.05] (n = 42 links), p = 0.730 against shuffled channels.']
    """
    frame = run.table("propagation_axes")
    return [
        f"From {row['axes'].replace('→', 'to')}: mean partial rank correlation "
        f"{format_interval(row['rho'], row['low'], row['high'], int(row['n']), 'links', top=1.0)}, "
        f"p = {format_number(row['p'], 3)} against shuffled channels."
        for row in ([] if frame is None else frame.to_dict("records"))
    ]


PROPAGATION = Section(
    "propagation_axes",
    "From layer to layer",
    "Do the scores of a layer's channels predict those of the channels that read them, within and across the two axes? "
    "The input of a channel is "
    "weighted by the strength of its connections; the other axis is controlled for.",
    (
        Chart(
            "From axis to axis",
            "axes",
            "rho",
            kind="rows",
            low="low",
            high="high",
            of="links",
            label="partial Spearman ρ, mean over links",
            zero=True,
            caption="A link is a layer and one that reads it. Bars are 95 % bootstrap intervals over links.",
        ),
        Chart(
            "Quantity by quantity",
            "pair",
            "rho",
            kind="rows",
            by="axes",
            table="propagation_mean",
            low="low",
            high="high",
            of="links",
            label="partial Spearman ρ, mean over links",
            zero=True,
            caption="From the quantity of the channels that are read to that of their readers.",
        ),
    ),
    propagation_sentences,
    more=("propagation_mean", "propagation"),
    value="rho",
)
