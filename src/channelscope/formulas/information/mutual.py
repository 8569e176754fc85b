"""Mutual information of Gaussian variables in nats, and what a finite sample adds to it."""

import math

import torch

from channelscope.errors import InputError, ShapeError, SingularError
from channelscope.formulas.gaussian import EXACT, Gaussian, cholesky
from channelscope.types import Float, Index, Tensor

CEILING = -math.log1p(-(0.999**2)) / 2
"""−½ ln(1 − 0.999²) = 3.1076: the cap, in nats, of an information that is averaged, clustered or mixed (the paper clips |ρ| at 0.999)."""


def correlation_information(rho: Float[Tensor, "..."], ceiling: float | None = None) -> Float[Tensor, "..."]:
    """Mutual information of two Gaussian variables with correlation ρ, elementwise.

        I = −½ ln(1 − ρ²)

    Zero iff uncorrelated; infinite where 1 − ρ² ≤ EXACT, which float32 statistics cannot tell from a copy.

    Returns  nats, ≥ 0, at most `ceiling` if one is given.
    Raises   InputError where |ρ| exceeds 1 by more than rounding.
    Undefined (nan) where ρ is nan.
    Source   Cover & Thomas 2006, example 8.5.1; checked by tests/pencil.py::correlation_information
    """
    squared = rho.double().square()
    if bool((squared > 1 + EXACT).any()):
        raise InputError(
            f"expected correlations within [−1, 1], received {float(rho.abs().nan_to_num().max()):.6g}: divide by both deviations"
        )
    nats = nats_of_gap(1 - squared)
    return nats if ceiling is None else nats.clamp(max=ceiling)


def information(law: Gaussian, a: Index, b: Index) -> Float[Tensor, ""]:
    """Mutual information between two sets of coordinates of a Gaussian.

        I(A;B) = ½ ln( |Σ_A| |Σ_B| / |Σ_AB| )

    Zero iff A and B are uncorrelated; infinite if a combination of one is determined by the other.

    Returns  nats, ≥ 0.
    Raises   ShapeError if A and B overlap, SingularError if A or B alone has no inverse.
    Undefined (nan) where a coordinate is silent.
    Source   Cover & Thomas 2006, section 8.5; checked by tests/pencil.py::information
    """
    everything = torch.arange(len(law), device=law.mean.device)
    first, second = everything[a], everything[b]
    if bool(torch.isin(first, second).any()):
        raise ShapeError("information between two sets that overlap is infinite: pass disjoint sets")
    both = torch.cat([first, second])
    if bool(law.silent[both].any()):
        return law.mean.new_tensor(torch.nan)
    apart = _half_logdet(law[first]) + _half_logdet(law[second])
    try:
        return (apart - _half_logdet(law[both])).clamp(min=0)
    except SingularError:
        return law.mean.new_tensor(torch.inf)


def gaussian_bias(coordinates: int, count: float, classes: int | None = None) -> float:
    """First-order upward bias of an estimated Gaussian information from independent samples (images, not pixels).

        continuous target: k / (2n)        label with K classes: k (K − 1) / (2n)

    Subtract it; the result may be negative and is then left so. It does not hold for differences of maxima (excess).
    Returns  nats.
    Source   Wilks 1938 (2n I is asymptotically χ²); checked by tests/formulas/test_information.py
    """
    return coordinates * (1 if classes is None else classes - 1) / (2 * count)


def nats_of_gap(gap: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """−½ ln(gap) for an unexplained share of variance, 0..1; infinite where the share is at most EXACT.

    A share above 1 is a rounding error and counts as 1.
    Returns  nats, ≥ 0.
    Source   Cover & Thomas 2006, section 8.5; checked by tests/pencil.py::correlation_information
    """
    return gap.clamp(EXACT, 1).log_().div_(2).abs_().masked_fill_(gap <= EXACT, torch.inf)


def _half_logdet(law: Gaussian) -> Tensor:
    scale, lower = cholesky(law.covariance, law.count)
    return (scale * lower.diagonal()).log().sum()
