"""Recording: one real forward pass as a list of steps.

The network runs as it is, on an example, and every call of a PyTorch function, tensor method or plain module becomes a
step of a torch.fx graph. Python runs as usual: keyword arguments, optional parameters, control flow on shapes and
outputs of any kind need no rule. What Python decides from the values of pixels is refused. Wrappers are taken off
before, and outputs are compared with the network's own afterwards. `intercepted` is the context in which calls are seen.
"""

import builtins
import operator
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import function as autograd
from torch.fx.node import map_aggregate, map_arg
from torch.jit._fuser import optimized_execution
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._python_dispatch import TorchDispatchMode

from channelscope.errors import TracingError
from channelscope.network import nest
from channelscope.network.module_state import restored_state
from channelscope.network.tracing.recorder import FORM, Recorder, Recording
from channelscope.network.tracing.spelling import Origin, Spelling, attributes, followed, mathematics, ordinary, plain


def one_step(module: nn.Module) -> bool:
    """Whether a module is recorded as one step: it does what a layer of torch.nn does.

    Containers and transformer layers are entered, and so are modules with parametrizations.

    Examples
    --------
    >>> one_step(nn.Conv2d(3, 8, 1)), one_step(nn.Sequential()), one_step(nn.TransformerEncoderLayer(8, 2))
    (True, False, False)
    """
    if isinstance(module, torch.jit.ScriptModule):
        return True
    for kind in type(module).__mro__:
        if kind.__module__.startswith("torch.nn.modules.") and kind is not nn.Module:
            room = kind.__module__.rpartition(".")[2]
            own = type(module).forward is kind.forward
            return room not in ("container", "transformer") and own and not nn.utils.parametrize.is_parametrized(module)
    return False


def record(
    model: nn.Module, args: tuple, kwargs: Mapping[str, Any] | None = None, whole: Callable[[nn.Module], bool] = one_step
) -> Recording:
    """Run the forward pass once and return its steps.

    The network runs in evaluation mode without gradients; its training modes, attributes, buffers and the random state
    are afterwards as they were.

    Parameters
    ----------
    model
        The network.
    args
        Positional arguments of its forward pass; tensors, alone or in containers, become inputs of the recording.
    kwargs
        Keyword arguments.
    whole
        Which modules are recorded as one step; the others are entered.

    Raises
    ------
    TracingError
        If Python depends on the values of the inputs, or a tensor is changed in a way that no step can say; the message
        names the line. If the network has lazy layers.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten())
    >>> recording = record(net, (torch.zeros(2, 3, 5, 5),))
    >>> [node.name for node in recording.steps.nodes]
    ['input_1', '_0', '_1', '_2', 'output']
    >>> recording.values["_2"].shape
    torch.Size([2, 100])
    """
    with restored_state(model):
        recorder = Recorder(model, whole)
        args, kwargs = recorder.inputs(args, dict(kwargs or {}))
        with ExitStack() as stack:
            stack.enter_context(attributes(recorder, model, lambda module: not whole(module)))
            for parameter in model.parameters():
                parameter.requires_grad_(False)  # so that gradients may be allowed, and blocks that forbid them are seen
            stack.enter_context(mathematics())
            stack.enter_context(torch.enable_grad())
            stack.enter_context(intercepted(recorder))
            output = model(*args, **kwargs)
        return recorder.finished(output)


def literal(recording: Recording) -> fx.Graph:
    """The steps with numbers in the place of steps that compute them from attributes alone.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(2, 3))
    >>> len(literal(record(net, (torch.zeros(1, 2),))).nodes)
    3
    """
    steps, values = recording.steps, recording.values
    for node in list(steps.nodes):
        number = node.op in ("get_attr", "call_function") and not node.all_input_nodes and not nest.holds_tensor(values[node.name])
        if number:
            for user in list(node.users):
                user.args = _exchanged(user.args, node, values[node.name])
                user.kwargs = _exchanged(user.kwargs, node, values[node.name])
            steps.erase_node(node)
            del values[node.name], recording.owner[node.name]
    return steps


