"""Spellings: the one ordinary form of a call, whether it was written as operator, method, function or in place."""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

OPERATORS: dict[str, Callable[..., Any]] = {
    "add": operator.add, "sub": operator.sub, "subtract": operator.sub, "mul": operator.mul, "multiply": operator.mul,
    "div": operator.truediv, "divide": operator.truediv, "true_divide": operator.truediv, "truediv": operator.truediv,
    "floordiv": operator.floordiv, "floor_divide": operator.floordiv, "mod": operator.mod, "remainder": operator.mod,
    "pow": operator.pow, "matmul": operator.matmul, "neg": operator.neg, "negative": operator.neg, "getitem": operator.getitem,
    "eq": operator.eq, "ne": operator.ne, "not_equal": operator.ne, "lt": operator.lt, "less": operator.lt, "le": operator.le,
    "less_equal": operator.le, "gt": operator.gt, "greater": operator.gt, "ge": operator.ge, "greater_equal": operator.ge,
    "and": operator.and_, "or": operator.or_, "xor": operator.xor, "invert": operator.invert,
}  # fmt: skip
"""Names of functions and methods that are a Python operator, without the underscores of in-place and special methods."""

SWAPPED = {
    "radd": "add", "rsub": "sub", "rmul": "mul", "rdiv": "div", "rtruediv": "div", "rfloordiv": "floordiv", "rmod": "mod", "rpow": "pow",
    "rmatmul": "matmul",
}  # fmt: skip
"""Names whose operands stand in the other order."""

OPERANDS = ("input", "self", "other", "exponent")
"""Keywords of the operands of an operator, in their order."""

BINARY = 2


@dataclass(frozen=True)
class Spelling:
    """A call in its ordinary form."""

    op: str
    """call_function or call_method"""
    target: Any
    """the function, or the name of the method"""
    args: tuple
    kwargs: dict[str, Any]
    writes: bool = False
    """whether the form still changes its first argument in place"""


def setitem(values: Tensor, index: Any, new: Any) -> Tensor:
    """A copy of a tensor with the elements at an index replaced: `values[index] = new`, out of place.

    Examples
    --------
    >>> setitem(torch.zeros(3), slice(1, None), 2.0)
    tensor([0., 2., 2.])
    """
    changed = values.clone()
    changed[index] = new
    return changed


def ordinary(function: Any, args: tuple, kwargs: Mapping[str, Any]) -> Spelling:
    """The ordinary form of a call of a function or tensor method.

    Examples
    --------
    >>> x = torch.zeros(2)
    >>> ordinary(torch.Tensor.add_, (x, 1), {}).target, ordinary(torch.add, (), {"input": x, "other": 1}).target
    (<built-in function add>, <built-in function add>)
    >>> ordinary(torch.Tensor.relu_, (x,), {}).target
    'relu'
    """
    name, kwargs = _name(function), {key: value for key, value in kwargs.items() if key not in ("inplace", "out")}
    special = name.startswith("__") and name.endswith("__")
    name = name.strip("_") if special else name
    in_place = name.endswith("_")
    name = name.rstrip("_")
    if special and name == "setitem":
        return Spelling("call_function", setitem, args, kwargs)
    found = _operator(name, args, kwargs)
    if found is not None and not (in_place and _promotes(args)):
        return found
    method = function in (vars(Tensor).get(function.__name__), vars(torch._C.TensorBase).get(function.__name__))
    if in_place:
        return _out_of_place(function, name, method, args, kwargs)
    if method and not special:
        return Spelling("call_method", name, args, kwargs)
    return Spelling("call_function", function, args, kwargs)


def _name(function: Any) -> str:
    """A function's name without namespace and overload."""
    if isinstance(function, torch._ops.OpOverload):
        return str(function._schema.name).rpartition("::")[2]
    return str(function.__name__)


def _operator(name: str, args: tuple, kwargs: dict[str, Any]) -> Spelling | None:
    """The call as a Python operator, if it has no options beyond the operands."""
    plain = SWAPPED.get(name, name)
    if plain not in OPERATORS or not set(kwargs) <= set(OPERANDS):
        return None
    operands = (*args, *(kwargs[key] for key in OPERANDS if key in kwargs))
    if len(operands) > BINARY:
        return None
    return Spelling("call_function", OPERATORS[plain], operands[::-1] if name in SWAPPED else operands, {})


def _out_of_place(function: Any, name: str, method: bool, args: tuple, kwargs: dict[str, Any]) -> Spelling:
    """The form that returns a new tensor, where PyTorch has one and it gives the same type of numbers."""
    if name == "zero":
        return Spelling("call_function", torch.zeros_like, args, kwargs)
    if not _promotes(args):
        if isinstance(function, torch._ops.OpOverload):
            packet = getattr(vars(torch.ops)[function.namespace], name)
            if function._overloadname in packet.overloads():
                return Spelling("call_function", getattr(packet, function._overloadname), args, kwargs)
        elif method and hasattr(Tensor, name):
            return Spelling("call_method", name, args, kwargs)
        for space in (vars(torch), vars(nn.functional)):
            if not method and space.get(function.__name__) is function and callable(space.get(name)):
                return Spelling("call_function", space[name], args, kwargs)
    return Spelling("call_method" if method else "call_function", function.__name__ if method else function, args, kwargs, writes=True)


def _promotes(args: tuple) -> bool:
    """Whether the operands together are of another type than the first, which in place stays as it is."""
    if len(args) < BINARY or not isinstance(args[0], Tensor) or not isinstance(args[1], Tensor | int | float):
        return False
    return torch.result_type(args[0], args[1]) != args[0].dtype
