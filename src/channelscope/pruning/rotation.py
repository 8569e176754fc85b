"""Linear streams: sums that only layers write and only layers read, whose channels can be mixed before they are cut.

Between the projection of one block and the expansions that read it, MobileNetV2, EfficientNet and their kin have no activation. What
flows there can be written in any basis: the layers that write it are multiplied by an invertible matrix, those that read it by its
inverse, and the network computes the same. In the basis made here few channels hold most of what matters, so that a cut loses less.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from channelscope.errors import InputError, MismatchError
from channelscope.network import nest
from channelscope.network.graph import Graph
from channelscope.network.module_state import eval_mode
from channelscope.network.operations import layer_of, of_step
from channelscope.network.removal.groups import Groups, groups
from channelscope.network.tracing.recording import distance
from channelscope.progress import progress_bar
from channelscope.pruning.calibration import rechunked, zero_input
from channelscope.pruning.normalization import (
    LayerContext,
    batchnorm_scale_shift,
    call_counts,
    is_plain_norm,
    layer_contexts,
    write_linear_map,
)
from channelscope.pruning.optimal_brain_surgeon import inputs_and_output_gradients, with_signs
from channelscope.stats.moments import NormalEquations
from channelscope.stats.readout import channels_last
from channelscope.types import Float, Tensor

EXACT = 1e-3
"""Largest relative difference between the outputs of the network before and after; in float32 the two are rounded differently."""

SMALLEST = torch.finfo(torch.float32).eps
"""Smallest variance in the basis, as a fraction of the largest, so that its inverse is finite."""

LOAD = 1e-3
"""What is added to the gradients' second moments, as a fraction of their mean, for directions that the images do not need."""


@dataclass(frozen=True)
class Stream:
    """Values in one basis: the outputs of some layers, and their sums; only other layers read them."""

    writers: tuple[LayerContext, ...]
    """the layers whose outputs, normalized where a BatchNorm follows, are terms of it"""
    readers: tuple[LayerContext, ...]
    """the layers that read it"""
    channels: int
    """its width"""


def linear_streams(found: Groups) -> list[Stream]:
    """The linear streams of a network, in execution order.

    Parameters
    ----------
    found
        The network's `groups`.

    Returns
    -------
    list of Stream
        Those that some layer reads; empty where an activation, a pooling or anything else stands between all layers.

    Examples
    --------
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 1), nn.Flatten())
    >>> (stream,) = linear_streams(groups(model.eval(), torch.zeros(1, 3, 8, 8)))
    >>> [each.layer.name for each in (*stream.writers, *stream.readers)], stream.channels
    (['0', '2'], 4)
    """
    graph = found.graph
    layers = {context.layer.node: context for context in layer_contexts(graph, found.layers) if _is_dense(graph, context)}
    plain = [each for each in layers.values() if not each.batchnorm or is_plain_norm(graph.modules[each.batchnorm])]
    written = {_value_of(graph, context): context for context in plain}
    streams: list[Stream] = []
    seen: set[fx.Node] = set()
    for node in written:
        if node in seen:
            continue
        inside = _connected(graph, node, written, layers)
        seen |= inside
        reading = {user.name for value in inside for user in value.users}
        writers = tuple(context for value, context in written.items() if value in inside)
        readers = tuple(context for name, context in layers.items() if name in reading)
        if writers and readers:
            streams.append(Stream(writers, readers, graph.shapes[node.name][_axis(graph, writers[0])]))
    return streams


def _is_dense(graph: Graph, context: LayerContext) -> bool:
    """Whether a layer, called once, joins all of its inputs to all of its outputs by weights that are its own."""
    name = context.layer.name
    layer, weight = layer_of(graph.modules[name]), graph.modules[name]._parameters.get("weight")
    if layer is None or weight is None or layer.groups > 1 or layer.transposed or context.bias_stays:
        return False
    owners = [path for path, part in graph.body.named_parameters(remove_duplicate=False) if part is weight]
    return owners == [f"{name}.weight"] and call_counts(graph, name) == 1


