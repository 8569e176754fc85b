"""Finishing: from cut parameters to a network that runs: with its own code, with some modules rewritten, or as recorded steps."""

import copy
import operator
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from channelscope.errors import FAILURES, first_line, no_lack_of_memory
from channelscope.network import nest
from channelscope.network.operations.numbers import Number
from channelscope.network.removal.labeled_graph import LabeledGraph
from channelscope.network.removal.rewriting import Call, Corrections, rewritten, rewritten_part

TOLERANCE = torch.finfo(torch.float64).eps ** 0.5
"""Largest difference between the smaller and the silenced network, relative to the largest output, in float64."""


def as_written(small: nn.Module, graph: LabeledGraph, found: Corrections) -> nn.Module | None:
    """The small network with its own forward pass and other attributes; None where that cannot be right.

    Examples
    --------
    >>> from channelscope.network.removal.trial import labeled_graph
    >>> net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(3, 1)).eval()
    >>> graph = labeled_graph(net, torch.ones(1, 1, 1, 1))
    >>> as_written(net, graph, Corrections({}, {}, {})) is net
    True
    """
    return small if _told(small, graph, found) is None else None


def by_parts(small: nn.Module, graph: LabeledGraph, found: Corrections) -> nn.Module | None:
    """The small network with the modules rewritten whose own code cannot be right; None where one of them cannot be rewritten.

    Examples
    --------
    >>> from channelscope.network.removal.trial import labeled_graph
    >>> net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(3, 1)).eval()
    >>> graph = labeled_graph(net, torch.ones(1, 1, 1, 1))
    >>> by_parts(net, graph, Corrections({}, {}, {})) is net  # there is nothing to rewrite
    True
    """
    left = _told(small, graph, found)
    if left is None:
        return small
    paths = {graph.owner.get(node.name, "") for node in (*left.edits, *left.folded)}
    paths = {path for path in paths if not any(path != other and path.startswith(f"{other}.") for other in paths)}
    if "" in paths:
        return None
    made = calls(graph, paths)
    whole = _values(graph)
    every = Corrections(found.edits, left.folded, found.values)
    for path in sorted(paths):
        if len(made[path]) != 1 or not rewritten_part(graph, small, path, made[path][0], every, whole):
            return None
    return small


def as_recorded(small: nn.Module, graph: LabeledGraph, found: Corrections) -> nn.Module | None:
    """The small network as its recorded steps.

    Examples
    --------
    >>> from channelscope.network.removal.trial import labeled_graph
    >>> net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(3, 1)).eval()
    >>> graph = labeled_graph(net, torch.ones(1, 1, 1, 1))
    >>> made = as_recorded(net, graph, Corrections({}, {}, {}))
    >>> type(made).__name__, torch.equal(made(torch.ones(1, 1, 1, 1)), net(torch.ones(1, 1, 1, 1)))
    ('Sequential', True)
    """
    return rewritten(graph, small, found)


def _told(small: nn.Module, graph: LabeledGraph, found: Corrections) -> Corrections | None:
    """Set what attributes and plain parameters can say; returns what is left, None when nothing is."""
    edits, numbers = {}, []
    for node, each in found.edits.items():
        more = [*numbers, *each.numbers()]
        if not each.told or settings(graph, more, found.values) is None:
            edits[node] = each
        else:
            numbers = more
    for setting in settings(graph, numbers, found.values) or ():
        setting.apply(small)
    return Corrections(edits, found.folded, found.values) if edits or found.folded else None


def calls(graph: LabeledGraph, paths: set[str]) -> dict[str, list[Call]]:
    """What some modules are called with on the recorded image, and what they return, in float64.

    Examples
    --------
    >>> from channelscope.network.removal.trial import labeled_graph
    >>> net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(3, 1)).eval()
    >>> graph = labeled_graph(net, torch.ones(1, 1, 1, 1))
    >>> made = calls(graph, {"1"})
    >>> len(made["1"]), made["1"][0].output.shape
    (1, torch.Size([1, 3, 1, 1]))
    """
    model = copy.deepcopy(graph.model).double().eval()
    made: dict[str, list[Call]] = defaultdict(list)
    given: dict[str, tuple[tuple, dict[str, Any]]] = {}

    def before(path: str):
        def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            given[path] = nest.replaced((args, kwargs), Tensor.clone)

        return hook

    def after(path: str):
        def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
            made[path].append(Call(*given[path], nest.replaced(output, Tensor.clone)))

        return hook

    for path in paths:
        module = model.get_submodule(path)
        module.register_forward_pre_hook(before(path), with_kwargs=True)
        module.register_forward_hook(after(path), with_kwargs=True)
    with torch.no_grad():
        model(*graph.images)
    return made


