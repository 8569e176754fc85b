"""Reversible changes: watch or change a running network for a while and leave no trace."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from channelscope.net.graph import Change, Graph


class _Detour:
    """A forward pass through the traced graph with something happening after some of its steps."""

    def __init__(self, graph: Graph, after: Mapping[str, Change]):
        self.graph = graph
        self.after = after

    def __call__(self, *inputs: Tensor):
        return self.graph.run(*inputs, after=self.after)


@contextmanager
def edit(graph: Graph, after: Mapping[str, Change]) -> Iterator[nn.Module]:
    """While inside, calling the network also calls `after[step]` on each named step's value.

    A function that returns a tensor replaces the value; one that returns None only watches. Edits nest: the inner
    one acts after the outer one. On exit, an exception included, the model is as it was.
    """
    model = graph.model
    outer = model.__dict__.get("forward")
    if isinstance(outer, _Detour):
        after = _both(outer.after, after)
    model.__dict__["forward"] = _Detour(graph, after)
    try:
        yield model
    finally:
        if outer is None:
            del model.__dict__["forward"]
        else:
            model.__dict__["forward"] = outer


def _both(first: Mapping[str, Change], second: Mapping[str, Change]) -> dict[str, Change]:
    merged = dict(first)
    for name, change in second.items():
        merged[name] = _then(first[name], change) if name in first else change
    return merged


def _then(first: Change, second: Change) -> Change:
    def chained(value: Tensor) -> Tensor | None:
        changed = first(value)
        again = second(value if changed is None else changed)
        return changed if again is None else again

    return chained


def silencing(channels: Tensor, axis: int, values: Tensor | None = None) -> Change:
    """A change that sets the marked channels to zero, or to one constant a channel; `axis` counts without the batch.

    channels   bool (C,)
    values     (C,) or None for zero
    """

    def change(maps: Tensor) -> Tensor:
        shape = [1] * maps.dim()
        shape[axis + 1] = -1
        mask = channels.to(maps.device).view(shape)
        if values is None:
            return maps.masked_fill(mask, 0)
        return torch.where(mask, values.to(maps).view(shape), maps)

    return change
