"""Numbers per channel that the weights alone give."""

from collections.abc import Callable
from functools import cache

import torch
from torch import nn

from channelscope.network.graph import Graph
from channelscope.network.operations import layer_of, of_module
from channelscope.network.operations.opened import used_weight
from channelscope.network.sites import InputChannels, Sites
from channelscope.site import Site
from channelscope.stats.moments import gram
from channelscope.types import Float, Tensor

ROWS = 512
"""Filters of which the distances to as many others are computed at once."""

CACHED = 2**16
"""Weights that are summed at once, unless one filter has more: in float64 they stay in the processor's cache."""

CANCELLATION = 1 / 64
"""Squared distances below this share of the filters' squared norms lose digits in float32 and are computed in float64."""


def filters(module: nn.Module) -> Float[Tensor, "channels weights"]:
    """Weights of a convolution or linear layer, one row per output channel.

    Parameters
    ----------
    module
        A convolution or linear layer, on any device.

    Returns
    -------
    Tensor
        (channels, weights of a filter) on the CPU, float64 if the weights are, else float32.

    Examples
    --------
    >>> filters(nn.Conv2d(3, 8, 5)).shape
    torch.Size([8, 75])
    """
    rows = _blocks(module).flatten(0, 1).flatten(1).cpu()
    return rows if rows.dtype == torch.float64 else rows.float()


def weight_norms(found: Sites) -> dict[str, dict[str, Tensor]]:
    """Numbers that the weights alone give, one per channel of each site.

    Parameters
    ----------
    found
        The sites of a network.

    Returns
    -------
    dict
        Site → name → float64 (channels,). `l1` and `l2` are norms of the channel's filter, `distances` the sum of its
        Euclidean distances to the other filters, `gamma` the BatchNorm scale (where there is one) and `outgoing` the
        Euclidean norm of the weights that read the channel: of every convolution and linear layer that sees it through
        activations, pooling, normalization, sums, reshaping and concatenation. Where no layer reads the site there is no
        `outgoing`; a channel that its site's readers do not see has 0.

    Examples
    --------
    >>> from channelscope.network.sites import sites
    >>> from channelscope.zoo.toys import independent_channels
    >>> toy = independent_channels()
    >>> image = toy.batches[0][0][:1]
    >>> weight_norms(sites(toy.model, image))["conv"]["l2"]
    tensor([1., 2., 3., 4., 5.], dtype=torch.float64)

    References
    ----------
    Norms: Li et al. 2017. Distances: He et al. 2019 (FPGM). BatchNorm scale: Liu et al. 2017.
    """
    inputs = InputChannels(found, structural=True)
    sums = cache(lambda layer: _weight_sums(found.graph.modules[layer]))
    return {site.name: _filter_norms(found.graph, site, *sums(site.name)[:2]) | _outgoing(inputs, site, sums) for site in found}


def _filter_norms(graph: Graph, site: Site, l1: Float[Tensor, "channels"], squares: Float[Tensor, "channels"]) -> dict[str, Tensor]:
    values = {"l1": l1, "l2": squares.sqrt(), "distances": filter_distances(filters(graph.modules[site.name]), squares)}
    norm = graph.modules.get(site.batchnorm) if site.batchnorm else None
    if norm is not None and isinstance(norm.weight, Tensor):
        values["gamma"] = norm.weight.detach().double().cpu().clone()
    return values


def filter_distances(rows: Float[Tensor, "channels weights"], squares: Float[Tensor, "channels"]) -> Float[Tensor, "channels"]:
    """Sum of the Euclidean distances of each filter to all filters of its layer.

    Parameters
    ----------
    rows
        (channels, weights of a filter), float32 or float64.
    squares
        (channels,) squared Euclidean norms of the rows, float64.

    Returns
    -------
    Tensor
        (channels,) float64, as exact as float32 products are; of float64 rows, and of filters that nearly coincide, as
        exact as float64 products.

    Examples
    --------
    >>> rows = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    >>> filter_distances(rows, rows.double().square().sum(1))
    tensor([5., 5.], dtype=torch.float64)

    References
    ----------
    He et al. 2019 (FPGM).
    """
    sums = torch.zeros(len(rows), dtype=torch.float64)
    spans = [slice(start, start + ROWS) for start in range(0, len(rows), ROWS)]
    for number, left in enumerate(spans):
        for right in spans[: number + 1]:
            distance = _pairwise(rows[left], rows[right], squares[left, None] + squares[right], left == right)
            sums[left] += distance.sum(1)
            if left != right:
                sums[right] += distance.sum(0)
    return sums


