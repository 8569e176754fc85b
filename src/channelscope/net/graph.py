"""Graph: a network's forward pass as a list of steps that can be watched, changed and entered midway.

Tracing follows one example: shapes and Python control flow on them are resolved by its values, and the result is
compared with the network on a batch of another size, so that a graph that would be wrong is refused.
"""

import inspect
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.fx.proxy import TraceError

from channelscope.errors import InputError, TracingError, first_line
from channelscope.net import tracer
from channelscope.net.tracer import OUT_OF_PLACE, Tracer, execute

Change = Callable[[Tensor], Tensor | None]
"""What happens at a point: gets the tensor, returns its replacement, or None to leave it as it is."""

FAILURES = (TraceError, RuntimeError, TypeError, ValueError, AttributeError, AssertionError, IndexError, KeyError)


class Graph:
    """The traced forward pass of `model`; shares its parameters, copies nothing.

    Steps are named by their torch.fx node; `shapes` has each step's output shape for the example batch.
    """

    def __init__(self, model: nn.Module, steps: fx.Graph, shapes: Mapping[str, tuple[int, ...]], constants: Mapping[str, Tensor]):
        self.model = model
        self.steps = steps
        self.shapes = shapes
        self.constants = constants
        self.nodes: dict[str, fx.Node] = {node.name: node for node in steps.nodes}
        self.inputs = [node.name for node in steps.nodes if node.op == "placeholder"]
        self.modules = dict(model.named_modules())
        self._plans: dict[tuple, list[tuple[fx.Node, tuple[str, ...]]]] = {}

    def run(
        self,
        *inputs: Tensor,
        after: Mapping[str, Change] | None = None,
        given: Mapping[str, Any] | None = None,
        want: str | tuple[str, ...] = "output",
        pure: bool = False,
    ) -> Any:
        """Value of step `want` (or a tuple of values), running only what it needs.

        `after` calls a function on a step's value as soon as it exists; `given` supplies steps already computed, so
        that a run can start midway; `pure` turns in-place operations into ordinary ones, so that values wanted or
        given are never overwritten.
        """
        after, given = after or {}, given or {}
        wanted = (want,) if isinstance(want, str) else want
        unknown = [name for name in (*after, *given, *wanted) if name not in self.nodes]
        if unknown:
            raise InputError(f"the graph has no step '{unknown[0]}'; near matches: {', '.join(get_close_matches(unknown[0], self.nodes))}")
        values: dict[str, Any] = dict(given)
        values.update(zip(self.inputs, inputs, strict=False))
        for node, finished in self._plan(tuple(given), wanted):
            value = values[node.name] if node.op == "placeholder" and node.name in values else self._step(node, values, pure)
            if node.name in after:
                changed = after[node.name](value)
                value = value if changed is None else changed
            values[node.name] = value
            for name in finished:
                del values[name]
        return values[wanted[0]] if isinstance(want, str) else tuple(values[name] for name in wanted)

    def _plan(self, given: tuple[str, ...], wanted: tuple[str, ...]) -> list[tuple[fx.Node, tuple[str, ...]]]:
        """Steps to run in order, each with the values nobody needs afterwards."""
        key = (given, wanted)
        if key not in self._plans:
            needed, stack = set(), [self.nodes[name] for name in wanted if name not in given]
            while stack:
                node = stack.pop()
                if node.name not in needed:
                    needed.add(node.name)
                    stack += [parent for parent in node.all_input_nodes if parent.name not in given]
            order = [node for node in self.steps.nodes if node.name in needed]
            last = {parent.name: node.name for node in order for parent in node.all_input_nodes}
            keep = set(wanted) | set(given)
            self._plans[key] = [
                (node, tuple(name for name, user in last.items() if user == node.name and name not in keep)) for node in order
            ]
        return self._plans[key]

    def _step(self, node: fx.Node, values: Mapping[str, Any], pure: bool) -> Any:
        args: Any = map_arg(node.args, lambda parent: values[parent.name])
        kwargs: Any = map_arg(node.kwargs, lambda parent: values[parent.name])
        if node.op == "call_module":
            module = self.modules[str(node.target)]
            with out_of_place(module) if pure else _as_is():
                return module(*args, **kwargs)
        if node.op == "get_attr" and node.target in self.constants:
            return self.constants[str(node.target)]
        if node.op == "placeholder":
            if node.args:
                return node.args[0]
            raise InputError(f"the network needs an input named {node.target}, and none was given")
        if pure:
            node_target, kwargs = _pure_target(node), {**kwargs, **({"inplace": False} if kwargs.get("inplace") else {})}
        else:
            node_target = node.target
        return execute(self.model, node.op, node_target, args, kwargs)


