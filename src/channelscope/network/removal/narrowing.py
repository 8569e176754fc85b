"""Narrowing: the smaller network that computes what the silenced one computes.

Every parameter and buffer of a deep copy is cut by its labels. The recorded steps are then run on it, and a number that
no longer fits is corrected to what the labels say: where it came from an attribute, the attribute is set. A step whose
numbers are written in the forward pass itself, or whose weights are computed from all channels, cannot be corrected in
this way; its module, or where that is not possible the network, is then returned as its recorded steps, with the same parameter names.
"""

import copy
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from channelscope.errors import FAILURES, InputError, MismatchError, first_line, no_lack_of_memory
from channelscope.network import nest
from channelscope.network.graph import Graph, Hook
from channelscope.network.module_state import eval_mode
from channelscope.network.nest import tensors
from channelscope.network.operations.moves import given, run
from channelscope.network.operations.numbers import Edit, Number, always, edit
from channelscope.network.operations.operation import of_module
from channelscope.network.operations.step import Step, execute
from channelscope.network.removal.finishing import TOLERANCE, as_recorded, as_written, by_parts, compared
from channelscope.network.removal.labeled_graph import LabeledGraph
from channelscope.network.removal.labels import FREE, PARAMETERS, channels_in, compact
from channelscope.network.removal.rewriting import Corrections
from channelscope.network.tracing.recording import EXPONENT, coarsest


