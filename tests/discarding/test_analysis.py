"""DiscardingAnalysis: one call gives the tables of the command; extras, comparisons and the folder of maps."""

import pandas as pd
import pytest
import torch
from torch import nn

from channelscope import data
from channelscope.discarding import cid as cid_module
from channelscope.discarding.analysis import DiscardingAnalysis, ExtraAnalyses
from channelscope.discarding.cid import CIDOptions
from channelscope.errors import DataError, InputError, MismatchError

OPTIONS = CIDOptions(side=4)


@pytest.fixture(scope="module")
def images():
    return data.read_images(data.ImageSource("digits", images=60))


def network(seed=0, scale=1.0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, stride=2, padding=1))
    with torch.no_grad():
        model[2].weight *= scale
        model[2].bias *= scale
    return model.eval()


def analysis(images, model=None, options=OPTIONS, **more):
    return DiscardingAnalysis(model or network(), images.test.take(3), images.calibration, ["2", "0"], options, **more)


def test_tables_by_name_in_order_of_depth(images):
    frames = analysis(images, name="net").tables(ExtraAnalyses(decoder="ridge"))
    assert list(frames) == ["discarded", "discarded_layers", "discarded_edges", "reconstruction"]
    assert all(frame.attrs["name"] == name for name, frame in frames.items())
    assert frames["discarded"].layer.tolist() == ["0"] * 3 + ["2"] * 3
    assert set(frames["discarded"].network) == {"net"}
    assert frames["discarded"].image.tolist() == sorted(images.test.take(3).indices.tolist()) * 2
    means = frames["discarded"].groupby("layer").cid.mean()
    assert frames["discarded_layers"].cid.to_numpy() == pytest.approx(means.to_numpy())


def test_a_feature_scaled_by_a_constant_has_the_same_cid(images):
    """CID does not depend on the feature's unit, so the paired differences are zero."""
    frames = analysis(images, name="net").tables(other=analysis(images, network(scale=4.0), name="scaled"))
    assert list(frames) == ["discarded", "discarded_layers", "discarded_difference", "discarded_edges"]
    difference = frames["discarded_difference"]
    assert difference[["network", "other"]].drop_duplicates().to_numpy().tolist() == [["net", "scaled"]]
    assert difference.difference.tolist() == pytest.approx([0, 0], abs=1e-4)
    assert len(frames["discarded"]) == 12
    assert frames["discarded_layers"].network.tolist() == ["net", "net", "scaled", "scaled"]


def test_a_table_of_another_network_serves_as_the_analysis_itself(images):
    own, other = analysis(images, name="net"), analysis(images, network(1), name="other")
    frames = [own.tables(other=each)["discarded_difference"] for each in (other, other.by_image)]
    pd.testing.assert_frame_equal(*frames)


def test_other_options_are_not_compared(images):
    with pytest.raises(MismatchError, match="kappa"):
        analysis(images).tables(other=analysis(images, options=CIDOptions(side=4, kappa=0.2)))


def test_finished_maps_are_read_and_not_computed(images, tmp_path, monkeypatch):
    first = analysis(images, cache=tmp_path / "maps").by_image

    def refuse(*given):
        raise AssertionError("computed again")

    monkeypatch.setattr(cid_module, "optimal_noise", refuse)
    pd.testing.assert_frame_equal(analysis(images, cache=tmp_path / "maps").by_image, first)
    with pytest.raises(MismatchError, match="seed"):
        analysis(images, seed=1, cache=tmp_path / "maps").by_image  # noqa: B018


def test_concentration_on_the_foreground(images):
    own = analysis(images)
    left = torch.arange(8).expand(8, 8) < 4
    frame, by_layer = own.concentration(lambda image: left, margin=0.2)
    assert (frame.attrs["name"], by_layer.attrs["name"]) == ("concentration", "concentration_layers")
    varies = own.statistics.pixels.each[0] > 0
    pixels = torch.stack([result.entropy.view(-1, 4, 4) for result in own.results if result.layer.name == "0"])[0, 0]
    weights = varies.view(4, 2, 4, 2).sum((1, 3)).double()
    halves = [
        float((pixels[:, part] * weights[:, part]).where(weights[:, part] > 0, 0).sum() / weights[:, part].sum())
        for part in (slice(0, 2), slice(2, 4))
    ]
    row = frame[(frame.layer == "0") & (frame.image == int(images.test.indices[0]))].iloc[0]
    assert row.concentration == pytest.approx(halves[1] - halves[0], abs=1e-5)
    assert by_layer.n.tolist() == [3, 3]


@pytest.mark.parametrize(
    ("extras", "error", "message"),
    [
        (ExtraAnalyses(boxes=True, masks="mask"), DataError, "received both"),
        (ExtraAnalyses(boxes=True), DataError, "expected a column 'boxes'"),
        (ExtraAnalyses(decoder="rigde"), InputError, "near matches: ridge"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_analyzed_is_refused_before_the_work(images, monkeypatch, extras, error, message):
    monkeypatch.setattr(cid_module, "optimal_noise", lambda *given: pytest.fail("computed"))
    with pytest.raises(error, match=message):
        analysis(images).tables(extras)