def _pure_target(node: fx.Node) -> Any:
    """The step's ordinary form where it works in place: relu for relu_, add for iadd."""
    if node.op not in ("call_method", "call_function"):
        return node.target
    name = str(node.target if node.op == "call_method" else node.target.__name__)  # type: ignore[union-attr]
    if not name.endswith("_") or name.endswith("__"):
        return OUT_OF_PLACE.get(node.target, node.target)  # type: ignore[arg-type]
    plain = name[:-1]
    return plain if node.op == "call_method" else vars(torch).get(plain) or vars(nn.functional)[plain]


@contextmanager
def _as_is() -> Iterator[None]:
    yield


@contextmanager
def out_of_place(module: nn.Module) -> Iterator[None]:
    """Make an activation return a new tensor for a while, whatever its `inplace` flag says."""
    parts = [part for part in module.modules() if part.__dict__.get("inplace")]
    for part in parts:
        part.__dict__["inplace"] = False
    try:
        yield
    finally:
        for part in parts:
            part.__dict__["inplace"] = True


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


def trace(model: nn.Module, example: Tensor | tuple[Tensor, ...]) -> Graph:
    """Follow one forward pass of `model` on `example`, a batch of at least one image (or a tuple of inputs).

    Raises   InputError if the network cannot run on the example; TracingError, naming the line, if its control flow
             depends on values that change from image to image, or on the batch size.
    """
    if "forward" in vars(model):
        raise TracingError(
            "the network's forward pass is replaced for the moment, by an edit such as silence(…) or by hand: trace it outside"
        )
    inputs = example if isinstance(example, tuple) else (example,)
    single = tuple(part[:1] if part.dim() > 1 else part for part in inputs)
    doubled = tuple(torch.cat([part[:1], part[:1].flip(-1)]) if part.dim() > 1 else part for part in inputs)
    following = Tracer(doubled)
    with evaluating(model), unmarked(model) as marks, torch.no_grad():
        try:
            expected = model(*single)
        except FAILURES as error:
            shapes = ", ".join("×".join(map(str, part.shape[1:])) for part in inputs)
            raise InputError(f"the network cannot run on images of shape {shapes}: {first_line(error)}") from error
        try:
            steps = following.trace(model, _defaults(model, len(inputs)))
        except FAILURES as error:
            raise TracingError(f"the forward pass cannot be followed at {_where(error)}: {first_line(error)}") from error
        constants = {name: value for name, value in marks().items() if name.startswith("_tensor_constant")}
        graph = Graph(model, steps, following.shapes, constants)
        try:
            received = graph.run(*single)
        except FAILURES as error:
            raise TracingError(f"the traced network fails on another batch size: {first_line(error)}") from error
    if not _same(expected, received):
        raise TracingError(
            "the traced network computes something else on another batch: its forward pass depends on the batch size, "
            "or changes a tensor through a view of it"
        )
    return graph


def _defaults(model: nn.Module, given: int) -> dict[str, Any]:
    """Parameters of the forward pass that no input is given for, at their defaults."""
    parameters = list(inspect.signature(model.forward).parameters.values())[given:]
    return {each.name: each.default for each in parameters if each.default is not each.empty}


@contextmanager
def unmarked(model: nn.Module) -> Iterator[Callable[[], dict[str, Any]]]:
    """Take back every attribute that a pass sets on the model or a part of it; inside, the call lists those new on the model."""
    stores = [vars(module) for module in model.modules()]
    stores += [value for store in stores for value in store.values() if isinstance(value, dict)]
    before = [dict(store) for store in stores]
    try:
        yield lambda: {name: value for name, value in vars(model).items() if name not in before[0]}
    finally:
        for store, old in zip(stores, before, strict=True):
            store.clear()
            store.update(old)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        if not isinstance(b, Tensor) or a.shape != b.shape or a.dtype != b.dtype:
            return False
        scale = float(a.abs().nan_to_num(posinf=0).max()) if a.numel() else 0.0
        return torch.allclose(a, b, rtol=1e-3, atol=1e-3 * scale, equal_nan=True)
    if isinstance(a, Mapping):
        return isinstance(b, Mapping) and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, Iterable) and not isinstance(a, str):
        return isinstance(b, Iterable) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "torch" not in Path(frame.filename).parts and frame.filename not in (__file__, tracer.__file__)]
    frame = own[-1] if own else frames[-1]
    return f"{frame.filename}:{frame.lineno} ({frame.name})"
