"""What only a trial run tells of a network's channels: what cannot be removed, before anything is ranked."""

import copy
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from channelscope.errors import InputError
from channelscope.network.edits import zero_channels
from channelscope.network.graph import Hook
from channelscope.network.removal.channels import ChannelDependencies, LayerChannels
from channelscope.network.removal.labeled_groups import LabeledDependencies
from channelscope.network.removal.outputs import EXPONENT, FAILURES, coarsest, distance
from channelscope.network.removal.slicing import slice_layer

PASSES = 8
"""Trials after which whatever still differs is left to the comparison after shrinking."""


def refuse_lazy(model: nn.Module) -> None:
    """Refuse a network some of whose parameters have no shape yet; it stays as it is.

    Parameters
    ----------
    model
        The network.

    Raises
    ------
    InputError
        If a parameter or buffer is uninitialized, with its name.
    """
    for name, part in [*model.named_parameters(), *model.named_buffers()]:
        if isinstance(part, UninitializedParameter | UninitializedBuffer):
            raise InputError(
                f"expected a network whose parameters have shapes, received {name} without one: call the network on an image once"
            )


def hold_shared(coupling: ChannelDependencies | LabeledDependencies) -> None:
    """Keep whole the layers that share a parameter with another place, and what enters a per-channel layer that is called twice.

    Parameters
    ----------
    coupling
        The channels of a network and what they are tied to; changed in place.
    """
    graph = coupling.graph
    places: dict[int, list[str]] = defaultdict(list)
    for name, module in graph.model.named_modules():
        for part, parameter in module.named_parameters(recurse=False):
            places[id(parameter)].append(f"{name}.{part}".lstrip("."))
    known = dict(graph.model.named_parameters(remove_duplicate=False))
    for node in graph.steps.nodes:
        if node.op == "get_attr" and str(node.target) in known:
            places[id(known[str(node.target)])].append(f"the step {node.name}")
    calls = Counter(str(node.target) for node in graph.steps.nodes if node.op == "call_module")
    for layer in coupling.layers.values():
        for parameter in graph.modules[layer.name].parameters(recurse=False):
            if len(places[id(parameter)]) > 1:
                coupling.hold(torch.cat([layer.inputs, layer.outputs]), f"{' and '.join(places[id(parameter)])} are one parameter")
        if layer.taps == 0 and calls[layer.name] > 1:
            for number in _entering(coupling, layer.name):
                coupling.hold(number, f"{layer.name} is used in several places")


def _entering(coupling: ChannelDependencies | LabeledDependencies, name: str) -> list[Tensor]:
    """Channels of the layers in front of every call of a module."""
    weighted = {layer.name: layer for layer in coupling.layers.values() if layer.taps}
    stack = [parent for node in coupling.graph.steps.nodes if node.target == name for parent in node.all_input_nodes]
    seen, found = set(stack), []
    while stack:
        node = stack.pop()
        if node.op == "call_module" and str(node.target) in weighted:
            found.append(weighted[str(node.target)].outputs)
            continue
        fresh = [parent for parent in node.all_input_nodes if parent not in seen]
        seen.update(fresh)
        stack += fresh
    return found


@torch.no_grad()
def hold_what_differs(coupling: ChannelDependencies, image: tuple[Tensor, ...]) -> None:
    """Remove half of the channels for a trial and keep whole what then computes something else than with them silent.

    Every layer of the trial gets what the silenced network gives it, so that each difference shows where it arises: before a
    layer, if part of the pass counts channels, or in it, if its weights are computed from all of its inputs.

    Parameters
    ----------
    coupling
        The channels of a network and what they are tied to; changed in place.
    image
        One image, all inputs of the network.
    """
    for turn in range(PASSES):
        silent = _half(coupling, turn)
        if not bool(silent.any()):
            return
        held = _differing(coupling, image, silent)
        if not held:
            return
        for numbers, reason in held:
            coupling.hold(numbers, reason)


def _half(coupling: ChannelDependencies, turn: int) -> Tensor:
    """Half of the groups that can be removed, of each site at most all but one; bool (channels,)."""
    roots = np.array([coupling.root(number) for number in range(len(coupling.parent))])
    free = np.array([not coupling.reason(number) for number in range(len(roots))])
    coin = np.random.default_rng(turn).random(len(roots)) < 0.5
    for site in coupling.found:
        here = np.arange(coupling.offsets[site.name], coupling.offsets[site.name] + site.channels)
        if free[here].all():
            coin[roots[here[0]]] = False
    return torch.from_numpy(coin[roots] & free)


def _differing(coupling: ChannelDependencies, image: tuple[Tensor, ...], silent: Tensor) -> list[tuple[Tensor, str]]:
    """Channels to keep, with the reason, as one trial shows them."""
    graph = coupling.graph
    keep = torch.cat([~silent, torch.ones(1, dtype=torch.bool)])
    after: dict[str, Hook] = {}
    for site in coupling.found:
        start = coupling.offsets[site.name]
        after[site.activation] = zero_channels(silent[start : start + site.channels], site.channel_axis)
    calls = Counter(str(node.target) for node in graph.steps.nodes if node.op == "call_module")
    layers = [layer for layer in coupling.layers.values() if calls[layer.name] == 1]
    steps = tuple(dict.fromkeys(name for layer in layers for name in (graph.nodes[layer.node].all_input_nodes[0].name, layer.node)))
    values = dict(zip(steps, graph.run(*image, hooks=after, outputs=steps, out_of_place=True), strict=True)) if steps else {}
    allowed = coarsest(graph.model) ** EXPONENT
    found: list[tuple[Tensor, str]] = []
    inside: list[LayerChannels] = []

    def entering(layer: LayerChannels) -> Callable[..., None]:
        return lambda *_: inside.append(layer)

    def leaving(layer: LayerChannels) -> Callable[..., Tensor]:
        def hook(_module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> Tensor:
            inside.pop()
            axis = output.dim() - 1 if layer.linear else 1
            read = args[0] if args else next(iter(kwargs.values()))
            inputs = layer.inputs if layer.taps else layer.outputs
            expected = _kept(values[graph.nodes[layer.node].all_input_nodes[0].name], axis, keep[inputs])
            right = _kept(values[layer.node], axis, keep[layer.outputs])
            if not distance(read, expected)[0] <= allowed:
                found.append((inputs, f"part of the pass before {layer.name} is different with fewer channels"))
            elif not distance(output, right)[0] <= allowed:
                lost = not bool(keep[inputs].all())
                found.append((inputs if lost else layer.outputs, f"{layer.name} computes something else with fewer channels"))
            return right

        return hook

    try:
        small = copy.deepcopy(graph.model).eval()
        for layer in coupling.layers.values():
            slice_layer(small.get_submodule(layer.name), layer, keep)
        with ExitStack() as stack:
            for layer in layers:
                module: Any = small.get_submodule(layer.name)
                stack.callback(module.register_forward_pre_hook(entering(layer)).remove)
                stack.callback(module.register_forward_hook(leaving(layer), with_kwargs=True).remove)
            small(*image)
    except FAILURES:
        found += [(torch.cat([layer.inputs, layer.outputs]), f"{layer.name} cannot run with fewer channels") for layer in inside]
    return found


def _kept(value: Tensor, axis: int, keep: Tensor) -> Tensor:
    return value.index_select(axis, keep.nonzero().flatten().to(value.device))
