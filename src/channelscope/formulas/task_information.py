"""Information about the task, a continuous target or a class label, in single channels, pairs and triples."""

from typing import Literal

import torch

from channelscope.errors import SampleError, ShapeError, SingularError, check_choice
from channelscope.formulas.gaussian import FLOAT32_RESOLUTION, half_logdet
from channelscope.formulas.information import correlation_information, information_from_unexplained, mean_over_peers
from channelscope.types import Float, Index, Int, Tensor


def label_information(
    total: Float[Tensor, "channels channels"], within: Float[Tensor, "channels channels"], index: Index | None = None
) -> Float[Tensor, ""]:
    """Information of a set of channels about the class label.

        I(Y_S; label) = ½ ln( det Σ_total / det Σ_within )

    The true mixture of classes has less entropy than the Gaussian with its covariance, so this is an upper bound, and it can
    exceed the ln K nats that K classes can carry.

    Parameters
    ----------
    total, within
        Total and within-class covariance of the channels, divided by the same count.
    index
        The channels of the set; all by default.

    Returns
    -------
    Tensor
        Nats, at least 0; inf if the classes do not vary along some combination of the channels.

    Raises
    ------
    ShapeError
        If the covariances differ in shape.
    SingularError
        If the total covariance has no inverse: leave silent channels and copies out.

    Examples
    --------
    >>> round(float(label_information(torch.eye(2), 0.5 * torch.eye(2))), 3)
    0.693

    References
    ----------
    Cover & Thomas 2006, theorem 8.6.5 (the bound). Checked against tests/pencil.py::label_information.
    """
    if total.shape != within.shape:
        raise ShapeError(f"total and within-class covariance differ in shape: {tuple(total.shape)} and {tuple(within.shape)}")
    if index is not None:
        total, within = total[index][:, index], within[index][:, index]
    total_logdet = half_logdet(total)
    try:
        return (total_logdet - half_logdet(within)).clamp(min=0)
    except SingularError:
        return total_logdet.new_tensor(torch.inf)


def label_information_single(total: Float[Tensor, "channels"], within: Float[Tensor, "channels"]) -> Float[Tensor, "channels"]:
    """Information of every channel alone about the class label, from its total and within-class variance: ½ ln(total/within).

    Parameters
    ----------
    total, within
        Total and within-class variance of each channel, divided by the same count.

    Returns
    -------
    Tensor
        Nats, at least 0; inf where classes do not vary (within ≤ FLOAT32_RESOLUTION of total), nan where the total variance is 0 or nan.

    Examples
    --------
    >>> [round(nats, 3) for nats in label_information_single(torch.tensor([1.0, 1.0, 0.0]), torch.tensor([0.25, 0.0, 0.0])).tolist()]
    [0.693, inf, nan]

    References
    ----------
    As `label_information`. Checked against tests/pencil.py::label_information.
    """
    share = (within / total).masked_fill(total <= 0, torch.nan).clamp(max=1)
    return information_from_unexplained(share)


def label_information_pair(
    total: Float[Tensor, "channels channels"], within: Float[Tensor, "channels channels"]
) -> Float[Tensor, "channels channels"]:
    """Information of every pair of channels about the class label; the diagonal is the single information.

    A copy adds nothing: where 1 − ρ² ≤ FLOAT32_RESOLUTION in total, the value is the larger of the two single informations.

    Parameters
    ----------
    total, within
        Total and within-class covariance of the channels, divided by the same count.

    Returns
    -------
    Tensor
        Nats, symmetric, never below either single; inf and nan as for singles.

    Examples
    --------
    >>> [round(nats, 3) for nats in label_information_pair(torch.eye(2), torch.diag(torch.tensor([0.25, 0.64])))[0].tolist()]
    [0.693, 0.916]

    References
    ----------
    As `label_information`. Checked against tests/pencil.py::label_information.
    """
    single = label_information_single(total.diagonal(), within.diagonal())
    best = torch.maximum(single[:, None], single[None, :])
    unexplained_total, unexplained_within = _unexplained_pairs(total), _unexplained_pairs(within)
    joint = (
        single[:, None]
        + single[None, :]
        - information_from_unexplained(unexplained_total)
        + information_from_unexplained(unexplained_within)
    )
    pair = torch.where((unexplained_total <= FLOAT32_RESOLUTION) | best.isposinf(), best, torch.maximum(joint, best))
    pair.diagonal().copy_(single)
    return pair


