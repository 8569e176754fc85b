import math

import networkx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pencil
from channelscope.errors import InputError
from channelscope.formulas.clustering import communities, strongest_edges
from channelscope.formulas.information import CEILING


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
