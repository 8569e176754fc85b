"""State: everything a forward pass may change besides its result, put back afterwards."""

import random
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode

from channelscope.errors import TracingError


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode and give each its own mode back afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """While inside, the network is in evaluation mode; afterwards all is as before, also after an exception.

    Training modes, attributes of every module (with the dictionaries, lists and sets they hold), the values of buffers and
    parameters, whether these require gradients, and the random states of PyTorch, NumPy and Python are put back.

    Raises
    ------
    TracingError
        If the network has lazy layers, whose first pass changes them for good.
    """
    lazy = [name for name, part in _tensors(model) if is_lazy(part)]
    if lazy:
        raise TracingError(
            f"the network has no weights yet at {', '.join(lazy[:3])}: it is made of lazy layers; run it once on a batch of images, "
            "model(images), before it is traced"
        )
    with ExitStack() as stack:
        stack.enter_context(_random_states(model))
        stack.enter_context(_attributes(model))
        stack.enter_context(_buffers(model))
        stack.enter_context(_parameters(model))
        stack.enter_context(evaluating(model))
        stack.enter_context(_uncompiled())
        yield


def _tensors(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


@contextmanager
def _attributes(model: nn.Module) -> Iterator[None]:
    stores: list[Any] = [vars(module) for module in model.modules()]
    stores += [value for store in stores for value in store.values() if isinstance(value, dict | list | set)]
    before = [store.copy() for store in stores]
    try:
        yield
    finally:
        for store, old in zip(stores, before, strict=True):
            if isinstance(store, list):
                store[:] = old
            else:
                store.clear()
                store.update(old)


@contextmanager
def _buffers(model: nn.Module) -> Iterator[None]:
    before = [(buffer, buffer.clone(), version(buffer)) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, values, number in before:
                if version(buffer) != number:
                    buffer.copy_(values)


@contextmanager
def _parameters(model: nn.Module) -> Iterator[None]:
    before = [(parameter, parameter.data, parameter.requires_grad) for parameter in model.parameters()]
    written = _Written(before)
    try:
        with written:
            yield
    finally:
        for parameter, data, asked in before:
            if parameter.data_ptr() != data.data_ptr():
                parameter.data = data
            parameter.requires_grad_(asked)
        for data, values in written.saved:
            data.copy_(values)


class _Written(TorchDispatchMode):
    """Keeps the values of a parameter before it is written to; hardly any network does, so nothing is copied in advance."""

    def __init__(self, parameters: list[tuple[nn.Parameter, torch.Tensor, bool]]):
        super().__init__()
        self.places: dict[int, list[torch.Tensor]] = defaultdict(list)
        self.saved: list[tuple[torch.Tensor, torch.Tensor]] = []
        for _, data, _ in parameters:
            self.places[memory(data)].append(data)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func._schema.is_mutable:
            for given in args:
                if isinstance(given, torch.Tensor):
                    self.saved += [(data, data.clone()) for data in self.places.pop(memory(given), [])]
        return func(*args, **(kwargs or {}))


@contextmanager
def _random_states(model: nn.Module) -> Iterator[None]:
    devices = sorted({part.device.index or 0 for part in model.parameters() if part.device.type == "cuda"})
    ours, numpys = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(ours)
            np.random.set_state(numpys)


@contextmanager
def _uncompiled() -> Iterator[None]:
    """While inside, compiled parts run as written."""
    if "torch._dynamo" not in sys.modules:  # then nothing is compiled
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def random_state() -> torch.Tensor:
    """State of PyTorch's random numbers, on the CPU and on the current accelerator."""
    state = torch.random.get_rng_state()
    return torch.cat([state, torch.cuda.get_rng_state()]) if torch.cuda.is_initialized() else state


def memory(tensor: torch.Tensor) -> int:
    """Address of a tensor's memory, the same for all its views; 0 where it has none of its own."""
    plain = type(tensor) in (torch.Tensor, nn.Parameter, nn.Buffer) and tensor.layout is torch.strided
    return tensor.untyped_storage().data_ptr() if plain else 0


def version(tensor: torch.Tensor) -> int:
    """How often a tensor was changed in place; 0 where PyTorch does not count."""
    return 0 if tensor.is_inference() else tensor._version
