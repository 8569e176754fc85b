"""Receptive fields: which pixels a position of a step's maps depends on."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import fx, nn

from channelscope.network.channel_graph import upstream
from channelscope.network.graph import Graph
from channelscope.network.module_state import eval_mode
from channelscope.network.operations import Call, call_of

IMAGE_AXES = 4


@dataclass(frozen=True)
class AxisReceptiveField:
    """Along one axis, position p sees the pixels from `stride`·p + `low` to `stride`·p + `high`, both included."""

    stride: int = 1
    """pixels between neighboring positions"""
    low: int = 0
    """first pixel of position 0; negative where it sees padding"""
    high: int = 0
    """last pixel of position 0"""

    def through(self, size: int, stride: int, before: int, dilation: int) -> "AxisReceptiveField":
        """After a window of `size` taps that moves by `stride`, with `before` positions of padding."""
        return AxisReceptiveField(
            self.stride * stride, self.low - self.stride * before, self.high + self.stride * (dilation * (size - 1) - before)
        )

    def pixels(self, position: int, size: int) -> tuple[int, int]:
        """First pixel seen and the one after the last, inside an image of `size` pixels."""
        start, stop = self.stride * position + self.low, self.stride * position + self.high + 1
        return max(0, min(start, size - 1)), max(1, min(stop, size))


ReceptiveField = tuple[AxisReceptiveField, AxisReceptiveField]
"""rows and columns"""


def receptive_fields(graph: Graph, step: str) -> dict[str, ReceptiveField | None]:
    """Step → what a position of its maps sees, for a step and everything before it; None stands for the whole image.

    References
    ----------
    Composition of windows (Dumoulin & Visin 2016); checked by tests/network/test_receptive_field.py against gradients.
    """
    found: dict[str, ReceptiveField | None] = {}
    for node in upstream(graph, step):
        found[node.name] = _field_of(graph, node, found)
    return found


def _field_of(graph: Graph, node: fx.Node, known: Mapping[str, ReceptiveField | None]) -> ReceptiveField | None:
    shapes = graph.shapes
    if len(shapes.get(node.name, ())) != IMAGE_AXES:
        return None
    if node.op == "placeholder":
        return AxisReceptiveField(), AxisReceptiveField()
    call = call_of(node, graph.modules)
    window = call.entry.window(call) if call.entry.window is not None else None
    parents = [parent for parent in node.all_input_nodes if parent.op != "get_attr" and len(shapes.get(parent.name, ())) == IMAGE_AXES]
    if (
        not parents
        or (window is None and not _local(graph, call))
        or (window is None and any(shapes[parent.name][2:] != shapes[node.name][2:] for parent in parents))
    ):
        return None
    before = [known[parent.name] for parent in parents]
    rows, columns = [], []
    for field in before:
        if field is None or (field[0].stride, field[1].stride) != (before[0][0].stride, before[0][1].stride):  # type: ignore[index]
            return None
        rows.append(field[0])
        columns.append(field[1])
    own = _union(rows), _union(columns)
    if window is None:
        return own
    return own[0].through(*window[0]), own[1].through(*window[1])


def _local(graph: Graph, call: Call) -> bool:
    """Whether a step without a window leaves every position where it is."""
    if call.entry.normalizes and call.module is not None and not call.entry.local:
        return _positionwise(graph, call.node, call.module)
    return call.entry.local


@torch.no_grad()
def _positionwise(graph: Graph, node: fx.Node, module: nn.Module) -> bool:
    """Whether a normalization leaves all other positions as they are when one position of its maps changes."""
    shape = graph.shapes[node.all_input_nodes[0].name][1:]
    maps = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0)).to(next(graph.model.parameters(), torch.zeros(())))
    other = maps.clone()
    other[..., 0, 0] += 1
    with eval_mode(module):
        changed = module(maps) != module(other)
    changed[..., 0, 0] = False
    return not bool(changed.any())


def _union(parts: list[AxisReceptiveField]) -> AxisReceptiveField:
    return AxisReceptiveField(parts[0].stride, min(part.low for part in parts), max(part.high for part in parts))
