"""Scores of the local axis (can peers replace a channel), of the target axis (what it says about the task), and composites of both."""

import torch

from channelscope.formulas import information, regression, task_information
from channelscope.formulas.information import CEILING
from channelscope.formulas.regression import RIDGE, backward_elimination, hulls
from channelscope.formulas.regression import support as explained
from channelscope.scores.baselines import l2
from channelscope.scores.score import LayerStatistics, register
from channelscope.types import Float, Tensor


@register(family="local", unit="", keeps="high", source="Safaai et al. 2026")
def rayleigh(layer: LayerStatistics) -> Float[Tensor, "channels"]:
    """Rayleigh quotient w'Σw / |w|²: output variance per squared weight norm.

    Examples
    --------
    >>> from channelscope import collect
    >>> from channelscope.zoo.toys import independent_channels
    >>> toy = independent_channels()
    >>> rayleigh(collect(toy.model, toy.batches))["conv"].round(3).tolist()
    [1.0, 1.0, 1.0, 1.0, 1.0]

    References
    ----------
    Safaai et al. 2026.
    """
    return information.rayleigh(layer.variance, layer.weights["l2"])


@register(family="local", unit="nats", keeps="high", source="Safaai et al. 2026")
def capture(layer: LayerStatistics) -> Float[Tensor, "channels"]:
    """Input capture I_X = ½ ln(1 + Var/s²), s² the layer's median variance unless `noise=` is a number.

    Examples
    --------
    >>> from channelscope import collect
    >>> from channelscope.zoo.toys import independent_channels
    >>> toy = independent_channels()
    >>> capture(collect(toy.model, toy.batches))["conv"].round(3).tolist()
    [0.053, 0.184, 0.347, 0.511, 0.665]

    References
    ----------
    Safaai et al. 2026.
    """
    return information.capture(layer.variance, layer.convention.noise)


@register(family="local", unit="nats", keeps="low", source="Safaai et al. 2026")
def overlap(layer: LayerStatistics, ceiling: float | None = None) -> Float[Tensor, "channels"]:
    """Peer overlap: mean over the peers of −½ ln(1 − ρ²); an exact copy is inf unless a ceiling is stated.

    Examples
    --------
    >>> from channelscope import collect
    >>> from channelscope.zoo.toys import suppressor_pair
    >>> toy = suppressor_pair()
    >>> overlap(collect(toy.model, toy.batches))["conv"].round(3).tolist()
    [0.173, 0.173, 0.0]

    References
    ----------
    Safaai et al. 2026.
    """
    if layer.convention.paper:
        return information.overlap(layer.correlation, information.CEILING, over="channels")
    return information.overlap(layer.correlation, ceiling)


@register(family="local", unit="fraction", keeps="low", source="Safaai et al. 2026; Guttman 1953")
def support(layer: LayerStatistics, ridge: float = RIDGE) -> Float[Tensor, "channels"]:
    """Peer support: share of the channel's variance that all its peers explain together.

    Raises
    ------
    SampleError
        With fewer images than channels and no shrinkage.

    Examples
    --------
    >>> from channelscope import collect
    >>> from channelscope.zoo.toys import suppressor_pair
    >>> toy = suppressor_pair()
    >>> support(collect(toy.model, toy.batches))["conv"].round(3).tolist()
    [0.5, 0.5, 0.0]

    References
    ----------
    Safaai et al. 2026.
    """
    layer.require_samples_for_peers()
    return explained(layer.correlation, ridge)


def _empty_hull(layer: LayerStatistics, channel: int) -> str:
    return "no peer explains it: its hull is empty"


@register(family="local", unit="fraction/member", keeps="low", source="Safaai et al. 2026", undefined=_empty_hull)
def compactness(layer: LayerStatistics, max_size: int = 10, threshold: float = 0.95, ridge: float = RIDGE) -> Float[Tensor, "channels"]:
    """Hull compactness: peer support over the size of the replaceability hull; high where few peers explain much.

    A channel that no peer explains has an empty hull and compactness nan.

    Raises
    ------
    SampleError
        With fewer images than channels and no shrinkage.

    Examples
    --------
    >>> from channelscope import collect
    >>> from channelscope.zoo.toys import suppressor_pair
    >>> toy = suppressor_pair()
    >>> compactness(collect(toy.model, toy.batches))["conv"].round(3).tolist()
    [0.5, 0.5, nan]

    References
    ----------
    Safaai et al. 2026.
    """
    layer.require_samples_for_peers()
    return hulls(layer.correlation, max_size, threshold, ridge=ridge).compactness


def _no_consumer(layer: LayerStatistics, channel: int) -> str:
    if "outgoing" not in layer.weights:
        return "no convolution or linear layer reads it"
    return "silent: it does not vary at its cut point"


@register(family="local", unit="", keeps="high", source="this library", undefined=_no_consumer)
def peer_residual(layer: LayerStatistics) -> Float[Tensor, "channels"]:
    """Residual variance of the channel given the kept peers, times the squared norm of the weights that read it.

    Backward elimination at the cut point: the cheapest channel goes, the others' residuals are updated, and so on; the
    value is the cost at removal, which never falls along the way.
    Undefined (nan) where no convolution or linear layer reads the site.

    Examples
    --------
    >>> from channelscope import collect
    >>> from channelscope.zoo.toys import independent_channels
    >>> toy = independent_channels()
    >>> peer_residual(collect(toy.model, toy.batches))["conv"].round(3).tolist()
    [1.0, 0.0, 9.0, 0.0, 1.0]

    References
    ----------
    This library; Schur updates as in Golub & Van Loan 2013, section 6.5.
    """
    layer.require_samples_for_peers()
    cut = layer.record.activation
    if "outgoing" not in layer.weights:
        return torch.full((layer.channels,), torch.nan, dtype=torch.float64)
    return backward_elimination(cut.covariance, layer.weights["outgoing"].square()).cost.masked_fill(cut.variance == 0, torch.nan)


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
    >>> from channelscope.scores.score import ScoreOptions
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
