"""Scores of the target axis: task information of a channel alone and together with its peers."""

import torch

from channelscope.formulas import information, task_information
from channelscope.scores.layer_statistics import LayerStatistics
from channelscope.scores.registry import register
from channelscope.types import Float, Tensor


@register(family="target", unit="nats", keeps="high", source="Safaai et al. 2026")
def relevance(layer: LayerStatistics, corrected: bool = True) -> Float[Tensor, "channels"]:
    """Task information I_T = −½ ln(1 − ρ²) with the target, less its bias k/(2n) unless `corrected=False`.

    Corrected values of channels that say nothing scatter around zero and may be negative.

    References
    ----------
    Safaai et al. 2026.
    """
    bias = layer.bias(1) if corrected and not layer.convention.paper else 0.0
    return layer.task_information - bias


@register(family="target", unit="nats", keeps="high", source="Safaai et al. 2026")
def unique(layer: LayerStatistics) -> Float[Tensor, "channels"]:
    """What a channel says about the target beyond its mean redundancy with its peers.

    References
    ----------
    Safaai et al. 2026.
    """
    return task_information.unique(layer.task_information)


@register(family="target", unit="nats", keeps="low", source="Barrett 2015; Safaai et al. 2026")
def redundancy(layer: LayerStatistics) -> Float[Tensor, "channels"]:
    """Mean over the peers of what both say about the target, min(I_i, I_j).

    References
    ----------
    Barrett 2015 (minimum mutual information).
    """
    shared = task_information.redundancy(layer.task_information)
    return information.mean_over_peers(shared)


TOP, OF = 10, 50


@register(family="target", unit="nats", keeps="high", source="Safaai et al. 2026; Barrett 2015")
def excess(layer: LayerStatistics, top: int | None = None, of: int = OF) -> Float[Tensor, "channels"]:
    """Target excess: mean over the peers of S_ij = I(T; Y_i, Y_j) − max(I_i, I_j).

    With `top=10` the mean of the ten largest among the `of` most overlapping peers, which is biased upward: compare it
    with `scores.null`. The overlap of peers is measured at the target's readout; for the label, in the pooled samples.

    References
    ----------
    Safaai et al. 2026.
    """
    if layer.convention.paper:
        top = TOP
    pairs = task_information.excess(layer.pair_information, layer.task_information)
    return (
        information.mean_over_peers(pairs)
        if top is None
        else information.mean_of_top_peers(pairs, layer.target_readout_correlation, top, of)
    )


def triplet_excess_by_layer(layer: LayerStatistics, n: int = 2000, over: str = "pairs", seed: int = 0) -> tuple[float, float]:
    """Mean triplet excess S3 [nats] over `n` sampled triples of a layer, and its ratio S3/S2 to the pairs inside them.

    Undefined (nan, nan) for a layer with fewer than three channels that vary.

    Raises
    ------
    InputError
        For the label, which has no correlation.

    References
    ----------
    Safaai et al. 2026.
    """
    alive = (~layer.target_correlation.isnan()).nonzero()[:, 0]
    if len(alive) < 3:
        return float("nan"), float("nan")
    triples = task_information.sample_triples(alive, n, seed)
    mean = task_information.triplet_excess(layer.target_correlation, layer.target_readout_correlation, triples, over).nanmean()  # type: ignore[arg-type]
    ratio = task_information.triplet_ratio(layer.target_correlation, layer.target_readout_correlation, triples, over)  # type: ignore[arg-type]
    return float(mean), float(ratio) if torch.isfinite(ratio) else float("nan")
