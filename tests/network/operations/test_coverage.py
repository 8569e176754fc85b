"""Structures that networks are made of: which channels go together, and that removal is silencing."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from channelscope.data.torchvision_cpu import models
from channelscope.network.cost import cost, macs
from channelscope.network.removal.groups import groups
from channelscope.pruning.cut import shrink
from removals import assert_exact, drawn, graph_of, lively


def sets(graph):
    return {frozenset(group) for group in graph.groups}


class Net(nn.Module):
    """Modules given by name, and a forward pass."""

    def __init__(self, forward, **parts):
        super().__init__()
        self.run = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs, **named):
        return self.run(self, *inputs, **named)


def net(forward, *shape, heads="whole", **parts):
    return graph_of(lively(Net(forward, **parts)), *(shape or (3, 6, 6)), heads=heads)


FLATTENINGS = {
    "flatten(1)": lambda x: x.flatten(1),
    "torch.flatten": lambda x: torch.flatten(x, start_dim=1),
    "view(size, -1)": lambda x: x.view(x.size(0), -1),
    "view(shape[0], -1)": lambda x: x.view(x.shape[0], -1),
    "view(-1, numel)": lambda x: x.view(-1, x[0].numel()),
    "reshape a tuple": lambda x: torch.reshape(x, (x.shape[0], x.shape[1] * x.shape[2] * x.shape[3])),
    "view written out": lambda x: x.view(-1, 32),
    "reshape(len, -1)": lambda x: x.reshape(len(x), -1),
    "squeeze": lambda x: x.flatten(1).unsqueeze(-1).squeeze(),
    "squeeze of a mean": lambda x: F.adaptive_avg_pool2d(x, 2).view(-1, 8, 4).flatten(-2),
}


@pytest.mark.parametrize("name", FLATTENINGS)
def test_flattening_spellings(name):
    torch.manual_seed(0)
    flat = FLATTENINGS[name]
    graph = net(lambda m, x: m.fc(flat(m.a(x))), 3, 4, 4, a=nn.Conv2d(3, 8, 3, 2, 1), fc=nn.Linear(32, 5))
    assert sets(graph) == {frozenset({("a", channel)}) for channel in range(8)}
    assert_exact(graph, drawn(graph))


JOINS = {
    "x + y": lambda x, y: x + y,
    "torch.add(x, other=y)": lambda x, y: torch.add(x, other=y),
    "x.add(other=y)": lambda x, y: x.add(other=y),
    "torch.add(input=x, other=y)": lambda x, y: torch.add(input=x, other=y),
    "torch.mul(x, other=y)": lambda x, y: torch.mul(x, other=y),
    "torch.sub, rsub": lambda x, y: torch.sub(x, y) + torch.rsub(x, y, alpha=2),
    "stack and sum": lambda x, y: torch.stack([x, y]).sum(0),
    "stack and amin": lambda x, y: torch.stack([x, y]).amin(0),
    "sum of a list": lambda x, y: sum([x, y]),
    "maximum, fmax": lambda x, y: torch.maximum(x, y) + torch.fmax(x, y),
    "min, fmin": lambda x, y: torch.min(x, y) + torch.fmin(x, y),
    "einsum": lambda x, y: torch.einsum("bchw,bchw->bchw", x, y),
    "lerp": lambda x, y: torch.lerp(x, y, 0.5),
    "addcmul, addcdiv": lambda x, y: torch.addcmul(x, x, y) + torch.addcdiv(x, y, y.exp()),
    "where": lambda x, y: torch.where(x > 0, x, y),
    "scaled": lambda x, y: x * 2 + y / 3,
    "power": lambda x, y: x**2 + y.square(),
    "in place": lambda x, y: x.clone().add_(y).sub_(y, alpha=0.5),
    "out": lambda x, y: torch.add(x, y, out=torch.empty_like(x)),
}


@pytest.mark.parametrize("name", JOINS)
def test_every_spelling_of_a_meeting_ties_the_same_channels(name):
    torch.manual_seed(0)

    def forward(m, x):
        x = m.a(x).relu()
        return m.fc(JOINS[name](x, m.b(x)).mean((2, 3)))

    graph = net(forward, a=nn.Conv2d(3, 8, 3, padding=1), b=nn.Conv2d(8, 8, 3, padding=1), fc=nn.Linear(8, 5))
    assert sets(graph) == {frozenset({("a", channel), ("b", channel)}) for channel in range(8)}
    assert_exact(graph, drawn(graph))


def test_tensors_given_by_keyword():
    torch.manual_seed(0)
    graph = net(
        lambda m, x: m.b(F.conv2d(input=F.relu(input=m.a(input=x)), weight=m.w, bias=None, padding=1)),
        a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(6, 4, 1), w=nn.Parameter(torch.randn(6, 8, 3, 3)),
    )  # fmt: skip
    assert sets(graph) == {frozenset({("a", channel)}) for channel in range(8)} | {frozenset({("w", channel)}) for channel in range(6)}
    assert_exact(graph, drawn(graph))


def test_groups_of_a_group_norm_go_whole():
    torch.manual_seed(0)
    graph = net(lambda m, x: m.b(m.norm(m.a(x))), a=nn.Conv2d(3, 8, 1), norm=nn.GroupNorm(4, 8), b=nn.Conv2d(8, 4, 1))
    assert sets(graph) == {frozenset({("a", 2 * group), ("a", 2 * group + 1)}) for group in range(4)}
    small = assert_exact(graph, graph.gone([1, 3]))
    assert (small.norm.num_groups, small.norm.num_channels) == (2, 4)


def test_one_group_keeps_all_with_the_norm_as_the_reason():
    graph = net(lambda m, x: m.b(m.norm(m.a(x))), a=nn.Conv2d(3, 8, 1), norm=nn.GroupNorm(1, 8), b=nn.Conv2d(8, 4, 1))
    assert graph.groups == ()
    assert graph.whole["a"] == "8 of 8 channels: norm (GroupNorm) takes its statistics over all of them"


class ResponseNorm(nn.Module):
    """Global response normalization: each channel's norm over the mean norm of all."""

    def __init__(self, channels):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x):
        norm = x.norm(p=2, dim=(2, 3), keepdim=True)
        ratio = norm / (norm.mean(dim=1, keepdim=True) + 0.1)
        return x + torch.addcmul(self.bias.view(1, -1, 1, 1), self.weight.view(1, -1, 1, 1), x * ratio)


