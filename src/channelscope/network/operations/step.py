"""Step: one step of a recorded pass as an entry of the table sees it; and the opaque entry, which every step without one of its own has.

Inputs and outputs of an opaque step are kept whole, and its multiply-adds are counted as executed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.utils.flop_counter import FlopCounterMode

from channelscope.network.nest import tensors
from channelscope.network.operations.operation import Operation, of_step, register, spelling
from channelscope.network.removal.labels import channels_in, compact, fixed

if TYPE_CHECKING:
    from channelscope.network.removal.labeled_graph import LabeledGraph


@dataclass(frozen=True, eq=False)
class Operand:
    """A tensor that a step uses as its weight, bias or scale."""

    value: Tensor
    path: str | None
    """path of the parameter or buffer when it is one itself, None when it is computed"""
    node: fx.Node | None
    """the step that it comes from; None for a parameter of the called module"""


def execute(model: nn.Module, op: str, target: Any, args: tuple, kwargs: Mapping[str, Any]) -> Any:
    """Carry out one step of a traced graph on concrete values.

    Examples
    --------
    >>> execute(nn.Sequential(nn.Flatten()), "call_module", "0", (torch.zeros(1, 2, 3),), {}).shape
    torch.Size([1, 6])
    """
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


@dataclass(frozen=True, eq=False)
class Call:
    """A step of a traced network with its entry in the table: its arguments by name, as they stand in the graph.

    Parameters
    ----------
    node
        The step of the recorded graph.
    entry
        Its entry in the table.
    modules
        Path → module of the network.

    Examples
    --------
    >>> from channelscope.network.graph import trace
    >>> graph = trace(nn.Sequential(nn.MaxPool2d(3, 2)), torch.zeros(1, 3, 8, 8))
    >>> call = call_of(graph.nodes["_0"], graph.modules)
    >>> call.entry.name, call.number("stride"), call.entry.window(call)
    ('pool', 2, ((3, 2, 0, 1), (3, 2, 0, 1)))
    """

    node: fx.Node
    entry: Operation
    modules: Mapping[str, nn.Module]

    @property
    def module(self) -> nn.Module | None:
        """The module that the step calls; None for a function or method."""
        return self.modules[str(self.node.target)] if self.node.op == "call_module" else None

    @property
    def spelled(self) -> str:
        """Name of the function or method, or of the module's class."""
        return spelling(self.node) if self.module is None else type(self.module).__name__

    def argument(self, name: str, default: Any = None) -> Any:
        """An argument as it stands in the graph: a step, a number or a container of them; a module's attribute by the same name."""
        place = self.entry.arguments.index(name) if name in self.entry.arguments else len(self.node.args)
        if self.module is not None and place > 0:
            return self.module.__dict__.get(name, default)
        if place < len(self.node.args):
            return self.node.args[place]
        if name in self.node.kwargs:
            return self.node.kwargs[name]
        return next(iter(self.node.all_input_nodes), default) if place == 0 else default

    def positional(self, place: int, name: str) -> Any:
        """An argument of a call by its position or, if it is not given so, by its name."""
        return self.node.args[place] if place < len(self.node.args) else self.node.kwargs.get(name)

    def number(self, name: str, default: Any = None) -> Any:
        """An argument that is a number or a container of numbers; the default where it is computed in the pass."""
        found: list[fx.Node] = []
        argument = self.argument(name, default)
        map_arg(argument, found.append)
        return default if found else argument


def call_of(node: fx.Node, modules: Mapping[str, nn.Module]) -> Call:
    """A step of a traced network with its entry; the opaque one where the table has none, and for inputs and parameters.

    Examples
    --------
    >>> graph = fx.Graph()
    >>> call = call_of(graph.call_method("relu", (graph.placeholder("x"),)), {})
    >>> call.entry.pointwise, call.entry.weighted
    (True, False)
    """
    return Call(node, of_step(node, modules), modules)


