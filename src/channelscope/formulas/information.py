"""Information of Gaussian variables in nats, its bias, the quantities of the local axis, and their gradients.

The gradients are those of input capture and task information with respect to the weights of linear Gaussian channels Y = w'X.
"""

import math
from dataclasses import dataclass
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


@dataclass(frozen=True)
class LinearAxes:
    """Input capture and task information of linear channels and their gradients with respect to the weights, one row per channel."""

    capture: Float[Tensor, "channels"]
    """I_X = ½ ln(1 + D/s²), nats"""
    relevance: Float[Tensor, "channels"]
    """I_T = −½ ln(1 − b²/(D v_T)), nats"""
    capture_gradient: Float[Tensor, "channels inputs"]
    """∇I_X = Σw/(s² + D), s² held fixed; nats per unit weight"""
    residual: Float[Tensor, "channels inputs"]
    """g = c − (b/D) Σw: covariance of the inputs with the part of the target that the channel does not predict"""
    task_gradient: Float[Tensor, "channels inputs"]
    """∇I_T = b/(D v_T − b²) · g; nats per unit weight"""

    @property
    def cosine(self) -> Float[Tensor, "channels"]:
        """Euclidean cosine of the two directions Σw and g: 0 for an isotropic input, otherwise a measure of anisotropy."""
        return cosine(self.capture_gradient, self.residual)


def linear_axes(
    weights: Float[Tensor, "channels inputs"],
    product: Float[Tensor, "channels inputs"],
    cross: Float[Tensor, "inputs"],
    target_variance: float,
    noise: float | Literal["median"] = "median",
) -> LinearAxes:
    """Gaussian linear analysis of the channels with weights w: both informations and their gradients.

        D = w'Σw        b = w'c        g = c − (b/D) Σw

    Two identities hold whatever Σ and c: w'g = 0 (the task information does not depend on the length of w), and (Σw)'Σ⁻¹g = 0
    (in the metric of the input the two gradients are orthogonal). Σ itself is never needed: for a convolution Σw is a pass
    over patches.

    Parameters
    ----------
    weights
        w, one row per channel.
    product
        Σw, one row per channel, with the input covariance Σ.
    cross
        c = Cov(X, T) with the target T.
    target_variance
        v_T = Var T.
    noise
        Noise variance s² of the input capture; "median" for the layer's median D.

    Returns
    -------
    LinearAxes
        nan where D is 0; the task gradient also where the channel determines the target.

    Raises
    ------
    ShapeError
        If the shapes do not fit.

    Examples
    --------
    One channel reads the first of two independent inputs of variance 1; the target is the sum of both and noise.

    >>> weights = torch.tensor([[1.0, 0.0]])
    >>> axes = linear_axes(weights, weights, torch.tensor([1.0, 1.0]), target_variance=4.0)
    >>> round(float(axes.relevance), 3), axes.residual.tolist()
    (0.144, [[0.0, 1.0]])

    References
    ----------
    Safaai et al. 2026 (mechanism of H2), derived in docs/theory/together.md. Checked against tests/pencil.py::linear_axes.
    """
    if weights.shape != product.shape or weights.shape[-1] != len(cross):
        shapes = ", ".join(str(tuple(each.shape)) for each in (weights, product, cross))
        raise ShapeError(f"expected weights and products (channels, inputs) and a cross-covariance (inputs,), received {shapes}")
    weights, product, cross = weights.double(), product.double(), cross.double()
    output_variance = (weights * product).sum(-1)
    output_variance = output_variance.masked_fill(output_variance <= 0, torch.nan)
    target_covariance = weights @ cross
    noise_variance = float(output_variance.nanquantile(0.5)) if noise == "median" else float(noise)
    residual = cross - (target_covariance / output_variance)[:, None] * product
    residual_determinant = output_variance * target_variance - target_covariance.square()
    scale = target_covariance / residual_determinant.masked_fill(
        residual_determinant <= FLOAT32_RESOLUTION * output_variance * target_variance, torch.nan
    )
    return LinearAxes(
        capture=capture(output_variance, noise),
        relevance=correlation_information(target_covariance / (output_variance * target_variance).sqrt()),
        capture_gradient=product / (noise_variance + output_variance)[:, None],
        residual=residual,
        task_gradient=scale[:, None] * residual,
    )


