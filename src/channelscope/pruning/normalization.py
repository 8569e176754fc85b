"""The BatchNorm and the sum behind a layer: found, re-estimated on a pruned network, and given a linear map together."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from channelscope.errors import InputError
from channelscope.network.graph import ActivationCache, Graph
from channelscope.network.operations import of_module, of_step
from channelscope.network.removal.labeled_graph import Layer
from channelscope.types import Float, Tensor


@torch.no_grad()
def reestimate_batchnorms(small: ActivationCache) -> dict[str, str]:
    """The BatchNorms that were skipped, after setting the statistics of all others to those of their inputs, in forward order.

    Each BatchNorm sees inputs from already updated layers. The statistics are exact over all images, so neither batch size nor
    order matters. Variances are unbiased, as in training.

    Parameters
    ----------
    small
        Activations of the network over the calibration images; its BatchNorms are changed in place.

    Returns
    -------
    dict[str, str]
        Module path → why it was not changed.

    Examples
    --------
    >>> from torch import nn
    >>> from channelscope.network.graph import trace
    >>> model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten()).eval()
    >>> images = torch.tensor([1.0, 3.0]).view(2, 1, 1, 1)
    >>> reestimate_batchnorms(ActivationCache(trace(model, images[:1]), [(images,)]))
    {}
    >>> model[0].running_mean.tolist(), model[0].running_var.tolist()
    ([2.0], [2.0])
    """
    skipped: dict[str, str] = {}
    calls: dict[str, int] = {}
    graph = small.graph
    for node in graph.steps.nodes:
        if node.op != "call_module" or of_step(node, graph.modules).scale_shift is None:
            continue
        name = str(node.target)
        norm: Any = graph.modules[name]
        calls[name] = calls.get(name, 0) + 1
        if norm.running_mean is None or norm.running_var is None or calls[name] > 1:
            skipped[name] = "called in several places" if calls[name] > 1 else "keeps no running statistics"
            continue
        count, mean, scatter = 0, torch.zeros(()), torch.zeros(())
        for values in small(node.all_input_nodes[0].name):
            flat = values.movedim(1, 0).flatten(1)
            batch_mean, added = flat.mean(1).double(), flat.shape[1]
            shift = batch_mean - mean
            within = (flat - batch_mean[:, None].to(flat)).square().sum(1).double()
            scatter = scatter + within + shift.square() * count * added / (count + added)
            mean = mean + shift * added / (count + added)
            count += added
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(scatter / max(count - 1, 1))
    return skipped


def batchnorm_scale_shift(norm: Any) -> tuple[Float[Tensor, "channels"], Float[Tensor, "channels"]]:
    """Factor and shift that a BatchNorm applies to each channel in evaluation mode.

    Parameters
    ----------
    norm
        A BatchNorm with running statistics, with or without weight and bias.

    Returns
    -------
    tuple of Tensor
        Factor and shift, each float64 (channels,): the output is factor · input + shift.

    Raises
    ------
    InputError
        If it keeps no running statistics.

    Examples
    --------
    >>> norm = torch.nn.BatchNorm2d(1, eps=0.0)
    >>> norm.running_mean.fill_(3.0), norm.running_var.fill_(4.0), norm.weight.data.fill_(2.0)
    (tensor([3.]), tensor([4.]), tensor([2.]))
    >>> [part.tolist() for part in batchnorm_scale_shift(norm)]
    [[1.0], [-3.0]]
    """
    entry = of_module(norm)
    found = None if entry is None or entry.scale_shift is None else entry.scale_shift(norm)
    if found is None:
        raise InputError(f"expected a normalization with running statistics, received a {type(norm).__name__} that keeps none")
    return found


@torch.no_grad()
def write_linear_map(
    module: Any,
    norm: Any,
    weights: Float[Tensor, "outputs inputs"],
    constant: Float[Tensor, "outputs"],
    mean: Float[Tensor, "outputs"],
    variance: Float[Tensor, "outputs"],
) -> None:
    """Write weights · x + constant into a layer, and into the BatchNorm that follows it if there is one.

    running_mean and running_var become those of the layer's new output; the BatchNorm's weight and bias compensate. Filters are
    rescaled to their previous norms, because behind a BatchNorm the effective step of later training is lr / norm².

    Parameters
    ----------
    module
        Convolution or linear layer, changed in place.
    norm
        The BatchNorm that directly follows, changed in place; or None.
    weights
        Weights from inputs × kernel elements to outputs, in the order of `module.weight.flatten(1)`.
    constant
        Added to each output; not used where the layer has no bias and no BatchNorm follows.
    mean, variance
        Mean and variance of weights · x over the samples, used with a BatchNorm alone.

    Examples
    --------
    >>> layer, norm = torch.nn.Linear(1, 1, bias=False), torch.nn.BatchNorm1d(1).eval()
    >>> two, five = torch.tensor([2.0]), torch.tensor([5.0])
    >>> write_linear_map(layer, norm, two[:, None], five, mean=torch.tensor([0.3]), variance=torch.tensor([0.7]))
    >>> round(float(norm(layer(torch.tensor([[10.0]]))).detach()), 3)
    25.0

    References
    ----------
    van Laarhoven 2017 (norms of filters before a BatchNorm).
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
        norm_ratio = module.weight.detach().double().flatten(1).norm(dim=1) / weights.norm(dim=1)
        norm_ratio = torch.where(norm_ratio.isfinite() & (norm_ratio > 0), norm_ratio, 1.0)
        variance = variance * norm_ratio**2
        norm.running_var.copy_(variance)
        norm.running_mean.copy_(mean * norm_ratio + bias)
        norm.weight.copy_((variance + norm.eps).sqrt() / norm_ratio)
        weights = weights * norm_ratio[:, None]
        norm.bias.copy_(constant + mean)
    module.weight.copy_(weights.view_as(module.weight))


