"""Trajectories: the quantities are those of the other experiments, the bands are Student's, and directions are told plainly."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from channelscope import data
from channelscope.errors import InputError, SampleError
from channelscope.experiments.axes import axis_alignment
from channelscope.experiments.communities import GAP, find_communities
from channelscope.experiments.hulls import HullOptions, replacement_sets
from channelscope.experiments.trajectory import PUBLISHED, spaced_sites, training_trajectory
from channelscope.profiling.collect import collect
from channelscope.scores.axes import triplet_excess_by_layer
from channelscope.scores.score import LayerStatistics, ScoreOptions
from channelscope.zoo.models import SmallResNet

EPOCHS, RUNS = (0, 1, 2), ("a", "b", "c")


def small(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return SmallResNet(8, classes=10, channels=1, width=6).eval()


@pytest.fixture(scope="module")
def stages():
    """Three runs of three checkpoints, which need not be of any training to be followed."""
    images = data.read_images("digits").calibration.take(80)
    return [(run, epoch, collect(small(10 * number + epoch), images, shards=0)) for number, run in enumerate(RUNS) for epoch in EPOCHS]


@pytest.fixture(scope="module")
def tables(stages):
    return training_trajectory(stages, layers=3, triples=200)


def row(frame, **where):
    for column, value in where.items():
        frame = frame[frame[column] == value]
    assert len(frame) == 1
    return frame.iloc[0]


class TestQuantities:
    def test_hulls_graphs_and_alignment_are_those_of_their_own_experiments(self, stages, tables):
        run, epoch, profile = stages[4]
        of_hulls = replacement_sets(profile)["hull_layers"].set_index("site")
        of_graphs = find_communities(profile)["communities"]
        of_axes = axis_alignment(profile, ("capture",), ("relevance", "excess"))["alignment"]
        for site in spaced_sites(profile.sites, 3):
            own = row(tables["trajectory_layers"], run=run, epoch=epoch, site=site.name)
            assert own.hull_size == pytest.approx(of_hulls.loc[site.name, "size"])
            assert own.saturated == pytest.approx(of_hulls.loc[site.name, "saturated"])
            for graph, column in (("R", "modularity_r"), ("S", "modularity_s"), (GAP, "gap")):
                assert own[column] == pytest.approx(row(of_graphs, site=site.name, graph=graph).modularity, nan_ok=True)
            for target in ("relevance", "excess"):
                expected = row(of_axes, site=site.name, target=target).rho
                assert own[f"capture_{target}"] == pytest.approx(expected)

    def test_triplets_and_accuracy(self, stages, tables):
        run, epoch, profile = stages[1]
        site = profile.sites[0]
        own = row(tables["trajectory_layers"], run=run, epoch=epoch, site=site.name)
        triple, ratio = triplet_excess_by_layer(LayerStatistics(profile, site, profile.record(site), ScoreOptions()), 200)
        assert (own.triple, own.ratio) == (pytest.approx(triple), pytest.approx(ratio))
        assert own.accuracy == pytest.approx(profile.tally.accuracy)

    def test_the_rule_is_passed_on(self, stages):
        frame = training_trajectory(stages[:1], 2, HullOptions(max_size=1), triples=50)["trajectory_layers"]
        assert frame.hull_size.max() <= 1


class TestBands:
    def test_curves_are_means_over_runs_of_means_over_layers(self, tables):
        layers = tables["trajectory_layers"]
        for epoch in EPOCHS:
            own = row(tables["trajectory"], epoch=epoch, quantity="hull_size")
            by_run = layers[layers.epoch == epoch].groupby("run").hull_size.mean()
            assert own.value == pytest.approx(by_run.mean())
            reach = stats.t.ppf(0.975, 2) * by_run.std() / 3**0.5
            assert (own.low, own.high) == (pytest.approx(own.value - reach), pytest.approx(own.value + reach))
            assert own.n == 3

    def test_changes_are_paired_within_runs(self, tables):
        layers = tables["trajectory_layers"]
        by = layers.groupby(["run", "epoch"]).ratio.mean().unstack()
        own = row(tables["trajectory_change"], quantity="ratio")
        assert own.change == pytest.approx((by[2] - by[0]).mean())
        assert own["first"] == pytest.approx(by[0].mean())
        assert own["last"] == pytest.approx(by[2].mean())

    def test_the_order_of_stages_does_not_matter(self, stages, tables):
        shuffled = training_trajectory(stages[::-1], layers=3, triples=200)
        for name in ("trajectory", "trajectory_change"):
            keys = ["epoch", "quantity"] if name == "trajectory" else ["quantity"]
            one, other = (each[name].sort_values(keys, ignore_index=True) for each in (tables, shuffled))
            pd.testing.assert_frame_equal(one, other, rtol=1e-9)

    def test_a_single_run_has_no_band_and_leaves_directions_open(self, stages):
        tables = training_trajectory(stages[:3], layers=2, triples=50)
        assert tables["trajectory"].low.isna().all()
        told = tables["trajectory_change"].set_index("quantity").verdict
        assert (told[list(PUBLISHED)] == "open").all()


class TestVerdicts:
    @pytest.mark.parametrize(("sizes", "verdict"), [((2, 5), "holds"), ((5, 2), "reversed"), ((3, 3), "open")])
    def test_a_direction_holds_is_reversed_or_is_open(self, stages, sizes, verdict, monkeypatch):
        """Hull sizes as they are told to be: at the first epoch, then at the last, with a little noise between runs."""
        import channelscope.experiments.trajectory as room

        calls = iter(range(100))

        def told(*_):
            place = next(calls)
            return {"hull_size": sizes[place % 2] + 0.1 * (-1) ** (place // 2 % 2) * (place % 2)}

        monkeypatch.setattr(room, "_quantities", told)
        ends = [stage for stage in stages if stage[1] in (0, 2)]
        change = training_trajectory(ends, layers=1)["trajectory_change"]
        assert row(change, quantity="hull_size").verdict == verdict

    def test_what_was_published_stands_beside(self, tables):
        change = tables["trajectory_change"].set_index("quantity")
        assert (change.loc["hull_size", "published_first"], change.loc["hull_size", "published_last"]) == (3.08, 4.27)
        assert np.isnan(change.loc["gap", "published_first"])
        assert change.loc["gap", "verdict"] == ""
        assert (change.loc["capture_relevance", "published_first"], change.loc["capture_relevance", "published_last"]) == (0.71, 0.22)


class TestSpaced:
    @pytest.mark.parametrize(("layers", "depths"), [(1, [0]), (2, [0, 8]), (3, [0, 4, 8]), (9, list(range(9))), (None, list(range(9)))])
    def test_first_last_and_evenly_between(self, stages, layers, depths):
        assert [site.depth for site in spaced_sites(stages[0][2].sites, layers)] == depths

    def test_more_than_there_are_is_all(self, stages):
        assert len(spaced_sites(stages[0][2].sites, 50)) == 9


def test_no_checkpoint():
    with pytest.raises(SampleError, match="at least one checkpoint"):
        training_trajectory([])


def test_the_place_is_named_where_images_are_too_few():
    profile = collect(small(0), data.read_images("digits").calibration.take(10), shards=0)
    with pytest.raises(SampleError, match=r"at epoch 3 of x, .*10 images are too few"):
        training_trajectory([("x", 3, profile)])


def test_fewer_than_one_site_is_refused():
    with pytest.raises(InputError, match="layers: expected at least 1, received -3"):
        spaced_sites((), -3)
