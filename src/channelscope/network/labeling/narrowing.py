"""Narrowing: the smaller network that computes what the silenced one computes.

Every parameter and buffer of a deep copy is cut by its labels. The recorded steps are then run on it, and a number that
no longer fits is corrected to what the labels say: where it came from an attribute, the attribute is set. A step whose
numbers are written in the forward pass itself, or whose weights are computed from all channels, cannot be corrected in
this way; its module, or where that is not possible the network, is then returned as its recorded steps, with the same parameter names.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from channelscope.errors import MismatchError, first_line
from channelscope.network import nest
from channelscope.network.graph import execute
from channelscope.network.labeling.finishing import as_recorded, as_written, by_parts
from channelscope.network.labeling.labeled_graph import LabeledGraph
from channelscope.network.labeling.labels import mapped, tensors
from channelscope.network.labeling.removal import Removal
from channelscope.network.labeling.replay import plain, replay
from channelscope.network.labeling.rewriting import Corrections
from channelscope.network.module_state import out_of_place
from channelscope.network.operations.moves import given, run
from channelscope.network.operations.numbers import Edit, Number, always, edit
from channelscope.network.operations.operation import of_module
from channelscope.network.operations.step import Step

TOLERANCE = torch.finfo(torch.float64).eps ** 0.5
"""Largest difference between the smaller and the silenced network, relative to the largest output, in float64."""
FAILURES = (RuntimeError, TypeError, ValueError, AttributeError, AssertionError, IndexError, KeyError, ZeroDivisionError)


class UnfitError(MismatchError):
    """A step that cannot be made to work on fewer channels."""

    def __init__(self, node: fx.Node, message: str):
        super().__init__(message)
        self.node = node


def narrow(graph: LabeledGraph, gone: Tensor) -> nn.Module:
    """A network without the channels that go; the network of the graph stays as it is.

    Parameters
    ----------
    graph
        The labeled graph of the network.
    gone
        Which channel numbers go, bool (all channels,).

    Returns
    -------
    nn.Module
        A deep copy of the network with smaller parameters, or its recorded steps where its own code has sizes written out.

    Raises
    ------
    InputError
        If a channel cannot be removed, or a group is split.
    MismatchError
        If the smaller network computes something else than the silenced one, or cannot run.
    """
    return narrow_pair(graph, gone)[0]


def narrow_pair(graph: LabeledGraph, gone: Tensor) -> tuple[nn.Module, nn.Module | None]:
    """The network of `narrow`, and the same in float64 where weights that were computed became parameters, before these were rounded.

    Parameters
    ----------
    graph
        The labeled graph of the network.
    gone
        Which channel numbers go, bool (all channels,).
    """
    removal = Removal(graph, gone)
    small = copy.deepcopy(graph.model)
    cut(small, graph, removal)
    image, whole, silent, expected = references(graph, removal)
    found = correct(graph, removal, copy.deepcopy(small).double().eval(), whole, silent)
    problem = ""
    for finished in (as_written, by_parts, as_recorded):
        trial = finished(copy.deepcopy(small).double(), graph, found, whole)
        if trial is not None:
            problem = compared(trial, image, expected)
            if not problem:
                return finished(small, graph, found, whole) or small, trial if found.folded else None
    raise MismatchError(f"the smaller network {problem}; please report the network")


def references(graph: LabeledGraph, removal: Removal) -> tuple[tuple[Any, ...], dict[fx.Node, Any], dict[fx.Node, Any], Any]:
    """In float64: the recorded inputs, the values of all steps as they are and silenced, and the silenced output."""
    exact = copy.deepcopy(graph.model).double().eval()
    image = tuple(plain(graph.values[node.name]) for node in graph.steps.nodes if node.op == "placeholder")
    constants = {name: plain(value) for name, value in graph.constants.items()}
    _, whole = replay(graph.steps, exact, image, constants)
    _silence(exact, graph, removal)
    expected, silent = replay(graph.steps, exact, image, constants, lambda node, value: removal.masked(value, graph.labels[node]))
    return image, whole, silent, expected


def silenced(graph: LabeledGraph, gone: Tensor, *inputs: Tensor) -> Any:
    """The output of the network with zeros wherever something of the channels that go would be."""
    removal = Removal(graph, gone)
    model = copy.deepcopy(graph.model)
    _silence(model, graph, removal)
    return replay(graph.steps, model, inputs, graph.constants, lambda node, value: removal.masked(value, graph.labels[node]))[0]


def _silence(model: nn.Module, graph: LabeledGraph, removal: Removal) -> None:
    """Set to zero what goes of the parameters of steps that have channels inside."""
    for node in graph.steps.nodes:
        if node.op == "call_module" and graph.entry(node).inner:
            for path, parameter in model.get_submodule(str(node.target)).named_parameters(prefix=str(node.target)):
                name = graph.canonical[id(graph.model.get_parameter(path))]
                if name in graph.sources.found:
                    parameter.data = parameter.data.masked_fill(removal.of_source(name).to(parameter.device), 0)


def cut(small: nn.Module, graph: LabeledGraph, removal: Removal) -> None:
    """Cut every parameter and buffer of a copy of the network, and set the numbers of its modules."""
    named = [*graph.model.named_parameters(remove_duplicate=False), *graph.model.named_buffers(remove_duplicate=False)]
    smaller: dict[str, Tensor] = {}
    touched: set[str] = set()
    for path, tensor in named:
        name = graph.canonical[id(tensor)]
        if name not in graph.sources.found:
            continue
        value = smaller[name] if name in smaller else removal.parameter(name)
        if value is None:
            continue
        owner, _, last = path.rpartition(".")
        module = small.get_submodule(owner)
        if last in module._parameters:
            if name not in smaller:
                value = nn.Parameter(value, requires_grad=tensor.requires_grad)
            module._parameters[last] = value  # type: ignore[assignment]
        else:
            module._buffers[last] = value
        smaller[name] = value
        touched.add(owner)
    kept = {str(node.target): graph.reads[node.name] for node in graph.steps.nodes if node.op == "call_module" and node.name in graph.reads}
    for path, module in list(small.named_modules()):
        entry = of_module(module)
        if (
            entry is None
            or entry.adjust is None
            or not (path in kept or any(each == path or each.startswith(f"{path}.") for each in touched))
        ):
            continue
        other = entry.adjust(module, ~removal.removed(kept[path]) if path in kept else None)
        if other is not None:
            owner, _, last = path.rpartition(".")
            small.get_submodule(owner)._modules[last] = other.train(module.training)


def correct(
    graph: LabeledGraph, removal: Removal, small: nn.Module, whole: Mapping[fx.Node, Any], silent: Mapping[fx.Node, Any]
) -> Corrections:
    """Run the recorded steps on the small parameters, in float64, and correct what does not fit.

    Parameters
    ----------
    graph
        The labeled graph.
    removal
        What goes.
    small
        The network with cut parameters, float64.
    whole, silent
        Values of the steps in the network as it is, and in the silenced one.

    Raises
    ------
    UnfitError
        Naming the step, if nothing is known that would make it compute what it computes in the silenced network.
    """
    found = Corrections({}, {}, {})
    values = found.values
    image = iter(whole[node] for node in graph.steps.nodes if node.op == "placeholder")
    trial = Trial(small, found)
    with torch.no_grad(), out_of_place(small):
        for node in graph.steps.nodes:
            if node.op == "placeholder":
                values[node] = next(image)
            elif node.op == "get_attr":
                constant = node.target in graph.constants
                values[node] = plain(graph.constants[str(node.target)]) if constant else execute(small, node.op, node.target, (), {})
            elif node.op != "output":
                values[node] = _corrected(graph.step(node), removal, (whole if node in graph.dynamic else silent)[node], trial)
                if node in graph.dynamic and not _same(values[node], silent[node], graph.labels[node], removal):
                    raise UnfitError(node, f"{graph.step(node).place} computes something else from fewer channels than from silenced ones")
    return found


@dataclass(frozen=True, eq=False)
class Trial:
    """A run of the recorded steps on a small network."""

    small: nn.Module
    found: Corrections

    def now(self, argument: Any) -> Any:
        """An argument as recorded, with the values of the small network."""
        values = self.found.values
        return map_aggregate(argument, lambda part: values[part] if isinstance(part, fx.Node) else part)

    def attempt(self, node: fx.Node, changed: Edit | None) -> tuple[Any, str]:
        """The value of a step, and why there is none."""
        try:
            return carried_out(node, self.small, changed, self.now), ""
        except FAILURES as error:
            return None, first_line(error)


def _corrected(step: Step, removal: Removal, before: Any, trial: Trial) -> Any:
    node, labels = step.node, step.walk.labels[step.node]
    counted = always(step, removal, trial.now) if tensors(before) and not step.static else None
    value, problem = trial.attempt(node, counted)
    if not tensors(before) or isinstance(before, torch.Size):
        if problem:
            raise UnfitError(node, f"{step.place} cannot run on fewer channels: {problem}")
        return value
    if counted is not None:
        trial.found.edits[node] = counted
    if step.static:
        return _computed(step, removal, before, (value, problem), trial)
    if not problem and _fits(value, before, labels, removal) and _same_order(step, removal, trial.found):
        return value
    changed = edit(step, removal, trial.now)
    if changed is not None:
        value, problem = trial.attempt(node, changed)
        if not problem and _fits(value, before, labels, removal):
            trial.found.edits[node] = changed
            return value
    shapes = tuple(removal.shape(part) for part in tensors(labels))
    raise UnfitError(node, f"{step.place} cannot be made to fit fewer channels {shapes}: {problem or 'it has sizes written out'}")


def carried_out(node: fx.Node, model: nn.Module, changed: Edit | None, now: Any) -> Any:
    """The value of a step, with corrected arguments where there are any."""

    def wanted(part: Any) -> Any:
        if isinstance(part, Number):
            return part.want
        return slice(wanted(part.start), wanted(part.stop), wanted(part.step)) if isinstance(part, slice) else now(part)

    args, kwargs = (node.args, node.kwargs) if changed is None else (changed.args, changed.kwargs)
    value = execute(model, node.op, node.target, map_aggregate(args, wanted), map_aggregate(kwargs, wanted))  # type: ignore[arg-type]
    return value if changed is None or changed.factor == 1 else value * changed.factor


def _fits(value: Any, before: Any, labels: Any, removal: Removal) -> bool:
    parts, old, marks = tensors(value), tensors(before), tensors(labels)
    if len(parts) != len(old) or len(old) != len(marks):
        return False
    return all(tuple(part.shape) == removal.shape(mark) for part, mark in zip(parts, marks, strict=True))


def _same(value: Any, silent: Any, labels: Any, removal: Removal) -> bool:
    """Whether a value is what is left of the silenced one."""
    for one, other, marks in zip(tensors(value), tensors(silent), tensors(labels), strict=True):
        if one.is_floating_point():
            rest = removal.restricted(other, marks)
            scale = float(rest.abs().nan_to_num(posinf=0).max()) if rest.numel() else 0.0
            if not torch.allclose(one, rest, rtol=0, atol=TOLERANCE * scale, equal_nan=True):
                return False
    return True


def _same_order(step: Step, removal: Removal, found: Corrections) -> bool:
    """Whether a move, carried out on the labels that are left, gives the labels that are left of its value."""
    if not step.entry.moves or isinstance(step.value, torch.Size):
        return True
    labels = step.walk.labels

    def left(parent: fx.Node) -> Any:
        taken = given(step, parent)
        if tensors(labels[parent]) and taken is labels[parent]:
            return mapped(lambda part: removal.restricted(part, part), taken)
        return mapped(Tensor.cpu, found.values[parent])

    try:
        moved = run(step, left)
    except FAILURES:
        try:
            moved = mapped(lambda part: part.long(), run(step, lambda parent: mapped(lambda part: part.double(), left(parent))))
        except FAILURES:
            return False
    pairs = zip(tensors(moved), tensors(labels[step.node]), strict=True)
    return all(bool((part == removal.restricted(mark, mark)).all()) for part, mark in pairs)


def _computed(step: Step, removal: Removal, before: Any, tried: tuple[Any, str], trial: Trial) -> Any:
    """A weight computed from parameters: as it comes out, or what is left of it as it was, where that is something else."""
    walk, node, (value, problem) = step.walk, step.node, tried
    if not isinstance(before, Tensor) or not before.is_floating_point():
        if problem:
            raise UnfitError(node, f"{step.place} cannot run on fewer channels: {problem}")
        return value
    labels = walk.labels[node]
    if problem:
        changed = edit(step, removal, trial.now)
        if changed is not None:
            value, problem = trial.attempt(node, changed)
            if not problem and tuple(value.shape) == removal.shape(labels):
                trial.found.edits[node] = changed
    if not problem and not any(user in walk.dynamic or user.op == "output" for user in node.users):
        return value
    rest = removal.restricted(before, labels)
    if not problem and value.shape == rest.shape and torch.allclose(value, rest, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True):
        return value
    if not problem and value.shape != rest.shape and not bool(removal.removed(labels).any()):
        raise UnfitError(node, f"{step.place} computes {tuple(value.shape)} from fewer channels, expected {tuple(rest.shape)}")
    trial.found.folded[node] = rest
    return rest


def compared(small: nn.Module, image: tuple[Any, ...], expected: Any) -> str:
    """How the smaller network differs from the silenced one, over every tensor of its output in float64; empty when it does not."""
    exact = copy.deepcopy(small).double().eval()
    try:
        with torch.no_grad():
            received = exact(*image)
    except FAILURES as error:
        return f"cannot run: {first_line(error)}"
    a, b = outputs(received), outputs(expected)
    if len(a) != len(b):
        return f"has {len(a)} outputs instead of {len(b)}"
    for one, other in zip(a, b, strict=True):
        if one.shape != other.shape:
            return f"has an output of shape {tuple(one.shape)} instead of {tuple(other.shape)}"
        scale = float(other.abs().nan_to_num(posinf=0).max()) if other.numel() else 0.0
        if not torch.allclose(one, other, rtol=0, atol=TOLERANCE * scale, equal_nan=True):
            error = float((one - other).abs().max()) / max(scale, torch.finfo(torch.float64).tiny)
            return f"is {error:.2g} (relative) away from the silenced one"
    return ""


def outputs(value: Any) -> list[Tensor]:
    """The floating-point tensors of a nested output, in order."""
    return [part for part in nest.tensors(value) if part.is_floating_point()]
