"""Local axis: how much a channel takes from its input."""

from channelscope.formulas import information
from channelscope.scores.layer import Layer
from channelscope.scores.score import score
from channelscope.types import Float, Tensor


@score(axis="local", unit="", keeps="high", source="Safaai et al. 2026")
def rayleigh(layer: Layer) -> Float[Tensor, "channels"]:
    """Rayleigh quotient w'Σw / |w|²: output variance per squared weight norm.

    Source   Safaai et al. 2026
    """
    return information.rayleigh(layer.variance, layer.weights["l2"])


@score(axis="local", unit="nats", keeps="high", source="Safaai et al. 2026")
def capture(layer: Layer) -> Float[Tensor, "channels"]:
    """Input capture I_X = ½ ln(1 + Var/s²), s² the layer's median variance unless `noise=` is a number.

    Source   Safaai et al. 2026
    """
    return information.capture(layer.variance, layer.convention.noise)
