"""Spellings: one ordinary form for each call, and numbers that remember where they came from, whose arithmetic can be replayed."""

import copy
import math
import operator
import pickle

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from channelscope.network.tracing.spelling import Float, Int, Origin, attributes, followed, mathematics, ordinary, plain, setitem

X, Y = torch.tensor([1.0, -2.0]), torch.tensor([3.0, 4.0])
WHOLE = torch.tensor([1, 2])


CALLS = {
    "operator": (Tensor.add, (X, Y), {}, "call_function", operator.add, (X, Y)),
    "named operands": (torch.sub, (), {"input": X, "other": Y}, "call_function", operator.sub, (X, Y)),
    "swapped": (Tensor.__rsub__, (X, 1), {}, "call_function", operator.sub, (1, X)),
    "in place": (Tensor.mul_, (X, 2), {}, "call_function", operator.mul, (X, 2)),
    "method": (Tensor.relu, (X,), {}, "call_method", "relu", (X,)),
    "method in place": (Tensor.clamp_, (X, 0, 1), {}, "call_method", "clamp", (X, 0, 1)),
    "function": (F.gelu, (X,), {}, "call_function", F.gelu, (X,)),
    "function in place": (torch.sigmoid_, (X,), {}, "call_function", torch.sigmoid, (X,)),
    "inplace=True": (F.relu, (X,), {"inplace": True}, "call_function", F.relu, (X,)),
    "zero": (Tensor.zero_, (X,), {}, "call_function", torch.zeros_like, (X,)),
    "special": (Tensor.__and__, (X > 0, Y > 0), {}, "call_function", operator.and_, None),
    "overload": (torch.ops.aten.mul_.Tensor, (X, Y), {}, "call_function", operator.mul, (X, Y)),
    "overload in place": (torch.ops.aten.relu_.default, (X,), {}, "call_function", torch.ops.aten.relu.default, (X,)),
}


@pytest.mark.parametrize(("function", "args", "kwargs", "op", "target", "given"), CALLS.values(), ids=CALLS)
def test_the_ordinary_form(function, args, kwargs, op, target, given):
    found = ordinary(function, args, kwargs)
    assert (found.op, found.target, found.kwargs, found.writes) == (op, target, {}, False)
    assert given is None or all(a is b for a, b in zip(found.args, given, strict=True))


@pytest.mark.parametrize("name", list(CALLS))
def test_the_ordinary_form_computes_the_same_and_overwrites_nothing(name):
    function, args, kwargs, *_ = CALLS[name]
    copied = tuple(part.clone() if isinstance(part, Tensor) else part for part in args)
    named = {key: part.clone() if isinstance(part, Tensor) else part for key, part in kwargs.items()}
    before = [part.clone() for part in args if isinstance(part, Tensor)]
    form = ordinary(function, args, kwargs)
    result = getattr(form.args[0], form.target)(*form.args[1:]) if form.op == "call_method" else form.target(*form.args)
    torch.testing.assert_close(result, function(*copied, **named))
    assert all(torch.equal(a, b) for a, b in zip(before, [part for part in args if isinstance(part, Tensor)], strict=True))


WRITING = {
    "copy_": (Tensor.copy_, (X, Y)),
    "uniform_": (Tensor.uniform_, (X, 0, 1)),
    "another type of numbers": (Tensor.mul_, (WHOLE, torch.tensor([1.5, 1.5]))),
}


@pytest.mark.parametrize(("function", "args"), WRITING.values(), ids=WRITING)
def test_what_has_no_other_form_writes(function, args):
    found = ordinary(function, args, {})
    assert (found.op, found.target, found.writes) == ("call_method", function.__name__, True)


def test_options_keep_the_function():
    assert ordinary(torch.add, (X, Y), {"alpha": 2}).target is torch.add
    assert ordinary(torch.div, (X, Y), {"rounding_mode": "floor"}).target is torch.div
    assert ordinary(torch.add, (X, Y), {"out": torch.empty(2)}).kwargs == {}


def test_items_are_set_in_a_copy():
    assert setitem(X, 1, 5.0).tolist() == [1, 5]
    assert setitem(X, X < 0, 0).tolist() == [1, 0]
    assert X.tolist() == [1, -2]


class Notes:
    """Writes steps into a graph."""

    def __init__(self):
        self.steps = fx.Graph()
        self.values = {}

    def scope(self) -> str:
        return "here"

    def argument(self, part):
        if isinstance(part, Origin):
            return part.step()
        return part.origin.step() if isinstance(part, Int | Float) else part

    def number(self, origin: Origin) -> fx.Node:
        node = self.steps.create_node(origin.op, origin.target, tuple(map(self.argument, origin.args)), {})
        self.values[node] = plain(origin.value)
        return node


