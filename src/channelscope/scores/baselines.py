"""Published scores and controls: weight norms, gradients, HRank, CHIP, activation size, random."""

import hashlib

import torch

from channelscope.errors import InputError
from channelscope.scores.score import LayerStatistics, register
from channelscope.stats.channel_sums import FeatureMapSums, Sensitivity
from channelscope.types import Float, Tensor


@register(family="size", unit="", keeps="high", source="Li et al. 2017")
def l1(layer: LayerStatistics) -> Float[Tensor, "channels"]:
    """Sum of absolute weights of the channel's filter.

    Examples
    --------
    >>> from channelscope import collect
    >>> from channelscope.zoo.toys import independent_channels
    >>> toy = independent_channels()
    >>> l1(collect(toy.model, toy.batches))["conv"].round(3).tolist()
    [1.0, 2.0, 3.0, 4.0, 5.0]

    References
    ----------
    Li, Kadav, Durdanovic, Samet, Graf 2017.
    """
    return layer.weights["l1"]


@register(family="size", unit="", keeps="high", source="Li et al. 2017")
def l2(layer: LayerStatistics) -> Float[Tensor, "channels"]:
    """Euclidean norm of the channel's filter.

    Examples
    --------
    >>> from channelscope import collect
    >>> from channelscope.zoo.toys import independent_channels
    >>> toy = independent_channels()
    >>> l2(collect(toy.model, toy.batches))["conv"].round(3).tolist()
    [1.0, 2.0, 3.0, 4.0, 5.0]

    References
    ----------
    Li, Kadav, Durdanovic, Samet, Graf 2017.
    """
    return layer.weights["l2"]


@register(family="size", unit="", keeps="high", source="Liu et al. 2017")
def bn_scale(layer: LayerStatistics) -> Float[Tensor, "channels"]:
    """Absolute BatchNorm scale |γ| of the channel (network slimming).

    Raises
    ------
    InputError
        At a site without BatchNorm.

    Examples
    --------
    >>> from channelscope import collect
    >>> from channelscope.zoo.toys import residual_pair
    >>> toy = residual_pair()
    >>> bn_scale(collect(toy.model, toy.batches))["inner"].round(3).tolist()
    [1.524, 0.556, 1.908, 0.618, 0.671, 1.507, 1.348, 2.139]

    References
    ----------
    Liu, Li, Shen, Huang, Yan, Zhang 2017.
    """
    if "gamma" not in layer.weights:
        raise InputError(f"bn_scale needs a BatchNorm behind every site, and {layer.site.name} has none: use l2 there")
    return layer.weights["gamma"].abs()


@register(family="published", unit="", keeps="high", source="He et al. 2019")
def fpgm(layer: LayerStatistics) -> Float[Tensor, "channels"]:
    """Sum of Euclidean distances from the channel's filter to all filters of its layer (geometric median).

    Examples
    --------
    >>> from channelscope import collect
    >>> from channelscope.zoo.toys import independent_channels
    >>> toy = independent_channels()
    >>> fpgm(collect(toy.model, toy.batches))["conv"].round(3).tolist()
    [14.62, 15.699, 17.599, 19.998, 22.718]

    References
    ----------
    He, Liu, Wang, Hu, Yang 2019 (FPGM).
    """
    return layer.weights["distances"]


@register(family="size", unit="", keeps="high", source="mean activation, a common baseline")
def activation_mean(layer: LayerStatistics) -> Float[Tensor, "channels"]:
    """Absolute mean of the channel at its cut point.

    Examples
    --------
    >>> from channelscope import collect
    >>> from channelscope.zoo.toys import independent_channels
    >>> toy = independent_channels()
    >>> activation_mean(collect(toy.model, toy.batches))["conv"].round(3).tolist()
    [16.0, 32.0, 48.0, 64.0, 80.0]

    References
    ----------
    Molchanov, Tyree, Karras, Aila, Kautz 2017 (mean activation baseline).
    """
    return layer.record.activation.mean.abs()


@register(family="size", unit="", keeps="high", source="root mean square activation, a common baseline")
def activation_rms(layer: LayerStatistics) -> Float[Tensor, "channels"]:
    """Root mean square of the channel at its cut point.

    Examples
    --------
    >>> from channelscope import collect
    >>> from channelscope.zoo.toys import independent_channels
    >>> toy = independent_channels()
    >>> activation_rms(collect(toy.model, toy.batches))["conv"].round(3).tolist()
    [16.031, 32.062, 48.094, 64.125, 80.156]

    References
    ----------
    Molchanov, Tyree, Karras, Aila, Kautz 2017 (activation baselines).
    """
    return (layer.record.activation.variance + layer.record.activation.mean.square()).sqrt()


def _gradient_sums(layer: LayerStatistics) -> Sensitivity:
    if layer.record.sensitivity is None:
        raise InputError("gradient scores need first-order effects, which the profile has not: collect it with sensitivity=True")
    return layer.record.sensitivity


