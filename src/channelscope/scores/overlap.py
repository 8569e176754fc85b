"""Local axis: how much a channel shares with its same-layer peers."""

from channelscope.formulas import information
from channelscope.formulas.support import RIDGE
from channelscope.formulas.support import support as explained
from channelscope.scores.layer import Layer
from channelscope.scores.score import score
from channelscope.types import Float, Tensor


@score(axis="local", unit="nats", keeps="low", source="Safaai et al. 2026")
def overlap(layer: Layer, ceiling: float | None = None) -> Float[Tensor, "channels"]:
    """Peer overlap: mean over the peers of −½ ln(1 − ρ²); an exact copy is inf unless a ceiling is stated.

    Source   Safaai et al. 2026
    """
    if layer.convention.paper:
        return information.overlap(layer.rho, information.CEILING, over="channels")
    return information.overlap(layer.rho, ceiling)


@score(axis="local", unit="fraction", keeps="low", source="Safaai et al. 2026; Guttman 1953")
def support(layer: Layer, ridge: float = RIDGE) -> Float[Tensor, "channels"]:
    """Peer support: share of the channel's variance that all its peers explain together.

    Raises   SampleError with fewer images than channels and no shrinkage.
    Source   Safaai et al. 2026
    """
    layer.enough_for_peers()
    return explained(layer.rho, ridge)
