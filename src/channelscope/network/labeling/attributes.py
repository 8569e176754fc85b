"""Attributes: the attributes of modules from which the numbers in a recorded pass came, and what they become."""

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx, nn

from channelscope.network.operations.numbers import Number

if TYPE_CHECKING:
    from channelscope.network.labeling.labeled_graph import LabeledGraph

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


def settings(graph: "LabeledGraph", numbers: list[Number], values: Mapping[fx.Node, Any]) -> list[Setting] | None:
    """Attributes that give all the numbers; None where some number does not come from one.

    Parameters
    ----------
    graph
        The labeled graph.
    numbers
        The numbers that have to change.
    values
        Values of the steps in the smaller network.
    """
    found: dict[Key, int] = {}
    for number in numbers:
        if not any(_solved(graph, number, key, values, found) for key in _keys(graph, number.given)):
            return None
    for number in numbers:
        if _evaluated(graph, number.given, found, values) != number.want:
            return None
    return [Setting(path, place, value) for (path, place), value in found.items()]


def _solved(graph: "LabeledGraph", number: Number, key: Key, values: Mapping[fx.Node, Any], found: dict[Key, int]) -> bool:
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


def _node(graph: "LabeledGraph", key: Key) -> str:
    return next(node.name for node in graph.steps.nodes if node.op == "get_attr" and node.target == key[0])


def _key(graph: "LabeledGraph", node: fx.Node) -> Key | None:
    """The attribute that a number is read from, if it is."""
    place: list[int] = []
    while node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        place.insert(0, node.args[1])  # type: ignore[arg-type]
        node = node.args[0]
    if node.op == "get_attr" and not isinstance(graph.values[node.name], Tensor):
        return str(node.target), tuple(place)
    return None


def _keys(graph: "LabeledGraph", given: Any) -> list[Key]:
    """The attributes that a number is computed from."""
    if not isinstance(given, fx.Node) or isinstance(graph.values.get(given.name), Tensor):
        return []
    key = _key(graph, given)
    if key is not None:
        return [key]
    return [key for parent in given.all_input_nodes for key in _keys(graph, parent)]


def _evaluated(graph: "LabeledGraph", given: Any, found: Mapping[Key, int], values: Mapping[fx.Node, Any]) -> Any:
    """A number with some attributes replaced."""
    if not isinstance(given, fx.Node):
        return given
    key = _key(graph, given)
    if key is not None and key in found:
        return found[key]
    if not _keys(graph, given) or key is not None or given.op != "call_function":
        return values[given]
    return given.target(*[_evaluated(graph, part, found, values) for part in given.args])  # type: ignore[operator]