def cosine(
    a: Float[Tensor, "channels inputs"], b: Float[Tensor, "channels inputs"], metric: Float[Tensor, "inputs inputs"] | None = None
) -> Float[Tensor, "channels"]:
    """Cosine of two directions per row, Euclidean or in a metric M: a'Mb / √(a'Ma · b'Mb).

    With M = Σ⁻¹ the two gradients of `linear_axes` have cosine 0.

    Parameters
    ----------
    a, b
        One direction per row.
    metric
        M, symmetric and positive definite; None for the Euclidean one.

    Returns
    -------
    Tensor
        −1 … 1; nan where a direction is zero.

    Examples
    --------
    >>> a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8]])
    >>> [round(value, 3) for value in cosine(a, b).tolist()]
    [0.6]

    References
    ----------
    Golub & Van Loan 2013, section 2.3. Checked against tests/pencil.py::cosine.
    """
    left = a if metric is None else a @ metric
    right = b if metric is None else b @ metric
    scale = ((left * a).sum(-1) * (right * b).sum(-1)).sqrt()
    return (left * b).sum(-1) / scale.masked_fill(scale == 0, torch.nan)


def information_step(
    weights: Float[Tensor, "channels inputs"],
    covariance: Float[Tensor, "inputs inputs"],
    cross: Float[Tensor, "inputs"],
    target_variance: float,
    rate: float,
) -> Float[Tensor, "channels inputs"]:
    """Weights after one Euler step of every channel along its task gradient: w ← w + rate · ∇I_T.

    The flow keeps |w| (w'g = 0) and ends at w ∝ Σ⁻¹c, where all channels of the same length have the same input capture.

    Parameters
    ----------
    weights
        w, one row per channel.
    covariance
        Input covariance Σ.
    cross
        c = Cov(X, T) with the target T.
    target_variance
        Var T.
    rate
        Step size.

    Returns
    -------
    Tensor
        The shape of `weights`.

    Examples
    --------
    >>> step = information_step(torch.tensor([[1.0, 0.0]]), torch.eye(2), torch.tensor([1.0, 1.0]), 4.0, rate=0.3)
    >>> [round(value, 3) for value in step[0].tolist()]
    [1.0, 0.1]

    References
    ----------
    Safaai et al. 2026 (mechanism of H2), derived in docs/theory/together.md. Checked by tests/formulas/test_information.py.
    """
    return weights + rate * linear_axes(weights, weights @ covariance, cross, target_variance).task_gradient


def network_step(
    weights: Float[Tensor, "channels inputs"],
    readout: Float[Tensor, "channels"],
    covariance: Float[Tensor, "inputs inputs"],
    cross: Float[Tensor, "inputs"],
    rate: float,
) -> tuple[Float[Tensor, "channels inputs"], Float[Tensor, "channels"]]:
    """One gradient-descent step of a linear network T̂ = Σ_i a_i w_i'X on its expected squared error ½ E(T − T̂)².

        r = c − Σ W'a        W ← W + rate · a r'        a ← a + rate · W r

    The flow keeps W W' − a a' (balancedness).

    Parameters
    ----------
    weights
        W, one row per channel.
    readout
        a, one number per channel.
    covariance
        Input covariance Σ.
    cross
        c = Cov(X, T) with the target T.
    rate
        Step size.

    Returns
    -------
    tuple[Tensor, Tensor]
        New weights and new readout.

    Examples
    --------
    >>> weights, readout = network_step(torch.tensor([[1.0, 0.0]]), torch.tensor([0.5]), torch.eye(2), torch.tensor([1.0, 1.0]), 0.1)
    >>> [round(value, 3) for value in weights[0].tolist()], round(float(readout), 3)
    ([1.025, 0.05], 0.55)

    References
    ----------
    Saxe, McClelland, Ganguli 2014. Checked by tests/formulas/test_information.py.
    """
    missing = cross - covariance @ (weights.T @ readout)
    return weights + rate * torch.outer(readout, missing), readout + rate * (weights @ missing)
