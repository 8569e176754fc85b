"""Scores of the local axis: capture, overlap, support, hull compactness, peer residual."""

import torch

from channelscope.formulas import information
from channelscope.formulas.regression import RIDGE, backward_elimination, hulls
from channelscope.formulas.regression import support as explained
from channelscope.scores.layer_statistics import LayerStatistics
from channelscope.scores.registry import register
from channelscope.types import Float, Tensor


@register(family="local", unit="", keeps="high", source="Safaai et al. 2026")
def rayleigh(layer: LayerStatistics) -> Float[Tensor, "channels"]:
    """Rayleigh quotient w'Σw / |w|²: output variance per squared weight norm.

    Examples
    --------
    >>> from channelscope import collect
    >>> from channelscope.zoo.toys import independent_channels
    >>> toy = independent_channels()
    >>> rayleigh(collect(toy.model, toy.batches))["conv"].round(3).tolist()
    [1.0, 1.0, 1.0, 1.0, 1.0]

    References
    ----------
    Safaai et al. 2026.
    """
    return information.rayleigh(layer.variance, layer.weights["l2"])


@register(family="local", unit="nats", keeps="high", source="Safaai et al. 2026")
def capture(layer: LayerStatistics) -> Float[Tensor, "channels"]:
    """Input capture I_X = ½ ln(1 + Var/s²), s² the layer's median variance unless `noise=` is a number.

    Examples
    --------
    >>> from channelscope import collect
    >>> from channelscope.zoo.toys import independent_channels
    >>> toy = independent_channels()
    >>> capture(collect(toy.model, toy.batches))["conv"].round(3).tolist()
    [0.053, 0.184, 0.347, 0.511, 0.665]

    References
    ----------
    Safaai et al. 2026.
    """
    return information.capture(layer.variance, layer.convention.noise)


@register(family="local", unit="nats", keeps="low", source="Safaai et al. 2026")
def overlap(layer: LayerStatistics, ceiling: float | None = None) -> Float[Tensor, "channels"]:
    """Peer overlap: mean over the peers of −½ ln(1 − ρ²); an exact copy is inf unless a ceiling is stated.

    Examples
    --------
    >>> from channelscope import collect
    >>> from channelscope.zoo.toys import suppressor_pair
    >>> toy = suppressor_pair()
    >>> overlap(collect(toy.model, toy.batches))["conv"].round(3).tolist()
    [0.173, 0.173, 0.0]

    References
    ----------
    Safaai et al. 2026.
    """
    if layer.convention.paper:
        return information.overlap(layer.correlation, information.CEILING, over="channels")
    return information.overlap(layer.correlation, ceiling)


@register(family="local", unit="fraction", keeps="low", source="Safaai et al. 2026; Guttman 1953")
def support(layer: LayerStatistics, ridge: float = RIDGE) -> Float[Tensor, "channels"]:
    """Peer support: share of the channel's variance that all its peers explain together.

    Raises
    ------
    SampleError
        With fewer images than channels and no shrinkage.

    Examples
    --------
    >>> from channelscope import collect
    >>> from channelscope.zoo.toys import suppressor_pair
    >>> toy = suppressor_pair()
    >>> support(collect(toy.model, toy.batches))["conv"].round(3).tolist()
    [0.5, 0.5, 0.0]

    References
    ----------
    Safaai et al. 2026.
    """
    layer.require_samples_for_peers()
    return explained(layer.correlation, ridge)


def _empty_hull(layer: LayerStatistics, channel: int) -> str:
    return "no peer explains it: its hull is empty"


@register(family="local", unit="fraction/member", keeps="low", source="Safaai et al. 2026", undefined=_empty_hull)
def compactness(layer: LayerStatistics, max_size: int = 10, threshold: float = 0.95, ridge: float = RIDGE) -> Float[Tensor, "channels"]:
    """Hull compactness: peer support over the size of the replaceability hull; high where few peers explain much.

    A channel that no peer explains has an empty hull and compactness nan.

    Raises
    ------
    SampleError
        With fewer images than channels and no shrinkage.

    Examples
    --------
    >>> from channelscope import collect
    >>> from channelscope.zoo.toys import suppressor_pair
    >>> toy = suppressor_pair()
    >>> compactness(collect(toy.model, toy.batches))["conv"].round(3).tolist()
    [0.5, 0.5, nan]

    References
    ----------
    Safaai et al. 2026.
    """
    layer.require_samples_for_peers()
    return hulls(layer.correlation, max_size, threshold, ridge=ridge).compactness


def _no_consumer(layer: LayerStatistics, channel: int) -> str:
    if "outgoing" not in layer.weights:
        return "no convolution or linear layer reads it"
    return "silent: it does not vary at its cut point"


@register(family="local", unit="", keeps="high", source="this library", undefined=_no_consumer)
def peer_residual(layer: LayerStatistics) -> Float[Tensor, "channels"]:
    """Residual variance of the channel given the kept peers, times the squared norm of the weights that read it.

    Backward elimination at the cut point: the cheapest channel goes, the others' residuals are updated, and so on; the
    value is the cost at removal, which never falls along the way.
    Undefined (nan) where no convolution or linear layer reads the site.

    Examples
    --------
    >>> from channelscope import collect
    >>> from channelscope.zoo.toys import independent_channels
    >>> toy = independent_channels()
    >>> peer_residual(collect(toy.model, toy.batches))["conv"].round(3).tolist()
    [1.0, 0.0, 9.0, 0.0, 1.0]

    References
    ----------
    This library; Schur updates as in Golub & Van Loan 2013, section 6.5.
    """
    layer.require_samples_for_peers()
    cut = layer.record.activation
    if "outgoing" not in layer.weights:
        return torch.full((layer.channels,), torch.nan, dtype=torch.float64)
    return backward_elimination(cut.covariance, layer.weights["outgoing"].square()).cost.masked_fill(cut.variance == 0, torch.nan)
