"""Gaussian laws of moments: covariance with shrinkage, marginals by `[]`, conditionals by `given`, and linear solves."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from scipy.linalg import get_lapack_funcs

from channelscope.display import Facts, Shown, spread
from channelscope.errors import InputError, SampleError, ShapeError, SingularError
from channelscope.stats.moments import Moments
from channelscope.types import Bool, Float, Index, Tensor

FLOAT32_RESOLUTION = 2.0**-20
"""Share of a variance that float32 statistics cannot distinguish from zero.

Activations are float32 and so are stored scatter matrices: a correlation carries an error of a few 2⁻²³. A share below
2⁻²⁰, eight times that, therefore counts as zero: |ρ| = 1 where 1 − ρ² is at most this (above 6.93 nats), and a channel is
determined by others where they leave at most this share of its variance.
"""

SILENT_STD_OVER_MEAN = 2.0**-21
"""Standard deviation over |mean| of a channel that is constant up to rounding: four units in the last place of a float32."""

SMALLEST_NORMAL = torch.finfo(torch.float32).tiny
"""The smallest variance that float32 holds with full precision."""

LEAST_SPREAD = 0.25
"""Spread of a covariance's eigenvalues about their mean that is always reckoned with, as a fraction of the sum of their squares."""


@dataclass(frozen=True, repr=False)
class Gaussian(Shown):
    """A normal law over the coordinates of some moments: the assumption behind every information in nats.

    Examples
    --------
    >>> law = Gaussian(torch.zeros(2), torch.tensor([[1.0, 0.6], [0.6, 1.0]]), torch.inf)
    >>> law.given([0]).variance
    tensor([0.6400])
    """

    mean: Float[Tensor, "d"]
    """mean, float64"""
    covariance: Float[Tensor, "d d"]
    """covariance, float64, symmetric and positive semidefinite"""
    count: float
    """samples behind it; infinite for a law that is known"""
    estimator: str = "ML covariance"
    """how the covariance was estimated, in words for tables"""

    def facts(self) -> Facts:
        """How many variables, how they were estimated, and the ranges of their means and variances."""
        return f"Gaussian({len(self)} variables, {self.estimator}, {self.count:,.0f} samples)", [
            ("mean", spread(self.mean)),
            ("variance", spread(self.variance)),
        ]

    @classmethod
    def fit(cls, moments: Moments, shrinkage: float | Literal["oas"] | None = None) -> "Gaussian":
        """The normal law of some moments, with shrunk correlations if asked for.

        Variances are never changed, so that the result does not depend on the channels' units and a silent channel stays silent.

        Parameters
        ----------
        moments
            Count, mean and scatter of at least two samples.
        shrinkage
            None takes the maximum-likelihood covariance; a number s in [0, 1] multiplies every correlation by 1 − s;
            "oas" chooses s by the oracle-approximating rule applied to the correlation matrix.

        Returns
        -------
        Gaussian
            Float64; its `estimator` names the shrinkage.

        Raises
        ------
        SampleError
            For fewer than two samples.
        InputError
            For any other shrinkage.

        Examples
        --------
        >>> moments = Moments.of(torch.tensor([[0.0, 0.0], [2.0, 2.0]]))
        >>> Gaussian.fit(moments, shrinkage=0.5).covariance.tolist()
        [[1.0, 0.5], [0.5, 1.0]]

        References
        ----------
        Chen, Wiesel, Eldar, Hero 2010, equation 23 (OAS). Checked against tests/pencil.py::oas.
        """
        if moments.count < 2:
            raise SampleError(f"a covariance needs at least 2 samples, received {moments.count:g}: profile more images")
        law = cls(moments.mean, moments.covariance, moments.count)
        if shrinkage is None:
            return law
        if shrinkage == "oas":
            varying = law.correlation[~law.silent][:, ~law.silent]
            strength, name = oas(float(varying.square().sum()), len(varying), law.count), "OAS shrinkage"
        elif not isinstance(shrinkage, str) and 0 <= shrinkage <= 1:
            strength, name = float(shrinkage), "shrinkage"
        else:
            raise InputError(f"shrinkage: expected a number from 0 to 1, or oas, received {shrinkage!r}")
        shrunk = law.covariance * (1 - strength)
        shrunk.diagonal().copy_(law.variance)
        return cls(law.mean, shrunk, law.count, f"{name} {strength:.2g}")

    def __len__(self) -> int:
        """Number of coordinates."""
        return len(self.mean)

    def __getitem__(self, index: Index) -> "Gaussian":
        """Marginal law of some coordinates."""
        return Gaussian(self.mean[index], self.covariance[index][:, index], self.count, self.estimator)

    def given(self, index: Index, value: Float[Tensor, "k"] | None = None) -> "Gaussian":
        """Conditional law of the other coordinates, in their order, given those at `index`.

            Σ_A|B = Σ_AA − Σ_AB Σ_BB⁻¹ Σ_BA        μ_A|B = μ_A + Σ_AB Σ_BB⁻¹ (value − μ_B)

        A coordinate of which at most the share FLOAT32_RESOLUTION of its variance is left gets variance zero.

        Parameters
        ----------
        index
            The known coordinates.
        value
            Their values; the mean by default.

        Returns
        -------
        Gaussian
            Over the coordinates that are not in `index`.

        Raises
        ------
        SingularError
            If the covariance at `index` has no inverse.

        References
        ----------
        Anderson 2003, theorem 2.5.1. Checked against tests/pencil.py::conditional.
        """
        everything = torch.arange(len(self), device=self.mean.device)
        known = everything[index]
        rest = everything[~torch.isin(everything, known)]
        cross = self.covariance[known][:, rest]
        slope = solve(self.covariance[known][:, known], cross, self.count).T
        left = self.covariance[rest][:, rest] - slope @ cross
        left = (left + left.T) / 2
        settled = left.diagonal() <= FLOAT32_RESOLUTION * self.variance[rest]
        left[settled] = 0
        left[:, settled] = 0
        shift = 0 if value is None else slope @ (value.to(self.mean) - self.mean[known])
        return Gaussian(self.mean[rest] + shift, left, self.count, self.estimator)

    @property
    def variance(self) -> Float[Tensor, "d"]:
        """Diagonal of the covariance."""
        return self.covariance.diagonal()

    @property
    def silent(self) -> Bool[Tensor, "d"]:
        """True where a coordinate is constant up to the rounding of float32.

        That is where the standard deviation is at most 2⁻²¹ |mean| (four units in the last place of the activations), or the
        variance is below the smallest normal float32. A channel is compared with itself only, so rescaling does not matter.
        """
        return self.variance <= (SILENT_STD_OVER_MEAN * self.mean).square().clamp(min=SMALLEST_NORMAL)

    @property
    def correlation(self) -> Float[Tensor, "d d"]:
        """Correlation matrix with a diagonal of exact ones; rows and columns of silent coordinates are nan."""
        scale = self.variance.sqrt().masked_fill(self.silent, torch.nan)
        return correlation(self.covariance, scale)

    def describe(self) -> str:
        """The assumption in words, as tables print it, such as 'Gaussian, ML covariance, n=5,000'."""
        return f"Gaussian, {self.estimator}, n={self.count:,.0f}"