@register(family="gradient", unit="nats", keeps="high", source="Molchanov et al. 2019")
def taylor_weight(layer: LayerStatistics) -> Float[Tensor, "channels"]:
    """Absolute mean over images of Σ w · dloss/dw: first-order effect of removing the filter.

    Examples
    --------
    >>> from channelscope import collect
    >>> from channelscope.zoo.toys import independent_channels
    >>> toy = independent_channels()
    >>> taylor_weight(collect(toy.model, toy.batches, sensitivity=True))["conv"].round(3).tolist()
    [0.105, 0.0, 0.943, 0.0, 0.101]

    References
    ----------
    Molchanov, Mallya, Tyree, Frosio, Kautz 2019.
    """
    sums = _gradient_sums(layer)
    return sums.read.abs() / sums.images


@register(family="gradient", unit="nats", keeps="high", source="Molchanov et al. 2017")
def taylor_activation(layer: LayerStatistics) -> Float[Tensor, "channels"]:
    """Mean over images of |Σ over positions of activation · dloss/dactivation| at the cut point.

    Examples
    --------
    >>> from channelscope import collect
    >>> from channelscope.zoo.toys import independent_channels
    >>> toy = independent_channels()
    >>> taylor_activation(collect(toy.model, toy.batches, sensitivity=True))["conv"].round(3).tolist()
    [7.963, 0.0, 23.261, 0.0, 7.967]

    References
    ----------
    Molchanov, Tyree, Karras, Aila, Kautz 2017.
    """
    sums = _gradient_sums(layer)
    return sums.cut_absolute / sums.images


@register(family="gradient", unit="nats²", keeps="high", source="Theis et al. 2018")
def fisher(layer: LayerStatistics) -> Float[Tensor, "channels"]:
    """Half the mean over images of the squared first-order effect at the cut point (Fisher pruning).

    Examples
    --------
    >>> from channelscope import collect
    >>> from channelscope.zoo.toys import independent_channels
    >>> toy = independent_channels()
    >>> fisher(collect(toy.model, toy.batches, sensitivity=True))["conv"].round(3).tolist()
    [49.325, 0.0, 412.791, 0.0, 49.218]

    References
    ----------
    Theis, Korshunova, Tejani, Huszár 2018.
    """
    sums = _gradient_sums(layer)
    return sums.cut_square / (2 * sums.images)


def _map_sums(layer: LayerStatistics) -> FeatureMapSums:
    if layer.record.maps is None:
        raise InputError("HRank and CHIP need sums over feature maps, which the profile has not: collect it with maps=True")
    return layer.record.maps


@register(family="published", unit="", keeps="high", source="Lin et al. 2020")
def hrank(layer: LayerStatistics) -> Float[Tensor, "channels"]:
    """Average rank of the channel's feature map over the images.

    Examples
    --------
    >>> from channelscope import collect
    >>> from channelscope.zoo.toys import dead_channel
    >>> toy = dead_channel()
    >>> hrank(collect(toy.model, toy.batches, maps=True))["conv"].round(3).tolist()
    [1.0, 0.0, 1.0, 1.0]

    References
    ----------
    Lin, Ji, Wang, Zhang, Zhang, Tian, Shao 2020 (HRank).
    """
    sums = _map_sums(layer)
    return sums.rank / sums.images


@register(family="published", unit="", keeps="high", source="Sui et al. 2021")
def chip(layer: LayerStatistics) -> Float[Tensor, "channels"]:
    """Channel independence: average drop of the nuclear norm of the layer's maps without the channel.

    Examples
    --------
    >>> from channelscope import collect
    >>> from channelscope.zoo.toys import dead_channel
    >>> toy = dead_channel()
    >>> chip(collect(toy.model, toy.batches, maps=True))["conv"].round(3).tolist()
    [12.594, 0.0, 58.618, 26.3]

    References
    ----------
    Sui, Yin, Xie, Phan, Zonouz, Yuan 2021 (CHIP).
    """
    sums = _map_sums(layer)
    return sums.independence / sums.images


@register(family="control", unit="", keeps="high", source="seeded uniform numbers")
def random(layer: LayerStatistics, seed: int = 0) -> Float[Tensor, "channels"]:
    """Uniform numbers drawn from the seed and the site's name, a control.

    Examples
    --------
    >>> from channelscope import collect
    >>> from channelscope.zoo.toys import independent_channels
    >>> toy = independent_channels()
    >>> random(collect(toy.model, toy.batches))["conv"].round(3).tolist()
    [0.995, 0.672, 0.861, 0.728, 0.504]

    References
    ----------
    None: a control.
    """
    site_seed = int.from_bytes(hashlib.sha256(f"{seed}/{layer.site.name}".encode()).digest()[:7], "big")
    return torch.rand(layer.channels, generator=torch.Generator().manual_seed(site_seed), dtype=torch.float64)
