"""What cannot be removed, what is refused, and outputs of any nesting."""

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from channelscope.errors import InputError
from channelscope.network.labeling.narrowing import compared, narrow, outputs, silenced
from channelscope.network.labeling.trial import labeled_graph
from removals import assert_exact, drawn, graph_of, lively


class Rolled(nn.Module):
    """Channels are moved on by two places, and each is multiplied with the one that it meets."""

    def __init__(self):
        super().__init__()
        self.a, self.free, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 4, 1)

    def forward(self, x):
        x = torch.roll(self.a(x), 2, 1)
        return self.b(F.relu(self.free(x)))


def test_what_does_not_follow_is_found_by_trial():
    model = lively(Rolled().double())
    graph = labeled_graph(model, torch.zeros(2, 3, 4, 4, dtype=torch.float64))
    assert graph.whole["a"].startswith("8 of 8 channels: roll() cannot be made to fit fewer channels")
    assert {group[0][0] for group in graph.groups} == {"free"}
    assert_exact(graph, graph.gone([0, 4]))


def test_the_documented_example():
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Conv2d(2, 4, 1)).eval()
    found = labeled_graph(model, torch.zeros(1, 3, 5, 5))
    assert found.groups == ((("0", 0),), (("0", 1),))
    assert found.whole == {"2": "4 of 4 channels: its values are outputs of the network"}


@dataclass
class Answer:
    logits: torch.Tensor
    hidden: tuple


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.side = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Linear(6, 4), nn.Conv2d(6, 2, 1)

    def forward(self, x):
        x = self.a(x)
        y = self.b(x.relu())
        return Answer(self.c(y.mean((2, 3))), ({"map": self.side(y)}, [y.sum((1, 2, 3))]))


def test_every_tensor_of_a_nested_output_is_compared():
    torch.manual_seed(0)
    graph = graph_of(lively(Nested()), 3, 4, 4)
    gone = drawn(graph)
    small = assert_exact(graph, gone)
    image = torch.randn(1, 3, 4, 4, dtype=torch.float64)
    expected = silenced(graph, gone, image)
    assert [part.shape for part in outputs(expected)] == [(1, 4), (1, 2, 4, 4), (1,)]
    assert compared(small, (image,), expected) == ""
    wrong = copy.deepcopy(small)
    wrong.side.bias.data[1] += 0.001
    assert "away from the silenced one" in compared(wrong, (image,), expected)


def test_a_channel_that_stays_a_split_group_and_an_empty_layer_are_refused():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4), nn.Conv2d(4, 3, 1), nn.ReLU(), nn.Conv2d(3, 2, 1))
    graph = graph_of(lively(model), 3, 4, 4)
    marks = torch.zeros(9, dtype=torch.bool)
    for numbers, message in (
        ([8], "channel 1 of 4 cannot be removed: its values are outputs of the network"),
        ([0], "channel 1 of 0 goes with others that are kept"),
        ([4, 5, 6], "all outputs of 2 would go"),
    ):
        gone = marks.clone()
        gone[numbers] = True
        with pytest.raises(InputError, match=message):
            narrow(graph, gone)


def test_the_small_network_keeps_types_modes_and_gradients():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1)).train()
    model[0].weight.requires_grad_(False)
    graph = labeled_graph(model, torch.zeros(2, 3, 4, 4))
    small = narrow(graph, graph.gone([1, 5]))
    assert model.training
    assert small.training
    assert small[0].weight.shape == (6, 3, 1, 1)
    assert not small[0].weight.requires_grad
    assert small[3].weight.requires_grad
    assert small[0].weight.dtype == torch.float32
    assert torch.equal(small[1].running_var, model[1].running_var[[0, 2, 3, 4, 6, 7]])
    assert small[1].num_features == small[0].out_channels == small[3].in_channels == 6


def test_literal_sizes_are_corrected_in_the_recorded_steps():
    torch.manual_seed(0)

    class Literal(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Linear(8 * 16, 4)

        def forward(self, x):
            return self.b(self.a(x).reshape(x.shape[0], 128))

    graph = graph_of(lively(Literal()), 3, 4, 4)
    small = assert_exact(graph, graph.gone([0, 3]))
    assert isinstance(small, torch.fx.GraphModule)
    assert set(small.state_dict()) == set(graph.model.state_dict())


def test_attributes_that_sizes_come_from_are_set():
    torch.manual_seed(0)

    class Attribute(nn.Module):
        def __init__(self):
            super().__init__()
            self.width, self.a, self.b = 8, nn.Conv2d(3, 8, 1), nn.Linear(8 * 16, 4)

        def forward(self, x):
            return self.b(self.a(x).reshape(-1, self.width * 16))

    graph = graph_of(lively(Attribute()), 3, 4, 4)
    small = assert_exact(graph, graph.gone([0, 3]))
    assert type(small) is Attribute
    assert small.width == 6
    assert graph.model.width == 8
