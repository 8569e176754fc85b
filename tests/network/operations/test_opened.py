"""Opened modules. Attention: hidden channels of its MLP, whole heads, and widths of queries, keys and values. Computed weights: numbers and
circuits are those of the weights that the network runs with."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as pruning_masks
from torch.nn.utils.parametrizations import weight_norm

from channelscope import scores
from channelscope.circuits.feature import locate_feature
from channelscope.data.torchvision_cpu import load_torchvision
from channelscope.errors import InputError
from channelscope.network.cost import cost
from channelscope.network.edits import silence
from channelscope.network.graph import trace
from channelscope.network.module_state import weights_hash
from channelscope.network.operations.opened import SamePadded, in_layers, used_weight
from channelscope.network.removal.groups import groups
from channelscope.network.sites import sites
from channelscope.profiling.collect import collect
from channelscope.profiling.weight_norms import weight_norms
from channelscope.pruning.cut import cut, shrink
from channelscope.pruning.optimal_brain_surgeon import optimal_brain_surgeon
from channelscope.pruning.prune import kl_divergence, prune
from channelscope.subset import Subset
from removals import assert_exact, drawn, graph_of, lively


class Encoder(nn.Module):
    """A transformer's block on the patches of an image, and a linear layer on the mean token."""

    def __init__(self, attention, width=12):
        super().__init__()
        self.patch, self.attention = nn.Conv2d(3, width, 3, 3), attention
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down, self.head = nn.Linear(width, 20), nn.Linear(20, width), nn.Linear(width, 4)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        y = self.first(x)
        y = self.attention(y, y, y, need_weights=False)[0] if isinstance(self.attention, nn.MultiheadAttention) else self.attention(y)
        x = x + y
        return self.head((x + self.down(F.gelu(self.up(self.second(x))))).mean(1))


class Spelled(nn.Module):
    """Attention written out, as vision transformers have it."""

    def __init__(self, width=12, heads=3, fused=False):
        super().__init__()
        self.num_heads, self.head_dim, self.fused = heads, width // heads, fused
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        n, tokens, _width = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v) if self.fused else (q * 0.5 @ k.transpose(-2, -1)).softmax(dim=-1) @ v
        return self.proj(x.transpose(1, 2).reshape(n, tokens, -1))


def timm_attention():
    load_torchvision()  # timm imports it
    from timm.models.vision_transformer import Attention

    return Attention(12, num_heads=3, qkv_bias=True)


ATTENTIONS = {
    "written out": lambda: Spelled(),
    "fused": lambda: Spelled(fused=True),
    "torch": lambda: nn.MultiheadAttention(12, 3, batch_first=True),
    "timm": timm_attention,
}
PROJECTION = {"written out": "attention.qkv", "fused": "attention.qkv", "torch": "attention.in_proj", "timm": "attention.qkv"}


@pytest.mark.parametrize("name", ATTENTIONS)
def test_whole_heads(name):
    torch.manual_seed(0)
    graph = graph_of(lively(Encoder(ATTENTIONS[name]())), 3, 9, 9)
    layer = PROJECTION[name]
    heads = {frozenset((layer, part * 12 + head * 4 + place) for part in range(3) for place in range(4)) for head in range(3)}
    hidden = {frozenset({("up", channel)}) for channel in range(20)}
    assert {frozenset(group) for group in graph.groups} == heads | hidden
    assert graph.opaque == {}
    small = assert_exact(graph, graph.gone([0, *range(5, 15)]))
    assert small.attention.num_heads == 2


@pytest.mark.parametrize("name", ATTENTIONS)
def test_widths(name):
    torch.manual_seed(0)
    graph = graph_of(lively(Encoder(ATTENTIONS[name]())), 3, 9, 9, heads="widths")
    layer = PROJECTION[name]
    widths = [frozenset(group) for group in graph.groups if group[0][0] == layer]
    if name == "torch":
        parts = [
            {frozenset((layer, part * 12 + head * 4 + place) for part in side for head in range(3)) for place in range(4)}
            for side in ((0, 1), (2,))
        ]
        assert set(widths) == parts[0] | parts[1]
    else:
        assert set(widths) == {
            frozenset((layer, part * 12 + head * 4 + place) for part in range(3) for head in range(3)) for place in range(4)
        }
    assert_exact(graph, drawn(graph, 0.5, 1))


