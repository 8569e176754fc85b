"""Alignment of the two axes and clusters on each: the right pairs, intervals, nulls, and what small layers leave empty."""

import numpy as np
import pytest
import torch
from scipy import stats

from channelscope import data, scores, zoo
from channelscope.experiments.axes import axis_alignment, axis_clusters, task_mass
from channelscope.profiling.collect import collect
from channelscope.stats.profile import Profile


@pytest.fixture(scope="module")
def profile() -> Profile:
    model, images = zoo.load("resnet20", data.ImageSource("digits", images=250))
    return collect(model, images.calibration)


@pytest.fixture(scope="module")
def found(profile):
    return axis_alignment(profile)


def test_every_pair_at_every_site(profile, found):
    frame = found["alignment"]
    assert len(frame) == len(profile.sites) * 4 * 2
    assert (frame["images"] == 250).all()


def test_rho_is_spearmans(profile, found):
    frame = found["alignment"].set_index(["site", "local", "target"])
    for site in profile.sites[::5]:
        expected = stats.spearmanr(scores.capture(profile)[site.name], scores.excess(profile)[site.name]).statistic
        assert frame.loc[(site.name, "capture", "excess"), "rho"] == pytest.approx(expected, abs=1e-9)


def test_intervals_hold_the_estimate_and_stay_within_one(found):
    frame = found["alignment"]
    assert (frame["low"] <= frame["rho"] + 1e-9).all()
    assert (frame["rho"] <= frame["high"] + 1e-9).all()
    assert frame["low"].min() >= -1
    assert frame["high"].max() <= 1


def test_mean_is_over_layers_not_over_channels(found):
    frame = found["alignment"]
    for row in found["alignment_mean"].itertuples():
        own = frame[(frame["local"] == row.local) & (frame["target"] == row.target)]
        assert row.rho == pytest.approx(own["rho"].mean())
        assert row.n == len(own)


def test_pooled_ranks_all_channels_together(profile, found):
    one, other = (
        np.concatenate([ranking[s.name] for s in profile.sites]) for ranking in (scores.rayleigh(profile), scores.relevance(profile))
    )
    row = found["alignment_mean"].set_index(["local", "target"]).loc[("rayleigh", "relevance")]
    assert row["pooled"] == pytest.approx(stats.spearmanr(one, other).statistic, abs=1e-9)


def test_without_shards_there_is_no_interval_over_images():
    model, images = zoo.load("resnet20", data.ImageSource("digits", images=120))
    frame = axis_alignment(collect(model, images.calibration, shards=0), ("capture",), ("relevance",))["alignment"]
    assert frame["low"].isna().all()
    assert frame["rho"].notna().all()


def test_a_score_against_itself_is_one(profile):
    frame = axis_alignment(profile, ("capture",), ("capture",))["alignment"]
    assert frame["rho"].to_numpy() == pytest.approx(1)


def test_refused_layers_are_nan_and_left_out_of_the_mean():
    model, images = zoo.load("resnet20", data.ImageSource("digits", images=40))
    found = axis_alignment(collect(model, images.calibration, shards=4), ("support",), ("relevance",))
    assert found["alignment"]["rho"].isna().sum() == 7  # the stage of 64 channels
    assert found["alignment_mean"]["n"].item() == 14


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


def test_task_mass_is_the_sum_over_channels(profile):
    frame = task_mass(profile).set_index("site")
    relevance, support = scores.relevance(profile), scores.support(profile)
    for site in profile.sites:
        row = frame.loc[site.name]
        known = np.isfinite(relevance[site.name]) & np.isfinite(support[site.name])
        pairs = list(zip(relevance[site.name][known], support[site.name][known], strict=True))
        duplicate, rest = sum(t * e for t, e in pairs), sum(t * (1 - e) for t, e in pairs)
        assert row["duplicate"] == pytest.approx(duplicate, abs=1e-12)
        assert row["nonreplaceable"] == pytest.approx(rest, abs=1e-12)
        assert row["task"] == pytest.approx(duplicate + rest, abs=1e-12)
        if row["task_low"] > 0:
            assert row["duplicate_share"] == pytest.approx(duplicate / (duplicate + rest))
        assert row["n"] == len(pairs) > 0
    for name in ("duplicate", "nonreplaceable"):
        assert (frame[f"{name}_low"] < frame[name]).all()
        assert (frame[name] < frame[f"{name}_high"]).all()


def test_task_mass_is_undefined_with_fewer_images_than_channels():
    toy = zoo.toys.independent_channels()
    pixels, labels = next(iter(toy.batches))[:2]
    few = collect(toy.model, [(pixels[:3], labels[:3])], shards=0)
    row = task_mass(few).iloc[0]
    assert row["n"] == 0
    assert np.isnan(row["duplicate"])
    assert np.isnan(row["nonreplaceable"])
    assert row["note"] == "there are too few images for the peer support of a channel"


def test_a_share_of_task_information_that_could_be_0_is_undefined_with_the_reason(profile):
    """The network is untrained: in its first layers the sum is about 0, and the share there was anything from 0.1 to 27."""
    frame = task_mass(profile)
    unsure = frame["task_low"] <= 0
    assert 0 < unsure.sum() < len(frame)
    shares = [name for name in frame.columns if name.startswith("duplicate_share")]
    assert len(shares) == 3
    assert frame.loc[unsure, shares].isna().all(axis=None)
    assert frame.loc[~unsure, shares].notna().all(axis=None)
    assert frame.loc[~unsure, "duplicate_share"].between(0, 1).all()
    assert (frame.loc[~unsure, "note"] == "").all()
    row = frame.loc[unsure].iloc[0]
    for number in (row["task"], row["task_low"], row["task_high"]):
        assert f"{number:.3f}".replace("-", "\u2212") in row["note"]
    assert row["note"].endswith("nats of task information says nothing: it could be 0")


def test_without_shards_a_share_of_a_sum_that_is_not_above_0_is_undefined():
    model, images = zoo.load("resnet20", data.ImageSource("digits", images=250))
    frame = task_mass(collect(model, images.calibration, shards=0))
    assert frame["task_low"].isna().all()
    assert (frame["duplicate_share"].isna() == (frame["task"] <= 0)).all()
    assert 0 < frame["duplicate_share"].isna().sum() < len(frame)
