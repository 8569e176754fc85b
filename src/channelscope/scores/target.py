"""Scores of the target axis: task information of a channel alone and together with its peers."""

import torch

from channelscope.formulas import information, regression, task_information
from channelscope.formulas.regression import RIDGE
from channelscope.scores.layer_statistics import LayerStatistics
from channelscope.scores.registry import register
from channelscope.types import Float, Tensor


@register(family="target", unit="nats", keeps="high", source="Safaai et al. 2026")
def relevance(layer: LayerStatistics, corrected: bool = True) -> Float[Tensor, "channels"]:
    """Task information I_T = −½ ln(1 − ρ²) with the target, minus its bias k/(2n) unless `corrected=False`.

    Corrected values of uninformative channels scatter around zero and may be negative.

    Examples
    --------
    >>> from channelscope import collect
    >>> from channelscope.zoo.toys import suppressor_pair
    >>> toy = suppressor_pair()
    >>> relevance(collect(toy.model, toy.batches))["conv"].round(3).tolist()
    [0.253, -0.002, 0.11]

    References
    ----------
    Safaai et al. 2026.
    """
    bias = layer.bias(1) if corrected and not layer.convention.paper else 0.0
    return layer.task_information - bias


@register(family="target", unit="nats", keeps="high", source="Safaai et al. 2026")
def unique(layer: LayerStatistics) -> Float[Tensor, "channels"]:
    """Task information of a channel minus its mean redundancy with its peers, at least 0.

    Examples
    --------
    >>> from channelscope import collect
    >>> from channelscope.zoo.toys import suppressor_pair
    >>> toy = suppressor_pair()
    >>> unique(collect(toy.model, toy.batches))["conv"].round(3).tolist()
    [0.2, 0.0, 0.056]

    References
    ----------
    Safaai et al. 2026.
    """
    return task_information.unique(layer.task_information)


@register(family="target", unit="nats", keeps="low", source="Barrett 2015; Safaai et al. 2026")
def redundancy(layer: LayerStatistics) -> Float[Tensor, "channels"]:
    """Mean over the peers of min(I_i, I_j), the information about the target that both channels have.

    Examples
    --------
    >>> from channelscope import collect
    >>> from channelscope.zoo.toys import suppressor_pair
    >>> toy = suppressor_pair()
    >>> redundancy(collect(toy.model, toy.batches))["conv"].round(3).tolist()
    [0.056, 0.0, 0.056]

    References
    ----------
    Barrett 2015 (minimum mutual information).
    """
    shared = task_information.redundancy(layer.task_information)
    return information.mean_over_peers(shared)


@register(family="target", unit="fraction", keeps="high", source="code of Safaai et al. 2026; Darlington 1968")
def task_credit(layer: LayerStatistics, ridge: float = RIDGE) -> Float[Tensor, "channels"]:
    """Residualized task credit (P r)_i² / P_ii, P = (R + λI)⁻¹: what the joint linear prediction of the target loses without i.

    Raises
    ------
    SampleError
        With fewer images than channels and no shrinkage.

    Examples
    --------
    >>> from channelscope import collect
    >>> from channelscope.zoo.toys import suppressor_pair
    >>> toy = suppressor_pair()
    >>> task_credit(collect(toy.model, toy.batches), ridge=0.0)["conv"].round(3).tolist()  # channel 1 cleans channel 0
    [0.8, 0.4, 0.2]

    References
    ----------
    Later configurations of the code of Safaai et al. 2026; Darlington 1968.
    """
    layer.require_samples_for_peers()
    return regression.task_credit(layer.target_correlation, layer.target_readout_correlation, ridge)


TOP, OF = 10, 50


@register(family="target", unit="nats", keeps="high", source="Safaai et al. 2026; Barrett 2015")
def excess(layer: LayerStatistics, top: int | None = None, of: int = OF) -> Float[Tensor, "channels"]:
    """Target excess: mean over the peers of S_ij = I(T; Y_i, Y_j) − max(I_i, I_j).

    With `top=10` the mean of the ten largest among the `of` most overlapping peers, which is biased upward: compare it
    with `scores.permutation_null`. The overlap of peers is measured at the target's readout; for the label, in the pooled samples.

    Examples
    --------
    >>> from channelscope import collect
    >>> from channelscope.zoo.toys import suppressor_pair
    >>> toy = suppressor_pair()
    >>> excess(collect(toy.model, toy.batches))["conv"].round(3).tolist()
    [0.376, 0.275, 0.101]

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

    Parameters
    ----------
    layer
        Statistics of the layer.
    n
        Number of triples.
    over
        pairs: S3 is the information of three channels beyond their best pair; singles: beyond the best single channel.
    seed
        Seed of the triples.

    Returns
    -------
    tuple
        Mean and ratio; (nan, nan) for a layer with fewer than three channels that vary.

    Raises
    ------
    InputError
        For the label, which has no correlation.

    Examples
    --------
    >>> from channelscope import collect
    >>> from channelscope.scores.layer_statistics import ScoreOptions
    >>> from channelscope.zoo.toys import suppressor_pair
    >>> toy = suppressor_pair()
    >>> profile = collect(toy.model, toy.batches)
    >>> layer = LayerStatistics(profile, profile.site("conv"), profile.record("conv"), ScoreOptions(shrinkage=0.1))
    >>> [round(number, 2) for number in triplet_excess_by_layer(layer)]
    [0.22, 1.97]

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