def _value_of(graph: Graph, context: LayerContext) -> fx.Node:
    """The step whose value is the layer's output, normalized where a BatchNorm follows."""
    node = graph.nodes[context.layer.node]
    return next(iter(node.users)) if context.batchnorm else node


def _axis(graph: Graph, context: LayerContext) -> int:
    layer = layer_of(graph.modules[context.layer.name])
    assert layer is not None
    return layer.channel_axis(len(graph.shapes[context.layer.node]))


def _passes(graph: Graph, node: fx.Node) -> bool:
    """Whether a step adds two values of its own shape, or does nothing."""
    if node.op == "output":
        return False
    entry, parts = of_step(node, graph.modules), node.all_input_nodes
    if any(graph.shapes.get(part.name) != graph.shapes.get(node.name) for part in parts):
        return False
    return len(parts) == len(node.args) == 2 and not node.kwargs if entry.arithmetic == "sum" else entry.identity and len(parts) == 1


def _connected(graph: Graph, start: fx.Node, written: Mapping[fx.Node, Any], layers: Mapping[str, Any]) -> set[fx.Node]:
    """The steps whose values share a basis with one; none where something else than a layer or a sum writes or reads one of them."""
    inside, ahead = {start}, [start]
    while ahead:
        node = ahead.pop()
        near = [user for user in node.users if user.name not in layers]
        if node not in written:
            near += node.all_input_nodes
        if not all(other in written or _passes(graph, other) for other in near):
            return set()
        ahead += [other for other in near if other not in inside]
        inside.update(near)
    return inside


@torch.no_grad()
def rotate_streams(model: nn.Module | Groups, calibration: Iterable, *, seed: int = 0, progress: bool = True) -> nn.Module:
    """A copy of the network that computes the same, its linear streams in a basis in which a cut loses less.

    In the new basis the channels of a stream are uncorrelated over the calibration images, and what they do to the network's output is
    too, to second order: they are the eigenvectors of the values' covariance in the metric of their Fisher information, from random
    combinations of the logits. The variance of a channel is what losing it costs. The channels of the copy are thus mixtures of those
    of the network. Running statistics of the BatchNorms are those of the calibration images.

    Parameters
    ----------
    model
        The network, which stays as it is, or its `groups`.
    calibration
        Batches of (images, …); labels are not used. Directions that these images do not need are the first to be lost, so they have to
        show all that the network is to keep: 200 images for 1,000 classes are too few (docs/results/repair.md).
    seed
        Of the combinations of the logits.
    progress
        Whether a bar is drawn.

    Returns
    -------
    nn.Module
        The copy, with the same modules and shapes.

    Raises
    ------
    InputError
        For a network without linear streams, or whose output is not logits, images × classes.
    MismatchError
        If the copy computes something else.
    SampleError
        Without images.

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    >>> images = torch.rand(20, 3, 8, 8)
    >>> rotated = rotate_streams(model, [images])
    >>> bool((rotated(images) - model(images)).abs().max() < 1e-5)
    True
    >>> variances = rotated[0](images).var((0, 2, 3))  # three inputs have three directions
    >>> int((variances > 1e-4 * variances.max()).sum()) <= 3
    True

    References
    ----------
    Ashkboos et al. 2024 (rotations that leave a network's function as it is, for transformers); the metric as in
    `optimal_brain_surgeon`.
    """
    calibration = list(calibration) if isinstance(calibration, Iterator) else calibration
    found = model if isinstance(model, Groups) else groups(model, zero_input(model, calibration))
    streams = linear_streams(found)
    if not streams:
        raise InputError("rotate: this network has no stream that layers alone write and read: an activation or a norm follows every layer")
    batches = rechunked(calibration, found)
    signed = with_signs(found, batches, torch.Generator().manual_seed(seed))
    with progress_bar("linear streams in another basis, images", sum(len(batch[0]) for batch in batches), progress) as advance:
        moments, metrics = _moments(found, streams, signed, advance)
    rotated = copy.deepcopy(found.graph.body)  # whose weights can be written
    for stream in streams:
        _rotate(found.graph, rotated, stream, moments, metrics)
    with eval_mode(rotated, found.graph.model):
        apart, where = distance(nest.tensors(rotated(*found.example)), nest.tensors(found.graph.model(*found.example)))
    if not apart <= EXACT:
        raise MismatchError(f"rotate: the network with its streams in another basis is {apart:.2g} away from the original {where}")
    return rotated


