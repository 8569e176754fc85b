"""Communities of channels: in the graph of shared information (R) and in the graph of target excess (S)."""

import networkx
import pandas as pd
import torch

from channelscope.errors import at
from channelscope.formulas import information, task_information
from channelscope.formulas.clustering import Communities, communities, strongest_edges
from channelscope.formulas.intervals import bootstrap_mean, jackknife_interval
from channelscope.formulas.ranks import spearman
from channelscope.progress import track
from channelscope.scores.score import LayerStatistics, ScoreOptions
from channelscope.site import Site
from channelscope.stats.profile import Profile
from channelscope.tables.frame import fill
from channelscope.tables.quantities import OURS, Column, Schema
from channelscope.types import Float, Tensor

GAP = "R − S"

GRAPH = Column.text("R: what two channels share; S: what they say only together; R − S: the gap")

MODULARITY = Column.correlation("modularity of the greedy partition of the strongest edges", "Clauset, Newman, Moore 2004")

GRAPHS = Schema(
    "communities",
    "site depth channels",
    {
        "graph": GRAPH,
        "modularity": MODULARITY,
        "communities": Column.count("communities of the partition"),
        "edges": Column.count("edges of the graph"),
    },
)

GRAPH_DEPTH = Schema(
    "community_depth",
    "n",
    {"graph": GRAPH, "modularity": MODULARITY, "rho": Column.correlation("rank correlation of the modularity with depth", "Spearman 1904")},
)

GRAPH_NODES = Schema(
    "community_nodes",
    "site depth channel",
    {
        "graph": GRAPH,
        "community": Column.count("community of the channel, 0 the largest"),
        "x": Column("", 3, "place in the drawing", OURS),
        "y": Column("", 3, "place in the drawing", OURS),
    },
)

GRAPH_EDGES = Schema(
    "community_edges",
    "site depth channel",
    {"graph": GRAPH, "peer": Column.count("the other channel of the edge"), "weight": Column("nats", 3, "weight of the edge", OURS, 0.0)},
)


def find_communities(
    profile: Profile, share: float = 0.1, weighted: bool = True, shards: bool = True, **options
) -> dict[str, pd.DataFrame]:
    """Communities of the R-graph (information two channels share) and the S-graph (their target excess) of every layer.

    Parameters
    ----------
    profile
        Statistics of the network.
    share
        Fraction of the positive pairs that become edges, the strongest first.
    weighted
        Whether the modularity uses the weights of the edges.
    shards
        Whether to compute jackknife intervals over image shards, at ten times the cost.
    **options
        Options of the scores: target, shrinkage, ….

    Returns
    -------
    dict[str, DataFrame]
        `communities`: modularity, number of communities and of edges of both graphs of each layer, and the difference of the
        modularities. `community_depth`: means over layers with bootstrap intervals, and Spearman's rho with depth. `community_nodes`
        and `community_edges`: the graphs, with the community and a position in a drawing for each channel that has an edge.

    Raises
    ------
    InputError
        If `share` is outside (0, 1].

    Examples
    --------
    >>> from channelscope import collect, zoo
    >>> toy = zoo.toys.exact_copy()  # channel 3 is twice channel 0
    >>> tables = find_communities(collect(toy.model, toy.batches), shards=False)
    >>> tables["community_edges"].query("graph == 'R'")[["channel", "peer"]].values.tolist()
    [[0, 3]]

    References
    ----------
    Clauset, Newman & Moore 2004; Safaai et al. 2026.
    """
    convention = ScoreOptions.of(options)
    rows, nodes, edges = [], [], []
    for site in track(profile.sites, "communities"):
        with at(site.name):
            layer = LayerStatistics(profile, site, profile.record(site), convention)
            left_out = profile.jackknife_records(site) if shards and profile.shards > 1 else []
            pairs = pair_matrices(layer)
            found = communities_of(pairs, share, weighted)
            replicates = [
                communities_of(pair_matrices(LayerStatistics(profile, site, record, convention)), share, weighted) for record in left_out
            ]
        rows += _rows(site, found, replicates)
        for name in pairs:
            where = {"site": site.name, "depth": site.depth, "graph": name}
            site_nodes, site_edges = _drawing(pairs[name], share, found[name])
            nodes += [where | node for node in site_nodes]
            edges += [where | edge for edge in site_edges]
    modularities = pd.DataFrame(rows)
    return {
        "communities": fill(GRAPHS, modularities),
        "community_depth": fill(GRAPH_DEPTH, _depth(modularities)),
        "community_nodes": fill(GRAPH_NODES, nodes),
        "community_edges": fill(GRAPH_EDGES, edges),
    }


