"""The real networks and images of ../shared/data, end to end, on fewer images than docs/results/index.md."""

from pathlib import Path

import pandas as pd
import pytest

from channelscope import scores, zoo
from channelscope.data.sources import ImageSource
from channelscope.errors import SampleError
from channelscope.experiments.axes import axis_alignment
from channelscope.profiling.collect import collect

DATA = Path(__file__).parents[1] / "../shared/data"
pytestmark = [
    pytest.mark.data,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not DATA.exists(), reason="../shared/data is not there"),
]


@pytest.fixture(scope="module")
def cifar():
    source = ImageSource(f"hf:{DATA / 'cifar100'}", images=400)
    weights = DATA / "weights" / "cifar100_resnetsmall20.safetensors"
    model, images = zoo.load(f"{DATA / 'archs.py'}:ResNetSmall", source, weights)
    return collect(model, images.calibration)


@pytest.fixture(scope="module")
def lite():
    source = ImageSource(f"hf:{DATA / 'ilsvrc_val400'}", images=60, batch_size=20)
    weights = DATA / "weights" / "imagenet_efficientnet_lite0.safetensors"
    model, images = zoo.load("timm:tf_efficientnet_lite0", source, weights)
    return collect(model, images.calibration, shards=3)


def test_the_cifar_network_knows_its_images_and_has_22_sites(cifar):
    assert len(cifar.sites) == 22
    assert set(cifar.skipped) == {"linear"}
    assert cifar.tally.accuracy > 0.85  # calibration images are training images


def test_no_channel_is_silent_and_every_standard_score_is_finite(cifar):
    frame = scores.table(cifar)
    assert len(frame) == sum(site.channels for site in cifar.sites) == 848
    assert frame[list(scores.DEFAULT_SCORES)].notna().all(axis=None)


def test_the_two_axes_are_not_strongly_aligned_within_layers(cifar):
    means = axis_alignment(cifar)["alignment_mean"].set_index(["local", "target"])
    assert means["rho"].abs().max() < 0.4
    assert (means["low"] <= means["rho"]).all()
    assert (means["rho"] <= means["high"]).all()


def test_pooling_mixes_layer_effects_into_the_rayleigh_quotient(cifar):
    row = axis_alignment(cifar)["alignment_mean"].set_index(["local", "target"]).loc[("rayleigh", "relevance")]
    assert row["pooled"] > row["rho"] + 0.1


def _nan_only_where_silent(frame):
    """The network has channels that never vary on these images; nothing else may be undefined."""
    undefined = frame["support"].isna()
    assert undefined.mean() < 0.05
    assert frame.loc[undefined, "note"].str.contains("silent").all()


def test_efficientnet_says_where_images_are_too_few(lite):
    frame = scores.table(lite, ("capture", "support"))
    wide = [site for site in lite.sites if site.channels > 60]
    assert set(frame.attrs["refused"]) == {f"support at {site.name}" for site in wide}
    narrow = frame[~frame["site"].isin([site.name for site in wide])]
    _nan_only_where_silent(narrow)
    with pytest.raises(SampleError, match=r"60 images are too few .* shrinkage='oas'"):
        scores.support(lite)


def test_efficientnet_with_shrinkage_has_support_everywhere(lite):
    frame = scores.table(lite, ("support",), shrinkage="oas")
    assert isinstance(frame, pd.DataFrame)
    assert frame.attrs["refused"] == {}
    _nan_only_where_silent(frame)
    assert frame["support"].dropna().between(0, 1).all()


def test_efficientnet_refuses_the_label_target(lite):
    with pytest.raises(SampleError, match=r"label target needs at least 2,000 images"):
        scores.relevance(lite, target="label")
