"""Removal: what goes, what cannot go and is refused, and outputs of any nesting."""

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from channelscope.errors import InputError, MismatchError
from channelscope.network.graph import execute
from channelscope.network.module_state import out_of_place
from channelscope.network.removal.finishing import compared, outputs
from channelscope.network.removal.labels import FIXED, FREE, full
from channelscope.network.removal.narrowing import Removal, narrow, silenced
from channelscope.network.removal.trial import labeled_graph
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
    torch.manual_seed(0)
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


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.b(F.relu(self.norm(self.a(x))))


@pytest.fixture
def graph():
    torch.manual_seed(0)
    return graph_of(lively(Two()), 3, 5, 5)


def removal(graph, *groups):
    return Removal(graph, graph.gone(groups))


def test_what_goes_of_labels(graph):
    found = removal(graph, 1, 3)
    labels = torch.tensor([[0, 1, FIXED], [2, 3, FREE]])
    assert found.removed(labels).tolist() == [[False, True, False], [False, True, False]]
    assert found.removed(full((2, 2))).tolist() == [[False, False]] * 2


def test_what_goes_of_parameters(graph):
    found = removal(graph, 1, 3)
    assert found.of_source("a.weight").flatten(1).all(1).tolist() == [False, True, False, True]
    assert found.of_source("b.weight")[:, :, 0, 0].tolist() == [[False, True, False, True]] * 2
    assert torch.equal(found.parameter("norm.running_mean", graph.model.norm.running_mean), graph.model.norm.running_mean[[0, 2]])
    assert torch.equal(found.parameter("b.weight", graph.model.b.weight), graph.model.b.weight[:, [0, 2]])
    assert found.parameter("b.bias", graph.model.b.bias) is None
    assert found.parameter("a.weight", graph.model.a.weight).is_contiguous()


def test_labels_of_parameters_are_removed_with_their_elements(graph):
    numbers = graph.sources["norm.bias"].numbers()
    assert removal(graph, 2).removed(numbers).tolist() == [False, False, True, False]


def test_slices_that_are_kept(graph):
    found = removal(graph, 0)
    keep = found.slices(torch.tensor([[True, False, True], [True, True, True]]).new_tensor([[1, 0, 1], [1, 0, 1]]).bool())
    assert [index.tolist() for index in keep] == [[0, 1], [1]]
    with pytest.raises(MismatchError, match="not made of whole slices"):
        found.slices(torch.eye(2, dtype=torch.bool))


def test_slices_of_padding_go_with_the_channels_beside_them(graph):
    found = removal(graph, 0)
    removed = torch.tensor([[True, False], [False, False]])
    free = torch.tensor([[False, True], [False, False]])
    assert [index.tolist() for index in found.slices(removed, free)] == [[1], [0, 1]]


def test_restricted_and_masked_values(graph):
    found = removal(graph, 1, 3)
    labels = torch.arange(4).view(1, 4, 1).expand(2, 4, 3)
    values = torch.arange(24.0).view(2, 4, 3)
    assert found.shape(labels) == (2, 2, 3)
    assert [index.tolist() for index in found.indices(labels)] == [[0, 1], [0, 2], [0, 1, 2]]
    assert torch.equal(found.restricted(values, labels), values[:, [0, 2]])
    masked = found.masked(values, labels)
    assert torch.equal(masked[:, [0, 2]], values[:, [0, 2]])
    assert not masked[:, [1, 3]].any()
    assert found.masked(values.long(), labels) is not masked
    assert torch.equal(found.masked(values.long(), labels), values.long())
    assert found.restricted(7, labels) == 7


def test_masks_hold_for_other_batches(graph):
    found = removal(graph, 1)
    labels = torch.arange(4).view(1, 4).expand(1, 4)
    assert found.masked(torch.ones(5, 4), labels).tolist() == [[1, 0, 1, 1]] * 5


def test_one_channel_that_cannot_go(graph):
    marks = torch.zeros(6, dtype=torch.bool)
    marks[5] = True
    with pytest.raises(InputError, match="channel 1 of b cannot be removed: its values are outputs of the network"):
        Removal(graph, marks)


def test_all_outputs_of_a_layer_that_would_go(graph):
    with pytest.raises(InputError, match="all outputs of a would go: keep at least one"):
        removal(graph, 0, 1, 2, 3)


def test_whether_a_silenced_channel_has_a_value(graph):
    found = removal(graph, 1, 3)
    labels = torch.arange(4).view(1, 4, 1).expand(2, 4, 3)
    values = torch.zeros(2, 4, 3)
    values[0, 0, 0] = 1
    assert not found.is_awake(values, labels)
    values[1, 3, 2] = float("nan")
    assert found.is_awake(values, labels)
    assert not found.is_awake(values, full((2, 4, 3)))
    grid = torch.tensor([[1, 0], [0, 2]])
    assert found.is_awake(torch.eye(2), grid)
    assert not found.is_awake(torch.eye(2).flip(0), grid)
    assert found.is_awake(torch.ones(5), full((5,), 1))


def test_out_of_place_is_taken_back_after_an_exception():
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Dropout(), nn.SiLU(inplace=True))
    seen = []

    def fail():
        with out_of_place(model):
            seen.append(model[0].inplace)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert seen == [False]
    assert [part.inplace for part in model] == [True, False, True]


def test_attributes_by_path(graph):
    assert execute(graph.model, "get_attr", "norm.running_var", (), {}) is graph.model.norm.running_var
    assert execute(graph.model, "get_attr", "a.out_channels", (), {}) == 4
