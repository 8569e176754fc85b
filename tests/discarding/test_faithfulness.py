"""Descriptive accuracy on a network whose evidence is known, and tables of both judgments."""

import math

import numpy as np
import pytest
import torch

import pencil_discarding as pencil
from channelscope import tables
from channelscope.data.torchvision_cpu import load_torchvision
from channelscope.discarding import concentration
from channelscope.discarding import faithfulness as room
from channelscope.discarding.cid import CIDOptions
from channelscope.discarding.noise import gaussian_blur
from channelscope.errors import NumericError
from discarding import small


def corner(images):
    """Logits that see the top left quarter only."""
    own = images[:, :, :14, :14].mean((1, 2, 3))
    return torch.stack([8 * own, torch.zeros_like(own)], 1)


def images(count=4, plane=(28, 28)):
    return torch.rand(count, 3, *plane, generator=torch.Generator().manual_seed(0)) + 0.2


def evidence(count=4):
    found = torch.zeros(count, 28, 28)
    found[:, :14, :14] = 1
    return found


RULE = CIDOptions(normalizer="local")
TARGET = torch.zeros(4, dtype=torch.long)


@pytest.mark.parametrize("plane", [(28, 28), (32, 20)], ids=["equal", "unequal"])
@pytest.mark.parametrize("baseline", ["zero", "blur"])
def test_curves_agree_with_cell_by_cell(baseline, plane):
    given = images(plane=plane)
    relevance = torch.rand(4, *plane, generator=torch.Generator().manual_seed(1)) - 0.5
    found = room.descriptive_accuracy(corner, given, TARGET, relevance, baseline)
    inside = gaussian_blur(torch.ones_like(given), room.BLUR)
    other = torch.zeros_like(given) if baseline == "zero" else gaussian_blur(given, room.BLUR) / inside

    def probability(image):
        return float(corner(torch.tensor(image)[None]).softmax(1)[0, 0])

    for place in range(2):
        parts = given[place].numpy(), relevance[place].numpy(), other[place].numpy()
        expected = pencil.descriptive_accuracy(probability, *parts, room.SIDE, room.REMOVED_FRACTIONS)
        assert np.allclose(found[place], expected, atol=1e-5)


def test_a_blurred_image_of_one_color_is_that_image():
    given = torch.full((2, 3, 28, 28), 0.7)
    relevance = torch.rand(2, 28, 28, generator=torch.Generator().manual_seed(0))
    curve = room.descriptive_accuracy(corner, given, TARGET[:2], relevance, "blur")
    torch.testing.assert_close(curve, corner(given).softmax(1)[:, :1].expand_as(curve))


@pytest.mark.parametrize("sign", [1, -1])
def test_cells_of_unequal_size_lose_the_share_of_pixels_that_is_said(sign):
    """The class's probability is the share of pixels that are still there, whatever the sign of a nearly flat map."""
    plane = torch.ones(2, 3, 32, 32)
    relevance = sign * (1 + 1e-3 * torch.rand(2, 32, 32, generator=torch.Generator().manual_seed(0)))
    curve = room.descriptive_accuracy(
        lambda images: torch.stack([images.mean((1, 2, 3)).logit(eps=1e-6), torch.zeros(2)], 1), plane, TARGET[:2], relevance, "zero"
    )
    assert (curve - (1 - torch.tensor(room.REMOVED_FRACTIONS))).abs().max() <= 4.5 / 32**2  # half of the largest cell


def test_the_map_of_the_evidence_beats_its_opposite_and_chance():
    def value(relevance):
        return float(room.area_under_curve(room.descriptive_accuracy(corner, images(), TARGET, relevance, "zero")).mean())

    chance = torch.rand(4, 28, 28, generator=torch.Generator().manual_seed(2))
    assert value(evidence()) < value(chance) < value(-evidence())