def _values(graph: LabeledGraph) -> dict[fx.Node, Any]:
    """Values of all steps on the recorded inputs, in float64."""
    nodes = [node for node in graph.steps.nodes if node.op != "output"]
    exact = graph.executor.of_copy(copy.deepcopy(graph.model).double().eval())
    with torch.no_grad():
        values = exact.run(*graph.images, outputs=tuple(node.name for node in nodes), out_of_place=True)
    return dict(zip(nodes, values, strict=True))


Key = tuple[str, tuple[int, ...]]
"""Path of an attribute, and the position inside it where it is a list"""


@dataclass(frozen=True)
class Setting:
    """An attribute and its new value."""

    path: str
    place: tuple[int, ...]
    value: int

    def apply(self, model: nn.Module) -> None:
        """Set it on a network."""
        owner, _, name = self.path.rpartition(".")
        module = model.get_submodule(owner)
        old = module.__dict__[name]
        setattr(module, name, _placed(old, self.place, self.value))


def _placed(old: Any, place: tuple[int, ...], value: int) -> Any:
    if not place:
        return value
    parts = list(old)
    parts[place[0]] = _placed(parts[place[0]], place[1:], value)
    return type(old)(parts)


def settings(graph: LabeledGraph, numbers: list[Number], values: Mapping[fx.Node, Any]) -> list[Setting] | None:
    """Attributes that give all the numbers; None where some number does not come from one.

    Parameters
    ----------
    graph
        The labeled graph.
    numbers
        The numbers that have to change.
    values
        Values of the steps in the smaller network.

    Examples
    --------
    >>> from channelscope.network.removal.trial import labeled_graph
    >>> net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(3, 1)).eval()
    >>> graph = labeled_graph(net, torch.ones(1, 1, 1, 1))
    >>> settings(graph, [], {})  # no number has to change
    []
    """
    found: dict[Key, int] = {}
    for number in numbers:
        if not any(_solved(graph, number, key, values, found) for key in _keys(graph, number.given)):
            return None
    for number in numbers:
        if _evaluated(graph, number.given, found, values) != number.want:
            return None
    return [Setting(path, place, value) for (path, place), value in found.items()]


def _solved(graph: LabeledGraph, number: Number, key: Key, values: Mapping[fx.Node, Any], found: dict[Key, int]) -> bool:
    original = graph.values[_node(graph, key)]
    for position in key[1]:
        original = original[position]
    if not isinstance(original, int) or isinstance(original, bool):
        return False
    for candidate in [found[key]] if key in found else range(1, original + 1):
        try:
            result = _evaluated(graph, number.given, {**found, key: candidate}, values)
        except (ZeroDivisionError, TypeError, ValueError):
            continue
        if result == number.want:
            found[key] = candidate
            return True
    return False


def _node(graph: LabeledGraph, key: Key) -> str:
    return next(node.name for node in graph.steps.nodes if node.op == "get_attr" and node.target == key[0])


def _key(graph: LabeledGraph, node: fx.Node) -> Key | None:
    """The attribute that a number is read from, if it is."""
    place: list[int] = []
    while node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        place.insert(0, node.args[1])  # type: ignore[arg-type]
        node = node.args[0]
    if node.op == "get_attr" and not isinstance(graph.values[node.name], Tensor):
        return str(node.target), tuple(place)
    return None


def _keys(graph: LabeledGraph, given: Any) -> list[Key]:
    """The attributes that a number is computed from."""
    if not isinstance(given, fx.Node) or isinstance(graph.values.get(given.name), Tensor):
        return []
    key = _key(graph, given)
    if key is not None:
        return [key]
    return [key for parent in given.all_input_nodes for key in _keys(graph, parent)]


def _evaluated(graph: LabeledGraph, given: Any, found: Mapping[Key, int], values: Mapping[fx.Node, Any]) -> Any:
    """A number with some attributes replaced."""
    if not isinstance(given, fx.Node):
        return given
    key = _key(graph, given)
    if key is not None and key in found:
        return found[key]
    if not _keys(graph, given) or key is not None or given.op != "call_function":
        return values[given]
    return given.target(*[_evaluated(graph, part, found, values) for part in given.args])  # type: ignore[operator]


def compared(small: nn.Module, image: tuple[Any, ...], expected: Any) -> str:
    """How the smaller network differs from the silenced one, over every tensor of its output in float64; empty when it does not.

    Examples
    --------
    >>> compared(nn.Identity(), (torch.ones(2).double(),), torch.ones(2).double())
    ''
    >>> compared(nn.Identity(), (torch.ones(2),), torch.ones(3).double())
    'has an output of shape (2,) instead of (3,)'
    """
    exact = copy.deepcopy(small).double().eval()
    try:
        with torch.no_grad():
            received = exact(*image)
    except FAILURES as error:
        no_lack_of_memory(error)
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
    """The floating-point tensors of a nested output, in order.

    Examples
    --------
    >>> outputs({"logits": torch.tensor([0.5]), "labels": torch.tensor([1])})
    [tensor([0.5000])]
    """
    return [part for part in nest.tensors(value) if part.is_floating_point()]
