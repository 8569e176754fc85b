"""BatchNorms re-estimated one after the other, each from the statistics that now reach it."""

from typing import Any

import torch

from channelscope.network.partial_forward import ActivationCache
from channelscope.network.sites import BATCH_NORMS
from channelscope.types import Float, Tensor


@torch.no_grad()
def reestimate_batchnorms(small: ActivationCache) -> dict[str, str]:
    """Set every running mean and variance to those of its input over all images, in forward order.

    The statistics are exact over the set, each behind the already re-estimated ones before it, so neither batch size nor
    order matters. Variances are unbiased, as in training.

    Returns
    -------
    dict[str, str]
        Module path → why it was left as it was.
    """
    skipped: dict[str, str] = {}
    calls: dict[str, int] = {}
    graph = small.graph
    for node in graph.steps.nodes:
        if node.op != "call_module" or not isinstance(graph.modules[str(node.target)], BATCH_NORMS):
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
            here = flat.mean(1).double()
            gap, more = here - mean, flat.shape[1]
            scatter = scatter + (flat - here[:, None].to(flat)).square().sum(1).double() + gap.square() * count * more / (count + more)
            mean = mean + gap * more / (count + more)
            count += more
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(scatter / max(count - 1, 1))
    return skipped


def batchnorm_scale_shift(norm: Any) -> tuple[Float[Tensor, "channels"], Float[Tensor, "channels"]]:
    """Factor and shift a batch normalization applies in evaluation mode, float64."""
    deviation = (norm.running_var.double() + norm.eps).sqrt()
    factor = (1 / deviation) if norm.weight is None else norm.weight.detach().double() / deviation
    shift = -norm.running_mean.double() * factor
    return factor, shift if norm.bias is None else shift + norm.bias.detach().double()


@torch.no_grad()
def write_linear_map(
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
