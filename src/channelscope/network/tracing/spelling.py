"""The one ordinary form of a call, however it was written, of tensors that share memory, and of numbers.

`ordinary` gives the form of a call; `Aliases` are tensors that share memory; an `Origin` says how a number was computed, so that
arithmetic on shapes and attributes becomes steps of a recording.
"""

import math
import operator
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn

from channelscope.network.module_state import memory, version

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

EXTREMES = {"max": torch.maximum, "min": torch.minimum}
"""Names that mean the larger or smaller of two tensors where a second tensor is given, and a reduction otherwise."""


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
    if plain in EXTREMES and len(args) + len(kwargs) == BINARY and isinstance((*args, *kwargs.values())[1], Tensor):
        return Spelling("call_function", EXTREMES[plain], (*args, *kwargs.values()), {})
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


Make = Callable[[str, Any, tuple, dict[str, Any], Tensor], fx.Node]
"""Adds a step: operation, target, arguments, and the tensor that is its value."""

RESHAPES = {"view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as", "ravel", "contiguous"}
"""Steps whose result holds all elements of their input in the same order."""


@dataclass(slots=True)
class _Entry:
    tensor: Tensor
    """held, so that its identity is not given to another tensor"""
    node: fx.Node
    version: int
    parent: Tensor | None = None
    """the tensor it is a view of"""
    call: fx.Node | None = None
    """the step that made the view"""


class Aliases:
    """The step of every tensor seen so far."""

    def __init__(self, make: Make, values: dict[str, Any]):
        self.make, self.values = make, values
        self.entries: dict[int, _Entry] = {}
        self.stored: dict[int, list[str]] = defaultdict(list)
        self.spare: list[fx.Node] = []

    def know(self, tensor: Tensor, node: fx.Node, parents: list[Tensor] | None = None, call: fx.Node | None = None) -> None:
        """The value of a tensor is that of a step; it may be a view of one of the step's inputs."""
        place = memory(tensor)
        parent = next((each for each in parents or [] if each is not tensor and place and memory(each) == place), None)
        self.entries[id(tensor)] = _Entry(tensor, node, version(tensor), parent, call or node)
        self.stored[place].append(node.name)

    def step(self, tensor: Tensor) -> fx.Node | None:
        """The step with the tensor's present value; None if it was never seen.

        Raises
        ------
        ValueError
            If the tensor was changed through another tensor in a way that no step says.
        """
        entry = self.entries.get(id(tensor))
        if entry is None:
            return None
        if entry.version != version(tensor):
            made = None if entry.parent is None else self._again(entry, self.step(entry.parent))
            if made is None:
                raise ValueError("the pass changes a tensor through a view of it in a way that cannot be followed; change a copy instead")
            entry.node, entry.version = made, version(tensor)
        return entry.node

    def about_to_change(self, tensor: Tensor) -> None:
        """Keep the values of earlier steps that share memory with a tensor that is about to be changed in place."""
        for name in self.stored.pop(memory(tensor), []):
            value = self.values.get(name)
            if isinstance(value, Tensor):
                self.values[name] = value.detach().clone()

    def share(self, a: Tensor, b: Tensor) -> bool:
        """Whether two tensors share memory."""
        return memory(a) != 0 and memory(a) == memory(b)

    def changed(self, tensor: Tensor, node: fx.Node) -> None:
        """A tensor was changed in place, and so were those that it is a view of."""
        entry = self.entries[id(tensor)]
        child, value = entry, node
        entry.node, entry.version = node, version(tensor)
        self.stored[memory(tensor)].append(node.name)
        while child.parent is not None:
            above = self.entries[id(child.parent)]
            made = self._whole(child, above, value)
            if made is None:
                return
            above.node, above.version = made, version(above.tensor)
            child, value = above, made

    def _whole(self, child: _Entry, above: _Entry, value: fx.Node) -> fx.Node | None:
        """The step of the whole tensor when a view of it has a new value; None where no rule says."""
        part, whole = child.tensor, above.tensor
        if part.shape == whole.shape and part.stride() == whole.stride() and part.storage_offset() == whole.storage_offset():
            return value
        call = child.call
        if call is None or not call.args:
            return None
        if call.target is operator.getitem and self._is_tensor(call.args[0]):
            return self._spare("call_function", setitem, (above.node, call.args[1], value), whole)
        name = call.target if isinstance(call.target, str) else call.target.__name__
        if name in RESHAPES and part.numel() == whole.numel():
            return self._spare("call_method", "reshape_as", (value, above.node), whole)
        index = _slice(part, whole)
        return None if index is None else self._spare("call_function", setitem, (above.node, index, value), whole)

    def _again(self, entry: _Entry, parent: fx.Node | None) -> fx.Node | None:
        """The view once more, of the changed tensor."""
        chain: list[Any] = [entry.call]
        while isinstance(chain[-1], fx.Node) and chain[-1].target is operator.getitem and not self._is_tensor(chain[-1].args[0]):
            chain.append(chain[-1].args[0])
        made = parent
        for call in reversed(chain):
            if not isinstance(call, fx.Node) or not call.args or made is None:
                return None
            made = self._spare(call.op, call.target, (made, *call.args[1:]), entry.tensor, dict(call.kwargs))
        return made

    def _is_tensor(self, given: Any) -> bool:
        return isinstance(given, fx.Node) and isinstance(self.values.get(given.name), Tensor)

    def _spare(self, op: str, target: Any, args: tuple, value: Tensor, kwargs: dict[str, Any] | None = None) -> fx.Node:
        node = self.make(op, target, args, kwargs or {}, value)
        self.spare.append(node)
        return node

    def clear_unused(self, steps: fx.Graph) -> list[str]:
        """Erase the steps that were made in advance and that nothing uses; their names."""
        erased = []
        for node in reversed(self.spare):
            if not node.users:
                steps.erase_node(node)
                erased.append(node.name)
        return erased


def _slice(part: Tensor, whole: Tensor) -> tuple[slice, ...] | None:
    """The index of a part of a tensor that is a range along one axis."""
    axes = [axis for axis, (a, b) in enumerate(zip(part.shape, whole.shape, strict=False)) if a != b]
    if part.stride() != whole.stride() or len(axes) != 1:
        return None
    (axis,) = axes
    start = (int(part.storage_offset()) - int(whole.storage_offset())) // whole.stride(axis)
    return (*[slice(None)] * axis, slice(start, start + part.shape[axis]))


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
    for _word in ("add", "sub", "mul", "floordiv", "mod", "truediv", "pow"):
        _function = vars(operator)[_word]
        setattr(_kind, f"__{_word}__", _arithmetic(_function))
        setattr(_kind, f"__r{_word}__", _arithmetic(_function, swapped=True))
    for _word, _function in (("neg", operator.neg), ("abs", operator.abs), ("ceil", math.ceil), ("floor", math.floor)):
        setattr(_kind, f"__{_word}__", _arithmetic(_function))


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
