"""Interception: while a network runs, the functions, modules and autograd functions that it calls are seen."""

import builtins
import operator
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import function as autograd
from torch.jit._fuser import optimized_execution
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._python_dispatch import TorchDispatchMode

from channelscope.errors import TracingError
from channelscope.network import nest
from channelscope.network.tracing.numbers import Origin, followed, plain
from channelscope.network.tracing.recorder import FORM, Recorder
from channelscope.network.tracing.spelling import Spelling, ordinary

QUIET = {
    "dim", "ndimension", "__len__", "is_contiguous", "is_floating_point", "is_complex", "is_signed", "is_inference", "is_conj", "is_neg",
    "get_device", "stride", "storage_offset", "element_size", "has_names", "is_pinned", "data_ptr", "untyped_storage", "is_same_size",
    "__repr__", "__format__", "__hash__", "__dir__", "result_type", "can_cast", "_is_view", "is_shared", "backward",
    "requires_grad_", "retain_grad", "register_hook", "_assert", "_set_grad_enabled", "__reduce_ex__", "is_set_to",
}  # fmt: skip
"""Functions that ask about the form of a tensor or change no values."""


class _Functions(TorchFunctionMode):
    """Calls of PyTorch functions and tensor methods."""

    def __init__(self, recorder: Recorder):
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        """A call of a PyTorch function or method."""
        kwargs = kwargs or {}
        if self.recorder.inside or peek_interpreter_stack() is not None:
            return func(*args, **kwargs)
        self.recorder.inside += 1
        try:
            name = func.__name__
            if name in ("__get__", "__set__"):
                return self._property(func, name, args)
            if name in FORM and isinstance(args[0], Tensor):
                return self._shape(name, func, args, kwargs)
            if name in QUIET:
                return None if name == "_assert" else func(*plain(args), **plain(kwargs))
            return self._call(func, args, kwargs)
        finally:
            self.recorder.inside -= 1

    def _call(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        call = ordinary(func, args, kwargs)
        if func.__name__ == "__deepcopy__":
            return self.recorder.step(Spelling("call_method", "clone", args[:1], {}), args[0].clone)
        if func.__name__ == "__setitem__":
            return self.recorder.step(call, lambda: _assigned(func, plain(args)), nest.tensors(args[0]))
        in_place = func.__name__.endswith("_") and not func.__name__.endswith("__")
        writes = in_place or "out" in kwargs or kwargs.get("inplace")
        written = nest.tensors(kwargs.get("out", args[0] if args else kwargs.get("input"))) if writes else []
        return self.recorder.step(call, lambda: func(*plain(args), **plain(kwargs)), written)

    def _property(self, func: Any, name: str, args: tuple) -> Any:
        which = str(resolve_name(func)).split(".")[-2]
        if name == "__set__":
            if which == "data":
                raise TracingError("the pass exchanges the memory of a tensor (x.data = …)")
            return func(*args)
        value = func(*args)
        if which == "shape":
            return self._size(value, args[0])
        if which in FORM:
            self.recorder.forms[value] = Origin(self.recorder, "call_function", getattr, (self.recorder.node(args[0]), which), value)
        if not isinstance(value, Tensor) or which in ("grad", "_base"):
            return value
        if which == "data":
            return self.recorder.step(Spelling("call_method", "detach", args, {}), args[0].detach)
        return self.recorder.step(Spelling("call_function", getattr, (*args, which), {}), lambda: func(*args))

    def _size(self, value: torch.Size, tensor: Tensor) -> torch.Size:
        shape = Origin(self.recorder, "call_function", getattr, (self.recorder.node(tensor), "shape"), value)
        return torch.Size(
            [followed(Origin(self.recorder, "call_function", operator.getitem, (shape, axis), size)) for axis, size in enumerate(value)]
        )

    def _shape(self, name: str, func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        value = func(*plain(args), **plain(kwargs))
        if isinstance(value, torch.Size):
            return self._size(value, args[0])
        node = self.recorder.node(args[0])
        return followed(Origin(self.recorder, "call_method", name, (node, *plain(args[1:]), *plain(tuple(kwargs.values()))), value))


def _assigned(func: Any, args: tuple) -> Tensor:
    func(*args)
    return args[0]


class _Beneath(TorchDispatchMode):
    """Operations that do not come from a call in Python, such as those of scripted functions."""

    def __init__(self, recorder: Recorder):
        super().__init__()
        self.recorder = recorder

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if self.recorder.inside:
            return func(*args, **kwargs)
        return self.recorder.step(ordinary(func, args, kwargs), lambda: func(*args, **kwargs))


@contextmanager
def intercepted(recorder: Recorder) -> Iterator[None]:
    """While inside, the recorder hears of everything that this thread's networks call.

    Examples
    --------
    >>> from channelscope.network.tracing.recording import record
    >>> before = nn.Module.__call__
    >>> len(record(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), (torch.zeros(1, 2),)).values), nn.Module.__call__ is before
    (4, True)
    """
    original = nn.Module.__call__
    thread = threading.get_ident()

    def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        path = recorder.paths.get(id(module))
        if path is None or recorder.inside or threading.get_ident() != thread:
            return original(module, *args, **kwargs)
        own = all(id(parameter) in recorder.named for parameter in module.parameters(recurse=False))
        if path and own and recorder.whole(module):
            return recorder.module(path, module, original, args, kwargs)
        recorder.stack.append({**recorder.stack[-1], path: type(module)} if path else recorder.stack[-1])
        try:
            return original(module, *args, **kwargs)
        finally:
            recorder.stack.pop()

    nn.Module.__call__ = call  # type: ignore[method-assign]
    try:
        with _autograd_functions(recorder, thread), optimized_execution(False), _Functions(recorder), _Beneath(recorder):
            yield
    finally:
        nn.Module.__call__ = original  # type: ignore[method-assign]


@contextmanager
def _autograd_functions(recorder: Recorder, thread: int) -> Iterator[None]:
    """While inside, a call of an autograd.Function is one step.

    `Function.apply` ends in `super().apply(…)`, and looks `super` up in its own file like any name; so a call is seen
    wherever the network took `apply` from.
    """

    class _Parent:
        def __init__(self, kind: type):
            self.kind = kind

        def apply(self, *args: Any, **kwargs: Any) -> Any:
            run = builtins.super(autograd.Function, self.kind).apply  # type: ignore[misc]
            checkpoint = self.kind.__module__ == "torch.utils.checkpoint"  # runs a part of the network, and is entered
            if checkpoint or recorder.inside or threading.get_ident() != thread:
                return run(*args, **kwargs)
            return recorder.step(Spelling("call_function", self.kind.apply, args, kwargs), lambda: run(*args, **kwargs))  # type: ignore[attr-defined]

    def parent(*given: Any) -> Any:
        frame = sys._getframe(1)
        if not given and frame.f_code.co_name == "apply" and "cls" in frame.f_locals:
            return _Parent(frame.f_locals["cls"])
        return builtins.super(*given) if given else builtins.super(frame.f_locals["__class__"], frame.f_locals["self"])

    autograd.__dict__["super"] = parent
    try:
        yield
    finally:
        del autograd.__dict__["super"]
