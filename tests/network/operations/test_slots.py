"""What else the table says of a kind: layouts for a re-fit, geometry of kernels, windows; and how modules are adjusted."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from channelscope.network.labeling.narrowing import narrow
from channelscope.network.operations import TABLE, Geometry, of_module
from removals import graph_of

LAYERS = {
    "linear": (lambda: nn.Linear(6, 4), (3, 7, 6)),
    "plain": (lambda: nn.Conv2d(6, 4, 3), (3, 6, 8, 9)),
    "strided": (lambda: nn.Conv2d(6, 4, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)), (3, 6, 8, 9)),
    "grouped": (lambda: nn.Conv2d(6, 4, 3, padding="same", groups=2), (3, 6, 8, 9)),
    "valid": (lambda: nn.Conv2d(6, 4, 3, padding="valid"), (3, 6, 8, 9)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_pooled_patches_times_weights_are_the_mean_output(name):
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer, inputs = make().double(), torch.randn(*shape, dtype=torch.float64)
    layout = of_module(layer).layout
    outputs = layer(inputs).detach()
    assert layout.unfit(layer) == ""
    patches = layout.pooled(layer, inputs, tuple(outputs.shape[2:]))
    rows = layer.weight.detach().unflatten(0, (patches.shape[1], -1)).flatten(2)
    mean = torch.einsum("ngt,got->ngo", patches, rows).flatten(1) + layer.bias.detach()
    assert torch.allclose(mean, outputs.mean(1) if name == "linear" else outputs.mean((2, 3)))


@pytest.mark.parametrize("name", LAYERS)
def test_products_with_patches_are_the_slope_of_the_weights(name):
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer, inputs = make().double(), torch.randn(*shape, dtype=torch.float64)
    outputs = layer(inputs)
    factor = torch.randn_like(outputs)
    (slope,) = torch.autograd.grad((outputs * factor).sum(), layer.weight)
    assert torch.allclose(of_module(layer).layout.products(layer, inputs, factor), slope.flatten(1))


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Conv1d(2, 2, 3), "Conv1d is not a linear layer or a two-dimensional convolution"),
        (nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), "it pads with reflect"),
        (nn.Conv2d(2, 2, 2, padding="same"), "its padding is not the same on both sides"),
        (nn.Conv2d(2, 2, 3, padding_mode="reflect"), ""),
    ],
)
def test_inputs_that_cannot_be_laid_out(layer, reason):
    assert of_module(layer).layout.unfit(layer) == reason


def test_geometry():
    assert of_module(nn.Linear(2, 3)).geometry(nn.Linear(2, 3)) == Geometry()
    layer = nn.Conv2d(4, 4, (3, 5), stride=2, padding=(1, 2), dilation=(1, 2), groups=2, padding_mode="circular")
    assert of_module(layer).geometry(layer) == Geometry((3, 5), (2, 2), (1, 2), ((1, 1), (2, 2)), "circular", 2)
    even = nn.Conv2d(1, 1, 2, padding="same")
    assert of_module(even).geometry(even).pads == ((0, 1), (0, 1))


class Windows(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, 4, (3, 1), stride=2, padding=(1, 0), dilation=2), nn.MaxPool2d(2, 1, 1)

    def forward(self, x):
        return F.avg_pool2d(F.max_pool2d(self.pool(self.conv(x)).relu(), (2, 1), stride=1, dilation=(2, 1)), 2)


def test_windows_of_modules_and_functions_are_read_alike():
    graph = graph_of(Windows(), 3, 15, 15)
    found = {node.name: graph.entry(node).window(graph.step(node)) for node in graph.steps.nodes if _windowed(graph, node)}
    assert found == {
        "conv": ((3, 2, 1, 2), (1, 2, 0, 2)),
        "pool": ((2, 1, 1, 1), (2, 1, 1, 1)),
        "max_pool2d": ((2, 1, 0, 2), (1, 1, 0, 1)),
        "avg_pool2d": ((2, 2, 0, 1), (2, 2, 0, 1)),
    }


def _windowed(graph, node):
    return node.op in ("call_module", "call_function", "call_method") and graph.entry(node).window is not None


def test_steps_that_leave_positions_where_they_are():
    local = {name for name, entry in TABLE.items() if entry.local}
    assert {"elementwise", "meet", "batch norm", "prelu", "idle"} <= local
    assert not {"group norm", "layer norm", "softmax", "move", "pool", "convolution"} & local
    assert {name for name, entry in TABLE.items() if entry.pointwise} <= local


@pytest.mark.parametrize("options", [{}, {"affine": True}, {"track_running_stats": True}])
def test_a_norm_without_parameters_knows_its_width_afterwards(options):
    torch.manual_seed(0)
    graph = graph_of(nn.Sequential(nn.Conv2d(3, 6, 1), nn.InstanceNorm2d(6, **options), nn.Conv2d(6, 2, 1)), 3, 5, 5)
    small = narrow(graph, graph.gone([1, 4]))
    assert small[1].num_features == 4
