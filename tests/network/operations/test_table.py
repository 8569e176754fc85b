"""The table: spellings lead to entries, and users can add to them."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from channelscope.errors import InputError
from channelscope.network import operations
from channelscope.network.channel_tracing import channel_graph
from channelscope.network.cost import cost
from channelscope.network.operations import TABLE, Operation, layer_of, of_function, of_module, register, spell, unregister
from channelscope.network.patches import AxisReceptiveField, receptive_fields
from channelscope.network.removal.groups import groups
from channelscope.network.sites import sites
from channelscope.profiling.weight_norms import filters, weight_norms
from channelscope.pruning.cut import shrink
from channelscope.pruning.repair import repair
from removals import assert_exact, graph_of, lively


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (nn.ReLU(), "elementwise"), (nn.Conv1d(1, 1, 1), "convolution"), (nn.Conv3d(1, 1, 1), "convolution"),
        (nn.ConvTranspose2d(1, 1, 1), "transposed convolution"), (nn.Linear(1, 1), "linear"), (nn.BatchNorm2d(1), "batch norm"),
        (nn.SyncBatchNorm(1), "batch norm"), (nn.LayerNorm(1), "layer norm"), (nn.GroupNorm(1, 1), "group norm"), (nn.PReLU(), "prelu"),
        (nn.AdaptiveAvgPool2d(1), "adaptive pool"), (nn.MaxPool2d(1), "pool"),
        (nn.LPPool2d(2, 1), "power pool"), (nn.ZeroPad2d(1), "pad"), (nn.Flatten(), "move"), (nn.Softmax(1), "softmax"), (nn.GLU(), "glu"),
        (nn.Dropout(), "idle"), (nn.Upsample(2), "resize"),
    ],
)  # fmt: skip
def test_modules(module, name):
    assert of_module(module).name == name


@pytest.mark.parametrize(
    ("function", "name"),
    [("relu", "elementwise"), ("add", "add"), ("mul", "multiply"), ("sub", "meet"), ("cat", "join"),
     ("clone", "cast"), ("view", "move"), ("chunk", "split"), ("max_pool2d", "pool"), ("mean", "reduce"),
     ("matmul", "product"), ("scaled_dot_product_attention", "attention"), ("conv2d", "convolution"), ("interpolate", "resize")],
)  # fmt: skip
def test_functions(function, name):
    assert of_function(function).name == name


def test_what_has_no_entry():
    assert of_module(nn.LSTM(1, 1)) is None
    assert of_function("fft_rfft2") is None


def test_every_spelling_has_one_entry():
    spellings = [each for entry in TABLE.values() for each in (*entry.functions, *entry.modules)]
    assert len(spellings) == len(set(spellings))
    assert len(operations.FAMILIES) <= 14


class Mixture(nn.Module):
    """A weighted sum of each channel with its mirror image, in one function that no table knows."""

    def __init__(self, channels):
        super().__init__()
        self.share = nn.Parameter(torch.rand(channels))

    def forward(self, x):
        spectrum = torch.fft.rfft2(x)
        return torch.fft.irfft2(spectrum * self.share.view(-1, 1, 1), s=x.shape[-2:])


def net():
    torch.manual_seed(0)
    return lively(nn.Sequential(nn.Conv2d(3, 6, 1), Mixture(6), nn.Conv2d(6, 4, 1)))


def test_an_unknown_function_keeps_its_channels_whole_and_is_named():
    graph = graph_of(net(), 3, 6, 6)
    assert graph.groups == ()
    assert list(graph.opaque) == ["fft_rfft2() in 1", "fft_irfft2() in 1"]
    assert graph.whole["0"] == "6 of 6 channels: fft_rfft2() in 1 may look at all its channels at once"


def test_a_module_of_ones_own_in_a_dozen_lines():
    def labels(step):
        step.follow("share", 0, step.channels())
        return step.labels()

    register(Operation("mixture", labels, modules=(Mixture,)))
    try:
        graph = graph_of(net(), 3, 6, 6)
        assert len(graph.groups) == 6
        assert graph.opaque == {}
        small = assert_exact(graph, graph.gone([0, 4]))
        assert small[1].share.shape == (small[0].out_channels,)
    finally:
        unregister("mixture")
    assert of_module(Mixture(2)) is None


def test_a_new_spelling_of_a_known_kind():
    before = TABLE["elementwise"]
    try:
        spell("elementwise", functions=["fft_rfft2", "fft_irfft2"])
        assert of_function("fft_rfft2").name == "elementwise"
        assert of_function("relu").name == "elementwise"
    finally:
        register(before)
    assert of_function("fft_rfft2") is None


class Projection(nn.Module):
    """A linear layer in one function that no table knows as such, with its weight the other way round."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x):
        return torch.einsum("ni,oi->no", x, self.weight) + self.bias