def _pairwise(left: Tensor, right: Tensor, squares: Float[Tensor, "left right"], same: bool) -> Float[Tensor, "left right"]:
    """Euclidean distances of rows to rows, float64; `squares` are the sums of their squared norms."""
    distances = squares - 2 * (gram(left.T) if same else left @ right.T).double()
    close = distances < CANCELLATION * squares
    if same:
        close.fill_diagonal_(False)
    if left.dtype != torch.float64 and bool(close.any()):
        distances = squares - 2 * left.double() @ right.double().T
    distances = distances.clamp(min=0).sqrt()
    return distances.fill_diagonal_(0) if same else distances


def following_batchnorm(graph: Graph, site: Site) -> tuple[Tensor, Tensor]:
    """Factor and shift per channel of the BatchNorm behind a site, in evaluation mode.

    Parameters
    ----------
    graph
        The traced network.
    site
        A site whose activation is an affine function of its preactivation.

    Returns
    -------
    tuple
        Factor and shift, float64 (channels,); ones and zeros where there is no BatchNorm with running statistics.

    Examples
    --------
    >>> from channelscope.network.sites import sites
    >>> norm = nn.BatchNorm2d(1, eps=0.0)
    >>> _ = norm.running_mean.fill_(3), norm.running_var.fill_(4)
    >>> model = nn.Sequential(nn.Conv2d(1, 1, 1), norm, nn.Flatten(), nn.Linear(4, 2)).eval()
    >>> found = sites(model, torch.zeros(1, 1, 2, 2))
    >>> [float(number) for number in following_batchnorm(found.graph, found["0"])]
    [0.5, -1.5]
    """
    norm = graph.modules.get(site.batchnorm) if site.batchnorm else None
    entry = None if norm is None else of_module(norm)
    found = None if norm is None or entry is None or entry.scale_shift is None else entry.scale_shift(norm)
    if found is None:
        return torch.ones(site.channels, dtype=torch.float64), torch.zeros(site.channels, dtype=torch.float64)
    factor, shift = found
    return factor.cpu(), shift.cpu()


def _outgoing(inputs: InputChannels, site: Site, sums: Callable[[str], tuple[Tensor, Tensor, Tensor]]) -> dict[str, Tensor]:
    squares = torch.zeros(site.channels, dtype=torch.float64)
    calls = inputs.marks(site)
    for layer, marks in calls:
        squares += marks.double() @ sums(layer)[2]
    return {"outgoing": squares.sqrt()} if calls else {}


def _weight_sums(module: nn.Module) -> tuple[Float[Tensor, "channels"], Float[Tensor, "channels"], Float[Tensor, "inputs"]]:
    """Absolute values and squares of the weights of each filter, and squares of those that multiply each input: their sums."""
    weights = _blocks(module).cpu()
    groups, outputs, inputs, taps = weights.shape
    l1, squares, of_inputs = (torch.zeros(groups, size, dtype=torch.float64) for size in (outputs, outputs, inputs))
    group_step = max(CACHED // max(outputs * inputs * taps, 1), 1)
    row_step = max(CACHED // max(group_step * inputs * taps, 1), 1)
    for group in range(0, groups, group_step):
        for row in range(0, outputs, row_step):
            place = slice(group, group + group_step), slice(row, row + row_step)
            part = weights[place].double()
            l1[place] = part.flatten(2).abs().sum(2)
            part = part.square()
            squares[place] = part.flatten(2).sum(2)
            of_inputs[place[0]] += part.sum(1).sum(2)
    return l1.flatten(), squares.flatten(), of_inputs.flatten()


def _blocks(module: nn.Module) -> Float[Tensor, "groups outputs inputs taps"]:
    layer = layer_of(module)
    assert layer is not None
    return layer.split(used_weight(module))
