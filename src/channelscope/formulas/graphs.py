"""The graph of a layer's strongest pairs, its communities and their modularity."""

import math
from dataclasses import dataclass

import networkx
import torch
from networkx.algorithms.community import greedy_modularity_communities, modularity

from channelscope.errors import InputError
from channelscope.formulas.information import CEILING
from channelscope.types import Float, Int, Tensor


@dataclass(frozen=True)
class Communities:
    """A partition of the channels that have an edge."""

    members: tuple[tuple[int, ...], ...]
    """channels of each community, largest community first; channels without an edge are in none"""
    modularity: float
    """−½ … 1; nan where there is no edge"""
    edges: int
    """number of edges behind it"""


def strongest_edges(
    pairs: Float[Tensor, "channels channels"], share: float = 0.1, ceiling: float = CEILING
) -> tuple[Int[Tensor, "edges 2"], Float[Tensor, "edges"]]:
    """The largest positive entries above the diagonal of a symmetric matrix, as edges with weights.

    Equal entries are taken in the order of their channels.

    Parameters
    ----------
    pairs
        A quantity of each pair of channels; nan (silent channels) is no edge.
    share
        Part of the positive entries that is taken, within (0, 1], rounded up.
    ceiling
        Largest weight; the inf of an exact copy becomes this weight.

    Returns
    -------
    tuple[Tensor, Tensor]
        Channels (edges, 2) and weights (edges,), largest first.

    Raises
    ------
    InputError
        For a share outside (0, 1].

    Examples
    --------
    >>> edges, weights = strongest_edges(torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 0.0], [2.0, 0.0, 0.0]]), share=0.5)
    >>> edges.tolist(), weights.tolist()
    ([[0, 2]], [2.0])

    References
    ----------
    Safaai et al. 2026 (R-graph and S-graph). Checked against tests/pencil.py::strongest_edges.
    """
    if not 0 < share <= 1:
        raise InputError(f"share is within (0, 1], received {share:g}")
    rows, columns = torch.triu_indices(len(pairs), len(pairs), 1, device=pairs.device)
    weights = pairs[rows, columns].clamp(max=ceiling)
    positive = weights > 0
    rows, columns, weights = rows[positive], columns[positive], weights[positive]
    kept = weights.argsort(descending=True, stable=True)[: math.ceil(share * len(weights) - 1e-9)]
    return torch.stack([rows[kept], columns[kept]], 1), weights[kept]


def communities(
    pairs: Float[Tensor, "channels channels"], share: float = 0.1, *, weighted: bool = True, ceiling: float = CEILING
) -> Communities:
    """Greedy (Clauset-Newman-Moore) partition of the graph of the strongest edges, with its modularity.

        Q = Σ_communities  L_c/m − (d_c/2m)²

    L_c is the weight inside community c, d_c its summed degree, m the total weight.

    Parameters
    ----------
    pairs
        A quantity of each pair of channels.
    share, ceiling
        As for `strongest_edges`.
    weighted
        False to count every edge as 1.

    Returns
    -------
    Communities
        Largest community first; the modularity is nan where there is no edge.

    Examples
    --------
    >>> pairs = torch.block_diag(torch.ones(2, 2), torch.ones(2, 2))
    >>> communities(pairs, share=1)
    Communities(members=((0, 1), (2, 3)), modularity=0.5, edges=2)

    References
    ----------
    Clauset, Newman, Moore 2004. Checked against tests/pencil.py::modularity.
    """
    edges, weights = strongest_edges(pairs, share, ceiling)
    graph = networkx.Graph()
    graph.add_weighted_edges_from((i, j, w) for (i, j), w in zip(edges.tolist(), weights.tolist(), strict=True))
    if graph.number_of_edges() == 0:
        return Communities((), math.nan, 0)
    weight = "weight" if weighted else None
    partition = greedy_modularity_communities(graph, weight=weight)
    members = sorted((tuple(sorted(each)) for each in partition), key=lambda each: (-len(each), each))
    return Communities(tuple(members), float(modularity(graph, partition, weight=weight)), graph.number_of_edges())
