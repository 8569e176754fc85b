"""Nests: tensors inside tuples, dictionaries, dataclasses and other containers, taken out and put back."""

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor


def opened(value: Any) -> Any:
    """The same nest in plain tuples, lists and dictionaries; an object is a dictionary of its fields.

    Examples
    --------
    >>> from collections import OrderedDict
    >>> opened(OrderedDict(a=1, b=(2, [3])))
    {'a': 1, 'b': (2, [3])}
    """
    if isinstance(value, Tensor):
        return value
    if isinstance(value, tuple):
        return tuple(map(opened, value))
    if isinstance(value, list):
        return [opened(part) for part in value]
    fields = _fields(value)
    return value if fields is None else {key: opened(part) for key, part in fields.items()}


def _fields(value: Any) -> dict[Any, Any] | None:
    """Parts of a mapping, a dataclass or another object that holds tensors."""
    if isinstance(value, Mapping):
        return dict(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: vars(value)[field.name] for field in dataclasses.fields(value) if field.name in vars(value)}
    try:
        inside = vars(value)
    except TypeError:
        return None
    return dict(inside) if not isinstance(value, type) and any(holds_tensor(part) for part in inside.values()) else None


def closed(like: Any, parts: Any) -> Any:
    """Plain parts in the containers of `like`, a nest of the same structure.

    Examples
    --------
    >>> from collections import OrderedDict
    >>> closed(OrderedDict(a=0, b=(0, 0)), {"a": 1, "b": (2, 3)})
    OrderedDict([('a', 1), ('b', (2, 3))])
    """
    if isinstance(like, tuple):
        items = [closed(old, new) for old, new in zip(like, parts, strict=True)]
        return type(like)(*items) if hasattr(type(like), "_fields") else type(like)(items)
    if isinstance(like, list):
        return type(like)([closed(old, new) for old, new in zip(like, parts, strict=True)])
    fields = None if isinstance(like, Tensor) else _fields(like)
    if fields is None and not (isinstance(parts, dict) and hasattr(like, "__dict__")):
        return parts
    old = vars(like) if fields is None else fields
    made = {key: closed(old[key], part) for key, part in parts.items()}
    if type(like) is dict:
        return made
    if isinstance(like, Mapping) and not dataclasses.is_dataclass(like):
        return type(like)(made)  # type: ignore[call-arg]
    if isinstance(like, Mapping):  # a dataclass that is a mapping too, as the outputs of transformers are
        return type(like)(**made)
    new = copy.copy(like)
    vars(new).update(made)
    return new


def replaced(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """The nest with every tensor replaced.

    Examples
    --------
    >>> import torch
    >>> replaced((torch.tensor(1), {"a": torch.tensor(2), "b": "text"}), lambda part: part.item() * 10)
    (10, {'a': 20, 'b': 'text'})
    """
    parts = opened(value)
    return closed(value, _changed(parts, change)) if holds_tensor(parts) else value


def _changed(parts: Any, change: Callable[[Tensor], Any]) -> Any:
    if isinstance(parts, Tensor):
        return change(parts)
    if isinstance(parts, tuple | list):
        return type(parts)([_changed(part, change) for part in parts])
    if isinstance(parts, dict):
        return {key: _changed(part, change) for key, part in parts.items()}
    return parts


def tensors(value: Any) -> list[Tensor]:
    """The tensors of a nest in order.

    Examples
    --------
    >>> import torch
    >>> [part.shape[0] for part in tensors({"a": torch.zeros(2), "b": (None, [torch.zeros(3)])})]
    [2, 3]
    """
    found: list[Tensor] = []
    _changed(opened(value), found.append)
    return found


def holds_tensor(value: Any) -> bool:
    """Whether a value is a tensor or a container with one inside.

    Examples
    --------
    >>> import torch
    >>> holds_tensor([1, {"a": torch.tensor(2)}]), holds_tensor([1, "a"])
    (True, False)
    """
    if isinstance(value, Tensor):
        return True
    if isinstance(value, tuple | list):
        return any(map(holds_tensor, value))
    if isinstance(value, Mapping):
        return any(map(holds_tensor, value.values()))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return any(map(holds_tensor, vars(value).values()))
    return False
