"""The state of a module (mode, attributes, device, weights' hash), and its restoration."""

import hashlib
import random
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode

from channelscope.errors import TracingError
from channelscope.types import Float, Int


@contextmanager
def eval_mode(*models: nn.Module) -> Iterator[None]:
    """Put every module of some networks into evaluation mode and give each its own mode back afterwards.

    Examples
    --------
    >>> net = nn.Sequential(nn.Dropout())
    >>> with eval_mode(net):
    ...     net[0].training
    False
    >>> net[0].training
    True
    """
    modes = {module: module.training for model in models for module in model.modules()}
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """While inside, no parameter requires gradients: counters that follow modules by their gradients take views of parameters.

    Examples
    --------
    >>> net = nn.Linear(2, 1)
    >>> with frozen(net):
    ...     print(net.weight.requires_grad)
    False
    >>> net.weight.requires_grad
    True
    """
    asking = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in asking:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)


@contextmanager
def restored_momentum(norms: Sequence[Any]) -> Iterator[None]:
    """While inside, the momentum of BatchNorms may be another; afterwards each has its own again.

    Examples
    --------
    >>> norm = nn.BatchNorm2d(1, momentum=0.01)
    >>> with restored_momentum([norm]):
    ...     norm.momentum = None
    >>> norm.momentum
    0.01
    """
    before = [norm.momentum for norm in norms]
    try:
        yield
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum


@contextmanager
def restored_state(model: nn.Module) -> Iterator[None]:
    """While inside, the network is in evaluation mode; afterwards all is as before, also after an exception.

    Training modes, attributes of every module (with the dictionaries, lists and sets they hold), the values of buffers and
    parameters, whether these require gradients, and the random states of PyTorch, NumPy and Python are put back.

    Raises
    ------
    TracingError
        If the network has lazy layers, whose first pass changes them for good.

    Examples
    --------
    >>> net = nn.BatchNorm1d(1)
    >>> with restored_state(net):
    ...     net.running_mean += 1
    >>> net.running_mean.item(), net.training
    (0.0, True)
    """
    lazy = [name for name, part in _tensors(model) if is_lazy(part)]
    if lazy:
        raise TracingError(
            f"the network has no weights yet at {', '.join(lazy[:3])}: it is made of lazy layers; run it once on a batch of images "
            "where it is made, before it is traced"
        )
    with ExitStack() as stack:
        stack.enter_context(_random_states(model))
        stack.enter_context(restored_attributes(model))
        stack.enter_context(_buffers(model))
        stack.enter_context(_parameters(model))
        stack.enter_context(eval_mode(model))
        stack.enter_context(_uncompiled())
        yield


def _tensors(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


@contextmanager
def restored_attributes(model: nn.Module) -> Iterator[None]:
    """While inside, passes may set attributes of modules, such as tables that are kept for the next pass; afterwards they are gone.

    Examples
    --------
    >>> net = nn.Sequential(nn.ReLU())
    >>> with restored_attributes(net):
    ...     net[0].table = torch.zeros(3)
    >>> hasattr(net[0], "table")
    False
    """
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
    """State of PyTorch's random numbers, on the CPU and on the current accelerator.

    Examples
    --------
    >>> before = random_state()
    >>> drawn = torch.rand(1)
    >>> torch.equal(before, random_state())
    False
    """
    state = torch.random.get_rng_state()
    return torch.cat([state, torch.cuda.get_rng_state()]) if torch.cuda.is_initialized() else state


def memory(tensor: torch.Tensor) -> int:
    """Address of a tensor's memory, the same for all its views; 0 where it has none of its own.

    Examples
    --------
    >>> table = torch.zeros(4, 4)
    >>> memory(table[1:]) == memory(table), memory(table) == memory(torch.zeros(4, 4))
    (True, False)
    """
    plain = type(tensor) in (torch.Tensor, nn.Parameter, nn.Buffer) and tensor.layout is torch.strided
    return tensor.untyped_storage().data_ptr() if plain else 0


def version(tensor: torch.Tensor) -> int:
    """How often a tensor was changed in place; 0 where PyTorch does not count.

    Examples
    --------
    >>> values = torch.zeros(2)
    >>> before = version(values)
    >>> version(values.add_(1)) - before
    1
    """
    return 0 if tensor.is_inference() else tensor._version


@contextmanager
def out_of_place(module: nn.Module) -> Iterator[None]:
    """Make an activation return a new tensor for a while, whatever its `inplace` flag says.

    Examples
    --------
    >>> act, values = nn.ReLU(inplace=True), torch.tensor([-1.0])
    >>> with out_of_place(act):
    ...     act(values).item(), values.item()
    (0.0, -1.0)
    >>> act.inplace
    True
    """
    parts = [part for part in module.modules() if part.__dict__.get("inplace")]
    for part in parts:
        part.__dict__["inplace"] = False
    try:
        yield
    finally:
        for part in parts:
            part.__dict__["inplace"] = True


def weights_hash(model: nn.Module) -> str:
    """Fingerprint of the state dictionary: equal exactly when names, types, shapes and bytes are equal.

    Independent of the device, of the memory layout and of the order in which modules were registered.

    Returns
    -------
    str
        64 hexadecimal digits (SHA-256 over name, dtype, shape and little-endian bytes, in name order).

    Examples
    --------
    >>> one, other = nn.Linear(2, 1), nn.Linear(2, 1)
    >>> len(weights_hash(one)), weights_hash(one) == weights_hash(other)
    (64, False)
    >>> other.load_state_dict(one.state_dict())
    <All keys matched successfully>
    >>> weights_hash(one) == weights_hash(other)
    True
    """
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if not isinstance(value, torch.Tensor):
            continue  # extra state of quantized modules is not a weight
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def fingerprints(images: Float[Tensor, "images C H W"], index: Int[Tensor, "images"]) -> Int[Tensor, "images"]:
    """One number for each image, from its index and its pixels: two profiles that share one have seen the same image.

    Parameters
    ----------
    images
        Images as the network sees them, normalized.
    index
        Number of each image in its data set.

    Returns
    -------
    Tensor
        int64 on the CPU, in the order of the images: the sum, modulo 2⁶⁴, of the bits of every pixel and of the index, each times
        a fixed odd number (multilinear hashing, Lemire & Kaser 2014). The same on every device and for every batch size.

    Examples
    --------
    >>> one, other, again = fingerprints(torch.zeros(3, 1, 2, 2), torch.tensor([0, 1, 0])).tolist()
    >>> one == again, one == other
    (True, False)
    """
    flat = images.detach().flatten(1).contiguous()
    bits = flat.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.element_size()])
    odd = _odd(flat.shape[1] + 1)
    if flat.device.type == "cpu":
        numbers = odd[1:].numpy()
        sums = torch.tensor([int(np.dot(row.astype(np.int64), numbers)) for row in bits.numpy()], dtype=torch.int64)
    else:
        there = odd[1:].to(flat.device)
        sums = torch.stack([(row.long() * there).sum() for row in bits]).cpu()
    return sums + (index.cpu() + 1) * odd[0]


