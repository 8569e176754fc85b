"""Hulls of whole networks: planted copies, brute force, intervals, options."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

import pencil_experiments as pencil
from channelscope import data, scores, zoo
from channelscope.errors import InputError, SampleError
from channelscope.experiments.hulls import HullOptions, explained, replacement_sets
from channelscope.profiling.collect import collect
from channelscope.scores.score import LayerStatistics, ScoreOptions
from channelscope.zoo.models import SmallResNet


@pytest.fixture(scope="module")
def network():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = SmallResNet(8, classes=10, channels=1, width=8).eval()
    return collect(model, data.read_images("digits").calibration.take(200), shards=3)


def of(toy, rule=None, **options):
    return replacement_sets(collect(toy.model, toy.batches), rule, **options)


def test_a_positive_multiple_has_a_hull_of_one():
    toy = zoo.toys.exact_copy()
    frame = of(toy, HullOptions(ridge=0.0))["hulls"]
    for channel, multiple in toy.truth["copies"]:
        for one, other in ((channel, multiple), (multiple, channel)):
            row = frame[frame.channel == one].iloc[0]
            assert (row["size"], row.members, row.saturated) == (1, str(other), False)
            assert row.explained == pytest.approx(1)
            assert row.compactness == pytest.approx(1)


def test_independent_channels_have_empty_hulls():
    frame = of(zoo.toys.independent_channels(), HullOptions(ridge=0.0))["hulls"]
    assert (frame["size"] == 0).all()
    assert frame.explained.abs().max() < 1e-6
    assert frame.compactness.isna().all()


def test_independent_channels_saturate_under_an_absolute_threshold():
    frame = of(zoo.toys.independent_channels(), HullOptions(absolute=True, threshold=0.5))["hulls"]
    assert frame.saturated.all()


def test_a_dead_channel_has_no_hull_and_is_in_none():
    toy = zoo.toys.dead_channel()
    tables = of(toy)
    (dead,) = toy.truth["dead"]
    frame = tables["hulls"].set_index("channel")
    assert frame.loc[dead, "size"] == 0
    assert math.isnan(frame.loc[dead, "support"])
    assert math.isnan(frame.loc[dead, "explained"])
    assert not any(str(dead) in members.split() for members in frame.members)
    assert (tables["hull_curve"].n == 3).all()


def test_a_suppressor_needs_its_partner():
    """Y0 = T + N, Y1 = N: each explains half of the other's variance or less, and nothing else does."""
    frame = of(zoo.toys.suppressor_pair(), HullOptions(ridge=0.0))["hulls"].set_index("channel")
    assert frame.loc[0, "members"].split() == ["1"]
    assert frame.loc[0, "support"] == pytest.approx(0.5, abs=1e-5)
    assert frame.loc[2, "size"] == 0


def test_forward_hulls_are_brute_force_greedy(network):
    tables = replacement_sets(network, HullOptions(max_size=4))
    for site in network.sites[:3]:
        rho = LayerStatistics(network, site, network.record(site), ScoreOptions()).correlation.numpy()
        own = tables["hulls"][tables["hulls"].site == site.name].set_index("channel")
        alive = np.flatnonzero(~np.isnan(np.diag(rho)))
        for place, channel in enumerate(alive):
            members, curve = pencil.hull(rho[np.ix_(alive, alive)], place, 4, 0.95, 1e-3)
            assert own.loc[channel, "members"].split() == [str(alive[member]) for member in members]
            assert own.loc[channel, "explained"] == pytest.approx(curve[-1], abs=1e-6)


def test_the_prefix_order_is_by_correlation(network):
    tables = replacement_sets(network, HullOptions(order="prefix", max_size=3))
    site = network.sites[1]
    rho = np.abs(LayerStatistics(network, site, network.record(site), ScoreOptions()).correlation.numpy())
    np.fill_diagonal(rho, -1)
    own = tables["hulls"][tables["hulls"].site == site.name].set_index("channel")
    for channel in range(site.channels):
        members = [int(member) for member in own.loc[channel, "members"].split()]
        assert members == np.argsort(-rho[channel])[: len(members)].tolist()