def _unexplained_pairs(covariance: Tensor) -> Tensor:
    """1 − ρ² of every pair; nan for channels without variance."""
    variance = covariance.diagonal()
    variance = variance.masked_fill(variance <= 0, torch.nan)
    return (1 - covariance.square() / torch.outer(variance, variance)).clamp(0, 1)


def pair_information(target_rho: Float[Tensor, "channels"], rho: Float[Tensor, "channels channels"]) -> Float[Tensor, "channels channels"]:
    """Information of every pair of channels about a continuous target; the diagonal is the single information.

        R²_ij = (r_i² + r_j² − 2 r_i r_j ρ_ij) / (1 − ρ_ij²)        I(T; Y_i, Y_j) = −½ ln(1 − R²_ij)

    A copy adds nothing: where 1 − ρ_ij² ≤ FLOAT32_RESOLUTION, the value is the larger of the two single informations.

    Parameters
    ----------
    target_rho
        Correlation r of each channel with the target.
    rho
        Correlations of the channels.

    Returns
    -------
    Tensor
        Nats, symmetric, never below either single; inf where the pair determines the target, nan for silent channels.

    Raises
    ------
    ShapeError
        If the sizes differ.

    Examples
    --------
    Two independent channels that explain 0.36 and 0.28 of the target together explain 0.64 of it.

    >>> pair = pair_information(torch.tensor([0.6, 0.28**0.5], dtype=torch.float64), torch.eye(2, dtype=torch.float64))
    >>> round(float(pair[0, 1]), 3), round(float(pair[0, 0]), 3)
    (0.511, 0.223)

    References
    ----------
    Anderson 2003, section 2.5.2. Checked against tests/pencil.py::pair_information.
    """
    if rho.shape != (len(target_rho), len(target_rho)):
        raise ShapeError(f"{len(target_rho)} target correlations need a square matrix of that size, received {tuple(rho.shape)}")
    single = correlation_information(target_rho)
    pair = _pair(target_rho[:, None], target_rho[None, :], rho, torch.maximum(single[:, None], single[None, :]))
    pair.diagonal().copy_(single)
    return pair


def excess(pair: Float[Tensor, "channels channels"], single: Float[Tensor, "channels"]) -> Float[Tensor, "channels channels"]:
    """Target excess of every pair: its information beyond the larger single one, S_ij = I(T; Y_i, Y_j) − max(I_i, I_j).

    Parameters
    ----------
    pair
        Information of each pair about the target, continuous or label [nats].
    single
        Information of each channel [nats].

    Returns
    -------
    Tensor
        Nats, at least 0; zero on the diagonal and where one of the two alone determines the target.

    Examples
    --------
    >>> excess(torch.tensor([[1.0, 3.0], [3.0, 2.0]]), torch.tensor([1.0, 2.0])).tolist()
    [[0.0, 1.0], [1.0, 0.0]]

    References
    ----------
    Barrett 2015 (minimum-mutual-information synergy). Checked against tests/pencil.py::excess.
    """
    best = torch.maximum(single[:, None], single[None, :])
    return (pair - best).masked_fill(best.isposinf(), 0)


def redundancy(single: Float[Tensor, "channels"]) -> Float[Tensor, "channels channels"]:
    """Task redundancy of every pair of channels: the smaller of their informations about the target, min(I_i, I_j).

    Parameters
    ----------
    single
        Information of each channel about the target [nats].

    Returns
    -------
    Tensor
        Nats, at least 0.

    Examples
    --------
    >>> redundancy(torch.tensor([1.0, 2.0])).tolist()
    [[1.0, 1.0], [1.0, 2.0]]

    References
    ----------
    Barrett 2015 (minimum mutual information). Checked against tests/pencil.py::unique.
    """
    return torch.minimum(single[:, None], single[None, :])