@lru_cache(maxsize=4)
def _odd(count: int) -> Int[Tensor, "count"]:
    """Fixed odd 64-bit numbers that look random (splitmix64, Steele, Lea & Flood 2014)."""
    with np.errstate(over="ignore"):
        z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return torch.from_numpy((z ^ (z >> np.uint64(31)) | np.uint64(1)).view(np.int64))


def zero_batch(model: nn.Module, input_shape: tuple[int, ...]) -> Tensor:
    """A batch of one zero image, of the network's type and on its device.

    Examples
    --------
    >>> zero_batch(nn.Conv2d(3, 8, 1).double(), (3, 2, 2)).shape, zero_batch(nn.ReLU(), (1,))
    (torch.Size([1, 3, 2, 2]), tensor([[0.]]))
    """
    like = next(model.parameters(), torch.zeros(()))
    return torch.zeros(1, *input_shape, device=like.device, dtype=like.dtype)


def device_of(model: nn.Module) -> torch.device:
    """The device of the network's parameters.

    Examples
    --------
    >>> device_of(nn.Linear(1, 1))
    device(type='cpu')
    """
    return next(model.parameters()).device


NARROW = 16
"""Input channels below which oneDNN, up to 3.14, writes the weights' gradients of strided 1 × 1 convolutions beyond its memory."""


def gradient_overruns(kernel: Sequence[int], stride: Sequence[int], inputs: int) -> bool:
    """Whether float32 gradients of a convolution's weights damage memory on some CPUs if its images lie channels last.

    `inputs` is the number of input channels of one group. See github.com/uxlfoundation/oneDNN/issues/6035.

    Examples
    --------
    >>> gradient_overruns((1, 1), (2, 2), inputs=8), gradient_overruns((3, 3), (2, 2), inputs=8)
    (True, False)
    """
    return max(kernel) == 1 < max(stride) and inputs < NARROW


@contextmanager
def channels_last(model: nn.Module, asked: bool = True) -> Iterator[None]:
    """While inside, the weights lie in memory with the channels last; afterwards each lies as before. Values stay the same.

    Examples
    --------
    >>> net = nn.Conv2d(3, 8, 3)
    >>> with channels_last(net):
    ...     net.weight.stride()
    (27, 1, 9, 3)
    >>> net.weight.stride()
    (27, 9, 3, 1)
    """
    before = [(part, part.data.stride()) for _, part in _tensors(model)] if asked else []
    for part, _ in before:
        if part.dim() == 4:
            part.data = part.data.contiguous(memory_format=torch.channels_last)
    try:
        yield
    finally:
        for part, stride in before:
            if part.data.stride() != stride:
                part.data = torch.empty_strided(part.shape, stride, dtype=part.dtype, device=part.device).copy_(part.data)