def test_the_curve_begins_at_the_networks_own_probability_and_ends_without_evidence():
    curve = room.descriptive_accuracy(corner, images(), TARGET, evidence(), "zero")
    torch.testing.assert_close(curve[:, 0], corner(images()).softmax(1)[:, 0])
    torch.testing.assert_close(curve[:, -1], torch.full((4,), 0.5))


def test_area_of_a_constant():
    torch.testing.assert_close(room.area_under_curve(torch.full((2, len(room.REMOVED_FRACTIONS)), 0.4)), torch.full((2,), 0.4))


def test_tables_have_paired_differences(tmp_path):
    flat = torch.full((4, len(room.REMOVED_FRACTIONS)), 0.4)
    frame = room.descriptive_accuracy_table({("cid", "zero"): flat, ("random", "zero"): flat + 0.1}, RULE)
    assert frame.area.tolist() == pytest.approx([0.4, 0.5])
    assert math.isnan(frame.less_cid[0])
    assert frame.less_cid[1] == pytest.approx(0.1)
    tables.write(frame, tmp_path / "d.csv")
    assert len(tables.read(tmp_path / "d.csv")) == 2
    assert tables.read(tmp_path / "d.csv").attrs["provenance"]["convention"]["normalizer"] == "local"


def test_localization_finds_what_is_there():
    boxes = [[(0, 0, 14, 14)]] * 4
    good = evidence() + 0.01 * torch.rand(4, 28, 28, generator=torch.Generator().manual_seed(3))
    maps = {"cid": good, "opposite": -good, "center": concentration.center_prior(images())}
    frame = concentration.localization_table(maps, boxes, maps, boxes, RULE)
    assert frame.attrs["provenance"]["convention"] == RULE.convention()
    frame = frame.set_index("method")
    assert frame.iou["cid"] > 0.9
    assert frame.found["cid"] == 1
    assert frame.less_cid["opposite"] < -0.3
    assert frame.iou["center"] < frame.iou["cid"]


def test_smoothing_keeps_constants_inside_and_the_center_is_the_maximum():
    torch.testing.assert_close(concentration.smoothed(torch.ones(1, 60, 60))[0, 25:35, 25:35], torch.ones(10, 10))
    middle = concentration.center_prior(torch.zeros(1, 3, 9, 9))[0]
    assert middle.argmax() == 40


def test_a_map_that_is_not_finite_is_refused_by_name():
    batch = (torch.zeros(2, 3, 8, 8), None, torch.arange(2))
    maps = {"broken": lambda images, classes, index: torch.full((2, 8, 8), torch.nan)}
    with pytest.raises(NumericError, match="the map of broken is not finite"):
        room._maps_and_curves(small.network(), maps, [batch], lambda: None, curves=False)  # type: ignore[arg-type]


def test_the_curve_is_that_of_pixel_flipping_in_quantus():
    load_torchvision()  # quantus imports it
    quantus = pytest.importorskip("quantus", reason="the extra quantus, an independent implementation", exc_type=ImportError)
    draw = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(400, 5)
        ).eval()
    pictures, relevance = torch.randn(3, 1, 10, 10, generator=draw), torch.rand(3, 10, 10, generator=draw)
    classes = torch.tensor([0, 3, 1])
    curve = room.descriptive_accuracy(model, pictures, classes, relevance, "zero")
    flipping = quantus.PixelFlipping(
        features_in_step=1, perturb_baseline=0.0, normalise=False, abs=False, disable_warnings=True, display_progressbar=False
    )
    theirs = flipping(
        model=model, x_batch=pictures.numpy(), y_batch=classes.numpy(), a_batch=relevance[:, None].numpy(), device="cpu", softmax=True
    )
    pixels = [round(100 * fraction) for fraction in room.REMOVED_FRACTIONS]
    expected = torch.tensor(np.array(theirs))[:, [count - 1 for count in pixels if count]]
    assert torch.allclose(curve[:, 1:].double(), expected.double(), atol=1e-6)
    assert float(curve.std(1).min()) > 1e-3, "the curves are not flat"