class Removal:
    """Some channels of a network that go, and what follows from that.

    Parameters
    ----------
    graph
        The labeled graph of the network.
    gone
        Which channel numbers go, bool (all channels,).

    Raises
    ------
    InputError
        If a channel cannot be removed, a group is split, or a layer would lose all its inputs or outputs.
    """

    def __init__(self, graph: LabeledGraph, gone: Tensor):
        self.graph = graph
        self.gone = gone.cpu()
        self._sources: dict[str, Tensor] = {}
        self._indices: dict[int, tuple[Tensor, list[Tensor]]] = {}
        self._check()

    def _check(self) -> None:
        graph = self.graph
        roots = graph.union.roots(torch.arange(len(self.gone))).tolist()
        marks = self.gone.tolist()
        lost: dict[int, bool] = {}
        for name, (start, count) in graph.sites.items():
            for number in range(start, start + count):
                root, here = roots[number], marks[number]
                if here and root in graph.union.held:
                    raise InputError(f"channel {number - start} of {name} cannot be removed: {graph.union.held[root]}")
                if lost.setdefault(root, here) != here:
                    raise InputError(f"channel {number - start} of {name} goes with others that are kept: remove all of a group or none")
        for layer in graph.layers:
            for numbers, what in ((layer.inputs, "inputs"), (layer.outputs, "outputs")):
                if bool(self.removed(numbers).all()):
                    raise InputError(f"all {what} of {layer.name} would go: keep at least one")

        for numbers, place in graph.parts.items():
            if bool(self.gone[list(numbers)].all()):
                raise InputError(f"nothing would be left of what {place} takes: keep at least one channel of it")

    def removed(self, labels: Tensor) -> Tensor:
        """Which elements of some labels go: bool, in their shape."""
        short = compact(labels)
        result = torch.zeros(short.shape, dtype=torch.bool)
        marks = channels_in(short)
        result[marks] = self.gone[short[marks]]
        if bool((short >= PARAMETERS).any()):
            for source, mark in self.graph.sources.holding(short):
                result[mark] = self.of_source(source.name).flatten()[short[mark] - source.base]
        return result.expand(labels.shape)

    def of_source(self, name: str) -> Tensor:
        """Which elements of a parameter, buffer or computed weight go: bool, in its shape."""
        if name not in self._sources:
            source = self.graph.sources[name]
            self._sources[name] = torch.ones(source.value.shape, dtype=torch.bool)  # while it is found out, for parameters that follow it
            self._sources[name] = source.removed(self.removed)
        return self._sources[name]

    def slices(self, removed: Tensor, free: Tensor | None = None) -> list[Tensor]:
        """Indices kept along each axis.

        Raises
        ------
        MismatchError
            If what goes is not made of whole slices.
        """
        keep = []
        for axis in range(removed.dim()):
            rows = removed.movedim(axis, 0).flatten(1) if removed.dim() > 1 else removed[:, None]
            every = rows
            if free is not None:
                every = rows | (free.movedim(axis, 0).flatten(1) if free.dim() > 1 else free[:, None])
            keep.append((~(every.all(1) & rows.any(1))).nonzero().flatten() if prod(rows.shape) else torch.arange(len(rows)))
        rest = removed
        for axis, index in enumerate(keep):
            rest = rest.index_select(axis, index)
        if bool(rest.any()):
            raise MismatchError("what would be removed is not made of whole slices; please report the network")
        return keep

    def indices(self, labels: Tensor) -> list[Tensor]:
        """Indices kept along each axis of a value with these labels."""
        known = self._indices.get(id(labels))
        if known is None:
            short = compact(labels)
            keep = self.slices(self.removed(short), short == FREE)
            sizes = zip(keep, short.shape, labels.shape, strict=True)
            known = labels, [index if size == length else torch.arange(length) for index, size, length in sizes]
            self._indices[id(labels)] = known  # with the labels, so that no others get their id
        return known[1]

    def shape(self, labels: Tensor) -> tuple[int, ...]:
        """Shape that is left of a value with these labels."""
        return tuple(len(index) for index in self.indices(labels))

    def restricted(self, value: Any, labels: Any) -> Any:
        """What is left of a value."""
        if isinstance(value, Tensor) and isinstance(labels, Tensor) and value.shape == labels.shape:
            for axis, index in enumerate(self.indices(labels)):
                if len(index) < value.shape[axis]:
                    value = value.index_select(axis, index.to(value.device))
        return value

    def masked(self, value: Any, labels: Any) -> Any:
        """A value with zeros in the place of what goes."""
        if isinstance(value, Tensor) and isinstance(labels, Tensor) and value.is_floating_point():
            numbers = compact(labels)
            lost = self.removed(torch.where(numbers >= PARAMETERS, FREE, numbers))
            if bool(lost.any()):
                return value.masked_fill(lost.expand(value.shape).to(value.device), 0)
        return value

    def is_awake(self, value: Tensor, labels: Tensor) -> bool:
        """Whether something other than zero is in the place of what goes."""
        short = compact(labels)
        gone = self.removed(torch.where(short >= PARAMETERS, FREE, short))
        if not bool(gone.any()):
            return False
        axes = [axis for axis, size in enumerate(short.shape) if size > 1]
        if len(axes) == 1:
            return bool((value.index_select(axes[0], gone.flatten().nonzero().flatten().to(value.device)) != 0).any())
        return bool((value.masked_fill(~gone.to(value.device), 0) != 0).any())

    def parameter(self, name: str, value: Tensor) -> Tensor | None:
        """What is left of a parameter or buffer with this value, a new tensor; None where nothing goes, or what goes is no whole slices."""
        try:
            kept = self._kept_slices(name)
        except MismatchError:  # what is computed from it does not follow then, and is folded or keeps its channels
            return None
        if all(len(index) == size for index, size in zip(kept, value.shape, strict=True)):
            return None
        for axis, index in enumerate(kept):
            if len(index) < value.shape[axis]:
                value = value.index_select(axis, index.to(value.device))
        return value.contiguous()

    def _kept_slices(self, name: str) -> list[Tensor]:
        """Indices kept along each axis of a parameter or buffer."""
        source = self.graph.sources[name]
        axes = source.axes()
        if axes is None:
            return self.slices(self.of_source(name))
        kept = [torch.arange(size) for size in source.value.shape]
        for axis, labels in axes.items():
            kept[axis] = (~self.removed(labels)).nonzero().flatten()
        return kept


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

    Examples
    --------
    >>> from channelscope.network.removal.trial import labeled_graph
    >>> net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(3, 1)).eval()
    >>> graph = labeled_graph(net, torch.ones(1, 1, 1, 1))
    >>> small = narrow(graph, graph.gone([0]))
    >>> small[0].weight.shape, small[3].weight.shape
    (torch.Size([2, 1, 1, 1]), torch.Size([1, 2]))
    """
    return narrow_pair(graph, gone)[0]


def narrow_pair(graph: LabeledGraph, gone: Tensor, checked: bool = True) -> tuple[nn.Module, nn.Module | None]:
    """The network of `narrow`, and the same in float64 where weights that were computed became parameters, before these were rounded.

    Parameters
    ----------
    graph
        The labeled graph of the network.
    gone
        Which channel numbers go, bool (all channels,).
    checked
        Whether the output is compared with the silenced network's also where no step had to be corrected.

    Examples
    --------
    >>> from channelscope.network.removal.trial import labeled_graph
    >>> net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(3, 1)).eval()
    >>> graph = labeled_graph(net, torch.ones(1, 1, 1, 1))
    >>> small, exact = narrow_pair(graph, graph.gone([0, 2]))
    >>> small[0].out_channels, exact
    (1, None)
    """
    removal = Removal(graph, gone)
    small = cut(graph.model, graph, removal)
    found = corrections(graph, removal, small)
    if not checked and not found.edits and not found.folded:
        return small, None
    expected = silenced(graph, gone, *graph.images)
    problem = ""
    for finished in (as_written, by_parts, as_recorded):
        trial = finished(copy.deepcopy(small).double(), graph, found)
        if trial is not None:
            problem = compared(trial, graph.images, expected)
            if not problem:
                return finished(small, graph, found) or small, trial if found.folded else None
    raise MismatchError(f"the smaller network {problem}; please report the network")


def silenced(graph: LabeledGraph, gone: Tensor, *inputs: Tensor) -> Any:
    """The output of the network with zeros wherever something of the channels that go would be; in float64 for such inputs.

    Examples
    --------
    >>> from channelscope.network.removal.trial import labeled_graph
    >>> net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(3, 1)).eval()
    >>> graph = labeled_graph(net, torch.ones(1, 1, 1, 1))
    >>> small = narrow(graph, graph.gone([0]))
    >>> images = torch.rand(4, 1, 1, 1)
    >>> torch.allclose(small(images), silenced(graph, graph.gone([0]), images), atol=1e-6)
    True
    """
    removal = Removal(graph, gone)
    model = copy.deepcopy(graph.model).eval()
    if any(part.dtype == torch.float64 for part in inputs):
        model.double()
    hooks = _masks(graph, removal, tuple(graph.executor.nodes))
    with torch.no_grad():
        return graph.executor.of_copy(model).run(*inputs, hooks=hooks, out_of_place=True)


def _masks(graph: LabeledGraph, removal: Removal, names: tuple[str, ...]) -> dict[str, Hook]:
    """What sets to zero whatever of the channels that go is in the values of some steps."""
    labels = {name: graph.labels[graph.executor.nodes[name]] for name in names}
    return {name: partial(removal.masked, labels=part) for name, part in labels.items() if isinstance(part, Tensor)}


def cut(model: nn.Module, graph: LabeledGraph, removal: Removal, shared: bool = False) -> nn.Module:
    """A deep copy of a network with every parameter and buffer cut, and the numbers of its modules set.

    Parameters
    ----------
    model
        The network of the graph, or a copy of it.
    graph
        The labeled graph.
    removal
        What goes.
    shared
        Whether parameters of which nothing goes are those of `model` itself.

    Examples
    --------
    >>> from channelscope.network.removal.trial import labeled_graph
    >>> net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(3, 1)).eval()
    >>> graph = labeled_graph(net, torch.ones(1, 1, 1, 1))
    >>> removal = Removal(graph, graph.gone([0]))
    >>> small = cut(net, graph, removal)
    >>> small[0].weight.shape, small[3].in_features
    (torch.Size([2, 1, 1, 1]), 2)
    """
    original = dict(_named(graph.model))
    known: dict[int, Any] = {}
    touched = {""}
    for path, tensor in _named(model):
        name = graph.canonical[id(original[path])]
        smaller = known.get(id(tensor))
        if smaller is None and name in graph.sources.found:
            value = removal.parameter(name, tensor.detach())
            if value is not None:
                smaller = nn.Parameter(value, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value
        if smaller is not None and smaller is not tensor:
            known[id(tensor)] = smaller
            owners = path.split(".")[:-1]
            touched |= {".".join(owners[: depth + 1]) for depth in range(len(owners))}
        elif shared:
            known[id(tensor)] = tensor
    small = copy.deepcopy(model, known)
    kept = {str(node.target): graph.reads[node.name] for node in graph.steps.nodes if node.op == "call_module" and node.name in graph.reads}
    for path, module in list(small.named_modules()):
        entry = of_module(module)
        if entry is None or entry.adjust is None or (path not in kept and path not in touched):
            continue
        entry.adjust(module, ~removal.removed(kept[path]) if path in kept else None)
    return small


def _named(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]


def corrections(graph: LabeledGraph, removal: Removal, small: nn.Module) -> Corrections:
    """What has to change in the steps so that they run on the small parameters.

    Parameters
    ----------
    graph
        The labeled graph.
    removal
        What goes.
    small
        The network with cut parameters.

    Raises
    ------
    UnfitError
        Naming the step, if nothing is known that would make it fit.

    Examples
    --------
    >>> from channelscope.network.removal.trial import labeled_graph
    >>> net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(3, 1)).eval()
    >>> graph = labeled_graph(net, torch.ones(1, 1, 1, 1))
    >>> removal = Removal(graph, graph.gone([0]))
    >>> found = corrections(graph, removal, cut(net, graph, removal))
    >>> len(found.edits), len(found.folded)  # nothing of this network has sizes written out
    (0, 0)
    """
    if graph.computed:  # computed weights are compared with what they were, in float64 where the pass can run in it
        try:
            exact = copy.deepcopy(graph.model).double()
            return _corrections(graph, removal, exact, copy.deepcopy(small).double(), graph.images)
        except UnfitError:
            pass
    return _corrections(graph, removal, graph.model, small, tuple(graph.values[name] for name in graph.executor.inputs))


def _corrections(graph: LabeledGraph, removal: Removal, model: nn.Module, small: nn.Module, images: tuple[Tensor, ...]) -> Corrections:
    whole = graph.executor.of_copy(model)
    with torch.no_grad(), eval_mode(model), eval_mode(small):
        weights = whole.run(*images, outputs=graph.computed, hooks=_masks(graph, removal, graph.computed), out_of_place=True)
        before = {**graph.values, **dict(zip(whole.inputs, images, strict=True)), **dict(zip(graph.computed, weights, strict=True))}
        steps = NarrowedSteps(graph, removal, whole.of_copy(small), max(TOLERANCE, coarsest(model) ** EXPONENT))
        for node in graph.steps.nodes:
            if node.op != "output":
                steps.set(node, steps.value(node, before.get(node.name)))
    return steps.found


class NarrowedSteps:
    """The recorded steps carried out on a smaller network, and what has to be corrected for that.

    Parameters
    ----------
    graph
        The labeled graph.
    removal
        What goes.
    small
        The steps on the network with cut parameters.
    allowed
        How far a computed weight may be from what is left of it, relative.
    """

    def __init__(self, graph: LabeledGraph, removal: Removal, small: Graph, allowed: float):
        self.graph, self.removal, self.small, self.allowed = graph, removal, small, allowed
        self.found = Corrections({}, {}, {})
        self.waiting = {node: len(node.users) for node in graph.steps.nodes}

    def set(self, node: fx.Node, value: Any) -> None:
        """Note the value of a step; maps that no later step reads are dropped."""
        values = self.found.values
        values[node] = value
        for parent in node.all_input_nodes:
            self.waiting[parent] -= 1
            if not self.waiting[parent] and parent in self.graph.dynamic and tensors(values[parent]):
                del values[parent]

    def now(self, argument: Any) -> Any:
        """An argument as recorded, with the values of the small network."""
        values = self.found.values
        return map_aggregate(argument, lambda part: values[part] if isinstance(part, fx.Node) else part)

    def attempt(self, node: fx.Node, changed: Edit | None) -> tuple[Any, str]:
        """The value of a step, and why there is none."""
        try:
            return self._carried_out(node, changed), ""
        except FAILURES as error:
            no_lack_of_memory(error)
            return None, first_line(error)

    def _carried_out(self, node: fx.Node, changed: Edit | None) -> Any:
        """The value of a step, with corrected arguments where there are any."""

        def wanted(part: Any) -> Any:
            if isinstance(part, Number):
                return part.want
            return slice(wanted(part.start), wanted(part.stop), wanted(part.step)) if isinstance(part, slice) else self.now(part)

        parts = (node.args, node.kwargs) if changed is None else (changed.args, changed.kwargs)
        passed: list[Any] = [map_aggregate(part, wanted) for part in parts]
        if changed is not None and changed.target is not None:
            return execute(self.small.model, node.op, changed.target, *passed)
        value = self.small.carry_out(node, *passed, out_of_place=True)
        return value if changed is None else changed.finished(value)

    def value(self, node: fx.Node, before: Any) -> Any:
        """The value of a step on the small network; a correction that it needs is noted.

        Parameters
        ----------
        node
            The step.
        before
            Its value in the network as it is; of steps that depend on the image only the form counts.

        Raises
        ------
        UnfitError
            If nothing is known that would make the step fit.
        """
        if node.op == "placeholder":
            return before
        if node.op == "get_attr":
            return self.small.carry_out(node, (), {})
        step, labels = self.graph.step(node), self.graph.labels[node]
        counted = always(step, self.removal, self.now) if tensors(before) and not step.static else None
        value, problem = self.attempt(node, counted)
        if not tensors(before) or isinstance(before, torch.Size):
            if problem:
                raise UnfitError(node, f"{step.place} cannot run on fewer channels: {problem}")
            return value
        if counted is not None:
            self.found.edits[node] = counted
        if step.static:
            return self._computed(step, before, value, problem)
        if not problem and _fits(value, before, labels, self.removal) and self._same_order(step):
            return value
        changed = edit(step, self.removal, self.now)
        if changed is not None:
            value, problem = self.attempt(node, changed)
            if not problem and _fits(value, before, labels, self.removal):
                self.found.edits[node] = changed
                return value
        shapes = tuple(self.removal.shape(part) for part in tensors(labels))
        raise UnfitError(node, f"{step.place} cannot be made to fit fewer channels {shapes}: {problem or 'it has sizes written out'}")

    def _same_order(self, step: Step) -> bool:
        """Whether a move, carried out on the labels that are left, gives the labels that are left of its value."""
        labels, removal = step.walk.labels, self.removal
        read = [part for parent in step.node.all_input_nodes for part in tensors(labels[parent])]
        if not step.entry.moves or isinstance(step.value, torch.Size) or not any(bool(removal.removed(part).any()) for part in read):
            return True

        def left(parent: fx.Node) -> Any:
            taken = given(step, parent)
            if tensors(labels[parent]) and taken is labels[parent]:
                return nest.replaced(taken, lambda part: removal.restricted(part, part))
            return nest.replaced(self.found.values[parent], Tensor.cpu)

        try:
            moved = run(step, left)
        except FAILURES as error:
            no_lack_of_memory(error)
            try:
                moved = nest.replaced(run(step, lambda parent: nest.replaced(left(parent), Tensor.double)), Tensor.long)
            except FAILURES as error:
                no_lack_of_memory(error)
                return False
        pairs = zip(tensors(moved), tensors(labels[step.node]), strict=True)
        return all(bool((part == removal.restricted(mark, mark)).all()) for part, mark in pairs)

    def _computed(self, step: Step, before: Any, value: Any, problem: str) -> Any:
        """A weight computed from parameters: as it comes out, or what is left of it as it was, where that is something else."""
        walk, node = step.walk, step.node
        if not isinstance(before, Tensor) or not before.is_floating_point():
            if problem:
                raise UnfitError(node, f"{step.place} cannot run on fewer channels: {problem}")
            return value
        labels = walk.labels[node]
        try:
            wanted = self.removal.shape(labels)
        except MismatchError:  # what goes is no whole slices: what is computed from it may still be folded
            wanted = None
        changed = edit(step, self.removal, self.now) if problem or wanted not in (None, tuple(value.shape)) else None
        if changed is not None:
            other, trouble = self.attempt(node, changed)
            if not trouble and tuple(other.shape) == wanted:
                self.found.edits[node] = changed
                value, problem = other, ""
        if not any(user in walk.dynamic or user.op == "output" for user in node.users):
            return value  # None where there is none; nor can then be computed what needs it
        rest = self.removal.restricted(before, labels)
        if not problem and value.shape == rest.shape and torch.allclose(value, rest, rtol=self.allowed, atol=self.allowed, equal_nan=True):
            return value
        if not problem and value.shape != rest.shape and not bool(self.removal.removed(labels).any()):
            raise UnfitError(node, f"{step.place} computes {tuple(value.shape)} from fewer channels, expected {tuple(rest.shape)}")
        self.found.folded[node] = rest
        return rest


def _fits(value: Any, before: Any, labels: Any, removal: Removal) -> bool:
    parts, old, marks = tensors(value), tensors(before), tensors(labels)
    if len(parts) != len(old) or len(old) != len(marks):
        return False
    return all(tuple(part.shape) == removal.shape(mark) for part, mark in zip(parts, marks, strict=True))
