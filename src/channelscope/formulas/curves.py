"""Areas under curves of accuracy over removed multiply-adds."""

import numpy as np
import torch

from channelscope.errors import InputError, ShapeError
from channelscope.types import Float, Tensor


def flops_auc(removed: Float[Tensor, "budgets"], accuracy: Float[Tensor, "budgets"], upto: float | None = None) -> float:
    """FLOPs-AUC: mean accuracy over the removed fraction of multiply-adds from 0 (the unpruned network) to `upto`.

    The trapezoid area under the curve, divided by its span; the curve is interpolated at `upto`.

    Parameters
    ----------
    removed
        Removed fraction of the multiply-adds of each pruned network, 0 included, in any order.
    accuracy
        Accuracy of each of them.
    upto
        End of the span, such as the largest budget that every compared score reached; by default the curve's own end.

    Returns
    -------
    float
        The unit of `accuracy`.

    Raises
    ------
    ShapeError
        If the two have different lengths.
    InputError
        Without the unpruned point, for repeated or missing numbers, or if the curve ends before `upto`.

    Examples
    --------
    >>> flops_auc(torch.tensor([0.0, 0.5]), torch.tensor([1.0, 0.5]))
    0.75

    References
    ----------
    Safaai et al. 2026. Checked against tests/pencil.py::flops_auc.
    """
    x, y = (torch.as_tensor(column).double().flatten().cpu().numpy() for column in (removed, accuracy))
    if len(x) != len(y):
        raise ShapeError(f"{len(x)} budgets and {len(y)} accuracies")
    order = np.argsort(x)
    x, y = x[order], y[order]
    if len(x) < 2 or np.isnan(x).any() or np.isnan(y).any() or x[0] != 0 or (np.diff(x) <= 0).any():
        raise InputError(f"expected different removed fractions from 0 (the unpruned network) on, without nan; received {x.tolist()}")
    end = float(x[-1]) if upto is None else upto
    if not 0 < end <= x[-1]:
        raise InputError(f"the curve ends at {x[-1]:g} removed; choose upto within (0, {x[-1]:g}], received {end:g}")
    inside = x < end
    return float(np.trapezoid(np.append(y[inside], np.interp(end, x, y)), np.append(x[inside], end)) / end)