def _moments(
    found: Groups, streams: list[Stream], batches: Iterable[tuple[tuple[Tensor, ...], Tensor]], advance: Callable[[float], None]
) -> tuple[dict[str, NormalEquations], dict[str, Float[Tensor, "channels channels"]]]:
    """Of every value that a stream's layers write or read, the mean and covariance, and the second moments of the gradient there."""
    graph = found.graph
    axes = {_value_of(graph, each).name: _axis(graph, each) for stream in streams for each in stream.writers}
    axes |= {each.input_node: _axis(graph, stream.writers[0]) for stream in streams for each in stream.readers}
    moments: dict[str, NormalEquations] = {}
    metrics: dict[str, Tensor] = {}
    with eval_mode(graph.model):
        for batch, signs in batches:
            given = inputs_and_output_gradients(found, batch, list(axes), list(axes), signs)
            for step, axis in axes.items():
                value, slope = (channels_last(each[step], axis - 1).flatten(0, 1).double() for each in given)
                part = NormalEquations.of(value[None], value[None, :, :0])
                moments[step] = moments[step] + part if step in moments else part
                metrics[step] = metrics.get(step, 0) + slope.T @ slope  # type: ignore[operator]
            advance(len(batch[0]))
    return moments, metrics


def _basis(
    covariance: Float[Tensor, "channels channels"], metric: Float[Tensor, "channels channels"]
) -> tuple[Float[Tensor, "channels channels"], Float[Tensor, "channels channels"]]:
    """The map into the new basis, largest variance first, and its inverse."""
    metric = metric / metric.diagonal().mean().clamp(min=torch.finfo(metric.dtype).tiny)
    metric.diagonal().add_(LOAD)
    variances, axes = torch.linalg.eigh(covariance)
    spread = variances.clamp(min=SMALLEST * variances.max()).clamp(min=torch.finfo(metric.dtype).tiny).sqrt()
    root = axes * spread
    costs, turn = torch.linalg.eigh(root.T @ metric @ root)
    costs, turn = costs.clamp(min=SMALLEST * costs.max()).sqrt().flip(0), turn.flip(1)
    return costs[:, None] * (turn.T @ (axes / spread).T), (root @ turn) / costs


def _rotate(
    graph: Graph, rotated: nn.Module, stream: Stream, moments: Mapping[str, NormalEquations], metrics: Mapping[str, Tensor]
) -> None:
    """Write a stream's layers in another basis."""
    read = list(dict.fromkeys(each.input_node for each in stream.readers))
    covariances, slopes = [moments[step].covariance[0] for step in read], [metrics[step] for step in read]
    into, back = _basis(torch.stack(covariances).sum(0), torch.stack(slopes).sum(0))
    modules: dict[str, Any] = dict(rotated.named_modules())
    for context in stream.writers:
        module, norm = modules[context.layer.name], modules[context.batchnorm] if context.batchnorm else None
        weights = module.weight.double().flatten(1)
        constant = weights.new_zeros(len(weights)) if module.bias is None else module.bias.double()
        if norm is not None:
            factor, shift = batchnorm_scale_shift(norm)
            weights, constant = weights * factor[:, None], constant * factor + shift
        here = moments[_value_of(graph, context).name]
        variance = ((into @ here.covariance[0]) * into).sum(1)
        write_linear_map(module, norm, into @ weights, into @ constant, into @ (here.x_mean[0] - constant), variance)
    for context in stream.readers:
        weight = modules[context.layer.name].weight
        weight.copy_(torch.einsum("oi...,ij->oj...", weight.double(), back))
