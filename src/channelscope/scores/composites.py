"""Composite scores: every part is scaled within its layer before it is mixed."""

from channelscope.formulas.information import CEILING
from channelscope.scores.baselines import l2
from channelscope.scores.layer_statistics import LayerStatistics
from channelscope.scores.local import capture, overlap
from channelscope.scores.registry import register
from channelscope.scores.target import excess, relevance
from channelscope.types import Float, Tensor


def _min_max(values: Tensor) -> Tensor:
    """Min-max scaled to 0..1 within the layer; nan stays nan, and a constant layer is 0."""
    seen = values[~values.isnan()]
    if len(seen) == 0:
        return values
    low, high = seen.min(), seen.max()
    return (values - low) / (high - low) if high > low else values - low


@register(family="local", unit="", keeps="high", source="Safaai et al. 2026")
def capture_overlap(layer: LayerStatistics, beta: float = 0.3) -> Float[Tensor, "channels"]:
    """I_X − β R̄, both scaled to 0..1 within the layer, R̄ with the stated ceiling.

    References
    ----------
    Safaai et al. 2026.
    """
    return _min_max(capture.formula(layer)) - beta * _min_max(overlap.formula(layer, ceiling=CEILING))


@register(family="local", unit="", keeps="high", source="Safaai et al. 2026")
def local_composite(layer: LayerStatistics) -> Float[Tensor, "channels"]:
    """Mean of scaled input capture and scaled lack of overlap: local quantities only.

    References
    ----------
    Safaai et al. 2026.
    """
    return (_min_max(capture.formula(layer)) + 1 - _min_max(overlap.formula(layer, ceiling=CEILING))) / 2


@register(family="target", unit="", keeps="high", source="Safaai et al. 2026")
def target_composite(layer: LayerStatistics) -> Float[Tensor, "channels"]:
    """Mean of scaled task information and scaled target excess: target quantities only.

    References
    ----------
    Safaai et al. 2026.
    """
    return (_min_max(relevance.formula(layer)) + _min_max(excess.formula(layer))) / 2


@register(family="both", unit="", keeps="high", source="Safaai et al. 2026")
def norm_capture(layer: LayerStatistics, alpha: float = 0.5) -> Float[Tensor, "channels"]:
    """L2 norm + α I_X, both scaled to 0..1 within the layer.

    References
    ----------
    Safaai et al. 2026.
    """
    return _min_max(l2.formula(layer)) + alpha * _min_max(capture.formula(layer))
