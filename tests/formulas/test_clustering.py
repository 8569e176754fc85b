""""""

import math

import networkx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pencil
from channelscope.errors import InputError, SampleError, ShapeError
from channelscope.formulas.clustering import (
    adjusted_rand,
    adjusted_rand_null,
    cluster_stability,
    communities,
    kmeans_labels,
    silhouette,
    strongest_edges,
    z_scores,
)
from channelscope.formulas.information import CEILING

LABELS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=4, max_size=14)


def clouds(n=40, seed=0, apart=8.0):
    """Four clouds of n channels each in two features of very different units."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.arange(4).repeat(n)
    centers = apart * torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    points = centers[label] + torch.randn(4 * n, 2, generator=generator)
    return points.double() * torch.tensor([1.0, 1e4], dtype=torch.float64), label


def test_planted_groups_are_found_whatever_the_units():
    features, label = clouds()
    found = kmeans_labels(features)
    assert adjusted_rand(found, label) == 1
    assert torch.equal(found, kmeans_labels(features))
    assert adjusted_rand(kmeans_labels(features * torch.tensor([1e6, -1.0]) + 5), label) == 1
    assert cluster_stability(features) > 0.5
    assert silhouette(features, found) > 0.6


def test_silent_channels_have_no_group():
    features, label = clouds(10)
    features[3, 1] = math.nan
    found = kmeans_labels(features)
    assert found[3] == -1
    assert sorted(found.unique().tolist()) == [-1, 0, 1, 2, 3]
    assert adjusted_rand(found, label) == 1
    assert math.isfinite(silhouette(features, found))
    assert z_scores(features)[3].isnan().all()


def test_standardized():
    features, _ = clouds(10)
    features = torch.cat([features, torch.full((40, 1), 7.0, dtype=torch.float64)], 1)
    scaled = z_scores(features)
    torch.testing.assert_close(scaled.mean(0), torch.zeros(3, dtype=torch.float64))
    assert scaled.std(0, correction=0).tolist() == pytest.approx([1, 1, 0])
    features[0, 0] = math.inf
    with pytest.raises(InputError, match="cap"):
        z_scores(features)


def test_too_few_channels_for_the_groups():
    with pytest.raises(SampleError, match="4 groups need"):
        kmeans_labels(torch.tensor([[1.0], [1.0], [2.0], [2.0], [3.0]]))
    assert len(kmeans_labels(torch.tensor([[1.0], [1.0], [2.0], [2.0], [3.0]]), 3).unique()) == 3
    with pytest.raises(SampleError, match="2 seeds"):
        cluster_stability(torch.randn(20, 2), 2, [0])


@given(LABELS)
@settings(deadline=None)
def test_rand_index_twin(pairs):
    one, other = (torch.tensor([pair[side] for pair in pairs]) for side in (0, 1))
    value = adjusted_rand(one, other)
    trivial = [len(labels.unique()) in (1, len(labels)) for labels in (one, other)]
    if not all(trivial):
        assert value == pytest.approx(pencil.rand_index(one.tolist(), other.tolist()))
    renamed = torch.tensor([5, 9, 2, 7])[other]
    assert adjusted_rand(one, renamed) == pytest.approx(value)


def test_rand_index_edge_cases():
    one = torch.tensor([0, 0, 1, 1, -1, 1])
    assert adjusted_rand(one, one) == 1
    assert adjusted_rand(one, torch.tensor([0, 0, 1, 1, 0, -1])) == 1
    assert math.isnan(adjusted_rand(torch.tensor([0, -1]), torch.tensor([0, 1])))
    with pytest.raises(ShapeError, match="6 and 2"):
        adjusted_rand(one, one[:2])


def test_rand_null_is_what_shuffling_gives():
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randint(3, (2, 30), generator=generator)
    null = adjusted_rand_null(one, other, 400, seed=1)
    assert null.shape == (400,)
    assert float(null.mean()) == pytest.approx(0, abs=0.01)
    assert torch.equal(null, adjusted_rand_null(one, other, 400, seed=1))
    slow = np.random.default_rng(0)
    byhand = [pencil.rand_index(one.tolist(), slow.permutation(other.numpy()).tolist()) for _ in range(400)]
    assert float(null.std()) == pytest.approx(np.std(byhand), rel=0.2)
    assert float(null.max()) < 0.5


def test_rand_null_leaves_ungrouped_channels_out():
    one = torch.tensor([0, 0, 1, 1, -1, 2, 2])
    null = adjusted_rand_null(one, one, 50)
    assert bool(null.isfinite().all())
    assert float(null.max()) <= 1 + 1e-12
    assert adjusted_rand_null(torch.zeros(5, dtype=torch.long), torch.zeros(5, dtype=torch.long), 3).tolist() == [1, 1, 1]


@given(st.integers(0, 10_000))
@settings(max_examples=10, deadline=None)
def test_silhouette_twin(seed):
    features, _ = clouds(4, seed, apart=2.0)
    label = torch.randint(3, (16,), generator=torch.Generator().manual_seed(seed))
    label[:3] = torch.arange(3)
    expected = pencil.silhouette(z_scores(features).tolist(), label.tolist())
    assert silhouette(features, label) == pytest.approx(expected, abs=1e-9)


def test_silhouette_of_one_group_is_undefined():
    features, _ = clouds(3)
    assert math.isnan(silhouette(features, torch.zeros(12, dtype=torch.long)))
    assert math.isnan(silhouette(features, torch.arange(12)))


@settings(max_examples=60, deadline=None)
@given(st.floats(-1e6, 1e6), st.integers(1, 60))
def test_a_constant_column_becomes_zeros_however_its_mean_is_rounded(value, n):
    features = torch.full((n, 2), value, dtype=torch.float64)
    features[:, 1] = torch.arange(n)
    scaled = z_scores(features)
    assert torch.equal(scaled[:, 0], torch.zeros(n, dtype=torch.float64))
    assert n == 1 or scaled[:, 1].square().mean() == pytest.approx(1)


def test_a_constant_column_makes_no_groups():
    features = torch.full((13, 2), 0.1, dtype=torch.float64)
    with pytest.raises(SampleError, match="received 1"):
        kmeans_labels(features, 2)


def symmetric(channels, seed):
    values = torch.randn(channels, channels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (values + values.T) / 2


def blocks(sizes, inside=1.0, across=0.05):
    label = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    noise = symmetric(len(label), 0).abs() / 100
    return torch.where(label[:, None] == label, inside, across) + noise, label


@given(st.integers(0, 10_000), st.sampled_from([0.1, 0.35, 1.0]), st.booleans())
@settings(max_examples=25, deadline=None)
def test_twins(seed, share, weighted):
    pairs = symmetric(9, seed)
    expected = pencil.strongest_edges(pairs.numpy(), share, CEILING)
    edges, weights = strongest_edges(pairs, share)
    assert {tuple(edge): w for edge, w in zip(edges.tolist(), weights.tolist(), strict=True)} == pytest.approx(expected)
    assert bool((weights.diff() <= 0).all())
    found = communities(pairs, share, weighted=weighted)
    counted = expected if weighted else dict.fromkeys(expected, 1.0)
    assert found.modularity == pytest.approx(pencil.modularity(counted, found.members), abs=1e-9)
    assert found.edges == len(expected)
    assert sorted(i for group in found.members for i in group) == sorted({i for edge in expected for i in edge})


def test_the_published_size_of_the_graph():
    pairs = symmetric(20, 1).abs()
    assert len(strongest_edges(pairs)[0]) == 19
    pairs[0, 1] = pairs[1, 0] = -1
    assert len(strongest_edges(pairs)[0]) == math.ceil(18.9)


def test_planted_communities_are_found():
    pairs, label = blocks([8, 6, 4])
    found = communities(pairs, 0.3)
    assert [len(group) for group in found.members] == [8, 6, 4]
    assert all(len({int(label[i]) for i in group}) == 1 for group in found.members)
    assert found.modularity > 0.4
    mixed = communities(symmetric(18, 3).abs(), 0.3)
    assert mixed.modularity < found.modularity


def test_the_order_of_the_channels_does_not_matter():
    pairs, _ = blocks([7, 5, 4])
    order = torch.randperm(16, generator=torch.Generator().manual_seed(2))
    moved = communities(pairs[order][:, order], 0.3)
    plain = communities(pairs, 0.3)
    assert moved.modularity == pytest.approx(plain.modularity)
    assert sorted(tuple(sorted(order[list(group)].tolist())) for group in moved.members) == sorted(plain.members)


def test_karate_club():
    """The published test case of the greedy partition: three communities, modularity .381."""
    club = networkx.karate_club_graph()
    pairs = torch.from_numpy(networkx.to_numpy_array(club))
    bare = communities(pairs, 1.0, weighted=False)
    assert bare.edges == 78
    assert bare.modularity == pytest.approx(0.381, abs=0.001)
    assert len(bare.members) == 3
    assert communities(pairs, 1.0, ceiling=100.0).modularity != bare.modularity


@given(st.integers(0, 10_000), st.integers(3, 60), st.sampled_from([0.05, 0.2, 1.0]))
@settings(max_examples=25, deadline=None)
def test_the_partition_is_that_of_networkx(seed, channels, share):
    pairs = symmetric(channels, seed)
    edges, weights = strongest_edges(pairs, share)
    graph = networkx.Graph()
    graph.add_weighted_edges_from((i, j, weight) for (i, j), weight in zip(edges.tolist(), weights.tolist(), strict=True))
    found = communities(pairs, share)
    expected = networkx.community.greedy_modularity_communities(graph, weight="weight") if len(edges) else []
    assert set(map(frozenset, found.members)) == set(map(frozenset, expected))


def test_of_equal_gains_the_first_channels_are_joined():
    ring = torch.eye(6).roll(1, 0) + torch.eye(6).roll(-1, 0)
    assert communities(ring, 1.0, weighted=False).members == ((0, 1), (2, 3), (4, 5))


def test_communities_are_joined_where_that_takes_nothing_away():
    square = torch.eye(4).roll(1, 0) + torch.eye(4).roll(-1, 0)
    assert communities(square, 1.0, weighted=False).members == ((0, 1, 2, 3),)


def test_copies_are_strong_but_finite_edges():
    pairs = symmetric(8, 4).abs()
    pairs[2, 5] = pairs[5, 2] = math.inf
    edges, weights = strongest_edges(pairs)
    assert edges[0].tolist() == [2, 5]
    assert float(weights[0]) == pytest.approx(CEILING)
    assert math.isfinite(communities(pairs).modularity)


def test_silent_channels_have_no_edges():
    pairs = symmetric(6, 5).abs()
    pairs[3] = pairs[:, 3] = math.nan
    edges, _ = strongest_edges(pairs, 1.0)
    assert len(edges) == 10
    assert 3 not in edges.flatten().tolist()


@pytest.mark.parametrize("pairs", [torch.zeros(4, 4), -torch.ones(3, 3), torch.ones(1, 1), torch.full((3, 3), math.nan)])
def test_no_edge_no_modularity(pairs):
    found = communities(pairs)
    assert math.isnan(found.modularity)
    assert found.members == ()
    assert found.edges == 0


@pytest.mark.parametrize("share", [0.0, -1.0, 1.2, math.nan])
def test_impossible_shares_are_refused(share):
    with pytest.raises(InputError, match="share"):
        strongest_edges(torch.ones(3, 3), share)
    assert np.isnan(share) or not 0 < share <= 1


def test_a_share_that_is_a_whole_number_of_edges_is_not_rounded_up():
    pairs = torch.ones(25, 25)
    assert len(strongest_edges(pairs, share=0.07)[0]) == 21, "0.07 × 300 is 21.000000000000004 in floating point"
