"""A feature is read from text, survives JSON, and picks the numbers it names."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from channelscope.circuits.feature import Feature
from channelscope.errors import InputError, ShapeError

MAPS = torch.arange(2 * 3 * 2 * 4.0).view(2, 3, 2, 4)


@pytest.mark.parametrize(
    ("text", "feature"),
    [
        ("layer3.1.conv1:7", Feature.channel("layer3.1.conv1", 7)),
        ("conv:0@max", Feature.channel("conv", 0, "max")),
        ("conv:0@centre", Feature.channel("conv", 0, "center")),
        ("conv:2@4,5", Feature.channel("conv", 2, [(4, 5)])),
        ("conv:2@4,5;0,1", Feature.channel("conv", 2, [(4, 5), (0, 1)])),
        ("logit:3", Feature.channel("logit", 3)),
    ],
)
def test_text_form(text, feature):
    assert Feature.parse(text) == feature
    assert Feature.parse(str(feature)) == feature
    assert Feature.parse(feature) is feature
    assert Feature.from_dict(json.loads(json.dumps(feature.as_dict()))) == feature


def test_a_vector_comes_from_a_file(tmp_path):
    vector = np.array([0.0, 2.0, -1.0])
    np.save(tmp_path / "v.npy", vector)
    save_file({"v": torch.tensor(vector)}, tmp_path / "v.safetensors")
    for name in ("v.npy", "v.safetensors"):
        feature = Feature.parse(f"conv:{tmp_path / name}@max")
        assert feature == Feature.direction("conv", torch.tensor(vector), "max")
        assert feature.weights == ((1, 2.0), (2, -1.0))
        assert str(feature) == "conv:direction[3]@max"
        assert Feature.from_dict(json.loads(json.dumps(feature.as_dict()))) == feature


def test_a_channel_is_a_one_hot_direction():
    unit, direction = Feature.channel("conv", 1), Feature.direction("conv", torch.tensor([0.0, 1.0, 0.0]))
    assert torch.equal(unit.map(MAPS, 0), MAPS[:, 1].flatten(1))
    assert torch.equal(unit.map(MAPS, 0), direction.map(MAPS, 0))
    weights = torch.tensor([1.0, -2.0, 0.5])
    expected = (MAPS * weights[:, None, None]).sum(1).flatten(1)
    assert torch.allclose(Feature.direction("conv", weights).map(MAPS, 0), expected)


def test_channels_may_be_on_the_last_axis():
    tokens = MAPS.permute(0, 2, 3, 1)
    assert torch.equal(Feature.channel("fc", 2).map(tokens, 2), MAPS[:, 2].flatten(1))
    assert torch.equal(Feature.channel("fc", 1).map(MAPS[:, :, 0, 0], 0), MAPS[:, 1, 0, :1])


def test_position_rules():
    values = torch.tensor([[0.0, 3, 1, 3, 0, 0, 0, 0], [5, 0, 0, 0, 0, 0, 0, 9]])
    assert Feature.channel("c", 0, "max").select_positions(values, (2, 4)).tolist() == [[1], [7]]
    assert Feature.channel("c", 0).select_positions(values, (2, 4)).tolist() == [list(range(8))] * 2
    assert Feature.channel("c", 0, "center").select_positions(values, (2, 4)).tolist() == [[6]] * 2
    assert Feature.channel("c", 0, [(1, 0), (0, 3)]).select_positions(values, (2, 4)).tolist() == [[4, 3]] * 2
    assert Feature.channel("c", 0, "center").select_positions(values[:, :1], ()).tolist() == [[0]] * 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("conv", "expected layer3.1.conv1:7"),
        ("conv:", "expected layer3"),
        ("conv:x", "expected layer3"),
        ("conv:1@", "all, max, center"),
        ("conv:1@top", "received 'top'"),
        ("conv:1@2,2;2,2", "only once"),
        ("conv:missing.npy", "no file"),
    ],
)
def test_what_is_no_feature_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        Feature.parse(text)


def test_what_does_not_fit_the_layer_is_refused(tmp_path):
    with pytest.raises(InputError, match="zeros only"):
        Feature.direction("conv", torch.zeros(3))
    with pytest.raises(InputError, match="finite"):
        Feature.direction("conv", torch.tensor([float("nan"), 1]))
    with pytest.raises(ShapeError, match="direction of 3 numbers, received 2"):
        Feature.direction("conv", torch.ones(2)).map(MAPS, 0)
    with pytest.raises(InputError, match="channels 0 to 2"):
        Feature.channel("conv", 3).map(MAPS, 0)
    with pytest.raises(InputError, match="2×4 positions, and 2,0 is none"):
        Feature.channel("conv", 0, [(2, 0)]).select_positions(torch.zeros(1, 8), (2, 4))
    with pytest.raises(InputError, match="no positions"):
        Feature.channel("fc", 0, [(0,)]).select_positions(torch.zeros(1, 1), ())
    np.save(tmp_path / "m.npy", np.eye(2))
    with pytest.raises(ShapeError, match=r"found shape \(2, 2\)"):
        Feature.parse(f"conv:{tmp_path / 'm.npy'}")
    save_file({"a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "two.safetensors")
    with pytest.raises(InputError, match="found 2"):
        Feature.parse(f"conv:{tmp_path / 'two.safetensors'}")
