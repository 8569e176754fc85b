"""Every kind of step on a tiny network: what removal leaves computes what silencing leaves, in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from removals import assert_exact, drawn, graph_of, lively


class Between(nn.Module):
    """A convolution, something, and a convolution behind it."""

    def __init__(self, middle, channels=8, after=8, dims=2, last=None):
        super().__init__()
        conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims]
        self.first = conv(3, channels, 3, padding=1)
        self.middle = middle
        self.last = last or conv(after, 5, 1)

    def forward(self, x):
        return self.last(self.middle(self.first(x)))


class Function(nn.Module):
    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.function(self, x)


def function(body, **parts):
    return Function(body, **parts)


def parameter(*shape):
    return nn.Parameter(torch.randn(*shape))


KINDS = {
    "activations": lambda: Between(nn.Sequential(nn.GELU(), nn.Hardswish(), nn.LeakyReLU(), nn.Softplus(), nn.Dropout(), nn.Identity())),
    "rarer activations": lambda: Between(
        nn.Sequential(nn.Softsign(), nn.LogSigmoid(), nn.Hardshrink(0.1), nn.Threshold(-1, -2), nn.InstanceNorm2d(8), nn.ChannelShuffle(2))
    ),
    "functions": lambda: Between(function(lambda m, x: F.silu(x).clamp(-1, 1).tanh().square().neg() * 3 + 1)),
    "meet": lambda: Between(
        function(lambda m, x: x * m.gate(x).sigmoid() + m.other(x) - x / 2, gate=nn.Conv2d(8, 8, 1), other=nn.Conv2d(8, 8, 1))
    ),
    "where": lambda: Between(
        function(lambda m, x: torch.maximum(x, m.other(x)) + torch.lerp(x, m.other(x), 0.3), other=nn.Conv2d(8, 8, 1))
    ),
    "comparisons": lambda: Between(
        function(lambda m, x: torch.where(x >= 0, x, x / 8) + (x > 0.1).to(x.dtype) + x.masked_fill(~(x < 1), 0.5) + x.sign())
    ),
    "reshape": lambda: Between(
        function(
            lambda m, x: x.flatten(1),
        ),
        last=nn.Linear(8 * 36, 5),
    ),
    "permute": lambda: Between(function(lambda m, x: x.permute(0, 2, 3, 1)), last=nn.Linear(8, 5)),
    "cat": lambda: Between(function(lambda m, x: torch.cat([x, m.other(x), x], 1), other=nn.Conv2d(8, 4, 1)), after=20),
    "concatenate": lambda: Between(
        function(lambda m, x: torch.concatenate([x, torch.concat([m.other(x), x], 1)], 1), other=nn.Conv2d(8, 4, 1)), after=20
    ),
    "roll": lambda: Between(function(lambda m, x: torch.flip(torch.roll(x, 1, 2), (3,)).repeat(1, 1, 2, 1))),
    "narrow": lambda: Between(function(lambda m, x: x.narrow(1, 2, 4) + x[:, 4:]), after=4),
    "unbind": lambda: Between(function(lambda m, x: torch.stack(x.unbind(2), 2)[..., 1:, :])),
    "put": lambda: Between(function(lambda m, x: _written(x))),
    "pools": lambda: Between(nn.Sequential(nn.MaxPool2d(2), nn.AvgPool2d(2, 1), nn.AdaptiveMaxPool2d(2), nn.Upsample(scale_factor=2))),
    "pool function": lambda: Between(function(lambda m, x: F.interpolate(F.max_pool2d(x, 2), size=5, mode="bilinear") + 1)),
    "reduce": lambda: Between(function(lambda m, x: x.mean((2, 3)) + x.amax((2, 3)) + x.sum(-1).std(-1)), last=nn.Linear(8, 5)),
    "sum over channels": lambda: Between(function(lambda m, x: x * x.sum(1, keepdim=True) + x / x.norm(dim=1, keepdim=True))),
    "mean over channels": lambda: Between(function(lambda m, x: x * x.square().mean(1, keepdim=True))),
    "normalize": lambda: Between(function(lambda m, x: F.normalize(x, dim=1))),
    "cumulative": lambda: Between(function(lambda m, x: x.cumsum(2))),
    "softmax": lambda: Between(function(lambda m, x: x.flatten(2).softmax(-1).view_as(x))),
    "pad": lambda: Between(function(lambda m, x: F.pad(x, (1, 2, 0, 1)) + F.pad(x, (1, 2, 0, 1), mode="replicate"))),
    "pad module": lambda: Between(nn.Sequential(nn.ZeroPad2d(1), nn.ReflectionPad2d(1), nn.ConstantPad2d(1, 0.5))),
    "pad by copies": lambda: Between(nn.Sequential(nn.ReplicationPad2d(1), nn.CircularPad2d(1), nn.ReflectionPad2d(1))),
    "pad channels": lambda: Between(function(lambda m, x: F.pad(x, (0, 0, 0, 0, 2, 2)) + m.wide(x), wide=nn.Conv2d(8, 12, 1)), after=12),
    "convolution": lambda: Between(nn.Conv2d(8, 6, 3, stride=2, dilation=2, padding="valid", bias=False), after=6),
    "depthwise": lambda: Between(nn.Sequential(nn.Conv2d(8, 16, 3, groups=8), nn.Conv2d(16, 16, 1, groups=4)), after=16),
    "convolution function": lambda: Between(
        function(lambda m, x: F.conv2d(x, m.w, m.b, groups=2), w=parameter(6, 4, 3, 3), b=parameter(6)), after=6
    ),
    "transposed": lambda: Between(nn.Sequential(nn.ConvTranspose2d(8, 6, 2, 2), nn.ConvTranspose2d(6, 6, 2, groups=3)), after=6),
    "linear function": lambda: Between(
        function(lambda m, x: F.linear(x.mean((2, 3)), m.w, m.b), w=parameter(7, 8), b=parameter(7)), last=nn.Linear(7, 5)
    ),
    "linear by a product": lambda: Between(
        function(lambda m, x: x.mean((2, 3)) @ m.w + m.b, w=parameter(8, 7), b=parameter(7)), last=nn.Linear(7, 5)
    ),
    "tokens": lambda: Between(function(lambda m, x: m.mix(x.flatten(2)), mix=nn.Linear(36, 4)), last=nn.Conv1d(8, 5, 1)),
    "batch norm": lambda: Between(nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.BatchNorm2d(8, affine=False))),
    "batch norm 1": lambda: Between(function(lambda m, x: m.norm(x.mean((2, 3))), norm=nn.BatchNorm1d(8)), last=nn.Linear(8, 5)),
    "layer norm": lambda: Between(function(lambda m, x: m.norm(x), norm=nn.LayerNorm(6))),
    "layer norm over channels": lambda: Between(
        function(
            lambda m, x: m.up(F.gelu(m.down(m.norm(x.movedim(1, -1))))), norm=nn.LayerNorm(8), down=nn.Linear(8, 12), up=nn.Linear(12, 4)
        ),
        last=nn.Linear(4, 5),
    ),
    "group norm": lambda: Between(nn.Sequential(nn.GroupNorm(4, 8), nn.ReLU())),
    "instance norm": lambda: Between(nn.Sequential(nn.InstanceNorm2d(8, affine=True), nn.InstanceNorm2d(8, track_running_stats=True))),
    "prelu": lambda: Between(nn.Sequential(nn.PReLU(8), nn.PReLU())),
    "product": lambda: Between(function(lambda m, x: _correlation(m, x), key=nn.Conv2d(8, 6, 1))),
    "einsum": lambda: Between(
        function(lambda m, x: torch.einsum("bchw,bdhw->bcd", m.a(x), m.b(x)).sum(2), a=nn.Conv2d(8, 6, 1), b=nn.Conv2d(8, 6, 1)),
        last=nn.Linear(6, 5),
    ),
    "glu": lambda: Between(nn.GLU(dim=1), after=4),
    "channel shuffle": lambda: Between(nn.ChannelShuffle(2)),
    "pixel shuffle": lambda: Between(nn.PixelShuffle(2), after=2),
    "pixel unshuffle": lambda: Between(nn.PixelUnshuffle(2), after=32),
    "unfold": lambda: Between(nn.Unfold(2), last=nn.Conv1d(32, 5, 1)),
    "constant": lambda: Between(function(lambda m, x: x + torch.zeros_like(x) + torch.arange(6.0) * 0.1)),
    "one dimension": lambda: Between(
        nn.Sequential(nn.Conv1d(8, 6, 3), nn.BatchNorm1d(6), nn.MaxPool1d(2), nn.ConvTranspose1d(6, 4, 3)), after=4, dims=1
    ),
    "three dimensions": lambda: Between(
        nn.Sequential(nn.Conv3d(8, 6, 2), nn.BatchNorm3d(6), nn.AvgPool3d(2), nn.Conv3d(6, 4, 1)), after=4, dims=3
    ),
}
SHAPES = {"one dimension": (3, 12), "three dimensions": (3, 5, 5, 5)}


def _written(x):
    y = x * 2
    y[:, :, 0] = x[:, :, 1]
    return y


def _correlation(m, x):
    keys = m.key(x).flatten(2)
    weights = (keys.transpose(1, 2) @ keys).softmax(-1)
    return (weights @ x.flatten(2).transpose(1, 2)).transpose(1, 2).view_as(x)


def made(name):
    torch.manual_seed(0)
    return graph_of(lively(KINDS[name]()), *SHAPES.get(name, (3, 6, 6)))


@pytest.mark.parametrize("name", KINDS)
def test_removal_is_silencing(name):
    graph = made(name)
    assert graph.opaque == {}
    assert_exact(graph, drawn(graph))


@pytest.mark.parametrize("name", ["meet", "cat", "narrow", "depthwise", "group norm", "pixel shuffle", "convolution function", "product"])
@given(seed=st.integers(0, 2**16), fraction=st.floats(0.2, 0.9))
@settings(max_examples=8, deadline=None)
def test_whatever_is_removed(name, seed, fraction):
    graph = made(name)
    gone = drawn(graph, fraction, seed)
    if bool(gone.any()):
        assert_exact(graph, gone, seen=False)
