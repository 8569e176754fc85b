"""What is left of labels, values and parameters, and steps carried out again."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from channelscope.errors import InputError, MismatchError
from channelscope.network.graph import execute
from channelscope.network.labeling.labels import FIXED, FREE, full
from channelscope.network.labeling.removal import Removal
from channelscope.network.module_state import out_of_place
from removals import graph_of, lively


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
