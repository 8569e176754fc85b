"""Graphs of channels: planted communities are found, modularity is Newman's sum, and the drawing is of the same graph."""

import numpy as np
import pandas as pd
import pytest
import torch

import pencil
from channelscope import data, zoo
from channelscope.errors import InputError
from channelscope.experiments.communities import GAP, communities_of, find_communities, modularity_gap, pair_matrices
from channelscope.formulas.information import CEILING
from channelscope.profiling.collect import collect
from channelscope.scores.score import LayerStatistics, ScoreOptions
from channelscope.zoo import toys
from channelscope.zoo.models import SmallResNet


def profiled(mixing, weights, shards=0):
    toy = toys._linear(mixing, weights, 256, 0)
    return collect(toy.model, toy.batches, shards=shards)


def families(sizes):
    """One plane per family that its members share, and one of its own for each member."""
    total = sum(sizes)
    shared = np.repeat(np.eye(len(sizes)), sizes, axis=0)
    return np.hstack([shared, 0.3 * np.eye(total)])


def members(tables, graph):
    nodes = tables["community_nodes"]
    own = nodes[nodes.graph == graph]
    return sorted(tuple(part.channel) for _, part in own.groupby("community"))


@pytest.fixture(scope="module")
def network():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = SmallResNet(8, classes=10, channels=1, width=8).eval()
    return collect(model, data.read_images("digits").calibration.take(150), shards=3)


@pytest.fixture(scope="module")
def tables(network):
    return find_communities(network)


def row(frame, **where):
    for column, value in where.items():
        frame = frame[frame[column] == value]
    assert len(frame) == 1
    return frame.iloc[0]


class TestPlanted:
    def test_families_that_share_are_the_communities_of_the_r_graph(self):
        tables = find_communities(profiled(families([4, 3, 3]), [1.0] * 10), share=1.0)
        found = members(tables, "R")
        # every family is whole; edges between families are none, for their channels are uncorrelated
        assert found == [(0, 1, 2, 3), (4, 5, 6), (7, 8, 9)]
        assert row(tables["communities"], graph="R").communities == 3

    def test_pairs_that_complete_each_other_are_the_communities_of_the_s_graph(self):
        """Each pair is T + N and N: alone N says nothing, together they say T; across pairs there is less to complete."""
        block = np.array([[1.0, 2.0], [0.0, 2.0]])
        mixing = np.kron(np.eye(3), block)
        tables = find_communities(profiled(mixing, [1.0, -1.0] * 3), share=0.2)
        assert members(tables, "S") == [(0, 1), (2, 3), (4, 5)]

    def test_independent_channels_share_nothing(self):
        profile = profiled(np.eye(6), [1.0, 0.5, 0.0, 0.0, 0.0, 0.0])
        layer = LayerStatistics(profile, profile.sites[0], profile.record("conv"), ScoreOptions())
        off = pair_matrices(layer)["R"][~torch.eye(6, dtype=bool)]
        assert off.abs().max() < 1e-6

    def test_an_exact_copy_is_an_edge_at_the_ceiling(self):
        toy = zoo.toys.exact_copy()
        edges = find_communities(collect(toy.model, toy.batches, shards=0), share=0.01)["community_edges"]
        strongest = row(edges, graph="R")
        assert (strongest.channel, strongest.peer, strongest.weight) == (0, 3, pytest.approx(CEILING))

    def test_a_dead_channel_has_no_edge(self):
        toy = zoo.toys.dead_channel()
        tables = find_communities(collect(toy.model, toy.batches, shards=0), share=1.0)
        (dead,) = toy.truth["dead"]
        for frame in (tables["community_nodes"].channel, tables["community_edges"].channel, tables["community_edges"].peer):
            assert dead not in set(frame)

    def test_no_edge_is_no_modularity(self):
        tables = find_communities(profiled([[1.0, 0.0], [0.0, 1.0]], [1.0, 0.0]), share=1.0)
        empty = row(tables["communities"], graph="S")
        assert (empty.edges, empty.communities) == (0, 0)
        assert np.isnan(empty.modularity)
        assert np.isnan(row(tables["communities"], graph=GAP).modularity)


