"""Information about a class label: Gaussian classes that differ in their means and share one covariance."""

import torch

from channelscope.errors import ShapeError, SingularError
from channelscope.formulas.gaussian import EXACT, cholesky
from channelscope.formulas.information.mutual import nats_of_gap
from channelscope.types import Float, Index, Tensor


def label_information(
    total: Float[Tensor, "channels channels"], within: Float[Tensor, "channels channels"], index: Index | None = None
) -> Float[Tensor, ""]:
    """Information of a set of channels (all, unless given) about the label.

        I(Y_S; label) = ½ ln( det Σ_total / det Σ_within )

    Both covariances are divided by the same count. The true mixture of classes has less entropy than the Gaussian with its
    covariance, so this is an upper bound, and it can exceed the ln K nats that K classes can carry.

    Returns  nats, ≥ 0; inf if the classes do not vary along some combination of the channels.
    Raises   SingularError if the total covariance has no inverse: leave silent channels and copies out.
    Source   Cover & Thomas 2006, theorem 8.6.5 (the bound); checked by tests/pencil.py::label_information
    """
    if total.shape != within.shape:
        raise ShapeError(f"total and within-class covariance differ in shape: {tuple(total.shape)} and {tuple(within.shape)}")
    if index is not None:
        total, within = total[index][:, index], within[index][:, index]
    whole = _half_logdet(total)
    try:
        return (whole - _half_logdet(within)).clamp(min=0)
    except SingularError:
        return whole.new_tensor(torch.inf)


def label_singles(total: Float[Tensor, "channels"], within: Float[Tensor, "channels"]) -> Float[Tensor, "channels"]:
    """Label information of every channel alone, from its total and within-class variances: ½ ln(total/within).

    Returns  nats, ≥ 0; inf where classes do not vary (within ≤ EXACT of total), nan where the total variance is 0 or nan.
    Source   as `label_information`; checked by tests/pencil.py::label_information
    """
    share = (within / total).masked_fill(total <= 0, torch.nan).clamp(max=1)
    return nats_of_gap(share)


def label_pairs(
    total: Float[Tensor, "channels channels"], within: Float[Tensor, "channels channels"]
) -> Float[Tensor, "channels channels"]:
    """Label information of every pair of channels; the diagonal is the single information.

    A copy adds nothing: where 1 − ρ² ≤ EXACT in total the pair has what its better half has.

    Returns  nats, symmetric, never below either single; inf and nan as for singles.
    Source   as `label_information`; checked by tests/pencil.py::label_information
    """
    single = label_singles(total.diagonal(), within.diagonal())
    best = torch.maximum(single[:, None], single[None, :])
    apart, left = _apart(total), _apart(within)
    joint = single[:, None] + single[None, :] - nats_of_gap(apart) + nats_of_gap(left)
    pair = torch.where((apart <= EXACT) | best.isposinf(), best, torch.maximum(joint, best))
    pair.diagonal().copy_(single)
    return pair


def _apart(covariance: Tensor) -> Tensor:
    """1 − ρ² of every pair; nan for channels without variance."""
    variance = covariance.diagonal()
    variance = variance.masked_fill(variance <= 0, torch.nan)
    return (1 - covariance.square() / torch.outer(variance, variance)).clamp(0, 1)


def _half_logdet(covariance: Tensor) -> Tensor:
    scale, lower = cholesky(covariance)
    return (scale * lower.diagonal()).log().sum()