def unique(single: Float[Tensor, "channels"]) -> Float[Tensor, "channels"]:
    """Unique information of each channel: its information beyond its mean redundancy with its peers, max(0, I_i − mean_j min(I_i, I_j)).

    Parameters
    ----------
    single
        Information of each channel about the target [nats].

    Returns
    -------
    Tensor
        Nats, at least 0; nan for silent channels. Infinite information stays infinite.

    Examples
    --------
    >>> unique(torch.tensor([1.0, 2.0, 4.0])).tolist()
    [0.0, 0.5, 2.5]

    References
    ----------
    Safaai et al. 2026. Checked against tests/pencil.py::unique.
    """
    shared = mean_over_peers(redundancy(single))
    return (single - shared).clamp(min=0).masked_fill(single.isposinf() & shared.isposinf(), 0)


def triplet_excess(
    target_rho: Float[Tensor, "channels"],
    rho: Float[Tensor, "channels channels"],
    triples: Int[Tensor, "n 3"],
    over: Literal["pairs", "singles"] = "pairs",
) -> Float[Tensor, "n"]:
    """Target excess of triples of channels: S3 = I(T; Y_i, Y_j, Y_k) − the largest information of a pair of them.

    Computed as the information of the third channel given the best pair, so it is never negative.

    Parameters
    ----------
    target_rho
        Correlation of each channel with the target.
    rho
        Correlations of the channels.
    triples
        Three different channels per row.
    over
        What is subtracted: the largest information of a pair, or of a single channel.

    Returns
    -------
    Tensor
        Nats, at least 0; nan where a channel is silent.

    Raises
    ------
    InputError
        For another `over`.

    Examples
    --------
    Three independent channels explain 0.2 of the target each.

    >>> r = torch.full((3,), 0.2, dtype=torch.float64).sqrt()
    >>> round(float(triplet_excess(r, torch.eye(3, dtype=torch.float64), torch.tensor([[0, 1, 2]]))), 4)  # ½ ln(0.6 / 0.4)
    0.2027

    References
    ----------
    Safaai et al. 2026. Checked against tests/pencil.py::triplet_excess.
    """
    check_choice("baseline", over, ("pairs", "singles"))
    single = correlation_information(target_rho)[triples]
    pairs = _pairs_of(target_rho, rho, triples)
    third = 2 - pairs.argmax(1)  # the pairs are (0, 1), (0, 2), (1, 2)
    order = torch.tensor([[1, 2, 0], [0, 2, 1], [0, 1, 2]], device=triples.device)[third]
    chosen = triples.gather(1, order)
    joint = target_rho.new_ones(len(triples), 4, 4, dtype=torch.float64)
    joint[:, :3, :3] = rho[chosen[:, :, None], chosen[:, None, :]]
    joint[:, 3, :3] = joint[:, :3, 3] = target_rho[chosen]
    for step in (0, 1):
        pivot = joint[:, step, step, None, None]
        rank_one = joint[:, :, step, None] * joint[:, None, step, :] / pivot
        joint = joint - rank_one.masked_fill(pivot <= FLOAT32_RESOLUTION, 0)
    scale = joint[:, 2, 2] * joint[:, 3, 3]
    determined = (joint[:, 2, 2] <= FLOAT32_RESOLUTION) | (joint[:, 3, 3] <= FLOAT32_RESOLUTION)
    share = (joint[:, 2, 3].square() / scale).masked_fill(determined, 0)
    beyond = information_from_unexplained(1 - share)
    if over == "singles":
        best = single.amax(1)
        beyond = (beyond + pairs.amax(1) - best).masked_fill(best.isposinf(), 0)
    return beyond.masked_fill(single.isnan().any(1), torch.nan)


