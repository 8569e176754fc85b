"""NormalEquations: sufficient statistics of a linear regression, which add."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from channelscope.types import Float, Tensor


@dataclass(frozen=True, repr=False)
class NormalEquations:
    """Counts, means and scatters of inputs x and targets t, separately for each group of a layer; two of them add.

    Examples
    --------
    >>> x = torch.tensor([[[0.0], [1.0], [2.0]]])
    >>> equations = NormalEquations.of(x[:, :2], 3 * x[:, :2] + 1) + NormalEquations.of(x[:, 2:], 3 * x[:, 2:] + 1)
    >>> equations
    NormalEquations(3 samples, 1 group of 1 inputs and 1 outputs)
    >>> (weights,) = equations.ridge(torch.zeros(1, 1, 1).double(), (1e-12,))
    >>> round(float(weights), 3), round(float(equations.intercept(weights)), 3), round(float(equations.error(weights)), 3)
    (3.0, 1.0, 0.0)
    """

    count: int
    """number of samples"""
    x_mean: Float[Tensor, "groups inputs"]
    """mean input, float64"""
    t_mean: Float[Tensor, "groups outputs"]
    """mean target, float64"""
    xx: Float[Tensor, "groups inputs inputs"]
    """centred scatter of the inputs, float64"""
    xt: Float[Tensor, "groups inputs outputs"]
    """centred cross scatter, float64"""
    tt: Float[Tensor, "groups outputs"]
    """centred squares of the targets, float64"""

    @classmethod
    def of(cls, x: Float[Tensor, "groups samples inputs"], t: Float[Tensor, "groups samples outputs"]) -> "NormalEquations":
        """Statistics of one batch: centered, multiplied in the samples' precision, kept in float64.

        Parameters
        ----------
        x
            Inputs of the regression.
        t
            Its targets, for the same samples.

        Returns
        -------
        NormalEquations
            The sums of these samples.
        """
        x_mean, t_mean = x.mean(1, keepdim=True), t.mean(1, keepdim=True)
        x, t = x - x_mean, t - t_mean
        xx, xt = x.transpose(1, 2) @ x, x.transpose(1, 2) @ t
        return cls(x.shape[1], x_mean[:, 0].double(), t_mean[:, 0].double(), xx.double(), xt.double(), t.square().sum(1).double())

    def __repr__(self) -> str:
        """The sizes."""
        groups, inputs, outputs = self.xt.shape
        return f"NormalEquations({self.count:,} samples, {groups} group{'s' * (groups > 1)} of {inputs} inputs and {outputs} outputs)"

    def __add__(self, other: "NormalEquations") -> "NormalEquations":
        """Statistics of the union of two disjoint sample sets (Chan, Golub, LeVeque 1983)."""
        count = self.count + other.count
        dx, dt = other.x_mean - self.x_mean, other.t_mean - self.t_mean
        factor = self.count * other.count / count
        return NormalEquations(
            count,
            self.x_mean + dx * (other.count / count),
            self.t_mean + dt * (other.count / count),
            self.xx + other.xx + factor * dx[:, :, None] * dx[:, None, :],
            self.xt + other.xt + factor * dx[:, :, None] * dt[:, None, :],
            self.tt + other.tt + factor * dt.square(),
        )

    def about_zero(self) -> "NormalEquations":
        """Statistics of the same samples about zero instead of the mean, for layers without an intercept."""
        zero = torch.zeros_like
        return NormalEquations(
            self.count,
            zero(self.x_mean),
            zero(self.t_mean),
            self.xx + self.count * self.x_mean[:, :, None] * self.x_mean[:, None, :],
            self.xt + self.count * self.x_mean[:, :, None] * self.t_mean[:, None, :],
            self.tt + self.count * self.t_mean.square(),
        )

    def error(self, weights: Float[Tensor, "groups outputs inputs"]) -> Float[Tensor, "groups outputs"]:
        """Mean squared error of each output, of weights · x with the best intercept."""
        cross = (weights * self.xt.transpose(1, 2)).sum(2)
        return (self.tt - 2 * cross + ((weights @ self.xx) * weights).sum(2)).clamp(min=0) / self.count

    def ridge(
        self, prior: Float[Tensor, "groups outputs inputs"], shares: Sequence[float]
    ) -> Iterator[Float[Tensor, "groups outputs inputs"]]:
        """The weights that minimize the squared error plus λ |weights − prior|², for each penalty.

            W = W₀ + (T − W₀X) X' (XX' + λI)⁻¹        λ = share × mean diagonal of XX'

        Parameters
        ----------
        prior
            Weights W₀ toward which the fit is shrunk.
        shares
            Penalties, as fractions of the mean scatter of the inputs.

        Yields
        ------
        Tensor
            Fitted weights, as `prior` for one share.

        References
        ----------
        Hoerl & Kennard 1970, shrunk toward a prior instead of zero.
        """
        level = self.xx.diagonal(dim1=1, dim2=2).mean(1)
        gap = self.xt - self.xx @ prior.transpose(1, 2)
        for share in shares:
            load = torch.where(level > 0, share * level, 1.0)  # constant inputs: keep the prior
            inner = self.xx.clone()
            inner.diagonal(dim1=1, dim2=2).add_(load[:, None])
            yield prior + torch.cholesky_solve(gap, torch.linalg.cholesky(inner)).transpose(1, 2)

    def intercept(self, weights: Float[Tensor, "groups outputs inputs"]) -> Float[Tensor, "groups outputs"]:
        """The intercept of each output that minimizes the squared error of weights · x."""
        return self.t_mean - (weights @ self.x_mean[:, :, None])[:, :, 0]

    def output_moments(self, weights: Float[Tensor, "groups outputs inputs"]) -> tuple[Tensor, Tensor]:
        """Mean and variance of weights · x, each (groups, outputs)."""
        variance = ((weights @ self.xx) * weights).sum(2) / self.count
        return (weights @ self.x_mean[:, :, None])[:, :, 0], variance.clamp(min=0)

    def match_target_variance(
        self, weights: Float[Tensor, "groups outputs inputs"], max_factor: float
    ) -> Float[Tensor, "groups outputs inputs"]:
        """The weights, rescaled so that the variance of each output equals its target's.

        Re-estimating a BatchNorm has the same effect on the weights before it (Li et al. 2018, AdaBN). Without it, ridge shrinkage
        lowers the variance at every layer of a deep network.

        Parameters
        ----------
        weights
            Weights from the inputs to the outputs.
        max_factor
            Largest factor; smaller ones are not limited.

        Returns
        -------
        Tensor
            As `weights`; unchanged where the output has no variance.
        """
        variance = self.output_moments(weights)[1]
        factor = (self.tt / self.count / variance).sqrt().clamp(max=max_factor)
        return weights * torch.where(variance > 0, factor, 1.0)[:, :, None]

    def float32(self) -> "NormalEquations":
        """The same statistics in float32, for trial fits."""
        return NormalEquations(self.count, *(part.float() for part in (self.x_mean, self.t_mean, self.xx, self.xt, self.tt)))


def cross_validated_error(
    halves: tuple[NormalEquations, NormalEquations], prior: Float[Tensor, "groups outputs inputs"], shares: Sequence[float]
) -> Float[Tensor, "shares"]:
    """Two-fold cross-validated mean squared error of ridge fits toward a prior, for each penalty.

    Solved in float32, which is enough to choose a penalty.

    Parameters
    ----------
    halves
        Normal equations of two disjoint halves of the samples.
    prior
        Weights toward which the fits are shrunk.
    shares
        Penalties, as fractions of the mean scatter of the inputs of one half.

    Returns
    -------
    Tensor
        float64 (shares,): mean over outputs and over the two halves.

    Examples
    --------
    >>> x = torch.tensor([[[0.0], [1.0], [2.0], [3.0]]])
    >>> halves = NormalEquations.of(x[:, ::2], 3 * x[:, ::2]), NormalEquations.of(x[:, 1::2], 3 * x[:, 1::2])
    >>> cross_validated_error(halves, torch.zeros(1, 1, 1), (1e-9, 1.0)).round(decimals=3).tolist()
    [0.0, 2.25]

    References
    ----------
    Stone 1974 (cross-validation).
    """
    first, second = (half.float32() for half in halves)
    prior = prior.float()
    errors = [
        [validation.error(fit).mean() for fit in training.ridge(prior, shares)]
        for training, validation in ((first, second), (second, first))
    ]
    return torch.tensor(errors, dtype=torch.float64).mean(0)