def test_forward_needs_no_more_members_than_prefix(network):
    forward, prefix = (replacement_sets(network, HullOptions(order=order))["hull_layers"] for order in ("forward", "prefix"))
    assert (forward["size"] <= prefix["size"] + 1e-9).all()


def test_a_pool_limits_the_candidates(network):
    site = network.sites[0]
    rho = np.abs(LayerStatistics(network, site, network.record(site), ScoreOptions()).correlation.numpy())
    np.fill_diagonal(rho, -1)
    own = replacement_sets(network, HullOptions(pool=2))["hulls"]
    for _, row in own[own.site == site.name].iterrows():
        assert {int(member) for member in row.members.split()} <= set(np.argsort(-rho[row.channel])[:2].tolist())


def test_the_curve_rises_and_ends_at_the_mean_explained(network):
    tables = replacement_sets(network)
    for site, curve in tables["hull_curve"].groupby("site"):
        assert (np.diff(curve.explained) >= -1e-12).all()
        own = tables["hulls"][tables["hulls"].site == site]
        assert curve.explained.iloc[-1] == pytest.approx(own.explained.mean())


def test_layer_means_and_their_intervals(network):
    tables = replacement_sets(network)
    layers = tables["hull_layers"].set_index("site")
    for site, own in tables["hulls"].groupby("site"):
        assert layers.loc[site, "size"] == pytest.approx(own["size"].mean())
        assert layers.loc[site, "saturated"] == pytest.approx(own.saturated.mean())
        assert layers.loc[site, "compactness"] == pytest.approx(own.compactness.mean())
    assert (layers.size_low <= layers["size"]).all()
    assert (layers["size"] <= layers.size_high).all()
    assert (layers.saturated_low >= 0).all()
    assert (layers.saturated_high <= 1).all()


def test_without_shards_there_is_no_interval():
    toy = zoo.toys.exact_copy()
    layers = replacement_sets(collect(toy.model, toy.batches, shards=0))["hull_layers"]
    assert layers[["size_low", "size_high", "saturated_low"]].isna().all(axis=None)


def test_a_larger_network_of_more_images_is_needed_for_peers():
    model, images = zoo.load("resnet20", "digits")
    profile = collect(model, images.calibration.take(30), shards=0)
    with pytest.raises(SampleError, match=r"at layer2.0.conv1: 30 images are too few"):
        replacement_sets(profile)
    assert len(replacement_sets(profile, shrinkage="oas")["hulls"]) == sum(site.channels for site in profile.sites)


def test_the_compactness_score_is_the_tables_column(network):
    ranking = scores.compactness(network)
    frame = replacement_sets(network)["hulls"]
    for site in network.sites:
        np.testing.assert_allclose(ranking[site.name], frame[frame.site == site.name].compactness.to_numpy())
    assert ranking.keeps == "low"


def test_explained_of_an_empty_hull_is_zero():
    toy = zoo.toys.independent_channels()
    profile = collect(toy.model, toy.batches)
    found = HullOptions(ridge=0.0)(LayerStatistics(profile, profile.sites[0], profile.record("conv"), ScoreOptions()))
    assert explained(found).tolist() == [0.0] * 5


def test_order_of_images_does_not_matter(network):
    toy = zoo.toys.exact_copy()
    pixels, labels, index = (torch.cat(parts) for parts in zip(*toy.batches, strict=True))
    turned = [(pixels.flip(0), labels.flip(0), index.flip(0))]
    one, other = (replacement_sets(collect(toy.model, batches))["hulls"] for batches in (toy.batches, turned))
    pd.testing.assert_frame_equal(one, other, rtol=1e-4, atol=1e-6)


def test_nonsense_is_refused(network):
    with pytest.raises(InputError, match="max_size: expected at least 1, received 0"):
        replacement_sets(network, HullOptions(max_size=0))
    with pytest.raises(InputError, match="order: expected forward or prefix, received backward"):
        replacement_sets(network, HullOptions(order="backward"))


def test_tables_name_themselves_and_their_units(network):
    tables = replacement_sets(network)
    assert {name: frame.attrs["name"] for name, frame in tables.items()} == {name: name for name in tables}
    assert tables["hulls"].attrs["columns"]["support"]["unit"] == "fraction"