def test_global_response_norm_goes_on_dividing_by_all_channels():
    torch.manual_seed(0)
    graph = net(lambda m, x: m.b(m.norm(m.a(x))), a=nn.Conv2d(3, 8, 1), norm=ResponseNorm(8), b=nn.Conv2d(8, 4, 1))
    assert len(graph.groups) == 8
    small = assert_exact(graph, graph.gone([0, 3, 4]))
    assert type(small) is Net
    assert isinstance(small.norm, torch.fx.GraphModule)


def test_instance_norm():
    torch.manual_seed(0)
    graph = net(lambda m, x: m.b(m.norm(m.a(x))), a=nn.Conv2d(3, 8, 1), norm=nn.InstanceNorm2d(8, affine=True), b=nn.Conv2d(8, 4, 1))
    small = assert_exact(graph, drawn(graph))
    assert small.norm.num_features == small.a.out_channels < 8


class LayerScale(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((channels, 1, 1), 0.3))

    def forward(self, x):
        return x.mul_(self.gamma) if x.dim() == 4 else x * self.gamma


def test_layer_scale_goes_with_its_channels():
    torch.manual_seed(0)
    graph = net(lambda m, x: m.b(m.scale(m.a(x))), a=nn.Conv2d(3, 8, 1), scale=LayerScale(8), b=nn.Conv2d(8, 4, 1))
    small = assert_exact(graph, graph.gone([2]))
    assert small.scale.gamma.shape == (7, 1, 1)


class FrozenNorm(nn.Module):
    """BatchNorm whose statistics and affine parameters are buffers."""

    def __init__(self, channels):
        super().__init__()
        for name, value in {"weight": 1.5, "bias": 0.2, "running_mean": 0.3, "running_var": 2.0}.items():
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, x):
        weight, bias, mean, var = (buffer.reshape(1, -1, 1, 1) for buffer in (self.weight, self.bias, self.running_mean, self.running_var))
        scale = weight * (var + 0.1).rsqrt()
        return x * scale + (bias - mean * scale)


