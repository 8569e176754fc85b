"""Clusters of channels by their features, their agreement, and communities of graphs whose edges are the strongest pairs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch

from channelscope.errors import InputError, SampleError, ShapeError
from channelscope.formulas.information import CEILING
from channelscope.formulas.ranks import constant
from channelscope.lazy import LazyModule
from channelscope.types import Float, Int, Tensor

sklearn_cluster = LazyModule("sklearn.cluster")

sklearn_metrics = LazyModule("sklearn.metrics")

STARTS = 10
"""Random starts of one k-means; the best is taken."""


def z_scores(features: Float[Tensor, "channels k"]) -> Float[Tensor, "channels k"]:
    """z-scores of every column over the rows without nan.

    Parameters
    ----------
    features
        One row per channel.

    Returns
    -------
    Tensor
        Float64, in the shape of `features`: a row with a nan is nan throughout, a constant column is zero.

    Raises
    ------
    InputError
        For infinite features: cap them first (information.CEILING).

    Examples
    --------
    >>> z_scores(torch.tensor([[1.0, 5.0], [3.0, 5.0], [torch.nan, 5.0]])).tolist()
    [[-1.0, 0.0], [1.0, 0.0], [nan, nan]]

    References
    ----------
    Milligan & Cooper 1988. Checked by tests/formulas/test_clustering.py.
    """
    if bool(features.isinf().any()):
        raise InputError("an infinite feature has no z-score: cap it first, for example at information.CEILING")
    known = ~features.isnan().any(1)
    rows = features[known].double()
    centred = rows - rows.mean(0)
    spread = centred.square().mean(0).sqrt()
    result = torch.full_like(features, torch.nan, dtype=torch.float64)
    result[known] = (centred / spread).masked_fill(constant(rows), 0)
    return result


def kmeans_labels(features: Float[Tensor, "channels k"], groups: int = 4, seed: int = 0, starts: int = STARTS) -> Int[Tensor, "channels"]:
    """k-means clusters of the z-scored features.

    Parameters
    ----------
    features
        One row per channel.
    groups
        Number of clusters.
    seed
        Of the starts.
    starts
        Random starts; the best is taken.

    Returns
    -------
    Tensor
        Cluster of each channel; −1 where a feature is nan.

    Raises
    ------
    SampleError
        For fewer different channels than clusters.

    Examples
    --------
    >>> labels = kmeans_labels(torch.tensor([[0.0], [0.1], [5.0], [5.1]]), groups=2).tolist()
    >>> labels[0] == labels[1] != labels[2] == labels[3]
    True

    References
    ----------
    Lloyd 1982; Arthur & Vassilvitskii 2007 (seeding). Checked by tests/formulas/test_clustering.py.
    """
    scaled = z_scores(features)
    known = ~scaled.isnan().any(1)
    rows = scaled[known].cpu().numpy()
    different = len(np.unique(rows, axis=0))
    if different < groups:
        raise SampleError(f"{groups} groups need at least as many different channels, received {different}: ask for fewer groups")
    labels = torch.full((len(features),), -1, dtype=torch.long, device=features.device)
    clusters = sklearn_cluster.KMeans(groups, random_state=seed).set_params(n_init=starts).fit_predict(rows)
    labels[known] = torch.as_tensor(clusters, dtype=torch.long, device=features.device)
    return labels


def adjusted_rand(one: Int[Tensor, "channels"], other: Int[Tensor, "channels"]) -> float:
    """Adjusted Rand index of two clusterings: 1 for the same one, 0 on average by chance.

    Parameters
    ----------
    one, other
        Cluster of each channel; channels without one (−1) in either are left out.

    Returns
    -------
    float
        nan for fewer than two common channels.

    Raises
    ------
    ShapeError
        If the numbers of channels differ.

    Examples
    --------
    >>> adjusted_rand(torch.tensor([0, 0, 1, 1]), torch.tensor([1, 1, 0, 0]))
    1.0

    References
    ----------
    Hubert & Arabie 1985. Checked against tests/pencil.py::rand_index.
    """
    if len(one) != len(other):
        raise ShapeError(f"groupings of {len(one)} and {len(other)} channels")
    both = (one >= 0) & (other >= 0)
    if int(both.sum()) < 2:
        return float("nan")
    return float(sklearn_metrics.adjusted_rand_score(one[both].cpu().numpy(), other[both].cpu().numpy()))


def adjusted_rand_null(
    one: Int[Tensor, "channels"], other: Int[Tensor, "channels"], permutations: int = 1000, seed: int = 0
) -> Float[Tensor, "p"]:
    """Adjusted Rand indices after shuffling the channels of the second clustering: the null distribution for clusters of these sizes.

    Parameters
    ----------
    one, other
        Cluster of each channel; channels without one (−1) in either are left out.
    permutations
        Number of shuffles.
    seed
        Of the shuffles.

    Returns
    -------
    Tensor
        Float64 (permutations,).

    Examples
    --------
    Of the three ways to pair four channels one is the same again.

    >>> null = adjusted_rand_null(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 1, 1]), permutations=50)
    >>> [round(value, 3) for value in null.unique().tolist()]
    [-0.5, 1.0]

    References
    ----------
    Hubert & Arabie 1985. Checked by tests/formulas/test_clustering.py.
    """
    both = (one >= 0) & (other >= 0)
    first, second = (torch.unique(labels[both], return_inverse=True)[1].cpu() for labels in (one, other))
    n = len(first)
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.stack([second[torch.randperm(n, generator=generator)] for _ in range(permutations)])
    rows, columns = (torch.nn.functional.one_hot(labels).double() for labels in (first, shuffled))
    table = torch.einsum("ni,pnj->pij", rows, columns)
    pairs_in_both = _pairs(table).sum((1, 2))
    pairs_within = _pairs(table.sum(2)).sum(1), _pairs(table.sum(1)).sum(1)
    chance = pairs_within[0] * pairs_within[1] / _pairs(torch.tensor(float(n), dtype=torch.float64))
    span = (pairs_within[0] + pairs_within[1]) / 2 - chance
    return torch.where(span == 0, 1.0, (pairs_in_both - chance) / span)


def silhouette(features: Float[Tensor, "channels k"], labels: Int[Tensor, "channels"]) -> float:
    """Mean silhouette of a clustering on the z-scored features: near 1 for compact, distant clusters, 0 for overlapping ones.

    Parameters
    ----------
    features
        One row per channel.
    labels
        Cluster of each channel; −1 for none.

    Returns
    -------
    float
        −1 … 1; nan with one cluster, or with every channel in a cluster of its own.

    Examples
    --------
    >>> round(silhouette(torch.tensor([[0.0], [1.0], [9.0], [10.0]]), torch.tensor([0, 0, 1, 1])), 3)
    0.889

    References
    ----------
    Rousseeuw 1987. Checked against tests/pencil.py::silhouette.
    """
    scaled = z_scores(features)
    known = (labels >= 0) & ~scaled.isnan().any(1)
    groups = len(labels[known].unique())
    if not 1 < groups < int(known.sum()):
        return float("nan")
    return float(sklearn_metrics.silhouette_score(scaled[known].cpu().numpy(), labels[known].cpu().numpy()))


def cluster_stability(features: Float[Tensor, "channels k"], groups: int = 4, seeds: Sequence[int] = range(5)) -> float:
    """Mean adjusted Rand index between k-means clusterings from single random starts with different seeds.

    Parameters
    ----------
    features
        One row per channel.
    groups
        Number of clusters.
    seeds
        At least two seeds.

    Returns
    -------
    float
        1 if all starts give the same clusters.

    Raises
    ------
    SampleError
        For fewer than two seeds.

    Examples
    --------
    >>> cluster_stability(torch.tensor([[0.0], [0.1], [5.0], [5.1]]), groups=2)
    1.0

    References
    ----------
    Ben-Hur, Elisseeff, Guyon 2002. Checked by tests/formulas/test_clustering.py.
    """
    labels = [kmeans_labels(features, groups, seed, starts=1) for seed in seeds]
    if len(labels) < 2:
        raise SampleError(f"stability compares at least 2 seeds, received {len(labels)}")
    return float(np.mean([adjusted_rand(one, other) for one, other in combinations(labels, 2)]))


def _pairs(counts: Tensor) -> Tensor:
    return counts * (counts - 1) / 2


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
    if not len(edges):
        return Communities((), math.nan, 0)
    nodes, ends = edges.unique(return_inverse=True)
    adjacency = np.zeros((len(nodes), len(nodes)))
    adjacency[tuple(ends.T.cpu().numpy())] = weights.double().cpu().numpy() if weighted else 1.0
    adjacency += adjacency.T
    labels = _greedy_partition(adjacency)
    parts = [nodes[torch.as_tensor(labels == label)].tolist() for label in np.unique(labels)]
    members = sorted(map(tuple, parts), key=lambda each: (-len(each), each))
    return Communities(tuple(members), _modularity(adjacency, labels), len(edges))


def _greedy_partition(adjacency: np.ndarray) -> np.ndarray:
    """Community of each node: the two whose union adds most to the modularity become one, until every union would take some away.

    Gains are in units of half the squared total weight, so that they are whole numbers for edges without weights; of equal ones the
    first nodes come first. Each community keeps its best partner: found anew when that was joined, and for the new community against all.
    """
    between, total = adjacency.copy(), adjacency.sum()
    degree, labels, rows = between.sum(1), np.arange(len(between)), np.arange(len(between))
    gains = np.where(between > 0, total * between - np.outer(degree, degree), -np.inf)
    best = gains.argmax(1)
    while True:
        one = int(gains[rows, best].argmax())
        other = int(best[one])
        if gains[one, other] < 0:
            return labels
        labels[labels == one] = other
        between[other] += between[one]
        between[other, other] = between[one] = between[:, one] = 0
        between[:, other] = between[other]
        degree[other] += degree[one]
        gains[one] = gains[:, one] = -np.inf
        gains[other] = gains[:, other] = np.where(between[other] > 0, total * between[other] - degree[other] * degree, -np.inf)
        changed = np.flatnonzero((best == one) | (best == other) | (rows == other))
        best[changed] = gains[changed].argmax(1)


def _modularity(adjacency: np.ndarray, labels: np.ndarray) -> float:
    """Weight within communities less what their degrees let expect, as a share of all weight."""
    indicator = (labels[:, None] == np.unique(labels)).astype(float)
    total = adjacency.sum()
    within, degree = np.einsum("ic,ij,jc->c", indicator, adjacency, indicator, optimize=True), indicator.T @ adjacency.sum(1)
    return float((within / total - (degree / total) ** 2).sum())