def test_a_layer_of_ones_own_is_a_layer_everywhere():
    torch.manual_seed(0)
    before = TABLE["linear"]
    model = nn.Sequential(nn.Flatten(), Projection(12, 6), nn.ReLU(), Projection(6, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    images = torch.randn(40, 3, 2, 2)
    try:
        spell("linear", modules=[Projection])
        assert [(site.name, site.kind, site.channels, site.activation) for site in sites(model, images[:1])] == [
            ("1", "linear", 6, "_2"), ("3", "linear", 4, "_4")
        ]  # fmt: skip
        assert cost(model, images).macs == {"1": 72, "3": 24, "5": 8}
        assert torch.equal(filters(model[1]), model[1].weight)
        outgoing = weight_norms(sites(model, images[:1]))["1"]["outgoing"]
        assert torch.allclose(outgoing, model[3].weight.double().norm(dim=0))
        wiring = channel_graph(sites(model, images[:1]).graph, "_5")
        assert [(call.layer, call.sources.shape) for call in wiring.calls] == [("1", (6, 12)), ("3", (4, 6)), ("5", (2, 4))]
        found = groups(model, images)
        kept = found.to_subset([True, False] * 5)
        small = shrink(found, kept)
        assert repair(small, found, kept, [(images,)]).skipped == {}
        assert (small[1].out_features, small[3].in_features, tuple(small[3].weight.shape)) == (3, 3, (2, 3))
    finally:
        register(before)
    assert layer_of(model[1]) is None


class Gain(nn.Module):
    """A number for every channel, applied in a function that has no entry."""

    def __init__(self, channels):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels))

    def forward(self, x):
        return torch.einsum("nchw,c->nchw", x, self.gain)


def test_what_an_entry_says_of_channels_and_positions_is_asked():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), Gain(4), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.Flatten()).eval()
    images = torch.zeros(1, 3, 6, 6)
    assert sites(model, images)["0"].activation == "_0"
    register(Operation("gain", lambda step: step.labels(), modules=(Gain,), keeps="apart", pointwise=True, local=True))
    try:
        found = sites(model, images)
        assert found["0"].activation == "_2"
        assert receptive_fields(found.graph, "_2")["_2"] == (AxisReceptiveField(1, 0, 2), AxisReceptiveField(1, 0, 2))
    finally:
        unregister("gain")


PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "operations.md"


def test_the_page_runs_and_names_every_entry(capsys):
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict = {}
    linear = TABLE["linear"]
    try:
        exec(compile("\n".join(blocks), str(PAGE), "exec"), names)
    finally:
        unregister("spectrum")
        register(linear)
    shown = capsys.readouterr().out
    assert "torch.Size([5])" in shown
    assert "fft_rfft2() in 1" in shown
    assert "[('1', 'linear', 7)]" in shown
    assert (len(names["kept"].groups), len(names["found"].groups)) == (0, 8)
    rows = re.findall(r"^\| ([a-z, -]+?) \|", text, re.MULTILINE)
    assert {entry for row in rows[1:] for entry in row.split(", ")} == set(TABLE)
    fields = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`[a-z_`, ]+) \|", text, re.MULTILINE))))
    assert fields <= {field.name for field in dataclasses.fields(Operation)}
    assert len(fields) >= 15


@pytest.mark.parametrize("act", [unregister, spell])
def test_a_misspelled_entry_is_refused(act):
    with pytest.raises(InputError, match="no operation is called convolutio; near matches: convolution"):
        act("convolutio")
