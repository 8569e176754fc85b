"""Local axis: how few peers could stand in for a channel."""

from channelscope.formulas.regression import RIDGE, hulls
from channelscope.scores.layer import Layer
from channelscope.scores.score import score
from channelscope.types import Float, Tensor


@score(axis="local", unit="fraction/member", keeps="low", source="Safaai et al. 2026")
def compactness(layer: Layer, max_size: int = 10, threshold: float = 0.95, ridge: float = RIDGE) -> Float[Tensor, "channels"]:
    """Hull compactness: peer support over the size of the replaceability hull; high where few peers explain much.

    A channel that no peer explains has an empty hull and compactness nan.
    Raises   SampleError with fewer images than channels and no shrinkage.
    Source   Safaai et al. 2026
    """
    layer.enough_for_peers()
    return hulls(layer.rho, max_size, threshold, ridge=ridge).compactness
