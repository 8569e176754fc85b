"""Graphs of channels: communities by what is shared, and by what is said only together."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from channelscope.report.chart import Chart
from channelscope.report.run import Run, where
from channelscope.report.section import Drawing, Section
from channelscope.tables import interval, shown

GRAPHS_OF = ("R", "S")
SAID = {"R": "what channels share (R)", "S": "what they say only together (S)", "R − S": "the gap between the two"}
COLORS = ("#0a5fb4", "#b8420a", "#00805c", "#7a4fb5", "#8a6d00", "#b0147f", "#4a7a8c", "#565d66")


def answer(run: Run) -> list[str]:
    """Mean modularity of both graphs, the gap, and how they go with depth."""
    frame = run.table("graph_depth")
    said = []
    for row in [] if frame is None else frame.to_dict("records"):
        mean = interval(row["modularity"], row["modularity_low"], row["modularity_high"], int(row["n"]), "layers")
        said.append(f"Modularity of {SAID[row['graph']]}: {mean}; Spearman's ρ with depth {shown(row['rho'], 2, top=1.0)}.")
    return said


def drawings(run: Run) -> list[Drawing]:
    """Both graphs of the first, the middle and the last layer."""
    nodes, edges = run.table("graph_nodes"), run.table("graph_edges")
    if nodes is None or edges is None:
        return []
    sites = list(dict.fromkeys(nodes.sort_values("depth")["site"]))
    chosen = list(dict.fromkeys(sites[place] for place in (0, len(sites) // 2, -1)))
    figure = Figure(figsize=(2.4 * len(chosen), 5.0), layout="constrained")
    axes = figure.subplots(2, len(chosen), squeeze=False)
    for line, graph in zip(axes, GRAPHS_OF, strict=True):
        for place, site in zip(line, chosen, strict=True):
            _draw(place, *(where(frame, site=site, graph=graph) for frame in (nodes, edges)))
            place.set_title(f"{site}, {graph}")
    caption = (
        "Above, edges join the channels that share most; below, those that say most only together. A color is a community; "
        "channels without an edge are left out, and where a channel stands means nothing but who is near."
    )
    return [Drawing("graphs_drawn", "Communities in the first, the middle and the last layer", figure, caption)]


def _draw(axes: Axes, nodes: pd.DataFrame, edges: pd.DataFrame) -> None:
    places = {channel: (x, y) for channel, x, y in zip(nodes["channel"], nodes["x"], nodes["y"], strict=True)}
    lines = [(places[one], places[other]) for one, other in zip(edges["channel"], edges["peer"], strict=True)]
    axes.add_collection(LineCollection(lines, colors="#c9ced4", linewidths=0.5, zorder=1))
    colors = [COLORS[int(each) % len(COLORS)] for each in nodes["community"]]
    axes.scatter(nodes["x"], nodes["y"], s=14, c=colors, zorder=2, linewidths=0)
    axes.set_axis_off()


GRAPHS = Section(
    "graphs",
    "Communities of channels",
    "Do the channels that share information fall into communities, and do those that complete each other? The strongest tenth of the "
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
            caption="R − S is the gap. Bars are 95 % intervals over images (jackknife over shards); partitions jump.",
        ),
    ),
    answer,
    drawings,
    more=("graph_depth", "graph_nodes", "graph_edges"),
    value="modularity",
)