class TestTables:
    def test_modularity_is_newmans_sum_over_the_drawn_edges(self, tables):
        for (site, name), own in tables["community_edges"].groupby(["site", "graph"]):
            edges = {(each.channel, each.peer): each.weight for each in own.itertuples()}
            nodes = tables["community_nodes"]
            inside = nodes[(nodes.site == site) & (nodes.graph == name)]
            found = [set(part.channel) for _, part in inside.groupby("community")]
            assert row(tables["communities"], site=site, graph=name).modularity == pytest.approx(pencil.modularity(edges, found))

    def test_the_edges_are_the_strongest_tenth(self, network, tables):
        site = network.sites[2]
        layer = LayerStatistics(network, site, network.record(site), ScoreOptions())
        for name, pairs in pair_matrices(layer).items():
            own = tables["community_edges"]
            own = own[(own.site == site.name) & (own.graph == name)]
            expected = pencil.strongest_edges(pairs.numpy(), 0.1, CEILING)
            assert {(each.channel, each.peer) for each in own.itertuples()} == set(expected)

    def test_the_gap_is_the_difference(self, tables):
        by_graph = tables["communities"].pivot(index="site", columns="graph", values="modularity")
        np.testing.assert_allclose(by_graph[GAP], by_graph.R - by_graph.S)

    def test_intervals_hold_the_value_and_can_be_left_out(self, network, tables):
        frame = tables["communities"].dropna(subset=["modularity_low"])
        assert len(frame) > 0
        assert (frame.modularity_low <= frame.modularity).all()
        assert (frame.modularity <= frame.modularity_high).all()
        plain = find_communities(network, shards=False)["communities"]
        assert plain.modularity_low.isna().all()
        np.testing.assert_allclose(plain.modularity, tables["communities"].modularity)

    def test_depth_is_spearman_over_layers(self, network, tables):
        for name in ("R", "S", GAP):
            own = tables["communities"][tables["communities"].graph == name].dropna(subset=["modularity"])
            found = row(tables["community_depth"], graph=name)
            assert found.n == len(own)
            assert found.modularity == pytest.approx(own.modularity.mean())
            assert found.modularity_low <= found.modularity <= found.modularity_high
            assert found.rho == pytest.approx(pencil.spearman(own.modularity.to_numpy(), own.depth.to_numpy()))

    def test_the_same_drawing_every_time(self, network, tables):
        again = find_communities(network)
        for name, frame in tables.items():
            pd.testing.assert_frame_equal(frame, again[name])

    def test_unweighted_counts_edges(self, network):
        triangle = torch.tensor([[0, 3.0, 0.1], [3.0, 0, 0.1], [0.1, 0.1, 0]])
        found = communities_of({"R": triangle}, 1.0, weighted=False)["R"]
        members = [set(each) for each in found.members]
        assert found.modularity == pytest.approx(pencil.modularity({(0, 1): 1, (0, 2): 1, (1, 2): 1}, members))
        assert find_communities(network, weighted=False, shards=False)["communities"].modularity.notna().any()

    def test_gap_of_two_graphs(self):
        pairs = torch.tensor([[0, 1.0, 0, 0], [1.0, 0, 0, 0], [0, 0, 0, 1.0], [0, 0, 1.0, 0]])
        assert modularity_gap(communities_of({"R": pairs, "S": torch.ones(4, 4)}, 1.0)) == pytest.approx(0.5 - 0.0)

    def test_units_and_names(self, tables):
        assert {name: frame.attrs["name"] for name, frame in tables.items()} == {name: name for name in tables}
        assert tables["community_edges"].attrs["columns"]["weight"]["unit"] == "nats"


def test_nonsense_is_refused(network):
    with pytest.raises(InputError, match="share is within"):
        find_communities(network, share=0.0)
