"""Numbers that remember where they came from, so that arithmetic on shapes and attributes becomes steps of a recording."""

import math
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import fx, nn


class Steps(Protocol):
    """What makes the steps of numbers."""

    def scope(self) -> str:
        """Path of the module whose forward pass runs now."""
        ...

    def number(self, origin: "Origin") -> fx.Node:
        """A new step for a number."""
        ...


class Origin:
    """How a number was computed; its step is made when another step uses it."""

    __slots__ = ("args", "node", "op", "owner", "steps", "target", "value")

    def __init__(self, steps: Steps, op: str, target: Any, args: tuple, value: Any):
        self.steps, self.op, self.target, self.args, self.value = steps, op, target, args, value
        self.owner = steps.scope()
        self.node: fx.Node | None = None

    def step(self) -> fx.Node:
        """The number's step."""
        if self.node is None:
            self.node = self.steps.number(self)
        return self.node


class Int(int):
    """An integer with an origin."""

    origin: Origin

    def __deepcopy__(self, memo: Any) -> int:
        """A plain integer."""
        return int(self)

    def __reduce__(self) -> tuple:
        """A plain integer."""
        return int, (int(self),)


class Float(float):
    """A real number with an origin."""

    origin: Origin

    def __deepcopy__(self, memo: Any) -> float:
        """A plain real number."""
        return float(self)

    def __reduce__(self) -> tuple:
        """A plain real number."""
        return float, (float(self),)


def followed(origin: Origin) -> Any:
    """The origin's value as a number that remembers it; anything but an integer or real number as it is.

    Examples
    --------
    >>> class Silent:
    ...     def scope(self):
    ...         return ""
    >>> number = followed(Origin(Silent(), "call_function", len, (), 3))
    >>> number, type(number).__name__, number.origin.target.__name__
    (3, 'Int', 'len')
    """
    value = origin.value
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    number = Int(value) if isinstance(value, int) else Float(value)
    number.origin = origin
    return number


def plain(value: Any) -> Any:
    """The same value with ordinary numbers, in tuples, lists, dictionaries and slices too.

    Examples
    --------
    >>> plain((Int(3), [Float(0.5)], slice(None, Int(2))))
    (3, [0.5], slice(None, 2, None))
    """
    if isinstance(value, Int):
        return int(value)
    if isinstance(value, Float):
        return float(value)
    if isinstance(value, slice):
        return slice(plain(value.start), plain(value.stop), plain(value.step))
    if isinstance(value, torch.Size):
        return torch.Size([plain(part) for part in value])
    if isinstance(value, tuple) and type(value) is not tuple:
        return type(value)(*map(plain, value)) if hasattr(type(value), "_fields") else value
    if isinstance(value, tuple | list):
        return type(value)(map(plain, value)) if type(value) in (tuple, list) else value
    if type(value) is dict:
        return {key: plain(part) for key, part in value.items()}
    return value


def _arithmetic(function: Callable[..., Any], swapped: bool = False) -> Callable[..., Any]:
    def method(self: Any, *others: Any) -> Any:
        given = (*others, self) if swapped else (self, *others)
        values = [plain(each) for each in given]
        if not all(isinstance(value, int | float) for value in values):
            return NotImplemented
        return followed(Origin(self.origin.steps, "call_function", function, given, function(*values)))

    return method


for _kind in (Int, Float):
    for _name in ("add", "sub", "mul", "floordiv", "mod", "truediv", "pow"):
        _function = vars(operator)[_name]
        setattr(_kind, f"__{_name}__", _arithmetic(_function))
        setattr(_kind, f"__r{_name}__", _arithmetic(_function, swapped=True))
    for _name, _function in (("neg", operator.neg), ("abs", operator.abs), ("ceil", math.ceil), ("floor", math.floor)):
        setattr(_kind, f"__{_name}__", _arithmetic(_function))


@contextmanager
def mathematics() -> Iterator[None]:
    """While inside, some functions of Python's math module follow the numbers they are given.

    Examples
    --------
    >>> before = math.sqrt
    >>> with mathematics():
    ...     math.sqrt(4), math.sqrt is before
    (2.0, False)
    >>> math.sqrt is before
    True
    """
    before = {name: vars(math)[name] for name in ("sqrt", "log", "log2", "exp")}
    try:
        for name, function in before.items():
            setattr(math, name, _of_one(function))
        yield
    finally:
        for name, function in before.items():
            setattr(math, name, function)


def _of_one(function: Callable[..., float]) -> Callable[..., float]:
    def call(value: Any, *others: Any) -> Any:
        if others or not isinstance(value, Int | Float):
            return function(value, *others)
        return followed(Origin(value.origin.steps, "call_function", function, (value,), function(value)))

    return call


@contextmanager
def attributes(steps: Steps, model: nn.Module, entered: Callable[[nn.Module], bool]) -> Iterator[None]:
    """While inside, the integers that the entered modules hold as attributes are followed.

    Examples
    --------
    >>> class Silent:
    ...     def scope(self):
    ...         return ""
    >>> layer = nn.Linear(2, 3)
    >>> with attributes(Silent(), layer, lambda module: True):
    ...     type(layer.in_features).__name__
    'Int'
    >>> type(layer.in_features).__name__
    'int'
    """
    changed: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for path, module in model.named_modules():
            if not entered(module):
                continue
            store = vars(module)
            for key, value in list(store.items()):
                if not key.startswith("_") and key != "training" and _numeric(value):
                    changed.append((store, key, value))
                    store[key] = _wrapped(Origin(steps, "get_attr", f"{path}.{key}" if path else key, (), value))
        yield
    finally:
        for store, key, value in changed:
            store[key] = value


def _numeric(value: Any) -> bool:
    """Whether a value is an integer, or tuples and lists of nothing else."""
    if type(value) in (tuple, list, torch.Size):
        return len(value) > 0 and all(_numeric(part) for part in value)
    return type(value) is int


def _wrapped(origin: Origin) -> Any:
    value = origin.value
    if type(value) is int:
        return followed(origin)
    parts = (Origin(origin.steps, "call_function", operator.getitem, (origin, place), part) for place, part in enumerate(value))
    return type(value)(map(_wrapped, parts))
