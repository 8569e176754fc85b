"""Target axis: how much a channel says about the task on its own."""

from channelscope.formulas import information
from channelscope.scores.layer import Layer
from channelscope.scores.score import score
from channelscope.types import Float, Tensor


@score(axis="target", unit="nats", keeps="high", source="Safaai et al. 2026")
def relevance(layer: Layer, corrected: bool = True) -> Float[Tensor, "channels"]:
    """Task information I_T = −½ ln(1 − ρ²) with the target, less its bias k/(2n) unless `corrected=False`.

    Corrected values of channels that say nothing scatter around zero and may be negative.
    Source   Safaai et al. 2026
    """
    bias = layer.bias(1) if corrected and not layer.convention.paper else 0.0
    return layer.single - bias


@score(axis="target", unit="nats", keeps="high", source="Safaai et al. 2026")
def unique(layer: Layer) -> Float[Tensor, "channels"]:
    """What a channel says about the target beyond its mean redundancy with its peers.

    Source   Safaai et al. 2026
    """
    return information.unique(layer.single)


@score(axis="target", unit="nats", keeps="low", source="Barrett 2015; Safaai et al. 2026")
def redundancy(layer: Layer) -> Float[Tensor, "channels"]:
    """Mean over the peers of what both say about the target, min(I_i, I_j).

    Source   Barrett 2015 (minimum mutual information)
    """
    shared = information.redundancy(layer.single)
    return information.peer_mean(shared)
