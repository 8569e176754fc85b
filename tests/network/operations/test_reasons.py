"""What is kept whole, and the reason, which names the step and where it is used."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from removals import graph_of


class Inner(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        return self.body(x)


class Net(nn.Module):
    """A convolution `a`, something in `inner`, and a linear or convolutional layer `b`."""

    def __init__(self, body, last=None):
        super().__init__()
        self.a, self.inner, self.b = nn.Conv2d(3, 8, 1), Inner(body), last or nn.Conv2d(8, 4, 1)

    def forward(self, x):
        return self.b(self.inner(self.a(x)))


CONSTANT = torch.linspace(0, 1, 8, dtype=torch.float64).view(1, 8, 1, 1)
TABLE = torch.tensor([7, 6, 5, 4, 3, 2, 1, 0])

REASONS = {
    "layer norm": (
        lambda x: F.layer_norm(x.movedim(1, -1), (8,)).movedim(-1, 1),
        "layer_norm() in inner (layer_norm) takes its statistics over all of them",
    ),
    "layer norm over everything": (
        lambda x: F.layer_norm(x, x.shape[1:]),
        "layer_norm() in inner (layer_norm) takes its statistics over all of them",
    ),
    "one group": (lambda x: F.group_norm(x, 1), "group_norm() in inner (group_norm) takes its statistics over all of them"),
    "rms norm": (
        lambda x: F.rms_norm(x.movedim(1, -1), (8,)).movedim(-1, 1),
        "rms_norm() in inner (rms_norm) takes its statistics over all of them",
    ),
    "softmax": (lambda x: x.softmax(1), "softmax() in inner makes them compete"),
    "cumulative": (lambda x: x.cumsum(1), "cumsum() in inner adds them up one after the other"),
    "largest": (lambda x: x - x.amax(1, keepdim=True), "amax() in inner reduces over its channels"),
    "deviation": (lambda x: x / x.std(1, keepdim=True), "std() in inner reduces over its channels"),
    "constant": (lambda x: x + CONSTANT, "add() in inner combines it with something that cannot be removed"),
    "order": (lambda x: x[:, TABLE], "getitem() in inner may look at all its channels at once"),
    "sorted": (lambda x: x.sort(1).values, "sort() in inner may look at all its channels at once"),
    "search": (lambda x: x * x.flatten(2).argmax(1).float().mean(), "argmax() in inner looks at several of its values at once"),
    "vector": (
        lambda x: (torch.ones(8, dtype=x.dtype) @ x.flatten(2)).view(len(x), 1, 4, 4).expand(-1, 8, 4, 4),
        "matmul() in inner is a product with a vector",
    ),
    "local response": (lambda x: F.local_response_norm(x, 3), "may look at all its channels at once"),
    "copied": (
        lambda x: F.pad(x.flatten(2).movedim(1, -1), (1, 1), mode="circular")[..., 1:-1].movedim(-1, 1).reshape(x.shape),
        "pad() in inner copies some of its channels",
    ),
    "kernels from the image": (lambda x: F.conv2d(x, x[:1, :, :1, :1].expand(8, 8, 1, 1)), "depend on the image or on other layers"),
}


@pytest.mark.parametrize("name", REASONS)
def test_all_channels_stay(name):
    body, reason = REASONS[name]
    graph = graph_of(Net(body), 3, 4, 4)
    assert not any(layer == "a" for group in graph.groups for layer, _ in group)
    assert graph.whole["a"].startswith("8 of 8 channels: ")
    assert reason in graph.whole["a"]


def test_outputs_of_the_network_stay():
    graph = graph_of(Net(lambda x: x.relu()), 3, 4, 4)
    assert graph.whole == {"b": "4 of 4 channels: its values are outputs of the network"}


def test_only_the_channels_that_meet_something_fixed_stay():
    """A class token lies beside the channels of the first two only."""
    token = torch.ones(1, 2, 4, 4, dtype=torch.float64)
    graph = graph_of(Net(lambda x: torch.cat([x[:, :2] + token, x[:, 2:]], 1)), 3, 4, 4)
    assert graph.whole["a"] == "2 of 8 channels: add() in inner combines it with something that cannot be removed"
    assert {group[0] for group in graph.groups} == {("a", channel) for channel in range(2, 8)}


def test_a_kernel_across_channels_keeps_them():
    body = Net(lambda x: F.conv2d(x.flatten(2)[:, None], torch.ones(1, 1, 3, 3, dtype=x.dtype), padding=1)[:, 0].view(x.shape))
    graph = graph_of(body, 3, 4, 4)
    assert graph.groups == ()
    assert "lie across its channels" in graph.whole["a"]


def test_a_gate_of_one_channel_stays_and_what_it_gates_goes():
    graph = graph_of(Net(lambda x: x[:, :7] * x[:, 7:].sigmoid(), nn.Conv2d(7, 4, 1)), 3, 4, 4)
    assert {group[0] for group in graph.groups} == {("a", channel) for channel in range(7)}
    assert graph.whole["a"].startswith("1 of 8 channels: ")


def test_a_layer_with_one_channel_stays():
    model = nn.Sequential(nn.Conv2d(3, 1, 1), nn.ReLU(), nn.Conv2d(1, 4, 1), nn.Conv2d(4, 2, 1))
    graph = graph_of(model, 3, 4, 4)
    assert graph.whole["0"] == "1 of 1 channels: 0 has no other channels"
    assert len(graph.groups) == 4


def test_opaque_steps_are_named_with_their_module():
    graph = graph_of(Net(lambda x: x.sort(1).values), 3, 4, 4)
    assert list(graph.opaque) == ["sort() in inner"]


def test_recurrent_layers_are_opaque():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.lstm, self.b = nn.Linear(5, 6), nn.LSTM(6, 4, batch_first=True), nn.Linear(4, 3)

        def forward(self, x):
            return self.b(self.lstm(self.a(x))[0])

    graph = graph_of(Recurrent(), 7, 5)
    assert graph.groups == ()
    assert graph.opaque == {"lstm": "lstm (LSTM) may look at all its channels at once"}


def test_a_mean_over_channels_is_counted():
    graph = graph_of(Net(lambda x: x * x.mean(1, keepdim=True)), 3, 4, 4)
    assert list(graph.counted.values()) == [8]
    assert len(graph.groups) == 8
