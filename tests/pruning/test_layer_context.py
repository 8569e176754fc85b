"""Places: which normalization and which sum belong to a layer; write: a fitted map is what layer and normalization then compute."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from channelscope.network.removal.groups import groups
from channelscope.pruning.normalization import batchnorm_scale_shift, call_counts, layer_contexts, write_linear_map
from networks import built

X = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(0))


def found(model, channels=4):
    made = groups(model.eval(), torch.zeros(1, channels, 5, 5))
    return {context.layer.name: context for context in layer_contexts(made.graph, made.layers)}


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.n, self.b = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.c, self.m = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        x = F.relu(self.n(self.a(x)))
        y = self.b(x)
        z = x + y
        return (z + self.m(self.c(F.relu(z)))).mean((2, 3))


def test_normalizations_and_sums_are_found():
    made = found(Residual())
    assert (made["a"].batchnorm, made["a"].sum_node) == ("n", None)
    assert made["b"].batchnorm is None
    assert (made["b"].sum_node, made["b"].other_term) == ("add", "relu")
    assert made["c"].batchnorm == "m"
    assert (made["c"].sum_node, made["c"].other_term) == ("add_1", "add")
    assert list(made) == ["a", "b", "c"]


def test_a_normalization_used_twice_or_without_statistics_belongs_to_nobody():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.n = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x):
            return self.n(self.b(self.n(self.a(x)))).mean((2, 3))

    made = found(Shared())
    assert (made["a"].batchnorm, made["b"].batchnorm) == (None, None)
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False), nn.Conv2d(4, 4, 1), nn.Flatten())
    assert found(model)["0"].batchnorm is None


def test_a_scaled_or_broadcast_sum_is_no_sum_to_make_up_for():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 5)

        def forward(self, x):
            x = torch.add(x, self.a(x), alpha=2)
            x = x + self.c(x)
            return torch.add(self.b(x), 1.0).mean((2, 3))

    assert {name: context.sum_node for name, context in found(Scaled()).items()} == {"a": None, "b": None, "c": None}


def test_calls_are_counted():
    model, shape = built("mobilenet_v2")
    graph = groups(model, torch.zeros(1, *shape)).graph
    assert call_counts(graph, "features.0.0") == 1
    assert call_counts(graph, "nothing") == 0


@torch.no_grad()
@pytest.mark.parametrize("affinity", [True, False])
def test_affine_is_what_the_normalization_does(affinity):
    norm = nn.BatchNorm2d(4, affine=affinity).eval()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    if affinity:
        norm.weight.normal_()
        norm.bias.normal_()
    factor, shift = batchnorm_scale_shift(norm)
    expected = X.double() * factor[None, :, None, None] + shift[None, :, None, None]
    torch.testing.assert_close(expected.float(), norm(X), rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize(("norm", "bias"), [("affine", True), ("affine", False), ("plain", True), ("plain", False), ("none", True)])
def test_written_layers_compute_weights_times_x_plus_constant(norm, bias):
    """A layer with neither normalization nor bias has no place for a constant."""
    layer = nn.Conv2d(4, 3, 1, bias=bias)
    normal = None if norm == "none" else nn.BatchNorm2d(3, affine=norm == "affine").eval()
    weights = torch.randn(3, 4, dtype=torch.float64)
    constant = torch.randn(3, dtype=torch.float64)
    product = torch.einsum("oi,nihw->nohw", weights, X.double())
    write_linear_map(layer, normal, weights, constant, product.mean((0, 2, 3)), product.var((0, 2, 3), correction=0))
    received = layer(X) if normal is None else normal(layer(X))
    torch.testing.assert_close(received.double(), product + constant[None, :, None, None], rtol=1e-4, atol=1e-5)
    if norm == "affine":
        seen = layer(X)
        torch.testing.assert_close(normal.running_mean, seen.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(normal.running_var, seen.var((0, 2, 3), correction=0), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_filters_before_a_normalization_keep_their_lengths():
    layer, norm = nn.Conv2d(4, 3, 1), nn.BatchNorm2d(3).eval()
    before = layer.weight.flatten(1).norm(dim=1)
    weights = torch.randn(3, 4, dtype=torch.float64) * torch.tensor([[0.01], [1.0], [0.0]])
    product = torch.einsum("oi,nihw->nohw", weights, X.double())
    write_linear_map(
        layer, norm, weights, torch.zeros(3, dtype=torch.float64), product.mean((0, 2, 3)), product.var((0, 2, 3), correction=0)
    )
    after = layer.weight.flatten(1).norm(dim=1)
    torch.testing.assert_close(after[:2], before[:2])
    assert after[2] == 0
    assert all(bool(value.isfinite().all()) for value in norm.state_dict().values())
    torch.testing.assert_close(norm(layer(X)).double(), product, rtol=1e-3, atol=1e-5)
