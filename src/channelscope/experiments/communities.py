"""Communities of channels that share information, and of channels that are informative only together."""

import networkx
import pandas as pd
import torch

from channelscope.errors import at
from channelscope.experiments.columns import table
from channelscope.formulas import information, task_information
from channelscope.formulas.graphs import Communities, communities, strongest_edges
from channelscope.formulas.ranks import spearman
from channelscope.formulas.resampling import bootstrap_mean, jackknife
from channelscope.scores.layer_statistics import LayerStatistics, ScoreOptions
from channelscope.site import Site
from channelscope.stats.profile import Profile
from channelscope.types import Float, Tensor

GAP = "R − S"

NODES = ["site", "depth", "graph", "channel", "community", "x", "y"]

EDGES = ["site", "depth", "graph", "channel", "peer", "weight"]


def find_communities(
    profile: Profile, share: float = 0.1, weighted: bool = True, shards: bool = True, **options
) -> dict[str, pd.DataFrame]:
    """R-graph (what two channels share) and S-graph (what they say about the target only together) of every layer.

    Parameters
    ----------
    share
        Edges kept: this share of the positive ones, the strongest.
    weighted
        Whether the modularity counts the edges' weights.
    shards
        Jackknife intervals over image shards, at ten times the cost.
    options
        The scores' convention: target, shrinkage, ….

    Returns
    -------
    dict[str, pd.DataFrame]
        `communities`: modularity, communities and edges of both graphs of each layer, and their gap; `community_depth`: their
        means over layers with bootstrap intervals, and Spearman's rho of each with depth; `community_nodes` and
        `community_edges`: the graphs themselves, with the community and a place for each channel that has an edge, ready to
        be drawn.

    Raises
    ------
    InputError
        For a share outside (0, 1].
    """
    convention = ScoreOptions.of(options)
    rows, nodes, edges = [], [], []
    for site in profile.sites:
        with at(site.name):
            layer = LayerStatistics(profile, site, profile.record(site), convention)
            left_out = profile.jackknife_records(site) if shards and profile.shards > 1 else []
            pairs = pair_matrices(layer)
            found = communities_of(pairs, share, weighted)
            again = [
                communities_of(pair_matrices(LayerStatistics(profile, site, record, convention)), share, weighted) for record in left_out
            ]
        rows += _rows(site, found, again)
        for name in pairs:
            where = {"site": site.name, "depth": site.depth, "graph": name}
            own_nodes, own_edges = _drawing(pairs[name], share, found[name])
            nodes += [where | node for node in own_nodes]
            edges += [where | edge for edge in own_edges]
    whole = pd.DataFrame(rows)
    return {
        "communities": table("communities", whole),
        "community_depth": table("community_depth", _depth(whole)),
        "community_nodes": table("community_nodes", pd.DataFrame(nodes, columns=NODES)),
        "community_edges": table("community_edges", pd.DataFrame(edges, columns=EDGES)),
    }


def pair_matrices(layer: LayerStatistics) -> dict[str, Float[Tensor, "channels channels"]]:
    """R and S of a layer: pairwise shared information at the local readout, and pairwise target excess."""
    return {
        "R": information.correlation_information(layer.correlation),
        "S": task_information.excess(layer.pair_information, layer.task_information),
    }


def communities_of(pairs: dict[str, Tensor], share: float = 0.1, weighted: bool = True) -> dict[str, Communities]:
    """Communities of both graphs of a layer."""
    return {name: communities(each, share, weighted=weighted) for name, each in pairs.items()}


def modularity_gap(found: dict[str, Communities]) -> float:
    """Modularity of the R-graph minus that of the S-graph; nan where one has no edge."""
    return found["R"].modularity - found["S"].modularity


def _rows(site: Site, found: dict[str, Communities], again: list[dict[str, Communities]]) -> list[dict]:
    where = {"site": site.name, "depth": site.depth}
    rows = []
    for name, own in found.items():
        said = _modularity(own.modularity, [each[name].modularity for each in again])
        rows.append({**where, "graph": name, **said, "communities": len(own.members), "edges": own.edges, "channels": site.channels})
    rows.append(
        {**where, "graph": GAP, **_modularity(modularity_gap(found), [modularity_gap(each) for each in again]), "channels": site.channels}
    )
    return rows


def _modularity(value: float, replicates: list[float]) -> dict[str, float]:
    ends = jackknife(torch.tensor(value), torch.tensor(replicates)).interval() if replicates else None
    low, high = (ends.low, ends.high) if ends else (float("nan"), float("nan"))
    return {"modularity": value, "modularity_low": low, "modularity_high": high}


def _depth(rows: pd.DataFrame) -> list[dict]:
    """Does modularity change with depth? One row per graph."""
    found = []
    for name, own in rows.groupby("graph", sort=False):
        modularity, depth = (torch.tensor(own[column].to_numpy(dtype=float)) for column in ("modularity", "depth"))
        mean = bootstrap_mean(modularity)
        ends = {"modularity": mean.value, "modularity_low": mean.low, "modularity_high": mean.high}
        found.append({"graph": name, **ends, "rho": float(spearman(modularity, depth)), "n": mean.n})
    return found


def _drawing(pairs: Tensor, share: float, found: Communities) -> tuple[list[dict], list[dict]]:
    """Nodes with community and place, and edges; the places are a spring layout, the same in every run."""
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