@pytest.mark.parametrize("options", [{"batch_first": True}, {"batch_first": False}, {"batch_first": True, "bias": False}])
def test_heads_of_one_torch_attention_with_masks(options):
    torch.manual_seed(0)

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside, self.attention, self.out = nn.Linear(5, 12), nn.MultiheadAttention(12, 3, **options), nn.Linear(12, 4)
            self.register_buffer("mask", torch.ones(7, 7, dtype=torch.bool).triu(1))

        def forward(self, x):
            x = self.inside(x)
            x = x if options["batch_first"] else x.transpose(0, 1)
            x = self.attention(x, x, x, attn_mask=self.mask, need_weights=False)[0]
            return self.out(x if options["batch_first"] else x.transpose(0, 1))

    graph = graph_of(lively(Masked()), 7, 5)
    assert {len(group) for group in graph.groups if group[0][0] == "attention.in_proj"} == {12}
    assert sum(group[0][0] == "inside" for group in graph.groups) == 12
    assert sum(group[0][0] == "attention.out_proj" for group in graph.groups) == 12
    assert_exact(graph, drawn(graph))


class Around(nn.Module):
    """Attention between linear layers, called as `call` says."""

    def __init__(self, call, out=12, **options):
        super().__init__()
        self.call, self.inside, self.out = call, nn.Linear(5, 12), nn.Linear(out, 4)
        self.attention = nn.MultiheadAttention(12, 3, **{"batch_first": True} | options)

    def forward(self, x):
        return self.out(self.call(self.attention, self.inside(x)))


def test_a_map_that_is_used_is_still_the_mean_over_the_heads_that_were():
    torch.manual_seed(0)
    model, images = lively(Around(lambda attention, x: attention(x, x, x)[1], out=7)).double().eval(), torch.randn(3, 7, 5).double()
    found = groups(model, images[:1])
    kept = found.to_subset([index % 2 == 0 for index in range(len(found))])
    small = shrink(found, kept)
    with silence(model, ~kept):
        expected = model(images)
    assert float((small(images) - expected).abs().max()) < 1e-12 < 1e-3 < float((model(images) - expected).abs().max())


def test_a_map_that_is_asked_for_and_not_used_costs_no_head():
    torch.manual_seed(0)
    graph = graph_of(lively(Around(lambda attention, x: attention(x, x, x)[0])), 7, 5)
    assert {len(group) for group in graph.groups if group[0][0] == "attention.in_proj"} == {12}


def test_queries_of_their_own():
    torch.manual_seed(0)
    graph = graph_of(lively(Around(lambda attention, x: attention(x[:, :1], x, x)[0])), 7, 5)
    heads = [index for index, group in enumerate(graph.groups) if group[0][0] == "attention.in_proj"]
    assert [len(graph.groups[index]) for index in heads] == [4, 4, 4]
    small = assert_exact(graph, graph.gone([0, 1, *heads[1:2]]))
    assert sum(part.numel() for part in small.parameters() if part.shape == (8, 10)) == 3 * 80  # of queries, keys and values


@pytest.mark.parametrize("options", [{"kdim": 12, "vdim": 12}, {"kdim": 5}, {"add_bias_kv": True}, {"add_zero_attn": True}])
def test_attention_that_is_not_opened_is_named(options):
    wide = options.get("kdim", 12) == 12
    model = Around(lambda attention, x: attention(x, x if wide else x[..., :5], x)[0], **options)
    graph = graph_of(lively(model), 7, 5)
    opened = "add_zero_attn" not in options and "add_bias_kv" not in options and wide
    assert (graph.opaque == {}) == opened
    assert opened or "attention (MultiheadAttention) may look at all its channels at once" in graph.opaque["attention"]
    assert_exact(graph, drawn(graph)) if graph.groups else None


def vision_transformer(**options):
    models = load_torchvision().models
    torch.manual_seed(0)
    return lively(models.VisionTransformer(16, 4, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=48, num_classes=10, **options)).double()