def correlation(covariance: Float[Tensor, "d d"], scale: Float[Tensor, "d"] | None = None) -> Float[Tensor, "d d"]:
    """Correlation matrix: covariance over the product of standard deviations, within [−1, 1], with a diagonal of exact ones.

    Parameters
    ----------
    covariance
        Symmetric.
    scale
        Standard deviations, if they are known; nan marks a coordinate as undefined.

    Returns
    -------
    Tensor
        nan in the rows and columns of a coordinate without variance.

    Examples
    --------
    >>> correlation(torch.tensor([[4.0, 1.0], [1.0, 1.0]])).tolist()
    [[1.0, 0.5], [0.5, 1.0]]

    References
    ----------
    Anderson 2003, section 2.3. Checked against tests/pencil.py::correlation.
    """
    if scale is None:
        scale = covariance.diagonal().sqrt()
        scale = scale.masked_fill(scale <= 0, torch.nan)
    rho = (covariance / torch.outer(scale, scale)).clamp(-1, 1)
    rho.diagonal().copy_(scale / scale)
    return rho


def cholesky(covariance: Float[Tensor, "d d"], count: float | None = None) -> tuple[Float[Tensor, "d"], Float[Tensor, "d d"]]:
    """Standard deviations s and lower Cholesky factor L of the correlation matrix: Σ = diag(s) L L' diag(s).

    Factoring the correlation keeps the digits of badly scaled channels, and L_jj² is the share of channel j that
    channels 0..j−1 leave unexplained.

    Parameters
    ----------
    covariance
        Symmetric, of full rank.
    count
        Samples behind it, for the message of an error.

    Returns
    -------
    tuple[Tensor, Tensor]
        s (d,) and L (d, d).

    Raises
    ------
    SingularError
        If a channel is silent, or determined by others up to FLOAT32_RESOLUTION.

    Examples
    --------
    >>> scale, lower = cholesky(torch.tensor([[4.0, 1.2], [1.2, 1.0]], dtype=torch.float64))
    >>> scale.tolist(), [round(value, 3) for value in lower[1].tolist()]
    ([2.0, 1.0], [0.6, 0.8])

    References
    ----------
    Golub & Van Loan 2013, section 4.2. Checked by tests/formulas/test_gaussian.py.
    """
    scale = covariance.diagonal().sqrt()
    if bool((scale > 0).all()):
        lower, failed = torch.linalg.cholesky_ex(correlation(covariance, scale))
        if not failed and bool((lower.diagonal().square() > FLOAT32_RESOLUTION).all()):
            return scale, lower
    raise SingularError(_deficit(covariance, count))


