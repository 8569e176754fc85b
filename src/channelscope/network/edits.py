"""Reversible changes of a running network; afterwards it is bit-identical."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from channelscope.errors import FAILURES, InputError, MismatchError, no_lack_of_memory
from channelscope.network.graph import Graph, Hook, trace
from channelscope.network.module_state import eval_mode, zero_batch
from channelscope.network.operations.opened import in_layers
from channelscope.network.tracing.recording import EXPONENT, coarsest, distance, unwrapped
from channelscope.subset import Subset


class _GraphForward:
    """A forward pass through the traced graph with something happening after some of its steps."""

    def __init__(self, graph: Graph, after: Mapping[str, Hook]):
        self.graph = graph
        self.after = after

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.graph.run(*self.graph.arguments(args, kwargs), hooks=self.after)


@contextmanager
def edit(graph: Graph, after: Mapping[str, Hook]) -> Iterator[nn.Module]:
    """While inside, calling the network also calls `after[step]` on each named step's value.

    A function that returns a tensor replaces the value; one that returns None only watches. Edits nest: the inner
    one acts after the outer one. On exit, an exception included, the model is as it was.

    Examples
    --------
    >>> from channelscope.network.graph import trace
    >>> net = torch.nn.Sequential(torch.nn.Identity(), torch.nn.ReLU())
    >>> graph, image = trace(net, torch.ones(1, 2)), torch.tensor([[1.0, -1.0]])
    >>> with edit(graph, {"_1": lambda value: value + 1}):
    ...     net(image).tolist()
    [[2.0, 1.0]]
    >>> net(image).tolist()
    [[1.0, 0.0]]
    """
    model = graph.model
    before = {each: vars(each).get("forward") for each in (model, graph.body)}
    outer = before[model]
    if isinstance(outer, _GraphForward):
        after = _merge_hooks(outer.after, after)
    for each in before:
        vars(each)["forward"] = _GraphForward(graph, after)
    try:
        yield model
    finally:
        for each, own in before.items():
            vars(each).pop("forward")
            if own is not None:
                vars(each)["forward"] = own


def _merge_hooks(first: Mapping[str, Hook], second: Mapping[str, Hook]) -> dict[str, Hook]:
    merged = dict(first)
    for name, change in second.items():
        merged[name] = _chain(first[name], change) if name in first else change
    return merged


def _chain(first: Hook, second: Hook) -> Hook:
    def chained(value: Tensor) -> Tensor | None:
        changed = first(value)
        again = second(value if changed is None else changed)
        return changed if again is None else again

    return chained


def zero_channels(channels: Tensor, axis: int, values: Tensor | None = None) -> Hook:
    """A change that sets the marked channels to zero, or to one constant a channel; `axis` counts without the batch.

    Parameters
    ----------
    channels
        Bool (C,).
    values
        (C,) or None for zero.

    Examples
    --------
    >>> zero_channels(torch.tensor([True, False]), axis=0)(torch.ones(1, 2, 2)).tolist()
    [[[0.0, 0.0], [1.0, 1.0]]]
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

    Groups that a subset of `cut` marks as a whole stay zero up to the layers that read them: the shift of a norm behind a
    sum or a concatenation, which would give them a value again, is silent with them.

    The network is traced on a zero image of the subset's input shape, or on `example`, unless the subset comes from `cut` and
    knows the trace; pass a `Graph` (or nest inside another edit) to trace only once. On exit, an exception included, the
    model is bit-identical to what it was; `silence(model, ~kept)` tries what `shrink(model, kept)` makes permanent, and
    `silence(model, ~circuit)` runs a circuit.

    Raises
    ------
    MismatchError
        If the subset is of another network.
    TracingError
        If the forward pass cannot be followed.

    Examples
    --------
    >>> from channelscope import groups
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.Flatten(), torch.nn.Linear(2, 1)).eval()
    >>> found = groups(net, torch.ones(1, 1, 1, 1))
    >>> with silence(net, Subset.everything(found.sites, (1, 1, 1))):
    ...     torch.equal(net(torch.ones(1, 1, 1, 1))[0], net[2].bias)
    True
    """
    if marked.unit == "kernels":
        with zero_kernels(model, marked) as inside:
            yield inside
        return
    graph = model if isinstance(model, Graph) else _graph(model, marked, example)
    after: dict[str, Hook] = {}
    for site in marked.sites:
        if graph.shapes.get(site.activation, ())[1:] != site.shape:
            received = graph.shapes.get(site.activation, "no such step")
            raise MismatchError(
                f"the subset is of another network: {site.name} should reach {site.activation} with {site.shape}, found {received}"
            )
        if bool(marked[site.name].any()):
            change = zero_channels(marked[site.name], site.channel_axis)
            after[site.activation] = _chain(after[site.activation], change) if site.activation in after else change
    if marked.groups is not None:
        silent = marked.groups.silent_steps(marked)
        strange = [step for step in silent if step not in graph.nodes]
        if strange:
            raise MismatchError(f"the subset is of another network: this one has no step {strange[0]}")
        after = _merge_hooks(after, silent)
    with edit(graph, after) as inside:
        yield inside


def _graph(model: nn.Module, marked: Subset, example: Tensor | tuple[Tensor, ...] | None) -> Graph:
    outer = model.__dict__.get("forward")
    if isinstance(outer, _GraphForward):
        return outer.graph
    known = known_groups(model, marked) if example is None else None
    if known is not None:
        return known.graph
    if example is None:
        if not marked.sites or not marked.input_shape:
            raise InputError("silence: a subset of channels needs its sites and input shape, as cut() and Subset.everything() give it")
        example = zero_batch(model, marked.input_shape)
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

    Examples
    --------
    >>> import numpy as np
    >>> from channelscope import groups
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.Flatten(), torch.nn.Linear(2, 1)).eval()
    >>> found = groups(net, torch.ones(1, 1, 1, 1))
    >>> kept = found.to_subset(np.array([True, False]))
    >>> known_groups(net, kept) is found, known_groups(net, Subset.everything(found.sites, (1, 1, 1)))
    (True, None)
    """
    known = subset.groups
    if known is None or known.graph.model is not model or "forward" in vars(model):
        return None
    like, image = zero_batch(model, subset.input_shape), known.example
    if (like.dtype, like.device) != (image[0].dtype, image[0].device):
        return None
    try:
        with eval_mode(model), torch.no_grad():
            apart, _ = distance(known.graph.run(*image), model(*image))
    except FAILURES as error:
        no_lack_of_memory(error)
        return None
    return known if apart <= coarsest(model) ** EXPONENT else None