def test_frozen_batch_norm_is_cut_with_its_channels():
    torch.manual_seed(0)
    graph = net(lambda m, x: m.b(F.relu(m.norm(m.a(x)))), a=nn.Conv2d(3, 8, 1), norm=FrozenNorm(8), b=nn.Conv2d(8, 4, 1))
    assert len(graph.groups) == 8
    small = assert_exact(graph, graph.gone([0, 5]))
    assert small.norm.running_var.shape == small.norm.bias.shape == (6,)


class StandardizedConv(nn.Conv2d):
    """Convolution whose filters have mean zero and variance one."""

    def forward(self, x):
        rows = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(rows, None, None, training=True, momentum=0.0).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


def test_standardized_weights_become_plain():
    torch.manual_seed(0)
    graph = net(lambda m, x: m.c(m.b(F.relu(m.a(x)))), a=StandardizedConv(3, 8, 3), b=StandardizedConv(8, 6, 3), c=nn.Conv2d(6, 4, 1))
    assert sets(graph) == {frozenset({("a", i)}) for i in range(8)} | {frozenset({("b", i)}) for i in range(6)}
    small = assert_exact(graph, drawn(graph))
    assert [type(layer) for layer in (small, small.a, small.b)] == [Net, nn.Conv2d, nn.Conv2d]
    assert set(small.state_dict()) == set(graph.model.state_dict())


def test_parametrized_weights_become_plain():
    torch.manual_seed(0)
    graph = net(
        lambda m, x: m.c(m.b(F.relu(m.a(x)))), a=weight_norm(nn.Conv2d(3, 8, 3)), b=weight_norm(nn.Conv2d(8, 6, 3)), c=nn.Conv2d(6, 4, 1)
    )
    small = assert_exact(graph, drawn(graph))
    assert type(small.a) is type(small.b) is nn.Conv2d
    assert small.b.weight.shape[1] == small.a.weight.shape[0] < 8


class Branches(nn.Module):
    """RepVGG: a 3 × 3, a 1 × 1 and a BatchNorm branch."""

    def __init__(self, channels):
        super().__init__()
        self.wide, self.wide_norm = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.thin, self.thin_norm = nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels)
        self.straight = nn.BatchNorm2d(channels)

    def forward(self, x):
        return F.relu(self.wide_norm(self.wide(x)) + self.thin_norm(self.thin(x)) + self.straight(x))


def test_batch_norm_branches_tie_a_block_to_its_input():
    torch.manual_seed(0)
    graph = net(lambda m, x: m.b(m.block(m.a(x))), a=nn.Conv2d(3, 8, 1), block=Branches(8), b=nn.Conv2d(8, 4, 1))
    assert sets(graph) == {frozenset({("a", i), ("block.wide", i), ("block.thin", i)}) for i in range(8)}
    assert_exact(graph, drawn(graph))


def test_merged_kernels_of_branches_follow():
    """RepVGG with its branches merged in the forward pass: a sum of a kernel and a padded smaller one."""
    torch.manual_seed(0)
    graph = net(
        lambda m, x: m.b(F.conv2d(m.a(x), m.wide + F.pad(m.thin, (1, 1, 1, 1)), padding=1)),
        a=nn.Conv2d(3, 8, 1), wide=nn.Parameter(torch.randn(6, 8, 3, 3)), thin=nn.Parameter(torch.randn(6, 8, 1, 1)), b=nn.Conv2d(6, 4, 1),
    )  # fmt: skip
    small = assert_exact(graph, drawn(graph))
    assert small.wide.shape[:2] == small.thin.shape[:2] < (6, 8)


SPLITS = {
    "split list": lambda x: x.split([3, 5], 1),
    "split equal": lambda x: x.split(4, 1),
    "chunk": lambda x: x.chunk(2, 1),
    "chunk keyword": lambda x: torch.chunk(x, chunks=2, dim=1),
    "slices": lambda x: (x[:, :3], x[:, 3:]),
    "tensor_split": lambda x: x.tensor_split((3,), dim=1),
    "half of its own width": lambda x: (x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :]),
}


