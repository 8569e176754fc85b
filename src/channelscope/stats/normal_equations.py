"""NormalEquations: the sums of a linear regression, added batch by batch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from channelscope.types import Float, Tensor


@dataclass(frozen=True)
class NormalEquations:
    """Second-order statistics of inputs x and targets t, separately for each group of a layer; `+` merges disjoint sample sets.

    Examples
    --------
    The targets are 2x + 1.

    >>> x = torch.tensor([[[0.0], [1.0], [2.0]]])
    >>> equations = NormalEquations.of(x[:, :1], 2 * x[:, :1] + 1) + NormalEquations.of(x[:, 1:], 2 * x[:, 1:] + 1)
    >>> weights = equations.xt / equations.xx
    >>> float(weights), float(equations.intercept(weights)), float(equations.error(weights))
    (2.0, 1.0, 0.0)
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
        """Statistics of one batch: centred, multiplied in the samples' precision, kept in float64."""
        x_mean, t_mean = x.mean(1, keepdim=True), t.mean(1, keepdim=True)
        x, t = x - x_mean, t - t_mean
        xx, xt = x.transpose(1, 2) @ x, x.transpose(1, 2) @ t
        return cls(x.shape[1], x_mean[:, 0].double(), t_mean[:, 0].double(), xx.double(), xt.double(), t.square().sum(1).double())

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
        """The same samples about zero: for layers that have no constant to fit."""
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
        """Mean squared error of weights · x + the best constant, per output."""
        cross = (weights * self.xt.transpose(1, 2)).sum(2)
        return (self.tt - 2 * cross + ((weights @ self.xx) * weights).sum(2)).clamp(min=0) / self.count

    def ridge(
        self, prior: Float[Tensor, "groups outputs inputs"], shares: Sequence[float]
    ) -> Iterator[Float[Tensor, "groups outputs inputs"]]:
        """For each share the weights that minimize the squared error plus λ |weights − prior|².

            W = W₀ + (T − W₀X) X' (XX' + λI)⁻¹        λ = share × mean diagonal of XX'

        References
        ----------
        Hoerl & Kennard 1970, shrunk toward a prior instead of zero.
        """
        level = self.xx.diagonal(dim1=1, dim2=2).mean(1)
        gap = self.xt - self.xx @ prior.transpose(1, 2)
        for share in shares:
            load = torch.where(level > 0, share * level, 1.0)  # constant inputs carry no information: the prior stays
            inner = self.xx.clone()
            inner.diagonal(dim1=1, dim2=2).add_(load[:, None])
            yield prior + torch.cholesky_solve(gap, torch.linalg.cholesky(inner)).transpose(1, 2)

    def intercept(self, weights: Float[Tensor, "groups outputs inputs"]) -> Float[Tensor, "groups outputs"]:
        """The best constant to add to weights · x."""
        return self.t_mean - (weights @ self.x_mean[:, :, None])[:, :, 0]

    def output_moments(self, weights: Float[Tensor, "groups outputs inputs"]) -> tuple[Tensor, Tensor]:
        """Mean and variance of weights · x, per output."""
        variance = ((weights @ self.xx) * weights).sum(2) / self.count
        return (weights @ self.x_mean[:, :, None])[:, :, 0], variance.clamp(min=0)

    def match_target_variance(self, weights: Float[Tensor, "groups outputs inputs"], most: float) -> Float[Tensor, "groups outputs inputs"]:
        """The weights, each output scaled (up by `most` at most) until weights · x varies as much as its target.

        Re-estimating a batch normalization does this to the weights before it (Li et al. 2018, AdaBN). Least squares alone gives
        an output the share R of its target's spread; shrunk toward weights that expect inputs at full spread, a deep network loses
        it layer after layer.
        """
        variance = self.output_moments(weights)[1]
        factor = (self.tt / self.count / variance).sqrt().clamp(max=most)
        return weights * torch.where(variance > 0, factor, 1.0)[:, :, None]

    def single(self) -> "NormalEquations":
        """The same in float32, for trial fits."""
        return NormalEquations(self.count, *(part.float() for part in (self.x_mean, self.t_mean, self.xx, self.xt, self.tt)))


def cross_validated_error(
    halves: tuple[NormalEquations, NormalEquations], prior: Float[Tensor, "groups outputs inputs"], shares: Sequence[float]
) -> Float[Tensor, "shares"]:
    """Mean squared error of ridge fits toward a prior, each on the half of the samples that it was not fitted on.

    Parameters
    ----------
    halves
        Statistics of two disjoint halves of the samples.
    prior
        The weights at an infinite ridge.
    shares
        Ridges, as shares of the mean diagonal of the inputs' scatter.

    Returns
    -------
    Tensor
        One error per share, in squared units of the target, averaged over both halves, groups and outputs.

    Examples
    --------
    Both halves say t = 2x, and the prior agrees: no error, whatever the ridge.

    >>> x = torch.tensor([[[0.0], [1.0], [2.0]]])
    >>> half = NormalEquations.of(x, 2 * x)
    >>> cross_validated_error((half, half), torch.full((1, 1, 1), 2.0), [0.01, 1.0]).tolist()
    [0.0, 0.0]

    References
    ----------
    Stone 1974 (cross-validation); solved in float32, which is enough to choose by.
    """
    first, second = (half.single() for half in halves)
    prior = prior.float()
    folds = ((first, second), (second, first))
    errors = [[held_out.error(fit).mean() for fit in fitted.ridge(prior, shares)] for fitted, held_out in folds]
    return torch.tensor(errors, dtype=torch.float64).mean(0)
