"""What else the table says of a kind: layouts for a re-fit, geometry of kernels, windows; and how modules are adjusted."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from channelscope.network.graph import trace
from channelscope.network.operations import TABLE, WeightedLayer, call_of, inherits_forward, keep_channels, layer_of, of_module
from channelscope.network.removal.narrowing import narrow
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


def test_how_weights_join_channels():
    assert layer_of(nn.Linear(2, 3)) == WeightedLayer(2, 3, tokens=True)
    layer = nn.Conv2d(4, 6, (3, 5), stride=2, padding=(1, 2), dilation=(1, 2), groups=2, padding_mode="circular")
    assert layer_of(layer) == WeightedLayer(4, 6, 2, 0, False, (3, 5), (2, 2), (1, 2), ((1, 1), (2, 2)), "circular")
    assert layer_of(nn.Conv2d(1, 1, 2, padding="same")).pads == ((0, 1), (0, 1))
    assert layer_of(nn.ConvTranspose1d(2, 3, 4)) == WeightedLayer(2, 3, 1, 1, False, (4,), (1,), (1,), ((0, 0),))
    assert layer_of(nn.BatchNorm2d(2)) is None
    assert layer_of(nn.LSTM(2, 2)) is None


@pytest.mark.parametrize(("groups", "inputs", "depthwise"), [(1, 4, False), (2, 4, False), (4, 4, True), (1, 1, False)])
def test_depthwise(groups, inputs, depthwise):
    assert layer_of(nn.Conv2d(inputs, 4, 1, groups=groups)).depthwise is depthwise


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_a_weight_is_split_by_groups_outputs_and_inputs(kind):
    module = kind(4, 6, (1, 2), groups=2, bias=False)
    blocks = layer_of(module).split(module.weight)
    assert blocks.shape == (2, 3, 2, 2)
    x = torch.zeros(1, 4, 1, 5)
    x[0, 3, 0, 2] = 1  # the second channel of the second group
    seen = module(x)[0, :, 0].abs().sum(1)
    assert torch.allclose(seen, torch.cat([torch.zeros(3), blocks[1, :, 1].abs().sum(1)]))


def test_channel_axes():
    assert layer_of(nn.Linear(2, 3)).channel_axis(2) == 1
    assert layer_of(nn.Linear(2, 3)).channel_axis(3) == 2
    assert layer_of(nn.Conv2d(2, 3, 1)).channel_axis(4) == 1


@pytest.mark.parametrize(
    ("make", "sizes"),
    [
        (lambda: nn.Conv2d(3, 4, 3), (2, 3)), (lambda: nn.ConvTranspose2d(3, 4, 3), (2, 3)), (lambda: nn.Linear(3, 4), (2, 3)),
    ],
)  # fmt: skip
def test_layers_are_cut_to_channels(make, sizes):
    module = make()
    whole = module.weight.detach().clone()
    ins, outs = torch.tensor([True, False, True]), torch.tensor([False, True, True, True])
    keep_channels(module, ins, outs)
    expected = whole[ins][:, outs] if isinstance(module, nn.ConvTranspose2d) else whole[outs][:, ins]
    assert torch.equal(module.weight, expected)
    assert (layer_of(module).in_channels, layer_of(module).out_channels, len(module.bias)) == (*sizes, 3)
    assert isinstance(module.weight, nn.Parameter)


def test_depthwise_layers_and_norms_are_cut_to_channels():
    marks = torch.tensor([True, False, True, True])
    depthwise, norm, slopes = nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4), nn.PReLU(4)
    norm.running_mean.copy_(torch.arange(4.0))
    for module in (depthwise, norm, slopes):
        keep_channels(module, marks, marks)
    assert (depthwise.groups, depthwise.in_channels, tuple(depthwise.weight.shape)) == (3, 3, (3, 1, 3, 3))
    assert (norm.num_features, norm.running_mean.tolist(), int(norm.num_batches_tracked)) == (3, [0, 2, 3], 0)
    assert slopes.num_parameters == len(slopes.weight) == 3


class OwnForward(nn.BatchNorm2d):
    def forward(self, input):
        return super().forward(input).relu()


def test_a_forward_pass_of_its_own_is_not_the_entrys():
    assert inherits_forward(nn.BatchNorm2d(1))
    assert inherits_forward(nn.SyncBatchNorm(1))
    assert not inherits_forward(OwnForward(1))
    assert not inherits_forward(nn.LSTM(1, 1))


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, OwnForward])
@pytest.mark.parametrize("affine", [True, False])
def test_factor_and_shift_are_what_a_norm_does(kind, affine):
    torch.manual_seed(0)
    norm = kind(3, affine=affine).double().eval()
    norm.running_mean.uniform_(), norm.running_var.uniform_(0.5, 2)
    if affine:
        nn.init.uniform_(norm.weight), nn.init.uniform_(norm.bias)
    x = torch.rand(2, 3, 1, 1, dtype=torch.float64)
    factor, shift = of_module(norm).scale_shift(norm)
    linear = factor.view(-1, 1, 1) * x + shift.view(-1, 1, 1)
    assert torch.allclose(norm(x), linear.relu() if kind is OwnForward else linear, atol=1e-12)


def test_a_norm_without_statistics_has_no_factor():
    norm = nn.BatchNorm2d(3, track_running_stats=False)
    assert of_module(norm).scale_shift(norm) is None
    assert of_module(nn.InstanceNorm2d(3)).scale_shift is None


def test_names_of_nodes_that_are_no_calls_are_no_spellings():
    graph = trace(nn.Sequential(nn.ReLU()), torch.zeros(1, 2))
    assert call_of(graph.nodes["output"], graph.modules).entry is TABLE["opaque"]


class Windows(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, 4, (3, 1), stride=2, padding=(1, 0), dilation=2), nn.MaxPool2d(2, 1, 1)

    def forward(self, x):
        x = F.avg_pool2d(F.max_pool2d(self.pool(self.conv(x)).relu(), (2, 1), stride=1, dilation=(2, 1)), 2, 1, 0, False)
        return F.lp_pool2d(x, 2, 1)


def test_windows_of_modules_and_functions_are_read_alike():
    graph = graph_of(Windows(), 3, 15, 15)
    found = {node.name: graph.entry(node).window(graph.step(node)) for node in graph.steps.nodes if _windowed(graph, node)}
    assert found == {
        "conv": ((3, 2, 1, 2), (1, 2, 0, 2)),
        "pool": ((2, 1, 1, 1), (2, 1, 1, 1)),
        "max_pool2d": ((2, 1, 0, 2), (1, 1, 0, 1)),
        "avg_pool2d": ((2, 1, 0, 1), (2, 1, 0, 1)),
        "lp_pool2d": ((1, 1, 0, 1), (1, 1, 0, 1)),
    }


def _windowed(graph, node):
    return node.op in ("call_module", "call_function", "call_method") and graph.entry(node).window is not None


def test_steps_that_leave_positions_where_they_are():
    local = {name for name, entry in TABLE.items() if entry.local}
    assert {"elementwise", "meet", "add", "batch norm", "prelu", "idle", "cast", "join"} <= local
    assert not {"group norm", "layer norm", "softmax", "move", "pool", "convolution"} & local
    assert {name for name, entry in TABLE.items() if entry.pointwise} <= local


@pytest.mark.parametrize("options", [{}, {"affine": True}, {"track_running_stats": True}])
def test_a_norm_without_parameters_knows_its_width_afterwards(options):
    torch.manual_seed(0)
    graph = graph_of(nn.Sequential(nn.Conv2d(3, 6, 1), nn.InstanceNorm2d(6, **options), nn.Conv2d(6, 2, 1)), 3, 5, 5)
    small = narrow(graph, graph.gone([1, 4]))
    assert small[1].num_features == 4
