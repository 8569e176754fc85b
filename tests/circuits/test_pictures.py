"""Pictures: image patches of the largest activation, images optimized for a channel, and the sheet of groups."""

import io
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from channelscope.circuits import pictures as pictures_module
from channelscope.circuits.circuit import Circuit
from channelscope.circuits.criteria import baseline_scores
from channelscope.circuits.feature import locate_feature
from channelscope.circuits.pictures import (
    CROP_PIXELS,
    GAP,
    LABEL,
    MAX_IMAGES,
    PATCHES,
    SIDE,
    PixelNormalization,
    channel_locations,
    contact_sheet,
    feature_visualizations,
    layer_sheet,
    strongest_images,
    top_patches,
)
from channelscope.circuits.selection import top_k
from channelscope.circuits.subfeatures import top_images
from channelscope.errors import SiteError
from channelscope.network.sites import sites
from pencil_circuits import LAST, NETWORKS, Planted, Polysemantic, causes, network, pictures

GRAY = PixelNormalization((0.5,), (0.25,))
COLOR = PixelNormalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


class Two(nn.Module):
    """One 3×3 kernel that looks for a bright pixel in channel 0, one that looks in channel 1."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 2, 3, padding=1, bias=False), nn.Conv2d(2, 1, 1, bias=False)
        nn.init.zeros_(self.a.weight)
        self.a.weight.data[0, 0] = self.a.weight.data[1, 1] = 1.0
        nn.init.ones_(self.b.weight)

    def forward(self, x):
        return self.b(torch.relu(self.a(x)))


def opened(file: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(file)) as shown:
        assert shown.size == (CROP_PIXELS, CROP_PIXELS)
        return np.asarray(shown.convert("RGB")).astype(float)


def bright(images: int, channel: int) -> torch.Tensor:
    """Dark images with one bright pixel each, brighter from image to image."""
    made = torch.zeros(images, 3, 12, 12)
    for number in range(images):
        made[number, channel, 2 + number % 8, 3] = (number + 1) / images
    return made


def test_palettes_undo_the_normalization():
    image = torch.tensor([[[0.0, 2.0], [-2.0, 9.0]]])
    assert np.asarray(GRAY.shown(image)).tolist() == [[128, 255], [0, 255]]
    assert GRAY.shown(image).mode == "L"
    assert COLOR.shown(torch.zeros(3, 4, 5)).size == (5, 4)


def test_patches_are_what_the_channel_saw():
    model, images = Two().eval(), torch.cat([bright(8, 0), bright(8, 1)])
    target = locate_feature(model, "b:0", images)
    found = top_patches(Circuit.full(target), target, images, COLOR)
    assert set(found) == {"a:0", "a:1", "b:0"}
    red, green = opened(found["a:0"][0]).mean((0, 1)), opened(found["a:1"][0]).mean((0, 1))
    assert red[0] > 20 > red[1]  # one of nine pixels is fully red
    assert green[1] > 20 > green[0]
    strength = [opened(file)[..., 0].max() for file in found["a:0"]]
    assert len(strength) == PATCHES
    assert strength == sorted(strength, reverse=True)


def test_a_large_circuit_has_fewer_patches_a_channel(monkeypatch):
    """A page has to stay light enough to mail: so many pictures together, at least one a channel."""
    model, images = Two().eval(), torch.cat([bright(8, 0), bright(8, 1)])
    target = locate_feature(model, "b:0", images)
    for together, each in ((7, 2), (3, 1), (1, 1), (300, PATCHES)):
        monkeypatch.setattr(pictures_module, "TOGETHER", together)
        found = top_patches(Circuit.full(target), target, images, COLOR)
        assert {len(files) for files in found.values()} == {each}
        assert all(file[8:12] == b"WEBP" and len(file) < 2_000 for files in found.values() for file in files)


def test_channels_that_are_constant_in_the_circuit_have_no_patch():
    model, images = Two().eval(), torch.cat([bright(4, 0), bright(4, 1)])
    target = locate_feature(model, "b:0", images)
    marks = {layer: kernels.clone() for layer, kernels in Circuit.full(target).masks.items()}
    marks["a"][0] = False  # channel 0 is there, and nothing comes in
    marks["a"][0, 2] = True
    found = top_patches(Circuit.of_feature(target, marks), target, images, COLOR)
    assert found["a:0"] == ()
    assert len(found["a:1"]) == PATCHES


def test_patches_come_from_the_circuit_not_the_network():
    """Unit c:0 of the polysemantic network shows one cause each in the circuit of that cause."""
    model, images = Polysemantic().eval(), causes()
    target = locate_feature(model, "c:0@max", images)
    palette = PixelNormalization((0.0, 0.0), (10.0, 10.0))
    for cause in (0, 1):
        shown = top_patches(Circuit.of_feature(target, model.truth(cause)), target, torch.cat([images, images[:, :1]], 1)[:, :2], palette)
        assert set(shown) == {f"a:{cause}", f"b:{cause}", "c:0"}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_channel_of_a_circuit_has_a_place(name):
    images = pictures(4)
    target = locate_feature(network(name), f"{LAST[name]}:1", images)
    circuit = top_k(baseline_scores(target, "random", 2), 0.5)
    named = {f"{spot.layer}:{channel}" for spot in channel_locations(circuit, target) for channel in spot.channels}
    assert named == {f"{layer}:{row}" for layer in circuit for row in circuit[layer].any(1).nonzero().flatten().tolist()}
    assert set(top_patches(circuit, target, images, PixelNormalization((0.5,) * 2, (0.25,) * 2))) == named


def test_channels_are_looked_at_where_their_readers_see_them():
    target = locate_feature(network("residual"), "last:1", pictures(2))
    steps = {spot.layer: spot.step for spot in channel_locations(Circuit.full(target), target)}
    assert steps["one"] == "relu"
    assert steps["stem"] != "stem"  # after normalization and activation
    assert steps["last"] == "last"


def test_channels_of_a_channels_last_layer_are_in_its_last_axis(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(pictures_module, "STEPS", 2)
    target = locate_feature(ChannelsLast().eval(), "wide:7", pictures(2, size=12))
    where = {spot.layer: spot.axis for spot in channel_locations(Circuit.full(target), target)}
    assert where == {"stem": 0, "wide": 2}
    found = feature_visualizations(Circuit.full(target), target, PixelNormalization((0.5,) * 2, (0.25,) * 2))
    assert len(found["wide:7"]) == 1


class ChannelsLast(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.wide = nn.Conv2d(2, 6, 3, padding=1), nn.Linear(6, 8)

    def forward(self, x):
        return self.wide(torch.relu(self.stem(x)).permute(0, 2, 3, 1)).mean((1, 2))


@pytest.mark.parametrize("cause", [0, 1])
def test_visualizations_drive_their_channel(cause, monkeypatch):
    monkeypatch.setattr(pictures_module, "STEPS", 24)
    model = Two().eval()
    target = locate_feature(model, "b:0", torch.zeros(1, 3, 12, 12))
    found = feature_visualizations(Circuit.full(target), target, COLOR)
    assert set(found) == {"a:0", "a:1", "b:0"}
    shown = opened(found[f"a:{cause}"][0]).mean((0, 1))
    assert shown[cause] > 180
    assert shown[cause] > shown[1 - cause] + 30
    assert feature_visualizations(Circuit.full(target), target, COLOR) == found  # seeded


def test_channels_that_no_image_moves_are_not_visualized(monkeypatch):
    monkeypatch.setattr(pictures_module, "STEPS", 3)
    target = locate_feature(Two().eval(), "b:0", torch.zeros(1, 3, 12, 12))
    marks = {layer: kernels.clone() for layer, kernels in Circuit.full(target).masks.items()}
    marks["a"][0] = False
    marks["a"][0, 2] = True  # a kernel of zeros: channel 0 is a constant
    found = feature_visualizations(Circuit.of_feature(target, marks), target, COLOR)
    assert found["a:0"] == ()
    assert len(found["a:1"]) == len(found["b:0"]) == 1


def test_the_network_is_left_as_it_was():
    model = Planted().eval()
    images = torch.randn(2, 3, 8, 8)
    target = locate_feature(model, "c:0", images)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    top_patches(top_k(baseline_scores(target, "random"), 0.4), target, images, COLOR)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_middle_of_a_map_of_six_rows_and_nine_columns():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 1)).eval()
    target = locate_feature(model, "2:1", torch.zeros(1, 2, 8, 11))
    locations = pictures_module.channel_locations(Circuit.full(target), target)
    assert [pictures_module._center(target, location) for location in locations] == [3 * 9 + 4, 3 * 9 + 4]


def test_what_is_no_map_has_its_middle_at_zero():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 4)).eval()
    target = locate_feature(model, "3:1", torch.zeros(1, 2, 5, 5))
    locations = {each.layer: each for each in pictures_module.channel_locations(Circuit.full(target), target)}
    assert pictures_module._center(target, locations["3"]) == 0
    assert pictures_module._center(target, locations["0"]) == 4


class Bright(torch.nn.Module):
    """Looks for a bright pixel of any color, nine pixels at a time."""

    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.Conv2d(3, 1, 3, bias=False), torch.nn.Conv2d(1, 1, 1)
        torch.nn.init.ones_(self.a.weight)

    def forward(self, x):
        return self.b(self.a(x))


def test_every_group_is_a_row_of_what_the_feature_sees():
    images = torch.zeros(20, 3, 9, 9)
    color = [0] * 15 + [1] * 5
    for number, channel in enumerate(color):
        images[number, channel, 2 + number % 5, 4] = 1 - number / 40
    target = locate_feature(Bright().eval(), "a:0", images)
    found = top_images(target, images, 20)
    labels = torch.tensor(color)[found.indices]
    pixels = np.asarray(contact_sheet(target, found, labels, PixelNormalization((0.0,) * 3, (1.0,) * 3)))
    assert pixels.shape == (2 * SIDE + GAP, LABEL + MAX_IMAGES * (SIDE + GAP), 3)

    def shown(row: int, column: int) -> np.ndarray:
        top, left = row * (SIDE + GAP), LABEL + column * (SIDE + GAP)
        return pixels[top : top + SIDE, left : left + SIDE].astype(float)

    for row, members in enumerate((15, 5)):
        for column in range(MAX_IMAGES):
            if column >= members:
                assert (shown(row, column) == 255).all()  # no more images in the group
                continue
            patch = shown(row, column)
            assert set(np.flatnonzero(patch.reshape(-1, 3).any(0))) == {row}
            assert (patch[..., row] > 0).mean() == 1 / 9  # one of the nine pixels it sees
        strength = [shown(row, column)[..., row].max() for column in range(min(MAX_IMAGES, members))]
        assert strength == sorted(strength, reverse=True)
    assert (pixels[:SIDE, :LABEL] < 255).any()


def test_the_strongest_images_of_a_channel_are_known():
    """Images 0 to 7 have a brighter pixel one after the other in the first color, 8 to 15 in the second."""
    model, images = nn.Sequential(Two().a, nn.ReLU(), nn.Conv2d(2, 1, 1)).eval(), torch.cat([bright(8, 0), bright(8, 1)])
    table, files = strongest_images(sites(model, images[:1]), {"0": [1, 0]}, images.split(5), COLOR)
    assert table.columns.tolist() == ["site", "channel", "place", "image", "activation"]
    assert table.channel.tolist() == [1] * 6 + [0] * 6
    assert table.place.tolist() == [1, 2, 3, 4, 5, 6] * 2
    assert table.image.tolist() == [15, 14, 13, 12, 11, 10, 7, 6, 5, 4, 3, 2]
    assert table.activation.tolist() == pytest.approx([1.0, 0.875, 0.75, 0.625, 0.5, 0.375] * 2)
    assert list(files) == ["0:1", "0:0"]
    assert [len(each) for each in files.values()] == [PATCHES, PATCHES]
    green, red = opened(files["0:1"][0]).mean((0, 1)), opened(files["0:0"][0]).mean((0, 1))
    assert green[1] > 20 > green[0]
    assert red[0] > 20 > red[1]


def test_images_keep_the_index_that_their_batches_give_and_the_earlier_of_two_equal_ones_comes_first():
    model, image = nn.Sequential(Two().a, nn.ReLU(), nn.Conv2d(2, 1, 1)).eval(), bright(2, 0)
    batches = [{"image": image, "index": torch.tensor([40, 30])}, {"image": image, "index": torch.tensor([20, 10])}]
    table, _ = strongest_images(sites(model, image[:1]), {"0": [0]}, batches, COLOR)
    assert table.image.tolist() == [30, 10, 40, 20]


def test_a_channel_that_is_the_same_everywhere_drives_no_image():
    model, images = nn.Sequential(Two().a, nn.ReLU(), nn.Conv2d(2, 1, 1)).eval(), bright(4, 0)
    table, files = strongest_images(sites(model, images[:1]), {"0": [1]}, [images], COLOR)
    assert len(table) == 0
    assert files == {"0:1": ()}


def test_token_layers_show_whole_images():
    model, images = (
        nn.Sequential(nn.Flatten(2), nn.Linear(4, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(9, 2)).eval(),
        torch.zeros(3, 3, 2, 2),
    )
    nn.init.zeros_(model[1].weight)
    model[1].weight.data[2, 3] = 1.0
    images[0, 1, 1, 1], images[2, 0, 1, 1] = 0.5, 1.0
    table, files = strongest_images(sites(model, images[:1]), {"1": [2]}, [images], COLOR)
    assert table.image.tolist() == [2, 0, 1]
    assert table.activation.tolist() == [1.0, 0.5, 0.0]
    first = opened(files["1:2"][0])
    assert first[-8:, -8:, 0].min() > 150, "the lower right of four pixels is red"
    assert first[:24].max() < 60, "the upper two are dark"


def test_pictures_of_a_layer_that_is_not_there_are_refused():
    model = nn.Sequential(Two().a, nn.ReLU(), nn.Conv2d(2, 1, 1)).eval()
    with pytest.raises(SiteError, match="no site is called 7; there are: 0"):
        strongest_images(sites(model, bright(1, 0)), {"7": [0]}, [bright(1, 0)], COLOR)


def test_a_sheet_has_a_row_for_each_channel_and_stays_inside_its_box():
    sheet = layer_sheet({511: [b"a"] * PATCHES, 3: [], 8: [b"b"]})
    assert 'viewBox="0 0 448 200"' in sheet
    assert re.findall(r">(\d+)</text>", sheet) == ["511", "3", "8"]
    assert re.findall(r'<image x="(\d+)" y="(\d+)"', sheet) == [(str(44 + 68 * n), "0") for n in range(6)] + [("44", "136")]
    assert sheet.endswith("</svg>")
