"""Groupings: found where they are planted, absent where they are not, refused where they would be noise."""

import pytest
import torch

from channelscope import data, scores, zoo
from channelscope.experiments.axes import axis_clusters
from channelscope.profiling.collect import collect
from channelscope.stats.profile import Profile


@pytest.fixture(scope="module")
def profile() -> Profile:
    model, images = zoo.load("resnet20", data.ImageSource("digits", images=250))
    return collect(model, images.calibration)


def test_one_row_a_site_with_everything_a_reader_needs(profile):
    frame = axis_clusters(profile)
    assert list(frame["site"]) == [site.name for site in profile.sites]
    assert frame["p"].between(1 / 201, 1).all()
    assert frame["ari"].between(-0.5, 1).all()
    assert (frame["null_mean"].abs() < 0.05).all()
    assert (frame["null_high"] > frame["null_mean"]).all()


def test_same_seed_same_groups(profile):
    assert axis_clusters(profile, seed=1).equals(axis_clusters(profile, seed=1))


def test_small_layers_are_left_out_not_invented(profile):
    frame = axis_clusters(profile, k=8)
    narrow = frame["n"] < 32
    assert narrow.any()
    assert frame.loc[narrow, "ari"].isna().all()


def test_paper_puts_the_excess_into_both_and_so_raises_agreement(profile):
    plain, paper = axis_clusters(profile), axis_clusters(profile, preset="paper")
    assert paper["ari"].mean() > plain["ari"].mean()


def test_features_that_agree_give_agreeing_groups(profile, monkeypatch):
    """With the target features replaced by the local ones, the two groupings are the same."""
    monkeypatch.setattr("channelscope.experiments.axes.relevance", scores.capture)
    monkeypatch.setattr("channelscope.experiments.axes.excess", scores.overlap)
    frame = axis_clusters(profile)
    assert (frame["ari"] > 0.999).all()
    assert (frame["p"] < 0.01).all()


def test_too_few_images_for_the_target_leave_rows_empty(profile):
    model, images = zoo.load("resnet20", data.ImageSource("digits", images=15))
    frame = axis_clusters(collect(model, images.calibration, shards=3), target="label")
    assert "ari" not in frame or frame["ari"].isna().all()
    assert not torch.tensor(frame["n"].to_numpy()).any()
