"""Features: read from text, kept in JSON, found in a network by the names the library uses, or refused with what is there."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from channelscope.circuits.feature import MAX_BATCH, PIXELS, Feature, activation_range, image_batches, locate_feature
from channelscope.circuits.subfeatures import top_images
from channelscope.errors import InputError, SampleError, ShapeError, SiteError, TracingError
from channelscope.network.graph import trace
from channelscope.network.sites import sites_of
from pencil_circuits import network, pictures

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


@torch.no_grad()
def test_the_feature_is_the_layers_own_output():
    model, images = network("residual"), pictures()
    seen = {}
    handle = model.two.register_forward_hook(lambda _, __, out: seen.update(two=out.clone()))
    model(images)
    handle.remove()
    target = locate_feature(model, "two:1", images)
    assert torch.allclose(target.feature_map(images), seen["two"][:, 1].flatten(1))
    assert target.spatial_shape == (8, 8)
    assert torch.equal(
        locate_feature(model, "two:1@max", images).selected_positions(images), target.feature_map(images).argmax(1, keepdim=True)
    )
    assert locate_feature(model, "two:1@2,3", images).selected_positions(images).tolist() == [[19]] * 5


@torch.no_grad()
def test_logits_and_any_other_step_can_be_features():
    model, images = network("chain"), pictures()
    graph = trace(model, images)
    assert torch.allclose(locate_feature(graph, "logit:2").feature_map(images), model(images)[:, 2:])
    assert locate_feature(graph, "logit:2").relevant.keys() == locate_feature(graph, "head:2").relevant.keys()
    pooled = locate_feature(graph, "pool:1")
    assert pooled.layers == ("a", "b")
    assert pooled.spatial_shape == (2, 2)
    assert torch.equal(pooled.relevant["b"], torch.tensor([False, True, False, False])[:, None].expand(4, 4))


def test_other_weights_for_one_call_leave_no_trace():
    model, images = network("residual"), pictures()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    target = locate_feature(model, "last:0", images)
    plain = target.feature_map(images).detach()
    doubled = {layer: weight * 2 for layer, weight in target.original_weights().items()}
    assert not torch.allclose(target.feature_map(images, doubled), plain)
    with target.ablated(target.relevant):
        assert not torch.allclose(target.feature_map(images), plain)
    assert torch.equal(target.feature_map(images), plain)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_direction_depends_on_all_its_channels():
    model, images = network("dense"), pictures()
    target = locate_feature(model, "two:0", images)
    graph = target.graph
    from_file = locate_feature(graph, target.feature.direction("two", torch.tensor([0.5, -1.0])))
    assert from_file.relevant["two"].all()
    assert not target.relevant["two"].all()


class ChannelsLast(nn.Module):
    """A block with its channels in the last axis: 12 × 12 positions, 6 and 8 channels."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.wide, self.act = nn.Conv2d(2, 6, 3, padding=1), nn.LayerNorm(6), nn.Linear(6, 8), nn.GELU()
        self.narrow, self.head = nn.Linear(8, 1), nn.Conv2d(1, 1, 1)
        self.last = nn.ReLU()

    def forward(self, x):
        x = self.norm(self.stem(x).permute(0, 2, 3, 1))
        return self.last(self.head(self.narrow(self.act(self.wide(x))).permute(0, 3, 1, 2)))


@torch.no_grad()
def test_channels_are_where_tracing_finds_them():
    """Rows of a channels-last map are no channels, whether a layer acts on each element, mixes channels, or has only one."""
    model, images = ChannelsLast().eval(), pictures(2, size=12)
    graph = trace(model, images)
    wide = model.wide(model.norm(model.stem(images).permute(0, 2, 3, 1)))
    found = locate_feature(graph, "act:7")
    assert (found.axis, found.spatial_shape) == (2, (12, 12))
    assert torch.allclose(found.feature_map(images), model.act(wide)[..., 7].flatten(1), atol=1e-6)
    assert found.relevant["wide"].any(1).tolist() == [False] * 7 + [True]
    normed = locate_feature(graph, "norm:5")
    assert torch.allclose(normed.feature_map(images), model.norm(model.stem(images).permute(0, 2, 3, 1))[..., 5].flatten(1), atol=1e-6)
    assert (locate_feature(graph, "last:0").axis, locate_feature(graph, "logit:0").spatial_shape) == (0, (12, 12))
    for feature, last in (("act:11", 7), ("norm:6", 5), ("logit:1", 0)):
        with pytest.raises(InputError, match=f"has channels 0 to {last}"):
            locate_feature(graph, feature)


def test_a_value_without_an_axis_of_channels_is_refused():
    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.mix, self.last = nn.Conv2d(2, 4, 1), nn.Softmax(dim=1), nn.Identity()

        def forward(self, x):
            return self.last(self.mix(self.conv(x)).transpose(1, 3))

    with pytest.raises(ShapeError, match=r"at last: expected values whose channels lie on one axis, received shape \(8, 8, 4\)"):
        locate_feature(Turned(), "last:0", pictures())


def test_near_matches_are_listed():
    model, images = network("residual"), pictures()
    with pytest.raises(SiteError, match="no layer is called thre; near matches: three"):
        locate_feature(model, "thre:0", images)
    with pytest.raises(InputError, match="last has channels 0 to 1"):
        locate_feature(model, "last:2", images)
    with pytest.raises(InputError, match="2×2 positions"):
        locate_feature(model, "last:1@5,5", images)
    with pytest.raises(InputError, match="example"):
        locate_feature(model, "last:1")


