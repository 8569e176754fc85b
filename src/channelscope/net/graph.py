"""Graph: a network's forward pass as a list of steps that can be watched, changed and entered midway.

Tracing follows one example: shapes and Python control flow on them are resolved by its values, and the result is
compared with the network on a batch of another size, so that a graph that would be wrong is refused.
"""

import operator
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate, map_arg
from torch.fx.proxy import TraceError

from channelscope.errors import InputError, TracingError

Change = Callable[[Tensor], Tensor | None]
"""What happens at a point: gets the tensor, returns its replacement, or None to leave it as it is."""

LEAVES = (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
FAILURES = (TraceError, RuntimeError, TypeError, ValueError, AttributeError, AssertionError, IndexError, KeyError)
OUT_OF_PLACE = {
    operator.iadd: operator.add,
    operator.imul: operator.mul,
    operator.isub: operator.sub,
    operator.itruediv: operator.truediv,
}


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


def execute(model: nn.Module, op: str, target: Any, args: tuple, kwargs: dict) -> Any:
    """Carry out one step of a traced graph on concrete values."""
    if op == "get_attr":
        value: Any = model
        for part in str(target).split("."):
            value = getattr(value, part)
        return value
    if op == "call_function":
        return target(*args, **kwargs)
    if op == "call_method":
        return getattr(args[0], target)(*args[1:], **kwargs)
    if op == "call_module":
        return model.get_submodule(target)(*args, **kwargs)
    return args[0]  # output


def _pure_target(node: fx.Node) -> Any:
    if node.op == "call_method" and str(node.target).endswith("_") and not str(node.target).endswith("__"):
        return str(node.target)[:-1]
    return OUT_OF_PLACE.get(node.target, node.target) if node.op == "call_function" else node.target  # type: ignore[arg-type]


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
    inputs = example if isinstance(example, tuple) else (example,)
    doubled = tuple(torch.cat([part[:1], part[:1].flip(-1)]) if part.dim() > 1 else part for part in inputs)
    with evaluating(model), torch.no_grad():
        try:
            expected = model(*(part[:1] if part.dim() > 1 else part for part in inputs))
        except FAILURES as error:
            shapes = ", ".join("×".join(map(str, part.shape[1:])) for part in inputs)
            raise InputError(f"the network cannot run on images of shape {shapes}: {str(error).splitlines()[0]}") from error
        tracer = _Tracer(doubled)
        try:
            steps = tracer.trace(model)
        except FAILURES as error:
            raise TracingError(f"the forward pass cannot be followed at {_where(error)}: {str(error).splitlines()[0]}") from error
        finally:
            constants = {name: model.__dict__.pop(name) for name in list(model.__dict__) if name.startswith("_tensor_constant")}
        graph = Graph(model, steps, tracer.shapes, constants)
        try:
            received = graph.run(*(part[:1] if part.dim() > 1 else part for part in inputs))
        except FAILURES as error:
            raise TracingError(f"the traced network fails on another batch size: {str(error).splitlines()[0]}") from error
    if not _same(expected, received):
        raise TracingError("the traced network computes something else on another batch size: its forward pass depends on it")
    return graph


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-3, equal_nan=True)
    if isinstance(a, Mapping):
        return isinstance(b, Mapping) and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, Iterable) and not isinstance(a, str):
        return isinstance(b, Iterable) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "torch" not in frame.filename.split("/") and frame.filename != __file__]
    frame = own[-1] if own else frames[-1]
    return f"{frame.filename}:{frame.lineno} ({frame.name})"


class _Proxy(fx.Proxy):
    def __len__(self) -> int:
        return len(self.tracer.values[self.node])  # type: ignore[attr-defined]

    def __index__(self) -> int:
        return operator.index(self.tracer.values[self.node])  # type: ignore[attr-defined]

    __int__ = __index__


class _Tracer(fx.Tracer):
    """Symbolic tracer that carries the example's values along."""

    def __init__(self, example: tuple[Tensor, ...]):
        timm = sys.modules.get("timm.layers")  # a network made of its parts has imported it
        functions = tuple(timm.get_notrace_functions()) if timm else ()
        self.notrace: tuple[type, ...] = tuple(timm.get_notrace_modules()) if timm else ()
        super().__init__(autowrap_functions=functions)
        self.example = iter(example)
        self.values: dict[fx.Node, Any] = {}
        self.executing = False

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {node.name: tuple(value.shape) for node, value in self.values.items() if isinstance(value, Tensor)}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, LEAVES + self.notrace) or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **options: Any) -> fx.Proxy:  # type: ignore[override]
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **options)
        if kind == "placeholder":
            value = next(self.example, args[0] if args else None)
        else:
            args, kwargs = (map_aggregate(part, self._value) for part in (proxy.node.args, proxy.node.kwargs))
            self.executing = True
            try:
                value = execute(self.root, kind, target, args, kwargs)
            finally:
                self.executing = False
        self.values[proxy.node] = value
        return proxy

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
        return forward(*args, **kwargs) if self.executing else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self.executing else super().getattr(attr, attr_val, parameter_proxy_cache)

    def _value(self, part: Any) -> Any:
        if not isinstance(part, fx.Node):
            return part
        if part not in self.values and part.op == "get_attr":
            self.values[part] = execute(self.root, "get_attr", part.target, (), {})
        return self.values[part]

    def to_bool(self, obj: fx.Proxy) -> bool:
        value = self.values[obj.node]
        if isinstance(value, Tensor):
            raise TraceError("the pass branches on the value of a tensor, which changes from image to image")
        return bool(value)

    def iter(self, obj: fx.Proxy) -> Iterator:
        return iter([obj[position] for position in range(len(self.values[obj.node]))])  # type: ignore[index]
