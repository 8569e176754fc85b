"""layout: which channels of every step a smaller network can leave out, so that its tensors still fit each other.

A channel may go if nothing that is kept depends on it. Steps then tie the channels of their inputs and outputs: sums need
the same ones on both sides, a concatenation has those of its parts, flattening repeats them for every position. A step that
is not known to work with fewer channels keeps all it sees.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from channelscope.circuits.circuit import Circuit
from channelscope.circuits.provenance import MEETING, PADDING, REDUCING, kernels_in, upstream
from channelscope.circuits.target import Target
from channelscope.net.coupling import POOLING, POOLS
from channelscope.net.find import BATCH_NORMS, CHANNELWISE

Kept = dict[str, np.ndarray]
"""step → bool (channels on axis 1,)"""
SPATIAL = {2, 3, -1, -2}


def layout(circuit: Circuit, target: Target) -> Kept:
    """Channels of every step that the circuit's smaller network has; steps without an axis of channels are left out.

    Source   Hamblin, Konkle, Alvarez 2022 (extraction)
    """
    plan = _Plan(circuit, target)
    changed = True
    while changed:
        before = {name: marks.copy() for name, marks in plan.kept.items()}
        for rule in plan.rules:
            rule()
        changed = any(not np.array_equal(before[name], marks) for name, marks in plan.kept.items())
    return plan.kept


def alive(circuit: Circuit, target: Target) -> dict[str, torch.Tensor]:
    """Kernels of the masked network: those of the circuit, and those the feature's images never reach (constants pass them).

    Source   Hamblin, Konkle, Alvarez 2022: biases and normalizations stay
    """
    every = target.wiring.everything()
    return {
        layer: circuit[layer] | ~target.relevant[layer] if layer in target.relevant else torch.ones_like(marks)
        for layer, marks in every.items()
    }


class _Plan:
    def __init__(self, circuit: Circuit, target: Target):
        self.graph = target.graph
        self.shapes = target.graph.shapes
        self.nodes = upstream(target.graph, target.step)
        need = target.wiring.needed(alive(circuit, target), target.seeds)
        need[0] = True
        self.kept: Kept = {}
        for node in self.nodes:
            label = target.wiring.labels.get(node.name)
            shape = self.shapes.get(node.name, ())
            if len(shape) >= 2:
                self.kept[node.name] = (
                    np.ones(shape[1], dtype=bool) if label is None or node.op in ("placeholder", "get_attr") else need[label]
                )
        if target.axis != 0:
            self.kept.pop(target.step, None)
        for marks in self.kept.values():
            marks[0] |= not marks.any()  # no module works with nothing at all
        self.calls = Counter(str(node.target) for node in self.nodes if node.op == "call_module")
        self.rules = [rule for node in self.nodes for rule in self._rules(node)]

    def _rules(self, node: fx.Node) -> list[Callable[[], None]]:
        parents = [parent for parent in node.all_input_nodes if parent.name in self.kept]
        if node.op in ("placeholder", "get_attr"):
            return []
        if len(parents) < len(node.all_input_nodes) or not parents:
            return self._whole([*parents, node])
        if node.op == "call_module":
            return self._module(node, self.graph.modules[str(node.target)], parents)
        name = str(node.target if node.op == "call_method" else node.target.__name__).rstrip("_")  # type: ignore[union-attr]
        if name in ("size", "dim") and node.args[1:] == (0,):
            return []
        if name == "cat" and _dimension(node) == 1 and node.name in self.kept:
            return [lambda: self._concatenated(node, parents)]
        if self._flattens(node, name):
            return [lambda: self._flattened(node, parents[0])]
        spatial = name in REDUCING and _reduced(node) <= SPATIAL
        if name in MEETING or name in POOLS or name == "contiguous" or spatial:
            return self._tied([*parents, node])
        return self._whole([*parents, node])

    def _module(self, node: fx.Node, module: nn.Module, parents: list[fx.Node]) -> list[Callable[[], None]]:
        if self.calls[str(node.target)] > 1:
            return self._whole([*parents, node])
        if kernels_in(module):
            groups = int(module.groups) if isinstance(module, nn.Conv2d) else 1
            if groups == 1:
                tokens = isinstance(module, nn.Linear) and len(self.shapes[node.name]) > 2
                return self._whole([*parents, node]) if tokens or node.name not in self.kept else []
            depthwise = isinstance(module, nn.Conv2d) and groups == module.in_channels == module.out_channels
            return self._tied([*parents, node]) if depthwise else self._whole([*parents, node])
        if isinstance(module, CHANNELWISE + BATCH_NORMS + POOLING + PADDING):
            return self._tied([*parents, node])
        if isinstance(module, nn.Flatten) and module.start_dim == 1 and module.end_dim == -1:
            return [lambda: self._flattened(node, parents[0])]
        return self._whole([*parents, node])

    def _tied(self, nodes: list[fx.Node]) -> list[Callable[[], None]]:
        """All have the same channels; what is spread over all channels keeps its own."""
        sizes = {len(self.kept[node.name]) for node in nodes if node.name in self.kept}
        ranks = {len(self.shapes[node.name]) for node in nodes if node.name in self.kept and len(self.kept[node.name]) > 1}
        if any(node.name not in self.kept for node in nodes) or len(sizes - {1}) > 1 or (len(ranks) > 1 and not _reduces(nodes[-1])):
            return self._whole(nodes)
        wide = [node for node in nodes if len(self.kept[node.name]) == max(sizes)]
        narrow = [node for node in nodes if node not in wide]

        def tie() -> None:
            union = np.logical_or.reduce([self.kept[node.name] for node in wide])
            for node in wide:
                self.kept[node.name] = union.copy()

        return [tie, *self._whole(narrow)]

    def _whole(self, nodes: list[fx.Node]) -> list[Callable[[], None]]:
        def keep() -> None:
            for node in nodes:
                if node.name in self.kept:
                    self.kept[node.name] = np.ones_like(self.kept[node.name])

        return [keep]

    def _concatenated(self, node: fx.Node, parents: list[fx.Node]) -> None:
        parts = node.args[0] if node.args else node.kwargs["tensors"]
        sizes = [len(self.kept[part.name]) for part in parts]  # type: ignore[union-attr]
        for part, marks in zip(parts, np.split(self.kept[node.name], np.cumsum(sizes)[:-1]), strict=True):  # type: ignore[arg-type]
            self.kept[part.name] = self.kept[part.name] | marks  # type: ignore[union-attr]
        self.kept[node.name] = np.concatenate([self.kept[part.name] for part in parts])  # type: ignore[union-attr]

    def _flattens(self, node: fx.Node, name: str) -> bool:
        if name == "flatten":
            return node.args[1:] == (1,) or node.kwargs == {"start_dim": 1}
        sizes = node.args[1] if len(node.args) == 2 and isinstance(node.args[1], tuple | list) else node.args[1:]
        return name in ("view", "reshape") and len(sizes) == 2 and sizes[1] == -1  # type: ignore[arg-type,index]

    def _flattened(self, node: fx.Node, parent: fx.Node) -> None:
        before, after = self.kept[parent.name], self.kept[node.name]
        positions = len(after) // len(before)
        union = before | after.reshape(len(before), positions).any(1)
        self.kept[parent.name], self.kept[node.name] = union, np.repeat(union, positions)


def _reduces(node: fx.Node) -> bool:
    name = node.target if isinstance(node.target, str) else node.target.__name__
    return name in REDUCING


def _reduced(node: fx.Node) -> set[Any]:
    """The axes a mean or sum runs over; that of channels where it is not said."""
    axes: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 1)
    return set(axes) if isinstance(axes, tuple | list) else {axes}


def _dimension(node: fx.Node) -> int:
    return int(node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0))  # type: ignore[arg-type]