def follow_images(steps: fx.Graph, other: fx.Graph, images: int, more: int) -> None:
    """Put the number of images in the place of numbers of the steps that are in proportion to it, as two recordings show.

    Python makes ordinary numbers of sizes in ways that are not seen, such as `int(x.shape[0])`.

    Parameters
    ----------
    steps
        Recorded on so many images.
    other
        Recorded on more images.
    images, more
        How many they were.

    Raises
    ------
    TracingError
        If the recordings differ in anything else; nothing is changed then.

    Examples
    --------
    >>> class Flat(nn.Module):
    ...     def forward(self, x):
    ...         return x.view(int(x.shape[0]), -1)
    >>> one, other = (literal(record(Flat(), (torch.zeros(n, 2, 3),))) for n in (2, 3))
    >>> follow_images(one, other, 2, 3)
    >>> [node.name for node in one.nodes]
    ['x', 'size', 'view', 'output']
    """
    pairs = list(zip(steps.nodes, other.nodes, strict=False))
    if len(steps.nodes) != len(other.nodes) or any((one.op, one.target) != (two.op, two.target) for one, two in pairs):
        raise TracingError("other steps are taken for another number of images")
    places = {two: one for one, two in pairs}

    def wanted(one: Any, two: Any) -> Any:
        two = places[two] if isinstance(two, fx.Node) else two
        if type(one) is int and type(two) is int and one != two and one % images == 0 and one * more == two * images:
            return _Times(one // images)
        if isinstance(one, slice) and isinstance(two, slice):
            return slice(*(wanted(*pair) for pair in ((one.start, two.start), (one.stop, two.stop), (one.step, two.step))))
        if isinstance(one, tuple | list) and isinstance(two, tuple | list) and len(one) == len(two):
            return type(one)([wanted(*pair) for pair in zip(one, two, strict=True)])
        if isinstance(one, dict) and isinstance(two, dict) and one.keys() == two.keys():
            return {key: wanted(one[key], two[key]) for key in one}
        if type(one) is not type(two) or one != two:
            raise TracingError("numbers change with the number of images, and not in proportion to it")
        return one

    changed = {one: wanted((one.args, one.kwargs), (two.args, two.kwargs)) for one, two in pairs}
    inputs = [node for node in steps.nodes if node.op == "placeholder"]
    made: dict[int, fx.Node] = {}

    def product(part: Any) -> Any:
        if not isinstance(part, _Times):
            return part
        if part not in made:
            size = None if part == 1 else product(_Times(1))
            with steps.inserting_after(size or inputs[-1]):
                once = size is None
                made[part] = steps.call_method("size", (inputs[0], 0)) if once else steps.call_function(operator.mul, (size, int(part)))
            made[part].meta.update(inputs[0].meta)
        return made[part]

    for node, arguments in changed.items():
        node.args, node.kwargs = map_aggregate(arguments, product)


class _Times(int):
    """So many times the number of images."""


def _exchanged(arguments: Any, node: fx.Node, value: Any) -> Any:
    return map_arg(arguments, lambda part: value if part is node else part)


WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, torch.optim.swa_utils.AveragedModel)
"""Modules that only pass their arguments on to the network they hold as `module`."""


def unwrapped(model: nn.Module) -> nn.Module:
    """The network itself, with a warning, if it is wrapped by torch.compile, data parallelism or an averaged model.

    Parameters
    ----------
    model
        Any network; one that is not wrapped comes back as it is.

    Raises
    ------
    TracingError
        If the network is scripted: its steps cannot be seen.

    Examples
    --------
    >>> net = nn.Linear(2, 3)
    >>> unwrapped(net) is net
    True
    """
    found = model
    while (inner := _inside(found)) is not None:
        found = inner
    if isinstance(found, torch.jit.ScriptModule):
        raise TracingError(
            "expected a network written in Python, received one made by torch.jit.script or torch.jit.trace, whose steps cannot be seen: "
            "pass the nn.Module it was made from"
        )
    if found is not model:
        warnings.warn(
            f"the network is wrapped in {type(model).__name__}: the {type(found).__name__} inside is used, and layers have its names",
            UserWarning,
            stacklevel=3,
        )
    return found


def _inside(model: nn.Module) -> nn.Module | None:
    if isinstance(model, WRAPPERS):
        return model.get_submodule("module")
    compiled = sys.modules.get("torch._dynamo.eval_frame")  # nothing is compiled before this is imported
    if compiled is not None and isinstance(model, compiled.OptimizedModule):
        return model.get_submodule("_orig_mod")
    return None


EXPONENT = 0.6
"""The same sums in another order may differ by eps**EXPONENT of the largest output: 4e-10 in float64, 7e-5 in float32."""


def other_image(part: Tensor) -> Tensor:
    """One image that is another than the first of a batch; an input without batch axis comes back as it is.

    Examples
    --------
    >>> other_image(torch.tensor([[1, 2, 3], [4, 5, 6]]))
    tensor([[3, 1, 2]])
    """
    if part.dim() < 2:
        return part
    image = part[:1].roll(1, -1)
    if not image.is_floating_point():
        return image
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0)).to(image)
    return image + noise * (image.std(correction=0) + (image == image.flatten()[0]).all())


