"""Clusters of channels by their features, and the agreement of two clusterings."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, silhouette_score

from channelscope.errors import InputError, SampleError, ShapeError
from channelscope.formulas.ranks import constant
from channelscope.types import Float, Int, Tensor

STARTS = 10
"""Random starts of one k-means; the best is taken."""


def z_scores(features: Float[Tensor, "channels k"]) -> Float[Tensor, "channels k"]:
    """z-scores of every column over the rows without nan; rows with nan become nan throughout, a constant column becomes zeros.

    Raises
    ------
    InputError
        For infinite features: cap them first (information.CEILING).

    References
    ----------
    Milligan & Cooper 1988; checked by tests/formulas/test_groupings.py.
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
    """k-means of the z-scored features: the group of each channel; −1 where a feature is nan.

    Raises
    ------
    SampleError
        With fewer different channels than groups.

    References
    ----------
    Lloyd 1982; Arthur & Vassilvitskii 2007 (seeding); checked by tests/formulas/test_groupings.py.
    """
    scaled = z_scores(features)
    known = ~scaled.isnan().any(1)
    rows = scaled[known].cpu().numpy()
    different = len(np.unique(rows, axis=0))
    if different < groups:
        raise SampleError(f"{groups} groups need at least as many different channels, received {different}: ask for fewer groups")
    labels = torch.full((len(features),), -1, dtype=torch.long, device=features.device)
    found = KMeans(groups, random_state=seed).set_params(n_init=starts).fit_predict(rows)
    labels[known] = torch.as_tensor(found, dtype=torch.long, device=features.device)
    return labels


def adjusted_rand(one: Int[Tensor, "channels"], other: Int[Tensor, "channels"]) -> float:
    """Adjusted Rand index of two groupings: 1 for the same, 0 on average by chance. Channels without a group (−1) in either are left out.

    Undefined (nan) below two common channels.

    References
    ----------
    Hubert & Arabie 1985; checked by tests/pencil.py::rand_index.
    """
    if len(one) != len(other):
        raise ShapeError(f"groupings of {len(one)} and {len(other)} channels")
    both = (one >= 0) & (other >= 0)
    if int(both.sum()) < 2:
        return float("nan")
    return float(adjusted_rand_score(one[both].cpu().numpy(), other[both].cpu().numpy()))


def adjusted_rand_null(
    one: Int[Tensor, "channels"], other: Int[Tensor, "channels"], permutations: int = 1000, seed: int = 0
) -> Float[Tensor, "p"]:
    """Adjusted Rand indices after shuffling the channels of the second grouping: what sizes alone would give.

    References
    ----------
    Hubert & Arabie 1985; checked by tests/formulas/test_groupings.py.
    """
    both = (one >= 0) & (other >= 0)
    first, second = (torch.unique(labels[both], return_inverse=True)[1].cpu() for labels in (one, other))
    n = len(first)
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.stack([second[torch.randperm(n, generator=generator)] for _ in range(permutations)])
    rows, columns = (torch.nn.functional.one_hot(labels).double() for labels in (first, shuffled))
    table = torch.einsum("ni,pnj->pij", rows, columns)
    together = _pairs(table).sum((1, 2))
    apart = _pairs(table.sum(2)).sum(1), _pairs(table.sum(1)).sum(1)
    chance = apart[0] * apart[1] / _pairs(torch.tensor(float(n), dtype=torch.float64))
    room = (apart[0] + apart[1]) / 2 - chance
    return torch.where(room == 0, 1.0, (together - chance) / room)


def silhouette(features: Float[Tensor, "channels k"], labels: Int[Tensor, "channels"]) -> float:
    """Mean silhouette of a grouping on the z-scored features: 1 for compact and distant groups, 0 for overlapping ones.

    Undefined (nan) with one group, or with every channel in a group of its own.

    References
    ----------
    Rousseeuw 1987; checked by tests/pencil.py::silhouette.
    """
    scaled = z_scores(features)
    known = (labels >= 0) & ~scaled.isnan().any(1)
    groups = len(labels[known].unique())
    if not 1 < groups < int(known.sum()):
        return float("nan")
    return float(silhouette_score(scaled[known].cpu().numpy(), labels[known].cpu().numpy()))


def cluster_stability(features: Float[Tensor, "channels k"], groups: int = 4, seeds: Sequence[int] = range(5)) -> float:
    """Mean adjusted Rand index between k-means groupings from single random starts with different seeds.

    References
    ----------
    Ben-Hur, Elisseeff, Guyon 2002; checked by tests/formulas/test_groupings.py.
    """
    labels = [kmeans_labels(features, groups, seed, starts=1) for seed in seeds]
    if len(labels) < 2:
        raise SampleError(f"stability compares at least 2 seeds, received {len(labels)}")
    return float(np.mean([adjusted_rand(one, other) for one, other in combinations(labels, 2)]))


def _pairs(counts: Tensor) -> Tensor:
    return counts * (counts - 1) / 2