def half_logdet(covariance: Float[Tensor, "d d"], count: float | None = None) -> Float[Tensor, ""]:
    """Half the logarithm of a determinant, ½ ln |Σ|.

    Parameters
    ----------
    covariance
        Symmetric, of full rank.
    count
        Samples behind it, for the message of an error.

    Returns
    -------
    Tensor
        A number in nats.

    Raises
    ------
    SingularError
        If the covariance has no inverse; the message names the channels.

    Examples
    --------
    >>> round(float(half_logdet(torch.tensor([[4.0, 0.0], [0.0, 1.0]]))), 3)
    0.693

    References
    ----------
    Golub & Van Loan 2013, section 4.2. Checked against tests/pencil.py::information.
    """
    scale, lower = cholesky(covariance, count)
    return (scale * lower.diagonal()).log().sum()


def solve(covariance: Float[Tensor, "d d"], right: Float[Tensor, "d k"], count: float | None = None) -> Float[Tensor, "d k"]:
    """Σ⁻¹ B for a covariance Σ of full rank.

    Parameters
    ----------
    covariance
        Symmetric, of full rank.
    right
        Right-hand sides B, one per column.
    count
        Samples behind the covariance, for the message of an error.

    Returns
    -------
    Tensor
        The shape of B.

    Raises
    ------
    SingularError
        If the covariance has no inverse; the message names the channels.
    ShapeError
        If B has another number of rows.

    Examples
    --------
    >>> solve(torch.tensor([[2.0, 0.0], [0.0, 4.0]]), torch.tensor([[2.0], [2.0]])).tolist()
    [[1.0], [0.5]]

    References
    ----------
    Golub & Van Loan 2013, section 4.2. Checked against tests/pencil.py::conditional.
    """
    if len(right) != len(covariance):
        raise ShapeError(f"cannot solve {len(covariance)} equations for a right-hand side of {len(right)} rows")
    if len(covariance) == 0:
        return right.clone()
    scale, lower = cholesky(covariance, count)
    return torch.cholesky_solve(right / scale[:, None], lower) / scale[:, None]