def triplet_ratio(
    target_rho: Float[Tensor, "channels"],
    rho: Float[Tensor, "channels channels"],
    triples: Int[Tensor, "n 3"],
    over: Literal["pairs", "singles"] = "pairs",
) -> Float[Tensor, ""]:
    """Ratio S3/S2 of the mean triplet excess to the mean pair excess of the pairs inside the same triples.

    Parameters
    ----------
    target_rho, rho, triples, over
        As for `triplet_excess`; triples with a silent channel are left out.

    Returns
    -------
    Tensor
        A pure number; nan if no pair has any excess.

    Examples
    --------
    >>> r = torch.full((3,), 0.2, dtype=torch.float64).sqrt()
    >>> round(float(triplet_ratio(r, torch.eye(3, dtype=torch.float64), torch.tensor([[0, 1, 2]]))), 4)  # ln(0.6/0.4) / ln(0.8/0.6)
    1.4094

    References
    ----------
    Safaai et al. 2026. Checked against tests/pencil.py::triplet_ratio.
    """
    single = correlation_information(target_rho)[triples]
    best = torch.stack([torch.maximum(single[:, i], single[:, j]) for i, j in ((0, 1), (0, 2), (1, 2))], 1)
    two = (_pairs_of(target_rho, rho, triples) - best).masked_fill(best.isposinf(), 0)
    mean = two.mean(1).nanmean()
    return triplet_excess(target_rho, rho, triples, over).nanmean() / mean.masked_fill(mean == 0, torch.nan)


def sample_triples(channels: Int[Tensor, "channels"], n: int, seed: int = 0) -> Int[Tensor, "n 3"]:
    """Random triples of three different channels, drawn independently and uniformly.

    Parameters
    ----------
    channels
        The channels to draw from.
    n
        Number of triples.
    seed
        Of the draws.

    Returns
    -------
    Tensor
        Int64 (n, 3).

    Raises
    ------
    SampleError
        For fewer than three channels.

    Examples
    --------
    >>> sample_triples(torch.tensor([2, 5, 7]), 4).sort(1).values.tolist()
    [[2, 5, 7], [2, 5, 7], [2, 5, 7], [2, 5, 7]]

    References
    ----------
    Safaai et al. 2026 (sampled triples). Checked by tests/formulas/test_information.py.
    """
    if len(channels) < 3:
        raise SampleError(f"a triple needs 3 channels that vary, received {len(channels)}")
    generator = torch.Generator().manual_seed(seed)
    size = len(channels)
    picks = [torch.randint(size - taken, (n,), generator=generator) for taken in range(3)]
    first, second, third = picks
    second = second + (second >= first)
    for earlier in torch.stack([first, second]).sort(0).values:
        third = third + (third >= earlier)
    return channels[torch.stack([first, second, third], 1).to(channels.device)]


def _pair(a: Tensor, b: Tensor, rho: Tensor, best: Tensor) -> Tensor:
    """Information of pairs with target correlations a and b and mutual correlation ρ; at least `best`, the better half's."""
    unexplained = 1 - rho.square()
    gap = torch.addcmul(unexplained, a * b, rho, value=2).sub_(a.square() + b.square()).div_(unexplained)
    return torch.where(
        unexplained <= FLOAT32_RESOLUTION, best, torch.maximum(information_from_unexplained(gap), best)
    )  # a maximum for rounding only


def _pairs_of(target_rho: Tensor, rho: Tensor, triples: Tensor) -> Tensor:
    """Information of the pairs (0, 1), (0, 2), (1, 2) of each triple."""
    single = correlation_information(target_rho)
    columns = []
    for i, j in ((0, 1), (0, 2), (1, 2)):
        one, two = triples[:, i], triples[:, j]
        columns.append(_pair(target_rho[one], target_rho[two], rho[one, two], torch.maximum(single[one], single[two])))
    return torch.stack(columns, 1)
