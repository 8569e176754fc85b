"""Numbers per channel that the weights alone give."""

import torch
from torch import nn

from channelscope.network.consumers import Trial
from channelscope.network.graph import Graph
from channelscope.network.sites import Sites
from channelscope.site import Site
from channelscope.types import Float, Tensor


def filters(module: nn.Module) -> Tensor:
    """Weights of a convolution or linear layer as one row per output channel, float64."""
    return module.weight.detach().flatten(1).double().cpu()  # type: ignore[union-attr,operator]


def weight_norms(found: Sites, image: Tensor) -> dict[str, dict[str, Tensor]]:
    """Numbers read off the weights, one per channel of each site.

    Parameters
    ----------
    found
        The sites of a network.
    image
        A batch of the images the network takes; only its shape and type are used.

    Returns
    -------
    dict
        Site → name → float64 (channels,). `l1` and `l2` are norms of the channel's filter, `distances` the sum of its
        Euclidean distances to the other filters, `gamma` the BatchNorm scale (where there is one) and `outgoing` the
        Euclidean norm of the weights that read the channel: of every convolution and linear layer that sees it through
        activations, pooling, normalization, sums, reshaping and concatenation. Where no layer reads the site there is no
        `outgoing`; a channel that its site's readers do not see has 0.
    """
    source = torch.Generator().manual_seed(0)
    trial = Trial(found, torch.randn(1, *image.shape[1:], generator=source).to(image), found.found, structural=True)
    return {site.name: _facts(found.graph, site) | _outgoing(trial, site) for site in found}


def _facts(graph: Graph, site: Site) -> dict[str, Tensor]:
    rows = filters(graph.modules[site.name])
    facts = {"l1": rows.abs().sum(1), "l2": rows.norm(dim=1), "distances": _distances(rows)}
    norm = graph.modules.get(site.batchnorm) if site.batchnorm else None
    if norm is not None and isinstance(norm.weight, Tensor):
        facts["gamma"] = norm.weight.detach().double().cpu().clone()
    return facts


def _distances(rows: Tensor) -> Tensor:
    """Sum of the Euclidean distances of each row to all rows."""
    squares = rows.square().sum(1)
    return (squares[:, None] + squares - 2 * rows @ rows.T).clamp(min=0).sqrt().fill_diagonal_(0).sum(1)


def following_batchnorm(graph: Graph, site: Site) -> tuple[Tensor, Tensor]:
    """Factor and shift (C,) that take the read point of an affine site to its cut point, in evaluation mode."""
    norm = graph.modules.get(site.batchnorm) if site.batchnorm else None
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or norm.running_mean is None or norm.running_var is None:
        return torch.ones(site.channels, dtype=torch.float64), torch.zeros(site.channels, dtype=torch.float64)
    factor = (norm.running_var.double().cpu() + norm.eps).rsqrt()
    factor = factor if norm.weight is None else factor * norm.weight.detach().double().cpu()
    shift = -norm.running_mean.double().cpu() * factor
    return factor, shift if norm.bias is None else shift + norm.bias.detach().double().cpu()


def _outgoing(trial: Trial, site: Site) -> dict[str, Tensor]:
    squares, graph = torch.zeros(site.channels, dtype=torch.float64), trial.found.graph
    seen = trial.marks(site)
    for layer, marks in seen:
        squares += marks.double() @ _input_squares(graph.modules[layer])
    return {"outgoing": squares.sqrt()} if seen else {}


def _input_squares(module: nn.Module) -> Float[Tensor, "inputs"]:
    """Sum of the squared weights that multiply each input channel of a convolution or linear layer."""
    squares: Tensor = module.weight.detach().double().cpu().square()  # type: ignore[union-attr,operator]
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return squares.flatten(1).sum(1)
    groups = module.groups if isinstance(module, nn.modules.conv._ConvNd) else 1
    return squares.flatten(2).sum(2).view(groups, -1, squares.shape[1]).sum(1).flatten() if squares.dim() > 2 else squares.sum(0)
