"""Spellings: one ordinary form for each call, and a form that writes only where PyTorch has no other."""

import operator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from channelscope.network.tracing.spelling import ordinary, setitem

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
