"""Attention: hidden channels of its MLP, whole heads, and widths of queries, keys and values."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from channelscope.circuits.feature import locate_feature
from channelscope.data.torchvision_cpu import load_torchvision
from channelscope.network.edits import silence
from channelscope.network.module_state import weights_hash
from channelscope.network.operations.attention import in_layers
from channelscope.network.removal.groups import groups
from channelscope.network.sites import sites
from channelscope.pruning.cut import shrink
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
