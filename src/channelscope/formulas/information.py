"""Mutual information of Gaussian variables in nats, its bias, and the quantities of the local axis."""

import math
from typing import Literal

import torch

from channelscope.errors import InputError, ShapeError, SingularError
from channelscope.formulas.gaussian import FLOAT32_RESOLUTION, Gaussian, half_logdet
from channelscope.types import Float, Index, Tensor

CEILING = -math.log1p(-(0.999**2)) / 2
"""−½ ln(1 − 0.999²) = 3.1076: the cap, in nats, of an information that is averaged, clustered or mixed (the paper clips |ρ| at 0.999)."""


def correlation_information(rho: Float[Tensor, "..."], ceiling: float | None = None) -> Float[Tensor, "..."]:
    """Mutual information of two Gaussian variables with correlation ρ, elementwise.

        I = −½ ln(1 − ρ²)

    Parameters
    ----------
    rho
        Correlations, of any shape.
    ceiling
        Largest value returned [nats]; None for no limit.

    Returns
    -------
    Tensor
        Nats, at least 0; infinite where 1 − ρ² ≤ FLOAT32_RESOLUTION, which float32 statistics cannot distinguish from a copy;
        nan where ρ is nan.

    Raises
    ------
    InputError
        Where |ρ| exceeds 1 by more than rounding.

    Examples
    --------
    >>> [round(nats, 3) for nats in correlation_information(torch.tensor([0.0, 0.6, 1.0])).tolist()]
    [0.0, 0.223, inf]

    References
    ----------
    Cover & Thomas 2006, example 8.5.1. Checked against tests/pencil.py::correlation_information.
    """
    squared = rho.double().square()
    if bool((squared > 1 + FLOAT32_RESOLUTION).any()):
        raise InputError(
            f"expected correlations within [−1, 1], received {float(rho.abs().nan_to_num().max()):.6g}: divide by both deviations"
        )
    nats = information_from_unexplained(1 - squared)
    return nats if ceiling is None else nats.clamp(max=ceiling)


def information(law: Gaussian, a: Index, b: Index) -> Float[Tensor, ""]:
    """Mutual information between two sets of coordinates of a Gaussian.

        I(A;B) = ½ ln( |Σ_A| |Σ_B| / |Σ_AB| )

    Parameters
    ----------
    law
        Joint law of all coordinates.
    a, b
        Two disjoint sets of coordinates.

    Returns
    -------
    Tensor
        Nats, at least 0: 0 if A and B are uncorrelated, infinite if a combination of one is determined by the other,
        nan where a coordinate is silent.

    Raises
    ------
    ShapeError
        If A and B overlap.
    SingularError
        If A or B alone has no inverse.

    Examples
    --------
    >>> law = Gaussian(torch.zeros(2), torch.tensor([[1.0, 0.6], [0.6, 1.0]]), torch.inf)
    >>> round(float(information(law, [0], [1])), 3)
    0.223

    References
    ----------
    Cover & Thomas 2006, section 8.5. Checked against tests/pencil.py::information.
    """
    everything = torch.arange(len(law), device=law.mean.device)
    first, second = everything[a], everything[b]
    if bool(torch.isin(first, second).any()):
        raise ShapeError("information between two sets that overlap is infinite: pass disjoint sets")
    both = torch.cat([first, second])
    if bool(law.silent[both].any()):
        return law.mean.new_tensor(torch.nan)
    separate = half_logdet(law.covariance[first][:, first], law.count) + half_logdet(law.covariance[second][:, second], law.count)
    try:
        return (separate - half_logdet(law.covariance[both][:, both], law.count)).clamp(min=0)
    except SingularError:
        return law.mean.new_tensor(torch.inf)


