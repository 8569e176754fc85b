"""Known: which step holds the present value of each tensor, also after it was changed in place or through a view of it."""

import operator
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from channelscope.network.module_state import memory, version
from channelscope.network.tracing.spelling import setitem

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
