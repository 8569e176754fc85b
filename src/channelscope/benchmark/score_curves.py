"""Score curves: accuracy over budgets as one number an image, and their means over resampled images."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

import numpy as np
import torch

from channelscope.benchmark.grid import FROM_SCRATCH, ORIGINAL, Trial, allocated_as
from channelscope.errors import InputError, ShapeError
from channelscope.formulas.intervals import bootstrap_means
from channelscope.pruning.recovery.repair import Method
from channelscope.types import Float, Tensor

DRAWS = 1000
"""Bootstrap draws of images."""

LEVEL = 0.95
"""Coverage of every interval."""

STEPS = (*reversed(get_args(Method)), FROM_SCRATCH)
"""Repairs, from none to training from scratch."""


class Protocol(NamedTuple):
    """Allocation, repair and fine-tuning that are the same for all compared scores.

    Examples
    --------
    >>> str(Protocol("global", "least_squares", 3))
    'global, least_squares, 3 epochs'
    """

    allocation: str
    """global, uniform or as(SCORE)"""
    repair: str
    """none, batchnorm, peers, least_squares, or scratch"""
    epochs: int
    """of fine-tuning"""

    @property
    def place(self) -> tuple[bool, str, int, int]:
        """Sort key: plain allocations before as(SCORE), repairs from none up, before fine-tuning and after."""
        return bool(allocated_as(self.allocation)), self.allocation, STEPS.index(self.repair), self.epochs

    def __str__(self) -> str:
        """Allocation, repair and epochs, separated by commas."""
        return f"{self.allocation}, {self.repair}" + (f", {self.epochs} epochs" if self.epochs else "")


def protocol_of(cell: Trial) -> Protocol:
    """Protocol of a trial.

    Parameters
    ----------
    cell
        The trial.

    Returns
    -------
    Protocol
        Its allocation, repair and epochs.

    Examples
    --------
    >>> protocol_of(Trial(0, "l1", 0.5, "global", "none"))
    Protocol(allocation='global', repair='none', epochs=0)
    """
    return Protocol(cell.allocation, cell.repair, cell.epochs)


@dataclass(frozen=True)
class ScoreCurve:
    """A score under one protocol: each image's share of the area under accuracy over removed multiply-adds."""

    score: str
    """name of the score"""
    rule: Protocol
    """its protocol"""
    budgets: tuple[float, ...]
    """budgets of the curve, which every score under the protocol has, the largest first"""
    seeds: tuple[int, ...]
    """seeds, in the order of the rows of `images`"""
    images: np.ndarray
    """float64 (seeds, images): each image's share of the FLOPs-AUC, which is their mean"""

    @property
    def auc(self) -> float:
        """FLOPs-AUC, the mean over images and seeds."""
        return float(self.images.mean())