def pair_matrices(layer: LayerStatistics) -> dict[str, Float[Tensor, "channels channels"]]:
    """Shared information of every pair of channels (R) and its target excess (S).

    Parameters
    ----------
    layer
        Statistics of one layer.

    Returns
    -------
    dict[str, Tensor]
        R and S, each (channels, channels) in nats.

    Examples
    --------
    >>> from channelscope import collect, zoo
    >>> toy = zoo.toys.suppressor_pair()
    >>> profile = collect(toy.model, toy.batches)
    >>> layer = LayerStatistics(profile, profile.sites[0], profile.record(profile.sites[0]), ScoreOptions())
    >>> excess = pair_matrices(layer)["S"][0, 1]
    >>> round(float(excess), 3), round(float(toy.truth["excess"][0, 1]), 3)
    (0.549, 0.549)
    """
    return {
        "R": information.correlation_information(layer.correlation),
        "S": task_information.excess(layer.pair_information, layer.task_information),
    }


def communities_of(pairs: dict[str, Tensor], share: float = 0.1, weighted: bool = True) -> dict[str, Communities]:
    """Communities of both graphs of a layer.

    Parameters
    ----------
    pairs
        Name of the graph → weights of all pairs, as `pair_matrices` returns them.
    share
        Fraction of the positive pairs that become edges.
    weighted
        Whether the modularity uses the weights.

    Returns
    -------
    dict[str, Communities]
        Name of the graph → its communities.

    Examples
    --------
    >>> blocks = torch.block_diag(torch.ones(3, 3), torch.ones(3, 3)).double()
    >>> found = communities_of({"R": blocks, "S": blocks}, share=1.0)
    >>> len(found["R"].members), round(found["R"].modularity, 3)
    (2, 0.5)
    """
    return {name: communities(each, share, weighted=weighted) for name, each in pairs.items()}


def modularity_gap(graphs: dict[str, Communities]) -> float:
    """Modularity of the R-graph minus that of the S-graph; nan where one of them has no edge.

    Parameters
    ----------
    graphs
        Communities of both graphs.

    Returns
    -------
    float
        Difference, at least −1.5 and at most 1.5.

    Examples
    --------
    >>> blocks, complete = torch.block_diag(torch.ones(3, 3), torch.ones(3, 3)).double(), torch.ones(6, 6).double()
    >>> round(modularity_gap(communities_of({"R": blocks, "S": complete}, share=1.0)), 3)
    0.5
    """
    return graphs["R"].modularity - graphs["S"].modularity


def _rows(site: Site, found: dict[str, Communities], replicates: list[dict[str, Communities]]) -> list[dict]:
    """Rows of `communities` for one site: R, S and their difference."""
    where = {"site": site.name, "depth": site.depth, "channels": site.channels}
    rows = []
    for name, graph in found.items():
        interval = _modularity(graph.modularity, [each[name].modularity for each in replicates])
        rows.append({**where, "graph": name, **interval, "communities": len(graph.members), "edges": graph.edges})
    gap = _modularity(modularity_gap(found), [modularity_gap(each) for each in replicates])
    return [*rows, {**where, "graph": GAP, **gap}]


def _modularity(value: float, replicates: list[float]) -> dict[str, float]:
    """Modularity with its jackknife interval; nan without shards."""
    interval = jackknife_interval(torch.tensor(value), [torch.tensor(each) for each in replicates])
    return {"modularity": value, "modularity_low": interval.low, "modularity_high": interval.high}


def _depth(rows: pd.DataFrame) -> list[dict]:
    """Mean modularity over layers and its rank correlation with depth, one row per graph."""
    found = []
    for name, of_graph in rows.groupby("graph", sort=False):
        modularity, depth = (torch.tensor(of_graph[column].to_numpy(dtype=float)) for column in ("modularity", "depth"))
        mean = bootstrap_mean(modularity)
        ends = {"modularity": mean.value, "modularity_low": mean.low, "modularity_high": mean.high}
        found.append({"graph": name, **ends, "rho": float(spearman(modularity, depth)), "n": mean.n})
    return found


def _drawing(pairs: Tensor, share: float, found: Communities) -> tuple[list[dict], list[dict]]:
    """Nodes with community and position, and edges; the positions are a spring layout with a fixed seed."""
    ends, weights = strongest_edges(pairs, share)
    edges = [{"channel": i, "peer": j, "weight": w} for (i, j), w in zip(ends.tolist(), weights.tolist(), strict=True)]
    graph = networkx.Graph()
    graph.add_weighted_edges_from((each["channel"], each["peer"], each["weight"]) for each in edges)
    places = networkx.spring_layout(graph, seed=0) if edges else {}
    community = {channel: number for number, members in enumerate(found.members) for channel in members}
    nodes = [
        {"channel": channel, "community": community[channel], "x": float(places[channel][0]), "y": float(places[channel][1])}
        for channel in sorted(places)
    ]
    return nodes, edges