@pytest.mark.parametrize("name", SPLITS)
def test_parts(name):
    torch.manual_seed(0)
    parts = SPLITS[name]
    first = parts(torch.zeros(1, 8, 1, 1))[0].shape[1]

    def forward(m, x):
        one, other = parts(m.a(x))
        return m.c(torch.cat([m.b(one), other], 1))

    graph = net(forward, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(first, 4, 1), c=nn.Conv2d(4 + 8 - first, 4, 1))
    assert len(graph.groups) >= 8
    assert_exact(graph, drawn(graph))


def test_gated_linear_units_tie_value_and_gate():
    torch.manual_seed(0)
    graph = net(lambda m, x: m.b(F.glu(m.a(x), 1)), a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(4, 4, 1))
    assert sets(graph) == {frozenset({("a", i), ("a", 4 + i)}) for i in range(4)}
    assert_exact(graph, graph.gone([1, 2]))


def test_pixel_shuffle_takes_squares():
    torch.manual_seed(0)
    graph = net(lambda m, x: m.b(F.pixel_shuffle(m.a(x), 2)), a=nn.Conv2d(3, 12, 1), b=nn.Conv2d(3, 4, 1))
    assert sets(graph) == {frozenset(("a", 4 * i + j) for j in range(4)) for i in range(3)}
    assert_exact(graph, graph.gone([1]))


def test_channel_shuffle_by_hand():
    torch.manual_seed(0)

    def forward(m, x):
        x = m.a(x)
        n, c, h, w = x.size()
        return m.b(x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w))

    graph = net(forward, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 4, 1))
    assert sets(graph) == {frozenset({("a", i), ("a", 4 + i)}) for i in range(4)}
    assert_exact(graph, graph.gone([0, 2]))


