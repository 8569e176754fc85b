"""Nests: tensors come out of any container in order, and others go back into the same kind of container."""

import types
from collections import OrderedDict, namedtuple
from dataclasses import dataclass, field

import pytest
import torch

from channelscope.network import nest

Pair = namedtuple("Pair", "first second")


@dataclass(frozen=True)
class Frozen:
    """A frozen dataclass with a field that is not given at construction."""

    a: torch.Tensor
    b: list
    count: int = field(default=0, init=False)


class Answer(OrderedDict):
    """A mapping of its own class."""


@dataclass
class Output(OrderedDict):
    """A dataclass that is a mapping of its fields, as model outputs of Hugging Face are."""

    logits: torch.Tensor | None = None
    states: tuple | None = None

    def __post_init__(self):
        self.update({key: value for key, value in (("logits", self.logits), ("states", self.states)) if value is not None})


def number(value: float) -> torch.Tensor:
    return torch.tensor(value)


NESTS = {
    "tensor": (number(1), [1]),
    "nothing": (None, []),
    "text": ("a text", []),
    "tuple": ((number(1), (number(2), None)), [1, 2]),
    "list": ([3, [number(4)]], [4]),
    "dictionary": ({"b": number(2), "a": {"c": number(1)}}, [2, 1]),
    "namedtuple": (Pair(number(1), {"x": number(2)}), [1, 2]),
    "max": (torch.tensor([1.0, 3.0]).max(0), [3, 1]),
    "frozen dataclass": (Frozen(number(5), [number(6)]), [5, 6]),
    "mapping": (Answer(x=number(7), y=3), [7]),
    "model output": (Output(number(8), (number(9),)), [8, 9]),
    "namespace": (types.SimpleNamespace(x=number(1), y="text"), [1]),
}


@pytest.mark.parametrize(("value", "expected"), NESTS.values(), ids=NESTS)
def test_tensors_come_out_in_order(value, expected):
    assert [float(part) for part in nest.tensors(value)] == expected


@pytest.mark.parametrize(("value", "expected"), NESTS.values(), ids=NESTS)
def test_replacing_keeps_the_containers(value, expected):
    doubled = nest.replaced(value, lambda part: part * 2)
    assert type(doubled) is type(value)
    assert [float(part) for part in nest.tensors(doubled)] == [2 * number for number in expected]
    assert [float(part) for part in nest.tensors(value)] == expected


@pytest.mark.parametrize(("value", "expected"), NESTS.values(), ids=NESTS)
def test_what_was_opened_closes(value, expected):
    again = nest.closed(value, nest.opened(value))
    assert type(again) is type(value)
    assert [float(part) for part in nest.tensors(again)] == expected
    if isinstance(value, Output):
        assert float(again.logits) == float(again["logits"]) == 8


def test_an_emptied_object_is_filled_again():
    empty = types.SimpleNamespace(x=None, y="text")
    filled = nest.closed(empty, {"x": number(3), "y": "text"})
    assert float(filled.x) == 3
    assert empty.x is None


def test_what_holds_a_tensor():
    assert nest.holds_tensor({"a": [(number(1),)]})
    assert nest.holds_tensor(Frozen(number(1), []))
    assert not nest.holds_tensor({"a": [1, "b", None, Frozen]})


def test_the_logits_of_a_named_tuple_are_those_of_that_name():
    main, other = torch.zeros(2, 3), torch.ones(2, 3)
    answer = namedtuple("Answer", "logits aux")
    assert nest.logits_of(answer(main, other)) is main
    assert nest.logits_of(Pair(main, other)) == (main, other), "nothing tells which they are"
    assert nest.logits_of(Pair(main, None)) is main
