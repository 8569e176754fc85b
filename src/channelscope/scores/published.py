"""Feature-map scores as published."""

from channelscope.errors import InputError
from channelscope.scores.layer import Layer
from channelscope.scores.score import score
from channelscope.stats.maps import Maps
from channelscope.types import Float, Tensor


def _sums(layer: Layer) -> Maps:
    if layer.record.maps is None:
        raise InputError("HRank and CHIP need collect(…, maps=True) (command line: --maps)")
    return layer.record.maps


@score(axis="published", unit="", keeps="high", source="Lin et al. 2020")
def hrank(layer: Layer) -> Float[Tensor, "channels"]:
    """Average rank of the channel's feature map over the images.

    Source   Lin, Ji, Wang, Zhang, Zhang, Tian, Shao 2020 (HRank)
    """
    sums = _sums(layer)
    return sums.rank / sums.images


@score(axis="published", unit="", keeps="high", source="Sui et al. 2021")
def chip(layer: Layer) -> Float[Tensor, "channels"]:
    """Channel independence: average drop of the nuclear norm of the layer's maps without the channel.

    Source   Sui, Yin, Xie, Phan, Zonouz, Yuan 2021 (CHIP)
    """
    sums = _sums(layer)
    return sums.independence / sums.images