@dataclass(frozen=True, eq=False)
class Step(Call):
    """One step: its arguments by name, their labels and values, and the walk it belongs to.

    Parameters
    ----------
    node, entry, modules
        As in `Call`.
    walk
        The channel graph that is being built.
    """

    walk: "LabeledGraph"

    @property
    def value(self) -> Any:
        """The recorded value of the step."""
        return self.walk.values[self.node.name]

    @property
    def place(self) -> str:
        """What the step is called in reasons: a module's path, or the function and the module it is used in."""
        if self.node.op == "call_module":
            return str(self.node.target)
        owner = self.walk.owner.get(self.node.name, "")
        return f"{self.spelled}() in {owner}" if owner else f"{self.spelled}()"

    @property
    def static(self) -> bool:
        """Whether the value is the same for every image."""
        return self.node not in self.walk.dynamic

    def number(self, name: str, default: Any = None) -> Any:
        """The recorded value of an argument."""
        return self.of(self.argument(name, default))

    def of(self, argument: Any) -> Any:
        """An argument with recorded values in the place of steps."""
        return map_arg(argument, lambda node: self.walk.values[node.name])

    @property
    def scales(self) -> bool:
        """Whether all that becomes of the value, channel by channel, is a factor of other values of the image, as of a gate."""
        users = [self.walk.step(user) for user in self.node.users if tensors(self.walk.values.get(user.name))]
        return bool(users) and all(user._is_scaled_by(self.node) for user in users)

    def _is_scaled_by(self, node: fx.Node) -> bool:
        """Whether a value becomes a factor of another one, here or later."""
        others = any(each in self.walk.dynamic for each in self.node.all_input_nodes if each is not node)
        if others:
            return self.entry.arithmetic == "product"
        entry = self.entry
        return (entry.moves or entry.weighted or entry.keeps == "apart" or bool(entry.arithmetic)) and self.scales

    def labels(self, name: str = "input") -> Tensor:
        """Labels of an argument that is a tensor."""
        return self.walk.labels[self.argument(name)]

    def inputs(self) -> list[Tensor]:
        """Labels of all tensors among the arguments, in order."""
        nodes = [node for node in self.node.all_input_nodes if isinstance(self.walk.values[node.name], Tensor)]
        return [self.walk.labels[node] for node in nodes]

    def operand(self, name: str) -> Operand | None:
        """A weight, bias or scale: an argument, or a parameter or buffer of the called module; None where there is none."""
        if self.module is not None:
            owner, _, last = name.rpartition(".")
            holder = self.module.get_submodule(owner)
            value = holder._parameters.get(last)
            value = holder._buffers.get(last) if value is None else value
            return Operand(value, f"{self.node.target}.{name}", None) if isinstance(value, Tensor) else None
        node = self.argument(name)
        if not isinstance(node, fx.Node) or not isinstance(self.walk.values[node.name], Tensor):
            return None
        path = str(node.target) if node.op == "get_attr" and node.target not in self.walk.constants else None
        return Operand(self.walk.values[node.name], path, node)

    def channels(self, name: str = "input", axis: int = 1, why: str = "") -> Tensor:
        """One number for each place along an axis of an argument; channels that share a place are united."""
        return self.walk.along(self.labels(name), axis, why or f"{self.place} treats several channels as one")

    def follow(self, name: str, axis: int, numbers: Tensor) -> None:
        """A parameter is cut along `axis` with these channels."""
        operand = self.operand(name)
        if operand is not None:
            self.walk.follow(operand, axis, numbers, self.node.name)

    def hold(self, reason: str, *labels: Tensor) -> None:
        """Keep all channels of the given labels (of all arguments where none are given)."""
        self.walk.hold(torch.cat([compact(part).flatten() for part in labels or self.inputs()]), reason)

    def spread(self, numbers: Tensor, axis: int, shape: tuple[int, ...]) -> Tensor:
        """Labels of a value whose channels lie along one axis."""
        sizes = [1] * len(shape)
        sizes[axis] = -1
        return numbers.view(sizes).expand(shape)

    def carries(self, labels: Tensor) -> bool:
        """Whether any channel occurs in the labels."""
        return bool(channels_in(compact(labels)).any())


def kept_whole(step: Step) -> Any:
    """Labels of a value that nothing can be removed from, with all channels of the arguments kept.

    Examples
    --------
    >>> from torch import nn
    >>> from channelscope.network.removal.trial import labeled_graph
    >>> net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(3, 1)).eval()
    >>> walk = labeled_graph(net, torch.ones(1, 1, 1, 1))
    >>> step = walk.step(next(iter(walk.steps.find_nodes(op="call_module", target="1"))))
    >>> kept_whole(step).unique().tolist(), walk.groups
    ([-1], ())
    """
    reason = f"{step.place} ({step.spelled}) may look at all its channels at once" if step.module is not None else (
        f"{step.place} may look at all its channels at once"
    )  # fmt: skip
    for node in step.node.all_input_nodes:
        step.walk.hold(_flat(step.walk.labels[node]), reason)
    if not step.static:
        step.walk.opaque[step.place] = reason
    return fixed(step.value)


def _flat(labels: Any) -> Tensor:
    parts: list[Tensor] = []
    stack = [labels]
    while stack:
        part = stack.pop()
        if isinstance(part, Tensor):
            parts.append(part.unique())
        elif isinstance(part, tuple | list):
            stack += part
        elif isinstance(part, dict):
            stack += part.values()
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.long)


def computed(step: Step) -> Any:
    """Labels of a weight computed from parameters: theirs where the shape stays, else new ones for its own elements.

    Examples
    --------
    >>> from torch import nn
    >>> from channelscope.network.removal.trial import labeled_graph
    >>> net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(3, 1)).eval()
    >>> walk = labeled_graph(net, torch.ones(1, 1, 1, 1))
    >>> step = walk.step(next(iter(walk.steps.find_nodes(op="call_module", target="1"))))
    >>> torch.equal(computed(step), step.labels())  # the shape stays, so the labels do
    True
    """
    value = step.value
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return fixed(value)
    for labels in step.inputs():
        if labels.shape == value.shape:
            return labels
    return fixed(value)


def executed(step: Step) -> int:
    """Multiply-adds of a step, counted while it is carried out again on its recorded inputs.

    Examples
    --------
    >>> from torch import nn
    >>> from channelscope.network.removal.trial import labeled_graph
    >>> net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(3, 1)).eval()
    >>> walk = labeled_graph(net, torch.ones(1, 1, 1, 1))
    >>> step = walk.step(next(iter(walk.steps.find_nodes(op="call_module", target="0"))))
    >>> executed(step)  # three products
    3
    """
    args: Any = map_arg(step.node.args, lambda node: step.walk.values[node.name])
    kwargs: Any = map_arg(step.node.kwargs, lambda node: step.walk.values[node.name])
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        if step.module is not None:
            step.module(*args, **kwargs)
        elif step.node.op == "call_method":
            getattr(args[0], str(step.node.target))(*args[1:], **kwargs)
        else:
            step.node.target(*args, **kwargs)  # type: ignore[operator]
    return counter.get_total_flops() // 2


register(Operation("opaque", kept_whole, macs=executed))
