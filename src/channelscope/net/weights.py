"""What can be read off the weights alone, one number per channel."""

import torch
from torch import Tensor, nn

from channelscope.net.find import Sites
from channelscope.net.graph import Graph
from channelscope.site import Site


def weight_rows(module: nn.Module) -> Tensor:
    """Weights of a convolution or linear layer as one row per output channel, float64."""
    return module.weight.detach().flatten(1).double().cpu()  # type: ignore[union-attr,operator]


def weight_facts(found: Sites) -> dict[str, dict[str, Tensor]]:
    """Site → l1, l2, distances (sum of Euclidean distances to the other filters), gamma and outgoing, each (C,).

    gamma is the BatchNorm scale and outgoing the L2 norm of the weights that read the channel; each is there only
    where the network has it.
    """
    return {site.name: _facts(found.graph, site) for site in found}


def _facts(graph: Graph, site: Site) -> dict[str, Tensor]:
    rows = weight_rows(graph.modules[site.name])
    facts = {"l1": rows.abs().sum(1), "l2": rows.norm(dim=1), "distances": _distances(rows)}
    norm = graph.modules.get(site.norm) if site.norm else None
    if norm is not None and isinstance(norm.weight, Tensor):
        facts["gamma"] = norm.weight.detach().double().cpu().clone()
    outgoing = _outgoing(graph, site)
    if outgoing is not None:
        facts["outgoing"] = outgoing
    return facts


def _distances(rows: Tensor) -> Tensor:
    """Sum of the Euclidean distances of each row to all rows."""
    squares = rows.square().sum(1)
    return (squares[:, None] + squares - 2 * rows @ rows.T).clamp(min=0).sqrt().fill_diagonal_(0).sum(1)


def cut_affine(graph: Graph, site: Site) -> tuple[Tensor, Tensor]:
    """Factor and shift (C,) that take the read point of an affine site to its cut point, in evaluation mode."""
    norm = graph.modules.get(site.norm) if site.norm else None
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or norm.running_mean is None or norm.running_var is None:
        return torch.ones(site.channels, dtype=torch.float64), torch.zeros(site.channels, dtype=torch.float64)
    factor = (norm.running_var.double().cpu() + norm.eps).rsqrt()
    factor = factor if norm.weight is None else factor * norm.weight.detach().double().cpu()
    shift = -norm.running_mean.double().cpu() * factor
    return factor, shift if norm.bias is None else shift + norm.bias.detach().double().cpu()


def consumers(graph: Graph, site: Site) -> list[str]:
    """Modules that read the site's cut point directly (through shape-preserving pooling or not at all)."""
    return [str(user.target) for user in graph.nodes[site.cut].users if user.op == "call_module"]


def _outgoing(graph: Graph, site: Site) -> Tensor | None:
    squares = torch.zeros(site.channels, dtype=torch.float64)
    readers = [graph.modules[name] for name in consumers(graph, site)]
    readers = [module for module in readers if isinstance(module, nn.Conv2d | nn.Linear)]
    for module in readers:
        weight = module.weight.detach().double().cpu()
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            per_group = site.channels // module.groups
            weight = weight.view(module.groups, -1, per_group, *module.kernel_size)
            squares += weight.square().sum(dim=(1, 3, 4)).flatten()
        elif weight.shape[1] == site.channels:
            squares += weight.square().flatten(2).sum(dim=(0, 2)) if weight.dim() > 2 else weight.square().sum(0)
        else:
            return None
    return squares.sqrt() if readers else None
