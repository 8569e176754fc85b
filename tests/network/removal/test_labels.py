"""Labels, partitions and sources on numbers that can be followed by hand."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from channelscope.network.nest import tensors
from channelscope.network.operations.step import Operand
from channelscope.network.removal.labels import (
    ADOPTED,
    FIXED,
    FREE,
    PARAMETERS,
    Axis,
    Pairs,
    Sources,
    Union,
    agree,
    channels_in,
    compact,
    fixed,
    full,
    numbers_in,
    varying,
)  # fmt: skip


def test_full_labels_take_no_memory():
    labels = full((4, 5, 6), FREE)
    assert labels.shape == (4, 5, 6)
    assert labels.stride() == (0, 0, 0)
    assert set(labels.unique().tolist()) == {FREE}


def test_fixed_labels_of_a_nested_value():
    found = fixed((torch.zeros(2, 3), {"a": [torch.zeros(1)], "b": 7}))
    assert [part.tolist() for part in tensors(found)] == [[[FIXED] * 3] * 2, [FIXED]]
    assert found[1]["b"] == 7


@dataclass
class Held:
    part: torch.Tensor
    name: str


def test_labels_of_sizes_numbers_and_objects():
    size = torch.Size([1, 2])
    found = fixed([torch.ones(1), size, 3, (None,), Held(torch.ones(2), "a"), torch.ones(2, 3).max(1)])
    assert found[1:4] == [size, 3, (None,)]
    assert found[4].name == "a"
    assert found[4].part.tolist() == [FIXED, FIXED]
    assert [part.tolist() for part in found[5]] == [[FIXED, FIXED]] * 2


def test_channels_are_neither_marks_nor_elements_of_parameters():
    assert channels_in(torch.tensor([FIXED, FREE, 0, 5, PARAMETERS, PARAMETERS + 3])).tolist() == [False, False, True, True, False, False]


def test_compact_and_varying():
    labels = torch.arange(3).view(1, 3, 1).expand(2, 3, 4)
    assert compact(labels).shape == (1, 3, 1)
    assert compact(labels.contiguous()).shape == (1, 3, 1)
    assert varying(labels) == [1]
    assert compact(labels, axes=(2,)).shape == (2, 3, 1)
    assert varying(full((3, 3))) == []


@given(st.lists(st.integers(-2, 4), min_size=4, max_size=4), st.integers(1, 3))
def test_compact_labels_expand_to_the_same(numbers, times):
    labels = torch.tensor(numbers).view(2, 1, 2).repeat(1, times, 1)
    assert torch.equal(compact(labels).expand(labels.shape), labels)


def test_numbers_in_a_nested_value():
    assert numbers_in([torch.tensor([3, FIXED, 1]), (torch.tensor([[1, PARAMETERS]]), 5)]).tolist() == [1, 3]
    assert numbers_in(4).tolist() == []


def test_united_channels_share_a_reason_whichever_was_held():
    union = Union()
    union.add(6)
    union.hold([1], "one")
    union.unite(0, 1)
    union.unite(4, 5)
    union.unite(5, 1)
    assert {union.reason(number) for number in (0, 1, 4, 5)} == {"one"}
    assert union.reason(2) == ""
    assert len({union.root(number) for number in range(6)}) == 3


def test_a_channel_united_with_something_fixed_is_held_and_with_something_free_is_not():
    union = Union()
    union.add(3)
    union.unite(0, FIXED, "it meets the image")
    union.unite(1, FREE)
    union.unite_all(torch.tensor([2, FIXED, FREE]), "a slice")
    assert [union.reason(number) for number in range(3)] == ["it meets the image", "", "a slice"]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12))
def test_roots_agree_with_connected_components(edges):
    union = Union()
    union.add(10)
    reach = {number: {number} for number in range(10)}
    for a, b in edges:
        union.unite(a, b)
        joined = reach[a] | reach[b]
        for number in joined:
            reach[number] = joined
    roots = union.roots(torch.arange(10)).tolist()
    assert all((roots[a] == roots[b]) == (b in reach[a]) for a in range(10) for b in range(10))
    assert union.roots(torch.tensor([FIXED, PARAMETERS + 1])).tolist() == [FIXED, PARAMETERS + 1]


def gone(*numbers):
    return lambda labels: torch.isin(labels, torch.tensor(numbers))


def weight(sources, *shape, name="w"):
    return sources.add(name, torch.zeros(*shape)), Operand(torch.zeros(*shape), name, None)


def test_axes_of_a_weight_go_with_either_of_two_channels():
    sources = Sources()
    source, operand = weight(sources, 2, 3)
    sources.follow(operand, None, 0, torch.tensor([10, 11]), "conv")
    sources.follow(operand, None, 1, torch.tensor([0, 1, 2]), "conv")
    assert source.removed(gone(11, 1)).tolist() == [[False, True, False], [True, True, True]]
    assert not source.removed(gone()).any()


def test_an_element_stays_as_long_as_one_of_its_partners_does():
    sources = Sources()
    source, _ = weight(sources, 2)
    sources.tie(source.numbers()[torch.tensor([0, 0, 1])], torch.tensor([4, 5, 6]), "add")
    assert source.removed(gone(4, 6)).tolist() == [False, True]
    assert source.removed(gone(4, 5)).tolist() == [True, False]


def test_a_parameter_is_removed_only_where_every_use_removes_it():
    sources = Sources()
    source, operand = weight(sources, 2)
    for use, numbers in {"first": [0, 1], "second": [2, 3]}.items():
        sources.follow(operand, None, 0, torch.tensor(numbers), use)
    assert source.removed(gone(0, 3)).tolist() == [False, False]
    assert source.removed(gone(0, 2)).tolist() == [True, False]


def test_uses_of_one_parameter_are_made_to_agree():
    sources, union = Sources(), Union()
    union.add(4)
    source, operand = weight(sources, 2)
    for use, numbers in {"first": [0, 1], "second": [2, 3]}.items():
        sources.follow(operand, None, 0, torch.tensor(numbers), use)
    agree(source, sources, union)
    assert union.root(0) == union.root(2) != union.root(1) == union.root(3)


def test_uses_that_cannot_agree_are_held():
    sources, union = Sources(), Union()
    union.add(6)
    source, operand = weight(sources, 2, 2)
    sources.follow(operand, None, 0, torch.tensor([0, 1]), "first")
    source.uses["second"] = [Pairs(torch.arange(4), torch.tensor([2, 3, 4, 5]))]
    agree(source, sources, union)
    assert {union.reason(number) for number in range(6)} == {"w is used in several places"}


def test_computed_weights_follow_by_their_elements():
    sources = Sources()
    source, _ = weight(sources, 2, 3)
    moved = Operand(torch.zeros(3, 2), None, None)
    sources.follow(moved, source.numbers().T, 0, torch.tensor([7, 8, 9]), "linear")
    assert isinstance(source.uses["linear"][0], Pairs)
    assert source.removed(gone(8)).tolist() == [[False, True, False]] * 2
    sources.follow(moved, source.numbers(), 1, torch.tensor([7, 8, 9]), "again")
    assert isinstance(source.uses["again"][0], Axis)


def test_elements_that_follow_other_parameters_lead_to_channels():
    sources = Sources()
    scale, shift = weight(sources, 2, name="scale")[0], weight(sources, 2, name="shift")[0]
    sources.tie(shift.numbers(), torch.tensor([3, 4]), "add")
    sources.tie(scale.numbers(), shift.numbers(), "sub")
    assert sources.channels(torch.cat([scale.numbers(), torch.tensor([9, FIXED])])).tolist() == [3, 4, 9, FIXED]
    alone = weight(sources, 1, name="alone")[0]
    assert sources.channels(alone.numbers()).tolist() == [FREE]
    assert [source.name for source, _ in sources.holding(torch.cat([scale.numbers(), alone.numbers()]))] == ["scale", "alone"]


def test_adopted_slices_count_as_one_use():
    sources, union = Sources(), Union()
    union.add(4)
    token = weight(sources, 1, 2, name="token")[0]
    for place in range(2):
        sources.tie(token.numbers().flatten()[place : place + 1], torch.tensor([place]), ADOPTED)
    sources.tie(token.numbers().flatten(), torch.tensor([2, 3]), "add")
    agree(token, sources, union)
    assert union.root(0) == union.root(2) != union.root(1) == union.root(3)
    assert token.removed(gone(0, 2)).tolist() == [[True, False]]


@pytest.mark.parametrize("module", [nn.Conv2d(2, 3, 1), nn.Linear(2, 3)])
def test_numbers_of_parameters_do_not_overlap(module):
    sources = Sources()
    made = [sources.add(name, value) for name, value in module.named_parameters()]
    every = torch.cat([source.numbers().flatten() for source in made])
    assert len(every.unique()) == len(every) == sum(value.numel() for value in module.parameters())
    assert int(every.min()) == PARAMETERS
    assert sources.add("weight", module.weight) is made[0] is sources["weight"]
