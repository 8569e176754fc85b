"""Communities of channels by redundancy and by synergy, and propagation between layers."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from channelscope.report.section import Chart, Drawing, Section
from channelscope.tables.frame import format_interval, format_number
from channelscope.tables.run_folder import RunFolder, where

GRAPH_NAMES = ("R", "S")

LEGENDS = {"R": "shared information (R)", "S": "synergy about the target (S)", "R − S": "the gap between the two"}

COLORS = ("#0a5fb4", "#b8420a", "#00805c", "#7a4fb5", "#8a6d00", "#b0147f", "#4a7a8c", "#565d66")


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
    figure = Figure(figsize=(2.4 * len(chosen), 5.0), layout="constrained")
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
    return [Drawing("communities_drawn", "Communities in the first, the middle and the last layer", figure, caption)]


def _draw(axes: Axes, nodes: pd.DataFrame, edges: pd.DataFrame) -> None:
    places = {channel: (x, y) for channel, x, y in zip(nodes["channel"], nodes["x"], nodes["y"], strict=True)}
    lines = [(places[one], places[other]) for one, other in zip(edges["channel"], edges["peer"], strict=True)]
    axes.add_collection(LineCollection(lines, colors="#c9ced4", linewidths=0.5, zorder=1))
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
