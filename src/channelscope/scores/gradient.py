"""Scores of first order: how the loss would move if the channel went away."""

from channelscope.errors import InputError
from channelscope.scores.layer import Layer
from channelscope.scores.score import score
from channelscope.stats.sensitivity import Sensitivity
from channelscope.types import Float, Tensor


def _sums(layer: Layer) -> Sensitivity:
    if layer.record.sensitivity is None:
        raise InputError("gradient scores need collect(…, sensitivity=True) (command line: --sensitivity)")
    return layer.record.sensitivity


@score(axis="gradient", unit="nats", keeps="high", source="Molchanov et al. 2019")
def taylor_weight(layer: Layer) -> Float[Tensor, "channels"]:
    """Absolute mean over images of Σ w · dloss/dw: first-order effect of removing the filter.

    Source   Molchanov, Mallya, Tyree, Frosio, Kautz 2019
    """
    sums = _sums(layer)
    return sums.read.abs() / sums.images


@score(axis="gradient", unit="nats", keeps="high", source="Molchanov et al. 2017")
def taylor_activation(layer: Layer) -> Float[Tensor, "channels"]:
    """Mean over images of |Σ over positions of activation · dloss/dactivation| at the cut point.

    Source   Molchanov, Tyree, Karras, Aila, Kautz 2017
    """
    sums = _sums(layer)
    return sums.cut_absolute / sums.images


@score(axis="gradient", unit="nats²", keeps="high", source="Theis et al. 2018")
def fisher(layer: Layer) -> Float[Tensor, "channels"]:
    """Half the mean over images of the squared first-order effect at the cut point (Fisher pruning).

    Source   Theis, Korshunova, Tejani, Huszár 2018
    """
    sums = _sums(layer)
    return sums.cut_square / (2 * sums.images)
