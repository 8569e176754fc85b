"""Rewriting: recorded steps as modules, with corrected numbers and weights that are no longer computed."""

import inspect
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.fx.graph_module import _USER_PRESERVED_ATTRIBUTES_KEY
from torch.fx.node import map_aggregate

from channelscope.network.nest import tensors
from channelscope.network.operations.numbers import Edit, Number

if TYPE_CHECKING:
    from channelscope.network.removal.labeled_graph import LabeledGraph


CLOSE = torch.finfo(torch.float32).eps ** 0.5
"""Two values of one step in two runs, relative and absolute; some constants are made in float32 whatever the network is in."""


@dataclass(eq=False)
class Corrections:
    """What has to change in the steps for the smaller network."""

    edits: dict[fx.Node, Edit]
    """step → its corrected arguments"""
    folded: dict[fx.Node, Tensor]
    """step that computes a weight → what is left of the weight as it was"""
    values: dict[fx.Node, Any]
    """values of the steps in the smaller network, float64"""


@dataclass(frozen=True, eq=False)
class Call:
    """What a module was called with and what it returned."""

    args: tuple
    kwargs: dict[str, Any]
    output: Any


class Writer:
    """Copies recorded steps into a new graph.

    Parameters
    ----------
    graph
        The labeled graph.
    home
        The module that the steps become the forward pass of; new parameters are registered on it.
    path
        Where the module stands in the network.
    found
        What has to change.
    """

    def __init__(self, graph: "LabeledGraph", home: nn.Module, path: str, found: Corrections):
        self.graph, self.home, self.path, self.found = graph, home, path, found
        self.steps = fx.Graph()
        self.copies: dict[fx.Node, Any] = {}

    def write(self, nodes: Iterable[fx.Node]) -> None:
        """Copy some steps, in order."""
        for node in nodes:
            if node in self.copies:
                continue
            if node in self.found.folded:
                self.copies[node] = self._folded(node)
            elif node.op == "get_attr":
                self.copies[node] = self._attribute(node)
            else:
                self.copies[node] = self._step(node)

    def _folded(self, node: fx.Node) -> fx.Node:
        name = self._old_name(node) or f"folded_{node.name}"
        like = next(self.home.parameters(), None)
        value = self.found.folded[node] if like is None else self.found.folded[node].to(like)
        owner, _, last = name.rpartition(".")
        module = self.home.get_submodule(owner)
        old = module._parameters.get(last)
        module._parameters[last] = nn.Parameter(value.clone(), requires_grad=old is not None and old.requires_grad)
        return self.steps.create_node("get_attr", name)

    def _old_name(self, node: fx.Node) -> str:
        """Name of the parameter of the same shape that a weight is computed from, where it is used for nothing else; else empty."""
        shape = self.graph.values[node.name].shape
        upward = _before(node)
        for each in upward:
            path = str(each.target)
            if each.op != "get_attr" or path not in self.graph.parameters or self.graph.values[each.name].shape != shape:
                continue
            between = [step for step in upward if step is not node and each in _before(step)]
            if all(set(step.users) <= upward for step in between) and (not self.path or path.startswith(f"{self.path}.")):
                return self._inside(path)
        return ""

    def _attribute(self, node: fx.Node) -> Any:
        """A parameter or buffer by its path; a number as it was, for the attribute may be another now."""
        value = self.graph.values[node.name]
        if not isinstance(value, Tensor):
            return self.found.values[node]
        target = str(node.target)
        if target in self.graph.constants:
            self.home.register_buffer(target, value.clone())
            return self.steps.create_node("get_attr", target)
        return self.steps.create_node("get_attr", self._inside(target))

    def _inside(self, target: str) -> str:
        if not self.path:
            return target
        if not target.startswith(f"{self.path}."):
            raise KeyError(f"{target} is outside of {self.path}")
        return target[len(self.path) + 1 :]

    def _step(self, node: fx.Node) -> fx.Node:
        changed = self.found.edits.get(node)
        args, kwargs = (node.args, node.kwargs) if changed is None else (changed.args, changed.kwargs)
        target = self._inside(str(node.target)) if node.op == "call_module" else node.target
        if changed is not None and changed.target is not None:
            target = changed.target
        name = None if self.path else node.name
        copied = self.steps.create_node(node.op, target, map_aggregate(args, self.of), map_aggregate(kwargs, self.of), name)  # type: ignore[arg-type]
        if changed is not None and changed.places is not None:
            axis, left = changed.places
            self.home.register_buffer(f"places_{node.name}", left)
            copied = self.steps.call_function(torch.index_select, (copied, axis, self.steps.get_attr(f"places_{node.name}")))
        if changed is not None and changed.factor != 1:
            copied = self.steps.call_function(operator.mul, (copied, changed.factor))
        return copied

    def of(self, part: Any) -> Any:
        """A part of the arguments of a step in the new graph."""
        if isinstance(part, fx.Node):
            return self.copies[part]
        if isinstance(part, slice):
            return slice(self.of(part.start), self.of(part.stop), self.of(part.step))
        if not isinstance(part, Number):
            return part
        given = self.of(part.given) if isinstance(part.given, fx.Node) else None
        if not isinstance(given, fx.Node):
            return part.want
        product = self.steps.call_function(operator.mul, (given, part.want))  # in proportion: sizes may depend on the batch
        return self.steps.call_function(operator.floordiv, (product, part.now))

    def finished(self, name: str) -> fx.GraphModule:
        """The module of the copied steps."""
        live = fx.GraphModule(self.home, self.steps, name)
        live.graph.eliminate_dead_code()
        result = fx.GraphModule(live, live.graph, name)  # without what no step uses any more
        return result.train(self.home.training)  # type: ignore[return-value]