def gaussian_bias(coordinates: int, count: float, classes: int | None = None) -> float:
    """First-order upward bias of a Gaussian information that is estimated from independent samples (images, not positions).

        continuous target: k / (2n)        label with K classes: k (K − 1) / (2n)

    Subtract it; the result may be negative and is left so. It does not hold for differences of maxima (excess).

    Parameters
    ----------
    coordinates
        Number k of channels in the set.
    count
        Number n of independent samples.
    classes
        Number K of classes for a label; None for a continuous target.

    Returns
    -------
    float
        Nats.

    Examples
    --------
    >>> gaussian_bias(1, 100), gaussian_bias(1, 100, classes=11)
    (0.005, 0.05)

    References
    ----------
    Wilks 1938 (2n I is asymptotically χ²). Checked by tests/formulas/test_information.py.
    """
    return coordinates * (1 if classes is None else classes - 1) / (2 * count)


def information_from_unexplained(gap: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Information −½ ln(gap) for an unexplained share of variance, elementwise.

    Parameters
    ----------
    gap
        Unexplained shares, 0..1; a share above 1 is a rounding error and counts as 1.

    Returns
    -------
    Tensor
        Nats, at least 0; infinite where the share is at most FLOAT32_RESOLUTION.

    Examples
    --------
    >>> [round(nats, 3) for nats in information_from_unexplained(torch.tensor([1.0, 0.64, 0.0])).tolist()]
    [0.0, 0.223, inf]

    References
    ----------
    Cover & Thomas 2006, section 8.5. Checked against tests/pencil.py::correlation_information.
    """
    return gap.clamp(FLOAT32_RESOLUTION, 1).log_().div_(2).abs_().masked_fill_(gap <= FLOAT32_RESOLUTION, torch.inf)


def rayleigh(variance: Float[Tensor, "channels"], weight_norm: Float[Tensor, "channels"]) -> Float[Tensor, "channels"]:
    """Rayleigh quotient of a channel's weights w on its input covariance: w'Σw / |w|² = Var(Y) / |w|².

    The input covariance is never formed: w'Σw is the variance of the output.

    Parameters
    ----------
    variance
        Output variance of each channel.
    weight_norm
        Euclidean norm |w| of each channel's weights, not its square.

    Returns
    -------
    Tensor
        Input variance per unit weight, at least 0, between the extreme eigenvalues of Σ; nan where the weights are zero.

    Examples
    --------
    >>> rayleigh(torch.tensor([8.0, 8.0]), torch.tensor([2.0, 0.0])).tolist()
    [2.0, nan]

    References
    ----------
    Safaai et al. 2026. Checked against tests/pencil.py::rayleigh.
    """
    return (variance / weight_norm.square()).masked_fill(weight_norm == 0, torch.nan)


def capture(variance: Float[Tensor, "channels"], noise: float | Literal["median"] = "median") -> Float[Tensor, "channels"]:
    """Input capture: information between a channel and its input through Gaussian noise of variance s².

        I_X = ½ ln(1 + Var(Y)/s²)

    Parameters
    ----------
    variance
        Output variance of each channel; nan for a channel without one.
    noise
        "median": s² is the layer's own median variance, so that the median channel has ½ ln 2 whatever the layer's scale, and
        values compare within a layer only. A number is a fixed noise variance.

    Returns
    -------
    Tensor
        Nats, at least 0; nan for the whole layer where its median variance is zero (more than half of it is silent).

    Raises
    ------
    InputError
        If the noise is not positive.

    Examples
    --------
    >>> [round(nats, 3) for nats in capture(torch.tensor([0.0, 1.0, 3.0])).tolist()]
    [0.0, 0.347, 0.693]

    References
    ----------
    Safaai et al. 2026, median as in the published code. Checked against tests/pencil.py::capture.
    """
    if noise == "median":
        level = variance.nanquantile(0.5)
        return (variance / level.masked_fill(level == 0, torch.nan)).log1p() / 2
    if isinstance(noise, str) or not noise > 0:
        raise InputError(f'noise is "median" or a positive variance, received {noise!r}')
    return (variance / noise).log1p() / 2


def overlap(
    rho: Float[Tensor, "channels channels"], ceiling: float | None = None, over: Literal["peers", "channels"] = "peers"
) -> Float[Tensor, "channels"]:
    """Peer overlap: mean over the other channels j of R_ij = −½ ln(1 − ρ_ij²).

    Parameters
    ----------
    rho
        Correlations of a layer's channels; a silent channel has a nan row and is excluded as a peer.
    ceiling
        Largest R_ij [nats]; without one an exact copy gives inf.
    over
        Whether the sum is divided by the number of peers or of all channels ("channels" with ceiling=CEILING is the paper's convention).

    Returns
    -------
    Tensor
        Nats, at least 0; nan for silent channels and where there is no peer.

    Examples
    --------
    >>> [round(nats, 3) for nats in overlap(torch.tensor([[1.0, 0.6, 0.0], [0.6, 1.0, 0.0], [0.0, 0.0, 1.0]])).tolist()]
    [0.112, 0.112, 0.0]

    References
    ----------
    Safaai et al. 2026 (arXiv 2605.07086). Checked against tests/pencil.py::overlap.
    """
    mean = mean_over_peers(correlation_information(rho, ceiling))
    if over == "peers":
        return mean
    alive = (~rho.diagonal().isnan()).sum()
    return mean * (alive - 1) / len(rho)


def mean_over_peers(pairs: Float[Tensor, "channels channels"]) -> Float[Tensor, "channels"]:
    """Mean of each row without its diagonal and without nan entries (silent peers).

    Parameters
    ----------
    pairs
        A quantity of each pair of channels.

    Returns
    -------
    Tensor
        The unit of `pairs`; nan where no entry is left.

    Examples
    --------
    >>> mean_over_peers(torch.tensor([[9.0, 1.0, 3.0], [1.0, 9.0, torch.nan], [3.0, torch.nan, 9.0]])).tolist()
    [2.0, 1.0, 3.0]

    References
    ----------
    Safaai et al. 2026. Checked against tests/pencil.py::overlap.
    """
    others = pairs.clone()
    others.fill_diagonal_(torch.nan)
    return others.nanmean(1)


def mean_of_top_peers(
    pairs: Float[Tensor, "channels channels"], rho: Float[Tensor, "channels channels"], top: int = 10, of: int = 50
) -> Float[Tensor, "channels"]:
    """Mean of the `top` largest entries of each row among the `of` peers with the largest |ρ|.

    Selecting the largest is biased upward: report it with its permutation null.

    Parameters
    ----------
    pairs
        A quantity of each pair of channels.
    rho
        Correlations of the channels.
    top
        Entries averaged; all of them where there are fewer.
    of
        Peers considered; all of them where there are fewer.

    Returns
    -------
    Tensor
        The unit of `pairs`; nan for silent channels.

    Examples
    --------
    >>> rho = torch.tensor([[1.0, 0.9, 0.1], [0.9, 1.0, 0.5], [0.1, 0.5, 1.0]])
    >>> mean_of_top_peers(torch.tensor([[0.0, 2.0, 5.0], [2.0, 0.0, 4.0], [5.0, 4.0, 0.0]]), rho, top=1, of=1).tolist()
    [2.0, 2.0, 4.0]

    References
    ----------
    Safaai et al. 2026 (the published code's summary). Checked against tests/pencil.py::peer_top.
    """
    near = rho.abs().nan_to_num(nan=-1.0)
    near.fill_diagonal_(-1)
    peers = min(of, max(len(rho) - 1, 0))
    closest = near.topk(peers, dim=1)
    values = pairs.gather(1, closest.indices).masked_fill(closest.values < 0, torch.nan)
    ordered = values.nan_to_num(nan=-torch.inf).topk(min(top, peers), dim=1).values
    return ordered.masked_fill(ordered.isneginf(), torch.nan).nanmean(1)