def same(a: Any, b: Any) -> bool:
    """Whether two outputs are of the same form and their tensors differ by rounding alone.

    Examples
    --------
    >>> same({"a": torch.tensor([1.0])}, {"a": torch.tensor([1.0000001])}), same(torch.zeros(1), torch.ones(1))
    (True, False)
    """
    a, b = nest.opened(a), nest.opened(b)
    if isinstance(a, Tensor):
        if not isinstance(b, Tensor) or a.shape != b.shape or a.dtype != b.dtype:
            return False
        scale = float(a.abs().nan_to_num(posinf=0).max()) if a.numel() else 0.0
        return torch.allclose(a, b, rtol=1e-3, atol=1e-3 * scale, equal_nan=True)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, tuple | list):
        return type(a) is type(b) and len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and a == b


def distance(received: Any, expected: Any, path: str = "output", floor: float = 0.0) -> tuple[float, str]:
    """Largest difference between two nested outputs and the path of the tensor that has it.

    Parameters
    ----------
    received, expected
        Outputs as `nest.leaves` takes them.
    path
        Name of the output itself.
    floor
        Size below which a tensor's largest value is taken for the rounding of larger ones; differences are then fractions of it.

    Returns
    -------
    float
        Largest absolute difference of a tensor as a fraction of its largest expected value; infinite where shapes, integers,
        or the places of nan and infinity differ.
    str
        Path of that tensor.

    Examples
    --------
    >>> distance({"a": torch.tensor([4.0, 1.0])}, {"a": torch.tensor([4.0, 2.0])})
    (0.25, "output['a']")
    >>> distance((torch.zeros(1), 3), (torch.zeros(1), 4))
    (inf, 'output[1]')
    """
    ours, theirs = list(nest.leaves(received, path)), list(nest.leaves(expected, path))
    strange = {path for path, _ in ours} ^ {path for path, _ in theirs}
    if strange:
        return float("inf"), min(strange)
    there = dict(theirs)
    return max(((_apart(value, there[path], floor), path) for path, value in ours), key=lambda pair: pair[0], default=(0.0, path))


def defined(output: Any) -> bool:
    """Whether some number of an output is finite, or nothing in it can be infinite.

    Examples
    --------
    >>> defined(torch.tensor([torch.nan, 1.0])), defined({"a": torch.tensor([torch.nan])})
    (True, False)
    """
    parts = [part for _, part in nest.leaves(output) if isinstance(part, Tensor) and part.is_floating_point() and part.numel()]
    return not parts or any(bool(part.isfinite().any()) for part in parts)


def _apart(received: Any, expected: Any, floor: float) -> float:
    different = float("inf")
    if not isinstance(expected, Tensor) or not isinstance(received, Tensor):
        return 0.0 if type(received) is type(expected) and received == expected else different
    if received.shape != expected.shape or received.dtype != expected.dtype:
        return different
    if not (expected.is_floating_point() or expected.is_complex()):
        return 0.0 if torch.equal(received, expected) else different
    finite = expected.isfinite()
    if not torch.equal(received[~finite].nan_to_num(nan=0.5), expected[~finite].nan_to_num(nan=0.5)):
        return different
    if not bool(finite.any()):
        return 0.0
    gap, scale = float((received - expected)[finite].abs().max()), max(float(expected[finite].abs().max()), floor)
    if gap != gap:
        return different
    return gap / scale if scale else (0.0 if gap == 0 else different)


def coarsest(model: nn.Module) -> float:
    """Rounding of the coarsest type among a network's parameters.

    Examples
    --------
    >>> coarsest(nn.Linear(1, 1).double()) < coarsest(nn.Linear(1, 1)) < coarsest(nn.Linear(1, 1).bfloat16())
    True
    """
    kinds = {part.dtype for part in model.parameters() if part.is_floating_point()}
    return max((torch.finfo(kind).eps for kind in kinds), default=torch.finfo(torch.float32).eps)


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
        layer = self.recorder.layer(func, args, kwargs)
        if layer is not None:
            value = self.recorder.module(layer.path, layer.layer, lambda module, given: module.forward(given), (layer.input,), {})
            return layer.rebiased(value, lambda function, *parts: self._call(function, parts, {}))
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
        calls = (_autograd_functions(recorder, thread), _lengths(recorder, thread), _Functions(recorder), _Beneath(recorder))
        with optimized_execution(False), ExitStack() as stack:
            for each in calls:
                stack.enter_context(each)
            yield
    finally:
        nn.Module.__call__ = original  # type: ignore[method-assign]


@contextmanager
def _lengths(recorder: Recorder, thread: int) -> Iterator[None]:
    """While inside, the length of a tensor is followed like its size; Python makes an ordinary number of what `__len__` returns."""
    original = builtins.len

    def length(value: Any) -> int:
        number = original(value)
        if recorder.inside or not isinstance(value, Tensor) or threading.get_ident() != thread:
            return number
        recorder.inside += 1
        try:
            return followed(Origin(recorder, "call_method", "size", (recorder.node(value), 0), number))
        finally:
            recorder.inside -= 1

    builtins.len = length  # type: ignore[assignment]
    try:
        yield
    finally:
        builtins.len = original


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