def _before(node: fx.Node) -> set[fx.Node]:
    """A step and all that it is computed from."""
    found, stack = {node}, [node]
    while stack:
        parents = [parent for parent in stack.pop().all_input_nodes if parent not in found]
        found.update(parents)
        stack += parents
    return found


def rewritten(graph: "LabeledGraph", small: nn.Module, found: Corrections) -> nn.Module:
    """A whole network as its recorded steps; parameters and modules keep their names.

    Examples
    --------
    >>> from channelscope.network.removal.trial import labeled_graph
    >>> net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(3, 1)).eval()
    >>> graph = labeled_graph(net, torch.ones(1, 1, 1, 1))
    >>> same = rewritten(graph, net, Corrections({}, {}, {}))
    >>> torch.equal(same(torch.ones(2, 1, 1, 1)), net(torch.ones(2, 1, 1, 1)))
    True
    """
    writer = Writer(graph, small, "", found)
    writer.write(graph.steps.nodes)
    return writer.finished(type(small).__name__)


def rewritten_part(
    graph: "LabeledGraph", small: nn.Module, path: str, call: Call, found: Corrections, whole: Mapping[fx.Node, Any]
) -> bool:
    """Replace one module of a network by its recorded steps; returns whether that could be done.

    Tensors are arguments of the new module as of the old one; numbers given from outside are those of the recorded call.

    Parameters
    ----------
    graph
        The labeled graph.
    small
        The network with cut parameters.
    path
        Path of the module, which is called once.
    call
        What it was called with, in the network as it is.
    found
        What has to change.
    whole
        Values of the steps in the network as it is.

    Examples
    --------
    >>> from channelscope.network.removal.trial import labeled_graph
    >>> net = nn.Sequential(nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU()), nn.Flatten(), nn.Linear(3, 1)).eval()
    >>> graph = labeled_graph(net, torch.ones(1, 1, 1, 1))
    >>> from channelscope.network.removal.finishing import calls
    >>> (call,) = calls(graph, {"0"})["0"]
    >>> whole = {node: graph.values[node.name].double() for node in graph.steps.nodes if node.op != "output"}
    >>> rewritten_part(graph, net, "0", call, Corrections({}, {}, {}), whole), type(net[0]).__name__
    (True, 'Sequential')
    """
    module = small.get_submodule(path)
    inside = [node for node in graph.steps.nodes if _belongs(graph.owner.get(node.name, ""), path) and node.op != "output"]
    writer = Writer(graph, module, path, found)
    outer = dict.fromkeys(parent for node in inside for parent in node.all_input_nodes if parent not in set(inside))
    places = _placeholders(writer.steps, type(module), call)
    try:
        for node in outer:
            _enter(writer, node, places, whole)
        writer.write(inside)
        output = map_aggregate(call.output, lambda part: _returned(writer, part, inside, whole))
    except (KeyError, StopIteration):
        return False
    writer.steps.output(output)  # type: ignore[arg-type]
    result = writer.finished(type(module).__name__)
    kept = {name: value for name, value in vars(module).items() if name not in vars(result)}
    result.meta[_USER_PRESERVED_ATTRIBUTES_KEY] = kept  # so that copies have them too
    for name, value in kept.items():
        setattr(result, name, value)
    owner, _, last = path.rpartition(".")
    small.get_submodule(owner)._modules[last] = result
    return True


