"""Reversible changes: watch or change a running network for a while and leave no trace."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from channelscope.errors import InputError, MismatchError
from channelscope.net.graph import Change, Graph, evaluating, trace
from channelscope.net.outputs import EXPONENT, FAILURES, coarsest, distance
from channelscope.net.subset import Subset
from channelscope.network.wrapper import unwrapped


class _Detour:
    """A forward pass through the traced graph with something happening after some of its steps."""

    def __init__(self, graph: Graph, after: Mapping[str, Change]):
        self.graph = graph
        self.after = after

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.graph.run(*self.graph.arguments(args, kwargs), after=self.after)


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


@contextmanager
def silence(model: nn.Module | Graph, marked: Subset, example: Tensor | tuple[Tensor, ...] | None = None) -> Iterator[nn.Module]:
    """While inside, the marked channels are zero at their cut points, or the marked kernels are zero in their weights.

    The network is traced on a zero image of the subset's input shape, or on `example`, unless the subset comes from `cut` and
    knows the trace; pass a `Graph` (or nest inside another edit) to trace only once. On exit, an exception included, the
    model is bit-identical to what it was; `silence(model, ~kept)` tries what `shrink(model, kept)` makes permanent, and
    `silence(model, ~circuit)` runs a circuit.

    Raises   MismatchError if the subset is of another network; TracingError if the forward pass cannot be followed.
    """
    if marked.of == "kernels":
        with masked(model.model if isinstance(model, Graph) else model, marked) as inside:
            yield inside
        return
    graph = model if isinstance(model, Graph) else _graph(model, marked, example)
    after: dict[str, Change] = {}
    for site in marked.sites:
        if graph.shapes.get(site.cut, ())[1:] != site.shape:
            received = graph.shapes.get(site.cut, "no such step")
            raise MismatchError(
                f"the subset is of another network: {site.name} should reach {site.cut} with {site.shape}, found {received}"
            )
        if bool(marked[site.name].any()):
            change = silencing(marked[site.name], site.axis)
            after[site.cut] = _then(after[site.cut], change) if site.cut in after else change
    with edit(graph, after) as inside:
        yield inside


def _graph(model: nn.Module, marked: Subset, example: Tensor | tuple[Tensor, ...] | None) -> Graph:
    outer = model.__dict__.get("forward")
    if isinstance(outer, _Detour):
        return outer.graph
    known = known_groups(model, marked) if example is None else None
    if known is not None:
        return known.graph
    if example is None:
        if not marked.sites or not marked.input_shape:
            raise InputError("silence: a subset of channels needs its sites and input shape, as cut() and Subset.everything() give it")
        example = blank(model, marked.input_shape)
    return trace(model, example)


def known_groups(model: nn.Module, subset: Subset) -> Any:
    """The `Groups` that a subset was made of, as long as they are of this network and it still computes what they follow.

    Parameters
    ----------
    model
        The network.
    subset
        Channels, as `cut` gives them.

    Returns
    -------
    Groups or None
        None where the subset has none, they are of another network object, or the network has changed its pass, type or device.
    """
    known = subset.groups
    if known is None or known.graph.model is not model or "forward" in vars(model):
        return None
    like, image = blank(model, subset.input_shape), known.image
    if (like.dtype, like.device) != (image[0].dtype, image[0].device):
        return None
    try:
        with evaluating(model), torch.no_grad():
            apart, _ = distance(known.graph.run(*image), model(*image))
    except FAILURES:
        return None
    return known if apart <= coarsest(model) ** EXPONENT else None


def blank(model: nn.Module, input_shape: tuple[int, ...]) -> Tensor:
    """A batch of one zero image, of the network's type and on its device."""
    like = next(model.parameters(), torch.zeros(()))
    return torch.zeros(1, *input_shape, device=like.device, dtype=like.dtype)


@contextmanager
def masked(model: nn.Module, marked: Subset) -> Iterator[nn.Module]:
    """While inside, the marked kernels (2-D slices W[o,i], or single weights of a linear layer) are zero.

    The parameters stay the same objects, so gradients still reach them; their old values come back on exit.
    """
    modules = dict(unwrapped(model).named_modules())
    weights: dict[str, Tensor] = {}
    for name, marks in marked.marks.items():
        weight = modules[name].weight if name in modules else None
        if not isinstance(weight, Tensor) or weight.shape[:2] != marks.shape:
            received = f"a weight of shape {tuple(weight.shape)}" if isinstance(weight, Tensor) else "no such layer"
            raise MismatchError(f"the subset is of another network: expected kernels {tuple(marks.shape)} at {name}, found {received}")
        weights[name] = weight
    before = {name: weight.data for name, weight in weights.items()}
    try:
        for name, weight in weights.items():
            mask = marked[name].to(weight.device).view(*weight.shape[:2], *[1] * (weight.dim() - 2))
            weight.data = weight.data.masked_fill(mask, 0)
        yield model
    finally:
        for name, weight in weights.items():
            weight.data = before[name]
