"""CID maps beside other methods' maps on images with boxes, from one call."""

import pytest
import torch
from torch import nn

from channelscope import data
from channelscope.discarding.cid import CIDOptions
from channelscope.discarding.faithfulness import compare_maps
from channelscope.errors import DataError

pytest.importorskip("captum")
METHODS = ["gradient", "integrated_gradients", "gradcam", "lrp", "random", "center"]


@pytest.fixture
def images(monkeypatch):
    """Digits, each with a box around the middle."""
    found = data.read_images(data.ImageSource("digits", images=60))
    monkeypatch.setattr(data.Split, "column", lambda self, name: [[(2.0, 2.0, 6.0, 6.0)] for _ in range(len(self))])
    return found


def network():
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 10),
    ]
    return nn.Sequential(*layers).eval()


def test_tables_of_all_methods(images):
    comparison = compare_maps(
        network(), images.test.take(3), images.calibration.take(2), images.calibration, ["2", "0"], CIDOptions(side=4)
    )
    assert comparison.layers == ("0", "2")
    assert list(comparison.tables) == ["descriptive_accuracy", "localization"]
    localization = comparison.tables["localization"]
    assert localization.method.tolist() == ["cid 0", "cid 2", *METHODS]
    assert localization.converged.notna().tolist() == [True, True] + [False] * 6
    assert (localization.n == 3).all()
    assert (localization.tuned == 2).all()
    assert localization.less_cid[1:].to_numpy() == pytest.approx((localization.iou - localization.iou[0])[1:].to_numpy())
    curves = comparison.tables["descriptive_accuracy"]
    assert curves.baseline.tolist() == ["zero", "blur"] * 8
    assert curves.less_cid.isna().tolist() == [True, True] + [False] * 14


def test_an_image_without_a_box_is_refused(images, monkeypatch):
    monkeypatch.setattr(data.Split, "column", lambda self, name: [[(2.0, 2.0, 2.0, 6.0)]] + [[(2.0, 2.0, 6.0, 6.0)]] * (len(self) - 1))
    with pytest.raises(DataError, match="1 of 2 calibration images have no box inside the image"):
        compare_maps(network(), images.test.take(3), images.calibration.take(2), images.calibration, ["2"])
