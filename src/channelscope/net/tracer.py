"""Tracer: follows a forward pass symbolically and carries an example's values along, so that shapes are known."""

import operator
import sys
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.fx.proxy import TraceError

LEAVES = (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
"""Modules that are one step each; so are all of torch.nn, but not what derives from it elsewhere."""
OUT_OF_PLACE = {
    operator.iadd: operator.add,
    operator.imul: operator.mul,
    operator.isub: operator.sub,
    operator.itruediv: operator.truediv,
}
"""Python's augmented assignments, which change a tensor, and their ordinary forms."""
READING = {"item", "tolist", "numpy"}
"""Methods that turn a tensor into values of one example."""


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


class _Proxy(fx.Proxy):
    def __len__(self) -> int:
        return len(self.tracer.values[self.node])  # type: ignore[attr-defined]

    def __index__(self) -> int:
        return operator.index(self.tracer.fixed(self.node))  # type: ignore[attr-defined]

    def __float__(self) -> float:
        return float(self.tracer.fixed(self.node))  # type: ignore[attr-defined]

    __int__ = __index__


class Tracer(fx.Tracer):
    """Symbolic tracer that carries the example's values along.

    Shapes, and Python control flow on them, are resolved by the example; what would be resolved by the values of its
    pixels is refused.
    """

    def __init__(self, example: tuple[Tensor, ...]):
        timm = sys.modules.get("timm.layers")  # a network made of its parts has imported it
        functions = tuple(timm.get_notrace_functions()) if timm else ()
        self.notrace: tuple[type, ...] = tuple(timm.get_notrace_modules()) if timm else ()
        super().__init__(autowrap_functions=functions)
        self.example = iter(example)
        self.values: dict[fx.Node, Any] = {}
        self.read_out: set[fx.Node] = set()
        self.changed: dict[fx.Node, fx.Node] = {}
        self.executing = False

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each step's value, where it is a tensor."""
        return {node.name: tuple(value.shape) for node, value in self.values.items() if isinstance(value, Tensor)}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is one step."""
        return isinstance(m, LEAVES + self.notrace) or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """A stand-in for a step's value."""
        return _Proxy(node, self)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **options: Any) -> fx.Proxy:  # type: ignore[override]
        """Record a step and carry it out on the example."""
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **options)
        node = proxy.node
        if kind == "placeholder":
            value = next(self.example, args[0] if args else None)
        else:
            given: Any = map_aggregate(node.args, self._value)
            named: Any = map_aggregate(node.kwargs, self._value)
            self.executing = True
            try:
                value = execute(self.root, kind, target, given, named)
            finally:
                self.executing = False
            if node.args and isinstance(node.args[0], fx.Node) and self._in_place(kind, target, kwargs):
                self.changed[node.args[0]] = node
        self.values[node] = value
        taken = kind == "call_method" and target in READING
        if not isinstance(value, Tensor) and (taken or any(parent in self.read_out for parent in node.all_input_nodes)):
            self.read_out.add(node)
        return proxy

    def create_arg(self, a: Any) -> Any:
        """What a step is given: of a tensor that was changed in place, its latest state, whoever holds it."""
        given = super().create_arg(a)
        while isinstance(given, fx.Node) and given in self.changed:
            given = self.changed[given]
        return given

    def _in_place(self, kind: str, target: Any, kwargs: dict) -> bool:
        """Whether a step changes its first argument: y.relu_(), y += 1, F.relu(y, inplace=True), ReLU(inplace=True)."""
        if kind == "call_module":
            return bool(vars(self.root.get_submodule(target)).get("inplace"))
        name = str(target if kind == "call_method" else target.__name__)
        return target in OUT_OF_PLACE or bool(kwargs.get("inplace")) or (name.endswith("_") and not name.endswith("__"))

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
        """A module called while a step is carried out runs as it is."""
        return forward(*args, **kwargs) if self.executing else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """An attribute read while a step is carried out is its value."""
        return attr_val if self.executing else super().getattr(attr, attr_val, parameter_proxy_cache)

    def _value(self, part: Any) -> Any:
        if not isinstance(part, fx.Node):
            return part
        if part not in self.values and part.op == "get_attr":
            self.values[part] = execute(self.root, "get_attr", part.target, (), {})
        return self.values[part]

    def fixed(self, node: fx.Node) -> Any:
        """A step's value where Python needs it now; refused where it would be another for another image."""
        value = self.values[node]
        if isinstance(value, Tensor) or node in self.read_out:
            raise TraceError("the pass depends in Python on the values of a tensor, which change from image to image")
        return value

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Branches on shapes are resolved, branches on tensors refused."""
        return bool(self.fixed(obj.node))

    def iter(self, obj: fx.Proxy) -> Iterator:
        """Unpacking follows the example's length."""
        return iter([obj[position] for position in range(len(self.values[obj.node]))])  # type: ignore[index]