@contextmanager
def zero_kernels(model: nn.Module | Graph, marked: Subset) -> Iterator[nn.Module]:
    """While inside, the marked kernels (2-D slices W[o,i], or single weights of a linear layer) are zero.

    The parameters stay the same objects, so gradients still reach them; their old values come back on exit. Weights that a layer
    computes at every pass are those of the traced graph, which then runs in the place of the network.

    Raises
    ------
    MismatchError
        If the subset is of another network.
    InputError
        If a layer computes its weight and the graph is not given.

    Examples
    --------
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 1, bias=False))
    >>> with zero_kernels(net, Subset({"0": torch.tensor([[True, False]])})):
    ...     net[0].weight[0, 0].item()
    0.0
    """
    graph = model if isinstance(model, Graph) else None
    network = model.model if isinstance(model, Graph) else model
    modules = dict((graph.body if graph else in_layers(unwrapped(network))).named_modules())
    weights: dict[str, Tensor] = {}
    for name, marks in marked.masks.items():
        weight = modules[name].weight if name in modules else None
        if not isinstance(weight, Tensor) or weight.shape[:2] != marks.shape:
            received = f"a weight of shape {tuple(weight.shape)}" if isinstance(weight, Tensor) else "no such layer"
            raise MismatchError(f"the subset is of another network: expected kernels {tuple(marks.shape)} at {name}, found {received}")
        weights[name] = weight
    own = set(map(id, network.parameters()))
    computed = [name for name, weight in weights.items() if id(weight) not in own]
    if computed and graph is None:
        raise InputError(f"{computed[0]} computes its weight at every pass: give the network as its graph, trace(model, images)")
    before = {name: weight.data for name, weight in weights.items()}
    try:
        for name, weight in weights.items():
            mask = marked[name].to(weight.device).view(*weight.shape[:2], *[1] * (weight.dim() - 2))
            weight.data = weight.data.masked_fill(mask, 0)
        with edit(graph, {}) if graph and computed else nullcontext(network) as inside:
            yield inside
    finally:
        for name, weight in weights.items():
            weight.data = before[name]