def test_heads_of_a_torchvision_transformer_are_cut_and_keep_their_names():
    model, images = vision_transformer(dropout=0.5, attention_dropout=0.5).train(), torch.randn(3, 3, 16, 16).double()
    found = groups(model, images[:1])
    heads = [index for index, group in enumerate(found.members) if group.sites[0].endswith("self_attention.in_proj")]
    assert [len(found.members[index].members) for index in heads] == [24] * 8
    kept = found.to_subset([index not in heads[1:7:2] for index in range(len(found))])
    small = shrink(found, kept)
    assert (list(small.state_dict()), small.training) == (list(model.state_dict()), True)
    assert [layer.self_attention.num_heads for layer in small.encoder.layers] == [2, 3]
    with silence(model.eval(), ~kept):
        expected = model(images)
    assert float((small.eval()(images) - expected).abs().max()) < 1e-12 < 1e-3 < float((model(images) - expected).abs().max())
    again = sites(small, images[:1])
    assert again["encoder.layers.encoder_layer_0.self_attention.in_proj"].channels == 48


def test_attention_in_layers_has_the_weights_of_the_network():
    model = vision_transformer()
    opened = in_layers(model)
    assert weights_hash(opened) == weights_hash(model)
    other = vision_transformer()
    nn.init.ones_(other.get_parameter("encoder.layers.encoder_layer_1.self_attention.in_proj_weight"))
    opened.load_state_dict(other.state_dict())
    assert bool((model.get_parameter("encoder.layers.encoder_layer_1.self_attention.in_proj_weight") == 1).all())
    with pytest.raises(RuntimeError, match=r"size mismatch for .*in_proj\.weight"):
        opened.load_state_dict({name: part[:1] for name, part in other.state_dict().items()})


def test_attention_that_is_the_network_itself_keeps_its_mode():
    attention = nn.MultiheadAttention(12, 3).train()
    assert not in_layers(attention).out_proj.training
    assert all(module.training for module in attention.modules())


def test_a_circuit_of_a_query_runs_with_other_weights():
    model, images = vision_transformer(), torch.randn(2, 3, 16, 16).double()
    layer = "encoder.layers.encoder_layer_1.self_attention.in_proj"
    feature = locate_feature(model, f"{layer}:3", images[:1])
    weights = {layer: torch.zeros_like(feature.original_weights()[layer])}
    assert not bool((feature.feature_map(images, weights) - feature.graph.modules[layer].bias[3]).any())
    assert bool(feature.feature_map(images).std() > 0)
    assert feature.slope_error < 1e-9


def test_a_transformer_layer_of_torch():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(12, 3, 20, batch_first=True, norm_first=True)
    graph = graph_of(lively(nn.Sequential(nn.Linear(5, 12), layer, nn.Linear(12, 4))), 7, 5)
    assert {len(group) for group in graph.groups} == {12, 1}
    assert sum(group[0][0] == "1.linear1" for group in graph.groups) == 20
    assert_exact(graph, drawn(graph))