def number(value, notes=None):
    return followed(Origin(notes or Notes(), "get_attr", "width", (), value))


def replay(node: fx.Node, width):
    if node.op == "get_attr":
        return width
    return node.target(*[replay(part, width) if isinstance(part, fx.Node) else part for part in node.args])


FORMULAS = {
    "half": lambda n: n // 2,
    "rest": lambda n: n - n // 3 * 2,
    "swapped": lambda n: 100 - n,
    "ratio": lambda n: 1 / n,
    "root": lambda n: n**-0.5,
    "power": lambda n: 2**n,
    "rounded up": lambda n: math.ceil(n / 3),
    "rounded down": lambda n: math.floor(n / 4) + 1,
    "remainder": lambda n: (n % 4 + 4) % 4,
    "negative": lambda n: abs(-n),
    "product": lambda n: math.prod((n, n, 3)),
    "sum": lambda n: sum([n, 1, n]),
}


@pytest.mark.parametrize("formula", FORMULAS.values(), ids=FORMULAS)
def test_arithmetic_is_replayed_for_other_numbers(formula):
    result = formula(number(12))
    assert result == formula(12)
    assert type(result) in (Int, Float)
    for width in (7, 30):
        assert replay(result.origin.step(), width) == formula(width)


@pytest.mark.parametrize("name", ["sqrt", "log", "log2", "exp"])
def test_functions_of_one_number_are_followed(name):
    plain_function = vars(math)[name]
    with mathematics():
        found = vars(math)[name](number(4))
        assert type(vars(math)[name](4)) is float
        assert math.log(8, 2) == 3
    assert found.origin.step().target is plain_function
    assert found == plain_function(4)
    assert vars(math)[name] is plain_function


def test_to_python_they_are_ordinary_numbers():
    n = number(3)
    assert [0, 1, 2, 3][n] == 3
    assert len(range(n)) == 3
    assert {3: "three"}[n] == "three"
    assert f"{n} {n / 2}" == "3 1.5"
    assert isinstance(n, int)
    assert torch.zeros(n, n).shape == (3, 3)


def test_copies_are_plain():
    for value in (number(3), number(0.5)):
        assert type(copy.deepcopy(value)) in (int, float)
        assert type(pickle.loads(pickle.dumps(value))) in (int, float)


def test_what_is_no_number_is_left_alone():
    assert followed(Origin(Notes(), "get_attr", "on", (), True)) is True
    assert followed(Origin(Notes(), "get_attr", "name", (), "a")) == "a"
    with pytest.raises(TypeError):
        number(3) + "a"
    assert torch.equal(number(3) * torch.ones(2), torch.full((2,), 3.0))


def test_plain_reaches_into_containers():
    n = number(3)
    nested = plain([n, (n, {"a": n}), slice(None, n), torch.Size([n, 2]), "b"])
    assert nested == [3, (3, {"a": 3}), slice(None, 3), torch.Size([3, 2]), "b"]
    kinds = [type(part) for part in (nested[0], nested[1][0], nested[1][1]["a"], nested[2].stop, nested[3][0])]
    assert kinds == [int] * 5


def test_steps_are_made_once_and_only_when_used():
    notes = Notes()
    n = number(4, notes)
    half, third = n // 2, n // 3
    assert len(notes.steps.nodes) == 0
    assert half.origin.step() is half.origin.step()
    assert [node.target for node in notes.steps.nodes] == ["width", operator.floordiv]
    third.origin.step()
    assert len(notes.steps.nodes) == 3


def test_integers_of_modules_are_followed_while_inside_and_put_back():
    model = nn.Module()
    model.part = part = nn.Module()
    part.heads, part.window, part.rate, part.on, part.name = 4, (7, [3, 5]), 0.5, True, "a"
    before = dict(vars(part))
    notes = Notes()
    with attributes(notes, model, lambda module: True):
        assert (part.heads, part.window, part.rate, part.on, part.name) == (4, (7, [3, 5]), 0.5, True, "a")
        inside = (part.heads, part.window[0], part.window[1][1], part.rate, part.on)
        assert [type(value) for value in inside] == [Int, Int, Int, float, bool]
        part.window[1][1].origin.step()
        assert [str(node.target) for node in notes.steps.nodes if node.op == "get_attr"] == ["part.window"]
    assert all(vars(part)[key] is value for key, value in before.items())
    with attributes(notes, model, lambda module: module is not part):
        assert type(part.heads) is int
    with pytest.raises(RuntimeError, match="cancelled"), attributes(notes, model, lambda module: True):
        raise RuntimeError("cancelled")
    assert type(part.heads) is int
