"""Scores read off the weights alone."""

from channelscope.errors import InputError
from channelscope.scores.layer import Layer
from channelscope.scores.score import score
from channelscope.types import Float, Tensor


@score(axis="size", unit="", keeps="high", source="Li et al. 2017")
def l1(layer: Layer) -> Float[Tensor, "channels"]:
    """Sum of absolute weights of the channel's filter.

    Source   Li, Kadav, Durdanovic, Samet, Graf 2017
    """
    return layer.weights["l1"]


@score(axis="size", unit="", keeps="high", source="Li et al. 2017")
def l2(layer: Layer) -> Float[Tensor, "channels"]:
    """Euclidean norm of the channel's filter.

    Source   Li, Kadav, Durdanovic, Samet, Graf 2017
    """
    return layer.weights["l2"]


@score(axis="size", unit="", keeps="high", source="Liu et al. 2017")
def bn_scale(layer: Layer) -> Float[Tensor, "channels"]:
    """Absolute BatchNorm scale |γ| of the channel (network slimming).

    Raises   InputError at a site without BatchNorm.
    Source   Liu, Li, Shen, Huang, Yan, Zhang 2017
    """
    if "gamma" not in layer.weights:
        raise InputError(f"bn_scale needs a BatchNorm behind every site, and {layer.site.name} has none: use l2 there")
    return layer.weights["gamma"].abs()


@score(axis="published", unit="", keeps="high", source="He et al. 2019")
def fpgm(layer: Layer) -> Float[Tensor, "channels"]:
    """Sum of Euclidean distances from the channel's filter to all filters of its layer (geometric median).

    Source   He, Liu, Wang, Hu, Yang 2019 (FPGM)
    """
    return layer.weights["distances"]


@score(axis="size", unit="", keeps="high", source="mean activation, a common baseline")
def activation_mean(layer: Layer) -> Float[Tensor, "channels"]:
    """Absolute mean of the channel at its cut point.

    Source   Molchanov, Tyree, Karras, Aila, Kautz 2017 (mean activation baseline)
    """
    return layer.record.cut.mean.abs()


@score(axis="size", unit="", keeps="high", source="root mean square activation, a common baseline")
def activation_rms(layer: Layer) -> Float[Tensor, "channels"]:
    """Root mean square of the channel at its cut point.

    Source   Molchanov, Tyree, Karras, Aila, Kautz 2017 (activation baselines)
    """
    return (layer.record.cut.variance + layer.record.cut.mean.square()).sqrt()
