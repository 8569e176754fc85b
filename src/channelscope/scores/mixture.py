"""Controls and mixtures: every part is scaled within its layer before it is mixed."""

import hashlib

import torch

from channelscope.formulas.information import CEILING
from channelscope.formulas.regression import backward_elimination
from channelscope.scores.capture import capture
from channelscope.scores.excess import excess
from channelscope.scores.layer import Layer
from channelscope.scores.overlap import overlap
from channelscope.scores.relevance import relevance
from channelscope.scores.score import score
from channelscope.scores.size import l2
from channelscope.types import Float, Tensor


def _scaled(values: Tensor) -> Tensor:
    """Min-max scaled to 0..1 within the layer; nan stays nan, and a constant layer is 0."""
    seen = values[~values.isnan()]
    if len(seen) == 0:
        return values
    low, high = seen.min(), seen.max()
    return (values - low) / (high - low) if high > low else values - low


@score(axis="control", unit="", keeps="high", source="seeded uniform numbers")
def random(layer: Layer, seed: int = 0) -> Float[Tensor, "channels"]:
    """Uniform numbers from the seed and the site's name: the control for every other score.

    Source   none: a control
    """
    own = int.from_bytes(hashlib.sha256(f"{seed}/{layer.site.name}".encode()).digest()[:7], "big")
    return torch.rand(layer.channels, generator=torch.Generator().manual_seed(own), dtype=torch.float64)


@score(axis="local", unit="", keeps="high", source="Safaai et al. 2026")
def capture_overlap(layer: Layer, beta: float = 0.3) -> Float[Tensor, "channels"]:
    """I_X − β R̄, both scaled to 0..1 within the layer, R̄ with the stated ceiling.

    Source   Safaai et al. 2026
    """
    return _scaled(capture.formula(layer)) - beta * _scaled(overlap.formula(layer, ceiling=CEILING))


@score(axis="local", unit="", keeps="high", source="Safaai et al. 2026")
def local_composite(layer: Layer) -> Float[Tensor, "channels"]:
    """Mean of scaled input capture and scaled lack of overlap: local quantities only.

    Source   Safaai et al. 2026
    """
    return (_scaled(capture.formula(layer)) + 1 - _scaled(overlap.formula(layer, ceiling=CEILING))) / 2


@score(axis="target", unit="", keeps="high", source="Safaai et al. 2026")
def target_composite(layer: Layer) -> Float[Tensor, "channels"]:
    """Mean of scaled task information and scaled target excess: target quantities only.

    Source   Safaai et al. 2026
    """
    return (_scaled(relevance.formula(layer)) + _scaled(excess.formula(layer))) / 2


@score(axis="both", unit="", keeps="high", source="Safaai et al. 2026")
def norm_capture(layer: Layer, alpha: float = 0.5) -> Float[Tensor, "channels"]:
    """L2 norm + α I_X, both scaled to 0..1 within the layer.

    Source   Safaai et al. 2026
    """
    return _scaled(l2.formula(layer)) + alpha * _scaled(capture.formula(layer))


def _unread(layer: Layer, channel: int) -> str:
    if "outgoing" not in layer.weights:
        return "no convolution or linear layer reads it"
    return "silent: it does not vary at its cut point"


@score(axis="local", unit="", keeps="high", source="this library", undefined=_unread)
def peer_residual(layer: Layer) -> Float[Tensor, "channels"]:
    """What consumers lose of the channel once the kept peers stand in: residual variance weighted by outgoing weights.

    Backward elimination at the cut point: the cheapest channel goes, the others' residuals are updated, and so on; the
    value is the cost at removal, which never falls along the way.
    Undefined (nan) where no convolution or linear layer reads the site.
    Source   this library; Schur updates as in Golub & Van Loan 2013, section 6.5
    """
    layer.enough_for_peers()
    cut = layer.record.cut
    if "outgoing" not in layer.weights:
        return torch.full((layer.channels,), torch.nan, dtype=torch.float64)
    return backward_elimination(cut.covariance, layer.weights["outgoing"].square()).cost.masked_fill(cut.variance == 0, torch.nan)