@dataclass(frozen=True)
class LayerContext:
    """One layer, the BatchNorm that follows it, and the sum that its output is a term of."""

    layer: Layer
    """the layer, with the channels it reads and writes"""
    input_node: str
    """step whose value the layer reads"""
    batchnorm: str | None
    """module path of the batch normalization that directly follows"""
    sum_node: str | None
    """step of the sum that the (normalized) output is a term of"""
    other_term: str | None
    """step of the other term of that sum"""
    bias_stays: bool = False
    """whether other steps read its bias too, which then stays as it is"""


def layer_contexts(graph: Graph, layers: tuple[Layer, ...]) -> list[LayerContext]:
    """The context of every weighted layer, in execution order.

    Parameters
    ----------
    graph
        The traced network.
    layers
        Its layers, as `Groups.layers` has them.

    Returns
    -------
    list of LayerContext
        One for each layer that has weights between its inputs and outputs.

    Examples
    --------
    >>> from channelscope.network.removal.groups import groups
    >>> from channelscope.zoo.toys import residual_pair
    >>> toy = residual_pair()
    >>> found = groups(toy.model, toy.batches[0][0][:1])
    >>> [(each.layer.name, each.batchnorm, each.sum_node) for each in layer_contexts(found.graph, found.layers)]
    [('stem', 'stem_bn', None), ('inner', 'inner_bn', None), ('outer', 'outer_bn', 'add'), ('fc', None, None)]
    """
    return [_context_of(graph, layer) for layer in layers if layer.taps]


def _context_of(graph: Graph, layer: Layer) -> LayerContext:
    node = graph.nodes[layer.node]
    input_node = node.all_input_nodes[0].name
    batchnorm = sum_node = other_term = None
    user = _only_user(node)
    if user is not None and _is_norm(graph, user):
        followed = is_plain_norm(graph.modules[str(user.target)])
        batchnorm, node, user = str(user.target), user, _only_user(user) if followed else None
    if user is not None and _is_addition(graph, user) and graph.shapes.get(user.name) == graph.shapes.get(node.name):
        others = [part for part in user.args[:2] if part is not node]
        if len(others) == 1 and isinstance(others[0], fx.Node) and graph.shapes.get(others[0].name) == graph.shapes.get(node.name):
            sum_node, other_term = user.name, others[0].name
    return LayerContext(layer, input_node, batchnorm, sum_node, other_term, graph.reads_bias(layer.name))


def call_counts(graph: Graph, name: str) -> int:
    """Number of times that the forward pass calls a module.

    Parameters
    ----------
    graph
        The traced network.
    name
        Path of the module.

    Returns
    -------
    int
        0 for a module that is not called, or called inside a module that is followed as one step.

    Examples
    --------
    >>> import torch
    >>> from channelscope.network.graph import trace
    >>> relu = nn.ReLU()
    >>> graph = trace(nn.Sequential(nn.Conv2d(3, 4, 1), relu, nn.Conv2d(4, 2, 1), relu), torch.zeros(1, 3, 8, 8))
    >>> call_counts(graph, "0"), call_counts(graph, "1"), call_counts(graph, "4")
    (1, 2, 0)
    """
    return sum(node.op == "call_module" and node.target == name for node in graph.steps.nodes)


def _is_norm(graph: Graph, node: fx.Node) -> bool:
    """Whether a step is a batch normalization that nothing else uses and whose statistics are kept."""
    if node.op != "call_module":
        return False
    scale_shift = of_step(node, graph.modules).scale_shift
    if scale_shift is None or scale_shift(graph.modules[str(node.target)]) is None:
        return False
    return call_counts(graph, str(node.target)) == 1


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _is_addition(graph: Graph, node: fx.Node) -> bool:
    return of_step(node, graph.modules).arithmetic == "sum" and "alpha" not in node.kwargs


def is_plain_norm(norm: nn.Module) -> bool:
    """Whether a batch normalization contains no activation (timm's BatchNormAct2d may).

    Examples
    --------
    >>> is_plain_norm(nn.BatchNorm2d(1))
    True
    """
    entries = [of_module(child) for child in norm.children()]
    return all(entry is not None and entry.identity for entry in entries)