class Relative(nn.Module):
    """Attention with a bias for each pair of tokens that a small network computes from their distance, the same for every image.

    It is computed for each pair, or for each distance and picked by pair, as a table of distances or of heads.
    """

    def __init__(self, table: str = ""):
        super().__init__()
        self.attention, self.first, self.second, self.table = Spelled(), nn.Linear(1, 10), nn.Linear(10, 3), table
        self.register_buffer("distance", torch.arange(9)[:, None] - torch.arange(9))

    def bias(self):
        distance = torch.arange(-9.0, 9.0) if self.table else self.distance.double()
        bias = self.second(F.relu(self.first(distance[..., None].to(self.first.weight))))
        if self.table == "distances":
            bias = bias.view(-1, self.attention.num_heads)[(self.distance + 9).flatten()].view(9, 9, -1)
        if self.table == "heads":
            bias = bias.T[torch.tensor([0, 1, 2])][:, self.distance + 9].permute(1, 2, 0)
        return bias.permute(2, 0, 1)

    def forward(self, x):
        bias = self.bias()
        q, k, v = self.attention.qkv(x).unflatten(-1, (3, self.attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])
        return self.attention.proj(x.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("table", ["", "distances"])
def test_a_bias_computed_by_a_network_loses_its_hidden_channels_and_its_heads(table):
    torch.manual_seed(0)
    graph = graph_of(lively(Encoder(Relative(table))), 3, 9, 9)
    layers = {frozenset(name for name, _ in group) for group in graph.groups}
    assert layers == {frozenset({"attention.first"}), frozenset({"attention.second", "attention.attention.qkv"}), frozenset({"up"})}
    head = next(index for index, group in enumerate(graph.groups) if group[0][0] == "attention.second" or len(group) > 1)
    hidden = [index for index, group in enumerate(graph.groups) if group[0][0] == "attention.first"]
    small = assert_exact(graph, graph.gone([head, *hidden[:4]]))
    assert small.attention.first.out_features == 6
    assert small.attention.second.out_features == 2


class Decomposed(nn.Module):
    """Attention with a bias that queries make of learned positions, rows and columns apart, as in SAM."""

    def __init__(self):
        super().__init__()
        self.attention, self.rows, self.columns = Spelled(), nn.Parameter(torch.randn(3, 3, 4)), nn.Parameter(torch.randn(3, 3, 4))

    def forward(self, x):
        heads = self.attention.num_heads
        qkv = self.attention.qkv(x).view(x.shape[0], 9, 3, heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.reshape(3, x.shape[0] * heads, 9, -1).unbind(0)
        grid = q.reshape(q.shape[0], 3, 3, -1)
        rows, columns = torch.einsum("bhwc,hkc->bhwk", grid, self.rows), torch.einsum("bhwc,wkc->bhwk", grid, self.columns)
        bias = (rows[:, :, :, :, None] + columns[:, :, :, None, :]).reshape(-1, 9, 9)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.attention.proj(x.view(-1, heads, 9, x.shape[-1]).transpose(1, 2).reshape(-1, 9, heads * x.shape[-1]))


def test_heads_whose_queries_meet_learned_positions_in_a_sum_go_as_a_whole():
    torch.manual_seed(0)
    model, images = lively(Encoder(Decomposed())).double(), torch.randn(3, 3, 9, 9, dtype=torch.float64)
    found = groups(model, images[:1])
    heads = [group for group in found.members if group.sites == ("attention.attention.qkv",)]
    assert [len(group.members) for group in heads] == [12, 12, 12]
    kept = found.to_subset([group is not heads[1] for group in found.members])
    small = shrink(found, kept)
    assert (small.attention.attention.qkv.out_features, small.attention.rows.shape) == (24, (3, 3, 4))
    with silence(model, ~kept):
        expected = model(images)
    assert float((small(images) - expected).abs().max()) < 1e-12 < 1e-3 < float((model(images) - expected).abs().max())


def test_heads_that_are_picked_by_their_numbers_stay():
    torch.manual_seed(0)
    graph = graph_of(lively(Encoder(Relative("heads"))), 3, 9, 9)
    assert {frozenset(name for name, _ in group) for group in graph.groups} == {frozenset({"attention.first"}), frozenset({"up"})}
    assert graph.whole["attention.second"] == "3 of 3 channels: getitem() in attention may look at all its channels at once"


def test_channels_that_are_keys_compete_and_stay():
    class Gathered(nn.Module):
        """Two learned queries look at channels as tokens: without one of them, the others get more."""

        def __init__(self):
            super().__init__()
            self.patch, self.queries, self.head = nn.Conv2d(3, 6, 3, 3), nn.Parameter(torch.randn(2, 9)), nn.Linear(18, 4)

        def forward(self, x):
            x = self.patch(x).flatten(2)
            return self.head(F.scaled_dot_product_attention(self.queries.expand(len(x), 2, 9), x, x).flatten(1))

    assert graph_of(lively(Gathered()), 3, 9, 9).groups == ()


class Standardized(nn.Conv2d):
    """A convolution whose filters have mean zero and variance one, whatever their parameters are."""

    def standardized(self):
        centred = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return centred / centred.square().mean((1, 2, 3), keepdim=True).sqrt()

    def forward(self, x):
        return F.conv2d(x, self.standardized(), self.bias, self.stride, self.padding, self.dilation, self.groups)


class Padded(Standardized):
    """It pads its input itself, by more than other layers."""

    def forward(self, x):
        return super().forward(F.pad(x, (2, 2, 2, 2)))


class Scaled(Standardized):
    def forward(self, x):
        return 2 * super().forward(x)


class Counting(Standardized):
    """It counts its passes."""

    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.register_buffer("passes", torch.zeros(1))

    def forward(self, x):
        self.passes += 1
        return super().forward(x)


class Attentive(nn.Conv2d):
    """Its weight depends on the image."""

    def forward(self, x):
        return F.conv2d(x, self.weight * x.mean(), self.bias, self.stride, self.padding, self.dilation, self.groups)


def standardized(kind=Standardized):
    torch.manual_seed(0)
    head = [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4)]
    return nn.Sequential(kind(3, 8, 3, padding=1), nn.ReLU(), kind(8, 12, 3, padding=1, bias=False), *head).double().eval()


def normalized():
    model = standardized(nn.Conv2d)
    weight_norm(model[0]), weight_norm(model[2])
    return model


def masked():
    model = standardized(nn.Conv2d)
    for layer in (model[0], model[2]):
        pruning_masks.random_unstructured(layer, "weight", 0.3)
    pruning_masks.random_unstructured(model[0], "bias", 2)
    return model


def plain_twin(model):
    """The same network of plain convolutions, made by hand."""
    twin = standardized(nn.Conv2d)
    twin.load_state_dict({name: part for name, part in model.state_dict().items() if "parametrizations" not in name}, strict=False)
    with torch.no_grad():
        for place in (0, 2):
            layer = model[place]
            twin[place].weight.copy_(layer.standardized() if isinstance(layer, Standardized) else layer.weight)
            if layer.bias is not None:
                twin[place].bias.copy_(layer.bias)
    return twin


IMAGES = torch.randn(60, 3, 8, 8, generator=torch.Generator().manual_seed(1)).double()
LABELS = torch.arange(60) % 4


@pytest.mark.parametrize("made", [standardized, normalized, masked])
def test_all_numbers_are_those_of_the_weights_that_the_network_runs_with(made):
    """Law: a network and its twin with plain weights cannot be told apart by any score, ranking, repair or circuit."""
    model = made()
    twin = plain_twin(model)
    assert torch.allclose(model(IMAGES), twin(IMAGES))
    profiles = [collect(each, [(IMAGES, LABELS)], shards=0, sensitivity=True) for each in (model, twin)]
    tables = [scores.table(profile, ["l1", "l2", "fpgm", "rayleigh", "capture", "peer_residual", "taylor_weight"]) for profile in profiles]
    pd.testing.assert_frame_equal(*tables)
    orders = [optimal_brain_surgeon(each, [IMAGES]) for each in (model, twin)]
    assert all(np.allclose(orders[0][site], orders[1][site]) for site in orders[1].values)
    small, other = (prune(order, each, [IMAGES], macs=0.6) for order, each in zip(orders, (model, twin), strict=True))
    assert not small.repair.skipped
    assert torch.allclose(small.model(IMAGES), other.model(IMAGES))
    features = [locate_feature(each, "logit:2", IMAGES[:1]) for each in (model, twin)]
    marks = {
        name: torch.rand(kernels.shape, generator=torch.Generator().manual_seed(3)) < 0.5 for name, kernels in features[1].relevant.items()
    }
    maps = []
    for feature in features:
        with feature.ablated(marks):
            maps.append(feature.feature_map(IMAGES))
    assert torch.allclose(*maps)
    assert not torch.allclose(maps[0], features[0].feature_map(IMAGES))


def test_kernels_with_a_computed_weight_are_zero_in_the_graph_or_refused():
    model = standardized()
    kernels = Subset({"2": torch.ones(12, 8, dtype=torch.bool)})
    with pytest.raises(InputError, match="2 computes its weight at every pass"), silence(model, kernels):
        pass
    before, graph = model(IMAGES), trace(model, IMAGES[:1])
    with silence(graph, kernels) as inside:
        assert inside is model
        assert bool((model(IMAGES) == model[6].bias).all())
    assert torch.equal(model(IMAGES), before)
    assert torch.equal(graph.run(IMAGES), before)


@pytest.mark.parametrize("kind", [Padded, Scaled, Attentive])
def test_layers_that_do_more_than_compute_a_weight_stay_as_they_are(kind):
    model = standardized(kind)
    assert in_layers(model) is model
    expected = model[0].weight if kind is Attentive else model[0].standardized()
    assert torch.allclose(used_weight(model[0]), expected)
    assert torch.allclose(weight_norms(sites(model, IMAGES[:1]))["0"]["l2"], expected.detach().flatten(1).norm(dim=1))
    graph = graph_of(model, 3, 8, 8)
    if kind is not Attentive:  # whose channels cannot be told apart
        assert_exact(graph, drawn(graph))


class TensorFlow(Standardized):
    """Every second position of images of even or odd size, padded as TensorFlow pads them."""

    def forward(self, x):
        amounts = (0, 1, 0, 1) if x.shape[-1] % 2 == 0 else (1, 1, 1, 1)
        return F.conv2d(F.pad(x, amounts), self.standardized(), self.bias, 2)


def test_layers_that_pad_as_tensorflow_does_are_opened_and_repaired():
    torch.manual_seed(0)
    head = [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4)]
    model = nn.Sequential(TensorFlow(3, 8, 3, stride=2), nn.ReLU(), TensorFlow(8, 12, 3, stride=2, bias=False), *head).double().eval()
    opened = in_layers(model)
    assert [type(opened[place]) for place in (0, 2)] == [SamePadded, SamePadded]
    for size in (6, 7, 8, 9):
        assert torch.allclose(opened(IMAGES[..., :size, :size]), model(IMAGES[..., :size, :size]))
    small = prune(scores.l2(collect(model, [IMAGES], shards=0)), model, [IMAGES], macs=0.6)
    assert small.repair.skipped == {}
    with silence(model, ~small.kept):
        assert torch.allclose(small.unrepaired(IMAGES), model(IMAGES))
    assert kl_divergence(small.model, model, [IMAGES]) < kl_divergence(small.unrepaired, model, [IMAGES])


