"""Toys whose answers are known in closed form."""

import math

import numpy as np
import pytest

from channelscope import scores
from channelscope.profiling.collect import collect
from channelscope.zoo import toys


def seen(toy):
    return collect(toy.model, toy.batches, "positions(all)", shards=4)


def of(name: str, toy, **options) -> np.ndarray:
    return scores.REGISTRY[name](seen(toy), **options).values[toy.truth["site"]]


@pytest.mark.parametrize("make", [toys.exact_copy, toys.independent_channels, toys.suppressor_pair], ids=lambda make: make.__name__)
def test_task_information_is_the_closed_form(make):
    toy = make()
    np.testing.assert_allclose(of("relevance", toy, corrected=False), toy.truth["task_information"], rtol=1e-4, atol=1e-6)


def test_rayleigh_quotients_of_independent_channels():
    toy = toys.independent_channels()
    variance = toy.truth["covariance"].diagonal()
    np.testing.assert_allclose(of("rayleigh", toy), variance / toy.truth["weight_norms"] ** 2, rtol=1e-4)
    np.testing.assert_allclose(of("capture", toy), 0.5 * np.log1p(variance / np.median(variance)), rtol=1e-4)


def test_independent_channels_share_nothing_and_cannot_be_stood_in_for():
    toy = toys.independent_channels()
    assert of("overlap", toy).max() < 1e-6
    assert of("support", toy).max() < 1e-6
    assert np.isnan(of("compactness", toy)).all() or of("compactness", toy).max() < 1e-6


def test_a_copy_is_inf_and_a_silent_channel_nan():
    copied = of("overlap", toys.exact_copy())
    assert np.isposinf(copied[[0, 3]]).all()
    assert np.isfinite(copied[[1, 2]]).all()
    assert copied[1] == pytest.approx((2 * -0.5 * math.log(1 - 0.5) - 0.5 * math.log(1 - 0.25)) / 3, rel=1e-4)
    dead = of("overlap", toys.dead_channel())
    assert list(np.flatnonzero(np.isnan(dead))) == [1]


def test_a_suppressor_says_nothing_alone_and_completes_its_partner():
    toy = toys.suppressor_pair()
    profile = seen(toy)
    site = profile.site(toy.truth["site"])
    layer = scores.LayerStatistics(profile, site, profile.record(site), scores.ScoreOptions())
    alone = layer.task_information
    assert abs(float(alone[1])) < 1e-6
    pair = float(layer.pair_information[0, 1] - max(alone[0], alone[1]))
    assert pair == pytest.approx(toy.truth["excess"][0, 1], rel=1e-4)
    assert pair > 0.5


def test_second_moments_cannot_see_an_exclusive_or():
    toy = toys.xor_pair()
    profile = seen(toy)
    site = profile.site(toy.truth["site"])
    layer = scores.LayerStatistics(profile, site, profile.record(site), scores.ScoreOptions(target="label"))
    assert float(layer.task_information[:2].abs().max()) < 1e-6
    assert abs(float(layer.pair_information[0, 1])) < 1e-6
    assert toy.truth["discrete_information"] == pytest.approx(math.log(2))
    assert profile.tally.accuracy == 1.0


def test_the_channel_that_carries_the_label_is_on_top():
    toy = toys.label_channel()
    information = of("relevance", toy, target="label", corrected=False)
    np.testing.assert_allclose(information, toy.truth["label_information"], rtol=1e-4, atol=1e-5)
    assert int(information.argmax()) == toy.truth["label"]
    assert seen(toy).tally.accuracy == pytest.approx(toy.truth["accuracy"])
