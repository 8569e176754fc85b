"""BatchNorm statistics re-estimated on a pruned network, and a linear map written into a layer and its BatchNorm."""

from typing import Any

import torch

from channelscope.errors import InputError
from channelscope.network.operations import of_module, of_step
from channelscope.network.partial_forward import ActivationCache
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