def _belongs(owner: str, path: str) -> bool:
    return owner == path or owner.startswith(f"{path}.")


def _placeholders(steps: fx.Graph, kind: type[nn.Module], call: Call) -> list[tuple[Any, fx.Node]]:
    """A placeholder for each parameter of a forward pass, with what was given for it."""
    signature = inspect.signature(kind.forward)
    given = signature.bind(None, *call.args, **call.kwargs).arguments
    places = []
    for parameter in list(signature.parameters.values())[1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        missing = parameter.default is parameter.empty
        node = steps.placeholder(parameter.name, default_value=inspect.Signature.empty if missing else parameter.default)
        places.append((given.get(parameter.name, parameter.default), node))
    return places


def _enter(writer: Writer, node: fx.Node, places: list[tuple[Any, fx.Node]], whole: Mapping[fx.Node, Any]) -> None:
    """Find a value from outside among the arguments, or what computes it from them."""
    if node in writer.copies:
        return
    value = whole[node]
    if node.op == "get_attr" and not isinstance(value, torch.device | torch.dtype):
        writer.write([node])
        return
    if isinstance(value, torch.device | torch.dtype):
        form = "device" if isinstance(value, torch.device) else "dtype"
        alike = (placeholder for given, placeholder in places if isinstance(given, Tensor) and operator.attrgetter(form)(given) == value)
        writer.copies[node] = writer.steps.call_function(getattr, (next(alike), form))
        return
    for given, placeholder in places:
        if type(given) is type(value) and _equal(given, value):
            writer.copies[node] = placeholder
            return
        if isinstance(given, tuple | list):
            for index, part in enumerate(given):
                if type(part) is type(value) and _equal(part, value):
                    writer.copies[node] = writer.steps.call_function(operator.getitem, (placeholder, index))
                    return
    if tensors(value):
        raise KeyError(node.name)
    for parent in node.all_input_nodes:
        _enter(writer, parent, places, whole)
    writer.write([node])


def _equal(one: Any, other: Any) -> bool:
    if not isinstance(one, Tensor):
        return bool(one == other)
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.allclose(one, other, rtol=CLOSE, atol=CLOSE, equal_nan=True) if one.is_floating_point() else torch.equal(one, other)


def _returned(writer: Writer, part: Any, inside: list[fx.Node], whole: Mapping[fx.Node, Any]) -> Any:
    if not isinstance(part, Tensor):
        return part
    return next(writer.copies[node] for node in reversed(inside) if isinstance(whole[node], Tensor) and _equal(part, whole[node]))