class SelectiveKernel(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.paths = nn.ModuleList(nn.Conv2d(channels, channels, size, padding=size // 2) for size in (3, 5))
        self.squeeze, self.choose = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, 2 * channels, 1)

    def forward(self, x):
        x = torch.stack([path(x) for path in self.paths], dim=1)
        choice = self.choose(F.relu(self.squeeze(x.sum(1).mean((2, 3), keepdim=True))))
        n, c, h, w = choice.shape
        return (x * choice.view(n, 2, c // 2, h, w).softmax(dim=1)).sum(dim=1)


def test_selective_kernels_go_together():
    torch.manual_seed(0)
    graph = net(lambda m, x: m.b(m.sk(m.a(x))), a=nn.Conv2d(3, 8, 1), sk=SelectiveKernel(8), b=nn.Conv2d(8, 4, 1))
    tied = {frozenset({("sk.paths.0", i), ("sk.paths.1", i), ("sk.choose", i), ("sk.choose", 8 + i)}) for i in range(8)}
    assert tied <= sets(graph)
    assert_exact(graph, drawn(graph))


def test_a_prelu_used_twice_ties_what_it_is_used_on():
    torch.manual_seed(0)
    graph = net(
        lambda m, x: m.c(m.act(m.b(m.act(m.a(x))))), a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 8, 1), act=nn.PReLU(8), c=nn.Conv2d(8, 4, 1)
    )
    assert sets(graph) == {frozenset({("a", i), ("b", i)}) for i in range(8)}
    assert assert_exact(graph, graph.gone([0, 7])).act.num_parameters == 6


def test_tied_weights_stay_tied():
    torch.manual_seed(0)
    first, second = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
    second.weight = first.weight
    graph = net(lambda m, x: m.d(F.relu(m.c(F.relu(m.b(m.a(x)))))), a=nn.Conv2d(3, 8, 1), b=first, c=second, d=nn.Conv2d(8, 4, 1))
    small = assert_exact(graph, drawn(graph))
    assert small.b.weight is small.c.weight
    assert small.b.bias is not small.c.bias


def test_a_layer_called_twice_reads_and_writes_the_same_channels():
    torch.manual_seed(0)
    graph = net(
        lambda m, x: m.c(F.relu(m.b(F.relu(m.b(m.a(x)))))), a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 8, 3, padding=1), c=nn.Conv2d(8, 4, 1)
    )
    assert sets(graph) == {frozenset({("a", i), ("b", i)}) for i in range(8)}
    assert_exact(graph, drawn(graph))


def test_weights_tied_to_something_fixed_are_kept_whole():
    layer = nn.Conv2d(3, 3, 3, padding=1)
    graph = net(lambda m, x: m.c(m.b(m.b(x))), b=layer, c=nn.Conv2d(3, 4, 1))
    assert graph.groups == ()
    assert "used in several places" in graph.whole["b"]


class Block(nn.Module):
    """ConvNeXt's: depthwise, norm, two linear layers on the last axis, a scale, a residual sum."""

    def __init__(self, channels):
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(channels, channels, 7, padding=3, groups=channels), nn.LayerNorm(channels)
        self.up, self.down, self.gamma = (
            nn.Linear(channels, 4 * channels),
            nn.Linear(4 * channels, channels),
            nn.Parameter(torch.ones(channels)),
        )

    def forward(self, x):
        y = self.down(F.gelu(self.up(self.norm(self.depthwise(x).permute(0, 2, 3, 1)))))
        return x + (self.gamma * y).permute(0, 3, 1, 2)


def test_convnext_gives_its_hidden_channels():
    torch.manual_seed(0)
    graph = net(lambda m, x: m.head(m.block(m.stem(x)).mean((2, 3))), stem=nn.Conv2d(3, 4, 2, 2), block=Block(4), head=nn.Linear(4, 3))
    assert sets(graph) == {frozenset({("block.up", i)}) for i in range(16)}
    assert graph.whole["stem"] == "4 of 4 channels: block.norm (LayerNorm) takes its statistics over all of them"
    assert_exact(graph, drawn(graph))


def test_squeeze_and_excitation_and_a_gate_of_one_channel():
    torch.manual_seed(0)

    def forward(m, x):
        x = m.a(x)
        x = x * m.up(F.relu(m.down(x.mean((2, 3), keepdim=True)))).sigmoid()
        return m.b(x * m.gate(x).sigmoid())

    graph = net(
        forward, a=nn.Conv2d(3, 8, 1), down=nn.Conv2d(8, 4, 1), up=nn.Conv2d(4, 8, 1), gate=nn.Conv2d(8, 1, 1), b=nn.Conv2d(8, 4, 1)
    )
    assert sets(graph) == {frozenset({("a", i), ("up", i)}) for i in range(8)} | {frozenset({("down", i)}) for i in range(4)}
    assert "spreads it over several channels" in graph.whole["gate"]
    assert_exact(graph, drawn(graph))


def test_an_input_added_to_channels_keeps_them():
    graph = net(lambda m, x: m.b(m.a(x) + x), a=nn.Conv2d(3, 3, 1), b=nn.Conv2d(3, 4, 1))
    assert graph.groups == ()
    assert graph.whole["a"] == "3 of 3 channels: add() combines it with something that cannot be removed"


def halves(split, gate, norm=nn.LayerNorm, **parts):
    """Spatial gating: half of the channels is normalized and mixed over positions, and scales the other half."""
    torch.manual_seed(0)

    def forward(m, x):
        u, v = split(m.up(x.flatten(2).transpose(1, 2)))
        return m.down(gate(m, u, m.norm(v)))

    parts = {"mix": nn.Linear(9, 9), **parts}
    return net(forward, 3, 3, 3, up=nn.Linear(3, 12), norm=norm(6), down=nn.Linear(6, 4), **parts)


def mixed(m, v):
    return m.mix(v.transpose(-1, -2)).transpose(-1, -2)


GATES = {
    "gMLP": (lambda x: x.chunk(2, dim=-1), lambda m, u, v: u * mixed(m, v)),
    "chunk of torch": (lambda x: torch.chunk(x, 2, -1), lambda m, u, v: mixed(m, v) * u),
    "sizes": (lambda x: x.split([6, 6], -1), lambda m, u, v: u * mixed(m, v)),
    "shifted and scaled": (lambda x: x.chunk(2, -1), lambda m, u, v: u * (1 + 0.5 * m.act(mixed(m, v)))),
    "gate and its square": (lambda x: x.chunk(2, -1), lambda m, u, v: u * v + u * mixed(m, v * v)),
}


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
@pytest.mark.parametrize("name", GATES)
def test_a_normalized_gate_is_whole_and_what_it_scales_is_not(name, norm):
    graph = halves(*GATES[name], norm, act=nn.GELU())
    assert sets(graph) == {frozenset({("up", channel)}) for channel in range(6)}
    assert graph.whole["up"] == f"6 of 12 channels: norm ({norm.__name__}) takes its statistics over all of them"
    gone = graph.gone([1, 2, 4])
    small = assert_exact(graph, gone)
    assert (small.up.out_features, small.down.in_features) == (9, 3)
    assert "".join(str(node.target) for node in small.graph.nodes).count("index_select") == 1
    found = groups(graph.model, torch.zeros(1, 3, 3, 3, dtype=torch.float64))
    kept = found.to_subset(np.arange(6) % 2 == 0)
    assert cost(shrink(found, kept), found.example).total_macs == macs(found, kept) < cost(graph.model, found.example).total_macs


WHOLE_GATES = {
    "sum": lambda m, u, v: u + mixed(m, v),
    "scaled and read": lambda m, u, v: u * v + m.other(v),
    "scales, and a layer reads it": lambda m, u, v: u * v * m.other(v),
    "softmax": lambda m, u, v: u * v.softmax(-1),
    "an output": lambda m, u, v: torch.cat([u * v, v], 1),
    "scales another gate": lambda m, u, v: u + v * m.norm(v),
}


@pytest.mark.parametrize("name", WHOLE_GATES)
def test_a_normalized_value_that_does_more_than_scale_stays_with_its_other_half(name):
    graph = halves(lambda x: x.chunk(2, -1), WHOLE_GATES[name], other=nn.Linear(6, 6))
    assert graph.groups == ()


def test_a_gate_that_is_the_mean_of_a_normalized_half_needs_all_of_it():
    graph = halves(lambda x: x.chunk(2, -1), lambda m, u, v: u * (v * v).mean(-1, keepdim=True))
    assert sets(graph) == {frozenset({("up", channel)}) for channel in range(6)}
    assert assert_exact(graph, graph.gone([0, 3])).up.out_features == 10


def test_a_gate_that_a_layer_makes_of_a_normalized_half_goes_with_the_other_half():
    graph = halves(lambda x: x.chunk(2, -1), lambda m, u, v: u * m.other(v), other=nn.Linear(6, 6))
    assert sets(graph) == {frozenset({("up", channel), ("other", channel)}) for channel in range(6)}
    assert assert_exact(graph, graph.gone([0, 3])).other.weight.shape == (4, 6)


@pytest.mark.parametrize("name", ["convnext_tiny", "swin_t", "swin_v2_t", "shufflenet_v2_x0_5", "mnasnet0_5"])
def test_small_torchvision_networks(name):
    torch.manual_seed(0)
    made = {
        "convnext_tiny": lambda: models.ConvNeXt(
            [models.convnext.CNBlockConfig(8, 16, 1), models.convnext.CNBlockConfig(16, None, 1)], num_classes=5
        ),
        "swin_t": lambda: models.SwinTransformer([4, 4], 16, [1, 2], [2, 4], [2, 2], num_classes=5),
        "swin_v2_t": lambda: models.SwinTransformer(
            [4, 4],
            16,
            [1, 2],
            [2, 4],
            [2, 2],
            num_classes=5,
            block=models.swin_transformer.SwinTransformerBlockV2,
            downsample_layer=models.swin_transformer.PatchMergingV2,
        ),
        "shufflenet_v2_x0_5": lambda: models.ShuffleNetV2([1, 2, 1], [8, 16, 32, 64, 32], num_classes=5),
        "mnasnet0_5": lambda: models.mnasnet0_5(num_classes=5),
    }[name]()
    graph = graph_of(lively(made), 3, 32, 32)
    assert graph.opaque == {}
    small = assert_exact(graph, drawn(graph))
    assert type(small) is type(made)
    if name.startswith("swin"):  # the width of its heads is written as a share of the whole, so its attention is rewritten
        heads = {
            path
            for path, part in small.named_modules()
            if path.endswith("qkv") and part.weight.shape != made.get_submodule(path).weight.shape
        }
        assert heads
        assert all(isinstance(small.get_submodule(path.removesuffix(".qkv")), torch.fx.GraphModule) for path in heads)
