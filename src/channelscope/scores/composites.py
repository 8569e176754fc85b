"""Composite scores: sums of scores that are scaled to 0..1 within their layer, and products of the two axes."""

from channelscope.formulas.information import CEILING
from channelscope.scores.baselines import l2
from channelscope.scores.layer_statistics import LayerStatistics
from channelscope.scores.local import capture, overlap, support
from channelscope.scores.registry import register
from channelscope.scores.target import excess, relevance
from channelscope.types import Float, Tensor


def _min_max(values: Tensor) -> Tensor:
    """Min-max scaled to 0..1 within the layer; nan stays nan, and a constant layer is 0."""
    defined = values[~values.isnan()]
    if len(defined) == 0:
        return values
    low, high = defined.min(), defined.max()
    return (values - low) / (high - low) if high > low else values - low


@register(family="local", unit="", keeps="high", source="Safaai et al. 2026")
def capture_overlap(layer: LayerStatistics, beta: float = 0.3) -> Float[Tensor, "channels"]:
    """Input capture minus β times peer overlap, both scaled to 0..1 within the layer; overlap is at most `CEILING`.

    Examples
    --------
    >>> from channelscope import collect
    >>> from channelscope.zoo.toys import suppressor_pair
    >>> toy = suppressor_pair()
    >>> capture_overlap(collect(toy.model, toy.batches))["conv"].round(3).tolist()
    [0.7, 0.237, 0.0]

    References
    ----------
    Safaai et al. 2026.
    """
    return _min_max(capture.formula(layer)) - beta * _min_max(overlap.formula(layer, ceiling=CEILING))


@register(family="local", unit="", keeps="high", source="Safaai et al. 2026")
def local_composite(layer: LayerStatistics) -> Float[Tensor, "channels"]:
    """Mean of input capture and of 1 − peer overlap, both scaled to 0..1 within the layer.

    Examples
    --------
    >>> from channelscope import collect
    >>> from channelscope.zoo.toys import suppressor_pair
    >>> toy = suppressor_pair()
    >>> local_composite(collect(toy.model, toy.batches))["conv"].round(3).tolist()
    [0.5, 0.268, 0.5]

    References
    ----------
    Safaai et al. 2026.
    """
    return (_min_max(capture.formula(layer)) + 1 - _min_max(overlap.formula(layer, ceiling=CEILING))) / 2


@register(family="target", unit="", keeps="high", source="Safaai et al. 2026")
def target_composite(layer: LayerStatistics) -> Float[Tensor, "channels"]:
    """Mean of task information and target excess, both scaled to 0..1 within the layer.

    Examples
    --------
    >>> from channelscope import collect
    >>> from channelscope.zoo.toys import suppressor_pair
    >>> toy = suppressor_pair()
    >>> target_composite(collect(toy.model, toy.batches))["conv"].round(3).tolist()
    [1.0, 0.315, 0.218]

    References
    ----------
    Safaai et al. 2026.
    """
    return (_min_max(relevance.formula(layer)) + _min_max(excess.formula(layer))) / 2


@register(family="both", unit="", keeps="high", source="Safaai et al. 2026")
def norm_capture(layer: LayerStatistics, alpha: float = 0.5) -> Float[Tensor, "channels"]:
    """Norm of the filter plus α times input capture, both scaled to 0..1 within the layer.

    Examples
    --------
    >>> from channelscope import collect
    >>> from channelscope.zoo.toys import suppressor_pair
    >>> toy = suppressor_pair()
    >>> norm_capture(collect(toy.model, toy.batches))["conv"].round(3).tolist()
    [1.5, 0.815, 0.0]

    References
    ----------
    Safaai et al. 2026.
    """
    return _min_max(l2.formula(layer)) + alpha * _min_max(capture.formula(layer))


@register(family="both", unit="nats", keeps="low", source="code of Safaai et al. 2026")
def duplicate_task(layer: LayerStatistics) -> Float[Tensor, "channels"]:
    """Duplicate task mass t_i E_i: task information of a channel times the share of it that its peers explain.

    Raises
    ------
    SampleError
        With fewer images than channels and no shrinkage.

    Examples
    --------
    >>> from channelscope import collect
    >>> from channelscope.zoo.toys import suppressor_pair
    >>> toy = suppressor_pair()
    >>> duplicate_task(collect(toy.model, toy.batches))["conv"].round(3).tolist()
    [0.127, -0.001, 0.0]

    References
    ----------
    Later configurations of the code of Safaai et al. 2026.
    """
    return relevance.formula(layer) * support.formula(layer)


@register(family="both", unit="nats", keeps="high", source="code of Safaai et al. 2026")
def nonreplaceable_task(layer: LayerStatistics) -> Float[Tensor, "channels"]:
    """Non-replaceable task mass t_i (1 − E_i): task information of a channel times the share of it that its peers do not explain.

    Raises
    ------
    SampleError
        With fewer images than channels and no shrinkage.

    Examples
    --------
    >>> from channelscope import collect
    >>> from channelscope.zoo.toys import suppressor_pair
    >>> toy = suppressor_pair()
    >>> nonreplaceable_task(collect(toy.model, toy.batches))["conv"].round(3).tolist()
    [0.127, -0.001, 0.11]

    References
    ----------
    Later configurations of the code of Safaai et al. 2026.
    """
    return relevance.formula(layer) * (1 - support.formula(layer))
