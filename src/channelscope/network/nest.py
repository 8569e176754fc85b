"""Nests: tensors inside tuples, dictionaries, dataclasses and other containers, taken out and put back."""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from channelscope.errors import MismatchError

LEAVES = (Tensor, str, bytes, bool, int, float, complex, type(None), torch.dtype, torch.device)
"""What has no parts."""


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
    made = {key: closed(old.get(key), part) for key, part in parts.items()}  # transformers drop fields that are None
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


def logits_of(output: Any) -> Any:
    """The logits in what a classifier returns; the output itself where they cannot be told.

    Of a dictionary, object or named tuple with a part called logits, as the networks of transformers return and torchvision's GoogLeNet
    while it is trained, it is that part; of other containers the only tensor of shape images × classes.

    Parameters
    ----------
    output
        What the network returned.

    Examples
    --------
    >>> import torch
    >>> logits_of({"loss": None, "logits": torch.zeros(2, 5), "states": (torch.zeros(2, 7),)}).shape
    torch.Size([2, 5])
    >>> logits_of((torch.zeros(2, 5), torch.zeros(2, 8, 4, 4))).shape
    torch.Size([2, 5])
    """
    parts = opened(output)
    fields = output._asdict() if hasattr(output, "_asdict") else parts
    if isinstance(fields, dict) and isinstance(fields.get("logits"), Tensor):
        return fields["logits"]
    flat = [part for part in tensors(parts) if part.dim() == 2 and part.is_floating_point()]
    return flat[0] if len(flat) == 1 else output


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


def leaves(output: Any, path: str = "output") -> Iterator[tuple[str, Any]]:
    """Every tensor of a nested output, and every other plain value, with the path that leads to it.

    Parameters
    ----------
    output
        A tensor, or mappings, sequences, dataclasses and plain objects that hold tensors, nested as they may be.
    path
        Name of the output itself.

    Returns
    -------
    Iterator of (str, Any)
        Path, and tensor or number or string or None, in a fixed order.

    Raises
    ------
    MismatchError
        If the output holds something whose parts cannot be listed.

    Examples
    --------
    >>> [path for path, _ in leaves({"out": Tensor([0]), "aux": (Tensor([0]), 3)})]
    ["output['out']", "output['aux'][0]", "output['aux'][1]"]
    """
    if isinstance(output, LEAVES):
        parts = None
    elif isinstance(output, Mapping):
        parts = [(f"[{key!r}]", value) for key, value in output.items()]
    elif isinstance(output, tuple | list):
        parts = [(f"[{index}]", value) for index, value in enumerate(output)]
    elif dataclasses.is_dataclass(output):
        parts = [(f".{field.name}", vars(output)[field.name]) for field in dataclasses.fields(output) if field.name in vars(output)]
    elif hasattr(output, "__dict__"):
        parts = [(f".{name}", value) for name, value in vars(output).items()]
    else:
        raise MismatchError(
            f"{path} is of type {type(output).__name__}, whose tensors cannot be listed for the comparison: "
            "return tensors, or tuples, dictionaries or dataclasses of them"
        )
    if parts is None:
        yield path, output
        return
    for name, value in parts:
        yield from leaves(value, path + name)