def oas(square: float, size: int, count: float) -> float:
    """Strength of oracle-approximating shrinkage of a correlation matrix.

    Parameters
    ----------
    square
        Sum of the squared correlations, those on the diagonal included.
    size
        Rows of the matrix.
    count
        Samples behind it.

    Returns
    -------
    float
        The factor s from 0 to 1 by which every correlation is reduced to 1 − s of itself.

    Examples
    --------
    >>> oas(2.5, 2, 9)
    0.8888888888888888

    References
    ----------
    Chen, Wiesel, Eldar, Hero 2010, equation 23. Checked against tests/pencil.py::oas.
    """
    if size < 2:
        return 0.0
    above = (1 - 2 / size) * square + size**2
    below = (count + 1 - 2 / size) * (square - size)
    return 1.0 if above >= below else above / below


def ledoit_wolf_penalty(covariance: Float[Tensor, "d d"], square: float, count: int) -> float:
    """Penalty λ for which C + λI is in proportion to Ledoit and Wolf's estimate of a covariance, as a fraction of the mean variance.

        λ / mean variance = b² / a²        b² = (mean of |C_i|² − |C|²) / n        a² = |C|² − b² − (tr C)² / p

    The covariance C is the mean of n independent C_i about a common mean: the outer product of one sample with itself, or the mean
    of those of all positions of one image, which depend on one another. b² is its squared error, a² the spread of the true
    eigenvalues about their mean. Where they hardly spread, shrinking costs nothing and the estimate asks for any penalty; so a² is
    taken as a quarter of their squares, |C|² − b², at least, and λ vanishes with growing n for every covariance.

    Parameters
    ----------
    covariance
        C, (p, p).
    square
        Mean over i of the sum of the squared entries of C_i.
    count
        How many C_i there are, n.

    Returns
    -------
    float
        The fraction, 0 or more; infinite where the error is not less than the covariance.

    Examples
    --------
    >>> ledoit_wolf_penalty(torch.diag(torch.tensor([3.0, 1.0])), 20.0, 10)
    0.4444444444444444

    References
    ----------
    Ledoit & Wolf 2004, section 3; the least spread is ours.
    """
    total = float(covariance.square().sum())
    error = max(square - total, 0.0) / count
    squares = total - error
    spread = max(squares - float(covariance.trace()) ** 2 / len(covariance), LEAST_SPREAD * squares)
    return error / spread if spread > 0 else math.inf


def _deficit(covariance: Tensor, count: float | None) -> str:
    """Which channels keep a covariance from having an inverse, in one message."""
    varies = covariance.diagonal() > 0
    silent = (~varies).nonzero().flatten().tolist()
    alive = varies.nonzero().flatten()
    rho = correlation(covariance[alive][:, alive]).cpu().numpy()
    rank, redundant = 0, []
    if len(alive):
        (pstrf,) = get_lapack_funcs(("pstrf",), (rho,))
        _, pivots, rank, _ = pstrf(rho, tol=FLOAT32_RESOLUTION, lower=1)
        redundant = sorted(alive[[int(p) - 1 for p in pivots[rank:]]].tolist())
    samples = "" if count is None else f", {count:,.0f} samples"
    parts = [f"the covariance ({len(covariance)} channels{samples}) has rank {rank}."]
    if silent:
        parts.append(f"{_listed(silent)} silent: drop them.")
    if redundant:
        parts.append(f"{_listed(redundant)} determined by the others: drop them, pass shrinkage='oas', or a ridge such as 1e-3.")
    return " ".join(parts)


def _listed(channels: list[int]) -> str:
    """'3 channels (4, 8, 9) are', the first few of many."""
    listed = ", ".join(map(str, channels[:8])) + (", …" if len(channels) > 8 else "")
    return f"1 channel ({listed}) is" if len(channels) == 1 else f"{len(channels)} channels ({listed}) are"