def test_control_flow_that_cannot_be_followed_says_where():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 1)

        def forward(self, x):
            return self.conv(x) if x.sum() > 0 else x

    with pytest.raises(TracingError, match=r"test_feature\.py:\d+ \(forward\)"):
        locate_feature(Branching(), "conv:0", pictures())


def test_a_feature_without_kernels_is_refused():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.shift = nn.Parameter(torch.ones(1, 2, 8, 8))
            self.conv = nn.Conv2d(2, 2, 1)

        def forward(self, x):
            return self.conv(self.shift) + x.mean()

    with pytest.raises(InputError, match="made of constants"):
        locate_feature(Constant(), "conv:0", pictures())


def test_a_layer_called_twice_is_not_one_place():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 1)

        def forward(self, x):
            return self.conv(self.conv(x))

    with pytest.raises(SiteError, match="called 2 times"):
        locate_feature(Twice(), "conv:0", pictures())


def test_activity_is_seen_where_consumers_look():
    model, images = network("chain"), pictures()
    target = locate_feature(model, "a:1", images)
    low, high = activation_range(target, images)
    assert low == 0 < high
    with torch.no_grad():
        model.a.bias[1] = -100
    with pytest.raises(SampleError, match="a:1 never activates on these images"):
        activation_range(target, images)
    with torch.no_grad():
        model.head.weight[0] = 0
    with pytest.raises(SampleError, match="never activates"):
        activation_range(locate_feature(model, "logit:0", images), images)


def test_batches_of_every_kind():
    images = pictures(70)
    assert [len(batch) for batch in image_batches(images)] == [32, 32, 6]
    assert [len(batch) for batch in image_batches([images[:3], images[3:5]])] == [3, 2]
    assert [len(batch) for batch in image_batches([(images[:3], torch.zeros(3)), (images[3:4], torch.zeros(1), torch.zeros(1))])] == [3, 1]
    with pytest.raises(SampleError, match="at least one image"):
        list(image_batches([]))


class Viewed(nn.Module):
    """Takes rows, columns and channels for one axis, as many small networks do."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(2, 3, 3, padding=1), nn.Linear(3 * 64, 4)

    def forward(self, x):
        return self.last(F.relu(self.first(x)).view(-1, 3 * 64))


def test_images_lie_channels_last_unless_the_network_cannot_view_them_so():
    target = locate_feature(network("chain"), "c:0", pictures())
    assert target.memory_format == torch.channels_last
    assert all(part.is_contiguous(memory_format=torch.channels_last) for part in target.image_batches(pictures()))
    viewed = locate_feature(Viewed(), "last:1", pictures())
    assert viewed.memory_format == torch.contiguous_format
    assert locate_feature(viewed.model, "first:1", pictures()).memory_format == torch.channels_last  # the view is behind the feature
    values = torch.cat([viewed.feature_map(part) for part in viewed.image_batches(pictures())])
    assert torch.allclose(values, viewed.model(pictures())[:, 1:2])


def test_few_images_are_run_at_once():
    target = locate_feature(network("residual"), "last:1", pictures())
    assert [len(part) for part in target.image_batches(pictures(MAX_BATCH + 3))] == [MAX_BATCH, 3]
    assert [len(part) for part in target.image_batches([pictures(2), pictures(3)])] == [2, 3]
    large = torch.zeros(3, 2, 512, PIXELS // 1024)
    assert [len(part) for part in target.image_batches(large)] == [2, 1]
    assert [len(part) for part in target.image_batches(torch.zeros(2, 2, 1024, PIXELS // 1000))] == [1, 1]


class Several(nn.Module):
    """Returns a dictionary, and has a layer whose output is no single tensor."""

    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, 3, batch_first=True), nn.Linear(3, 2)

    def forward(self, x):
        return {"kind": self.head(self.lstm(x.flatten(1, 2))[0].mean(1))}


def test_what_is_not_one_tensor_has_no_feature():
    example = torch.zeros(1, 1, 4, 4)
    with pytest.raises(SiteError, match="the network's output is not one tensor"):
        locate_feature(Several().eval(), "logit:0", example)
    with pytest.raises(ShapeError, match="expected a tensor of channels at lstm"):
        locate_feature(Several().eval(), "lstm:0", example)


def test_a_network_of_one_layer_has_features_although_it_has_no_site():
    """Its only layer's outputs are the network's own, which no channel statistics are kept of."""
    layer = nn.Conv2d(1, 2, 1, bias=False)
    layer.weight.data = torch.tensor([2.0, -1.0]).view(2, 1, 1, 1)
    images = torch.tensor([[[[-1.0, 3.0]]], [[[0.5, 2.0]]]])
    for model in (nn.Sequential(layer).eval(), nn.Sequential(nn.Flatten(), nn.Linear(2, 2)).eval()):
        with pytest.raises(SiteError, match="its outputs are the network's own outputs"):
            sites_of(trace(model, images))
    feature = locate_feature(nn.Sequential(layer).eval(), "0:0", images)
    assert activation_range(feature, images) == (-2.0, 6.0)
    assert top_images(feature, images, 2).values.tolist() == [6.0, 4.0]


def test_a_located_feature_is_shown_by_its_kernels():
    target = locate_feature(network("chain"), "b:1", pictures())
    first, *rest = repr(target).splitlines()
    assert first == "LocatedFeature(b:1, 12 kernels of 2 layers)"
    assert rest == ["  read at step: b", "  a: 8 of 8 kernels", "  b: 4 of 16 kernels"]
