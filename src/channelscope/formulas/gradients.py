"""Gradients of input capture and task information with respect to the weights of linear Gaussian channels Y = w'X."""

from dataclasses import dataclass
from typing import Literal

import torch

from channelscope.errors import ShapeError
from channelscope.formulas.gaussian import FLOAT32_RESOLUTION
from channelscope.formulas.information import capture as input_capture
from channelscope.formulas.information import correlation_information
from channelscope.types import Float, Tensor


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
        capture=input_capture(output_variance, noise),
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
    Safaai et al. 2026 (mechanism of H2), derived in docs/theory/together.md. Checked by tests/formulas/test_gradients.py.
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
    Saxe, McClelland, Ganguli 2014. Checked by tests/formulas/test_gradients.py.
    """
    missing = cross - covariance @ (weights.T @ readout)
    return weights + rate * torch.outer(readout, missing), readout + rate * (weights @ missing)
