"""Layers: where a weighted layer's output goes, as far as it stays linear, and how a fitted map is written back."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from channelscope.net.coupling import Layer
from channelscope.net.find import BATCH_NORMS
from channelscope.net.graph import Graph
from channelscope.types import Float, Tensor

ADDITIONS = {"add", "iadd", "add_"}


@dataclass(frozen=True)
class Place:
    """One layer, the normalization that belongs to it, and the sum it is a term of."""

    layer: Layer
    """the layer, with the channels it reads and writes"""
    source: str
    """step whose value the layer reads"""
    norm: str | None
    """module path of the batch normalization that directly follows"""
    total: str | None
    """step of a sum that the (normalized) output is a term of"""
    rest: str | None
    """step of the sum's other term"""


def places(graph: Graph, layers: tuple[Layer, ...]) -> list[Place]:
    """All weighted layers in execution order."""
    return [_place(graph, layer) for layer in layers if layer.taps]


def _place(graph: Graph, layer: Layer) -> Place:
    node = graph.nodes[layer.node]
    source = node.all_input_nodes[0].name
    norm = total = rest = None
    user = _only_user(node)
    if user is not None and _is_norm(graph, user):
        norm, node, user = str(user.target), user, _only_user(user) if _nothing_more(graph.modules[str(user.target)]) else None
    if user is not None and _adds(user) and graph.shapes.get(user.name) == graph.shapes.get(node.name):
        others = [part for part in user.args[:2] if part is not node]
        if len(others) == 1 and isinstance(others[0], fx.Node) and graph.shapes.get(others[0].name) == graph.shapes.get(node.name):
            total, rest = user.name, others[0].name
    return Place(layer, source, norm, total, rest)


def calls(graph: Graph, name: str) -> int:
    """How often the forward pass calls a module."""
    return sum(node.op == "call_module" and node.target == name for node in graph.steps.nodes)


def _is_norm(graph: Graph, node: fx.Node) -> bool:
    """Whether a step is a batch normalization that nothing else uses and whose statistics are kept."""
    if node.op != "call_module":
        return False
    module = graph.modules[str(node.target)]
    return isinstance(module, BATCH_NORMS) and module.running_var is not None and calls(graph, str(node.target)) == 1


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _adds(node: fx.Node) -> bool:
    if node.op == "call_method":
        return str(node.target) in ADDITIONS and "alpha" not in node.kwargs
    return node.op == "call_function" and node.target.__name__ in ADDITIONS and "alpha" not in node.kwargs  # type: ignore[union-attr]


def _nothing_more(norm: nn.Module) -> bool:
    """Whether a batch normalization carries no activation along (timm's do)."""
    return all(isinstance(child, nn.Identity) for child in norm.children())


def affine(norm: Any) -> tuple[Float[Tensor, "channels"], Float[Tensor, "channels"]]:
    """Factor and shift a batch normalization applies in evaluation mode, float64."""
    deviation = (norm.running_var.double() + norm.eps).sqrt()
    factor = (1 / deviation) if norm.weight is None else norm.weight.detach().double() / deviation
    shift = -norm.running_mean.double() * factor
    return factor, shift if norm.bias is None else shift + norm.bias.detach().double()


@torch.no_grad()
def write(
    module: Any,
    norm: Any,
    weights: Float[Tensor, "outputs inputs"],
    constant: Float[Tensor, "outputs"],
    mean: Float[Tensor, "outputs"],
    variance: Float[Tensor, "outputs"],
) -> None:
    """Make layer (and normalization) compute weights · x + constant; mean and variance are those of weights · x.

    A normalization keeps the statistics of what it now sees, as after an ordinary training step, and its scale and shift
    make up for them. Filters before it keep their lengths: a normalization undoes any, but the step of a training that
    follows is the learning rate over the squared length (van Laarhoven 2017).
    """
    if norm is None:
        module.weight.copy_(weights.view_as(module.weight))
        if module.bias is not None:
            module.bias.copy_(constant)
        return
    bias = torch.zeros_like(constant) if module.bias is None else module.bias.detach().double()
    if norm.weight is None:
        norm.running_var.fill_(1 - norm.eps)
        norm.running_mean.copy_(bias - constant)
    else:
        length = module.weight.detach().double().flatten(1).norm(dim=1) / weights.norm(dim=1)
        length = torch.where(length.isfinite() & (length > 0), length, 1.0)
        variance = variance * length**2
        norm.running_var.copy_(variance)
        norm.running_mean.copy_(mean * length + bias)
        norm.weight.copy_((variance + norm.eps).sqrt() / length)
        weights = weights * length[:, None]
        norm.bias.copy_(constant + mean)
    module.weight.copy_(weights.view_as(module.weight))