class Resampled:
    """Means of score curves over the same resampled images, from which the interval of every mixture of curves follows.

    Parameters
    ----------
    found
        Curves over the same images.
    draws
        Number of resamples.

    Examples
    --------
    >>> protocol = Protocol("global", "none", 0)
    >>> one, two = (ScoreCurve(name, protocol, (0.5,), (0,), np.full((1, 4), auc)) for name, auc in (("l1", 0.5), ("l2", 0.25)))
    >>> resampled = Resampled([one, two], draws=10)
    >>> resampled.intervals([resampled.mixture(one) - resampled.mixture(two)])
    ([0.25], [0.25])
    """

    def __init__(self, found: Sequence[ScoreCurve], draws: int = DRAWS):
        keys = [(area.score, area.rule, seed) for area in found for seed in area.seeds]
        self.places = {key: place for place, key in enumerate(keys)}
        self.images = np.concatenate([area.images for area in found]).T if found else np.zeros((1, 0))
        self.means = self.images.mean(0)
        self.draws = bootstrap_means(torch.from_numpy(self.images), draws).numpy()

    def mixture(self, area: ScoreCurve, seeds: Iterable[int] | None = None) -> np.ndarray:
        """Weights of the columns of `draws` whose sum is a curve's mean over seeds.

        Parameters
        ----------
        area
            The curve.
        seeds
            Seeds to average; by default all of the curve.

        Returns
        -------
        ndarray
            One weight for each curve and seed, 1 in sum.
        """
        chosen = area.seeds if seeds is None else tuple(seeds)
        weights = np.zeros(len(self.places))
        weights[[self.places[area.score, area.rule, seed] for seed in chosen]] = 1 / len(chosen)
        return weights

    def intervals(self, mixtures: Sequence[np.ndarray]) -> tuple[list[float], list[float]]:
        """95 % intervals over images.

        Parameters
        ----------
        mixtures
            Weights as `mixture` returns them, or sums and differences of these.

        Returns
        -------
        tuple[list[float], list[float]]
            Lower and upper ends.
        """
        low, high = np.quantile(self.draws @ np.stack(mixtures, 1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
        return low.tolist(), high.tolist()


Curve = dict[float, Mapping[str, Any]]
"""Budget → row, of one score under one protocol with one seed."""


def areas(done: Mapping[Trial, Mapping[str, Any]]) -> list[ScoreCurve]:
    """Curve of every score under every protocol, over the budgets that all scores under that protocol have.

    Parameters
    ----------
    done
        Trial → row, the unpruned network among them.

    Returns
    -------
    list[ScoreCurve]
        By protocol, the largest area first. A score and seed that could not meet one of these budgets is left out, and so are
        further budgets: `left_out` names both.

    Examples
    --------
    >>> hits = np.array([True, True, True, False])
    >>> done = {ORIGINAL: {"hits": hits | True, "images": 4}, Trial(0, "l1", 0.5, "global", "none"): {"hits": hits, "images": 4}}
    >>> [(curve.score, curve.images.tolist(), curve.auc) for curve in areas(done)]
    [('l1', [[1.0, 1.0, 1.0, 0.5]], 0.875)]
    """
    unpruned = done[ORIGINAL]["hits"].astype(float)
    found: list[ScoreCurve] = []
    for rule, curves in curves_by_protocol(done).items():
        budgets = common_budgets(curves)
        removed = torch.tensor([0.0, *(1 - budget for budget in budgets)], dtype=torch.float64)
        weights = np.array([flops_auc(removed, unit) for unit in torch.eye(len(removed), dtype=torch.float64)])  # linear in the curve
        images: dict[str, dict[int, np.ndarray]] = {}
        for (score, seed), curve in curves.items():
            if set(budgets) <= set(curve) and not unmet_budgets(curve, budgets):
                points = np.stack([unpruned, *(curve[budget]["hits"].astype(float) for budget in budgets)])
                images.setdefault(score, {})[seed] = weights @ points
        found += [ScoreCurve(score, rule, budgets, tuple(seeds), np.stack(list(seeds.values()))) for score, seeds in images.items()]
    return sorted(found, key=lambda area: (area.rule.place, -area.auc, area.score))


def curves_by_protocol(done: Mapping[Trial, Mapping[str, Any]]) -> dict[Protocol, dict[tuple[str, int], Curve]]:
    """Measured rows by protocol, by score and seed, and by budget.

    Parameters
    ----------
    done
        Trial → row.

    Returns
    -------
    dict[Protocol, dict[tuple[str, int], dict[float, dict]]]
        Without the unpruned network.

    Examples
    --------
    >>> found = curves_by_protocol({ORIGINAL: {}, Trial(0, "l1", 0.5, "global", "none"): {"images": 4}})
    >>> list(found.values())
    [{('l1', 0): {0.5: {'images': 4}}}]
    """
    curves: dict[Protocol, dict[tuple[str, int], Curve]] = {}
    for cell, row in done.items():
        if cell != ORIGINAL:
            curves.setdefault(protocol_of(cell), {}).setdefault((cell.score, cell.seed), {})[cell.budget] = row
    return curves


def common_budgets(curves: Mapping[tuple[str, int], Curve]) -> tuple[float, ...]:
    """Budgets that all curves have, or, where there is none, those of all curves that have the most frequent budget.

    Parameters
    ----------
    curves
        Score and seed → curve.

    Returns
    -------
    tuple[float, ...]
        The largest first.

    Examples
    --------
    >>> common_budgets({("l1", 0): {0.8: {}, 0.5: {}}, ("l2", 0): {0.5: {}, 0.3: {}}})
    (0.5,)
    >>> common_budgets({("l1", 0): {0.8: {}}, ("l2", 0): {0.5: {}}, ("fpgm", 0): {0.5: {}}})
    (0.5,)
    """
    counts = Counter(budget for curve in curves.values() for budget in curve)
    frequent = max(counts, key=lambda budget: (counts[budget], budget))
    sharing = [set(curve) for curve in curves.values() if frequent in curve]
    return tuple(sorted(set.intersection(*sharing), reverse=True))


def unmet_budgets(curve: Curve, budgets: tuple[float, ...]) -> list[float]:
    """Budgets at which a curve has no pruned network.

    Parameters
    ----------
    curve
        Budget → row.
    budgets
        Budgets to check.

    Returns
    -------
    list[float]
        In the order of `budgets`.

    Examples
    --------
    >>> unmet_budgets({0.5: {"images": 4}, 0.1: {"images": 0}}, (0.5, 0.1))
    [0.1]
    """
    return [budget for budget in budgets if budget in curve and not curve[budget]["images"]]


def listed(budgets: Iterable[float]) -> str:
    """Budgets as text.

    Parameters
    ----------
    budgets
        Fractions.

    Returns
    -------
    str
        The largest first, separated by commas.

    Examples
    --------
    >>> listed((0.3, 0.80))
    '0.8, 0.3'
    """
    return ", ".join(f"{budget:g}" for budget in sorted(budgets, reverse=True))


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
