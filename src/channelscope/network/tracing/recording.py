"""Recording: one real forward pass as a list of steps.

The network runs as it is, on an example, and every call of a PyTorch function, tensor method or plain module becomes a
step of a torch.fx graph. Python runs as usual: keyword arguments, optional parameters, control flow on shapes and
outputs of any kind need no rule. What Python decides from the values of pixels is refused. Wrappers are taken off
before, and outputs are compared with the network's own afterwards.
"""

import sys
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from channelscope.errors import TracingError
from channelscope.network import nest
from channelscope.network.module_state import restored_state
from channelscope.network.tracing.interception import intercepted
from channelscope.network.tracing.numbers import attributes, mathematics
from channelscope.network.tracing.recorder import Recorder, Recording


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
    """The steps with numbers in the place of steps that compute them from attributes alone."""
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
    """One image that is another than the first of a batch; an input without batch axis comes back as it is."""
    if part.dim() < 2:
        return part
    image = part[:1].roll(1, -1)
    if not image.is_floating_point():
        return image
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0)).to(image)
    return image + noise * (image.std(correction=0) + (image == image.flatten()[0]).all())


def same(a: Any, b: Any) -> bool:
    """Whether two outputs are of the same form and their tensors differ by rounding alone."""
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
    """Whether some number of an output is finite, or nothing in it can be infinite."""
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
    """Rounding of the coarsest type among a network's parameters."""
    kinds = {part.dtype for part in model.parameters() if part.is_floating_point()}
    return max((torch.finfo(kind).eps for kind in kinds), default=torch.finfo(torch.float32).eps)