def test_a_layer_with_a_hook_stays_as_it_is():
    model = standardized()
    model[0].register_forward_hook(lambda module, args, output: -output)
    opened = in_layers(model)
    assert opened[0](IMAGES[:1]).equal(model[0](IMAGES[:1]))
    assert [type(opened[place]) for place in (0, 2)] == [Standardized, nn.Conv2d]


def test_groups_of_earlier_weights_are_not_taken_for_those_of_the_network():
    torch.manual_seed(0)
    head = [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)]
    model = nn.Sequential(Standardized(3, 8, 3, bias=False), *head).double().eval()
    blank = torch.zeros_like(IMAGES[:1])  # on which the output does not depend on the first weights
    kept = cut(scores.l1(collect(model, [IMAGES], shards=0)), groups(model, blank), macs=0.6)
    with torch.no_grad():
        model[0].weight.normal_(generator=torch.Generator().manual_seed(5))
        small = shrink(model, kept)
        with silence(model, ~kept):
            received = model(IMAGES)
        expected = model[:4](IMAGES)[:, kept["0"]] @ model[4].weight[:, kept["0"]].T + model[4].bias
    assert torch.allclose(small(IMAGES), expected)
    assert torch.allclose(received, expected)


def test_opening_changes_nothing_of_the_network():
    model = standardized(Counting).train()
    parametrizations.spectral_norm(model[6])
    before = {name: part.clone() for name, part in model.state_dict().items()}
    opened = in_layers(model)
    assert not any(module.training for module in opened.modules())
    assert all(module.training for module in model.modules())
    assert all(part.equal(before[name]) for name, part in model.state_dict().items())
    assert [opened[place].bias is model[place].bias for place in (0, 6)] == [True, True]
    assert [type(opened[place]) for place in (0, 6)] == [nn.Conv2d, nn.Linear]
    assert in_layers(opened) is opened
    assert type(in_layers(model[0])) is nn.Conv2d


def test_parameters_that_weights_are_computed_from_are_counted():
    model = normalized()
    found = cost(model, IMAGES[:1])
    assert sum(found.parameters.values()) == sum(part.numel() for part in model.parameters())
    assert found.macs == cost(plain_twin(model), IMAGES[:1]).macs


def test_a_layer_that_is_used_twice_stays_one():
    layer = Standardized(3, 3, 3, padding=1)
    opened = in_layers(nn.Sequential(layer, nn.ReLU(), layer))
    assert opened[0] is opened[2]
