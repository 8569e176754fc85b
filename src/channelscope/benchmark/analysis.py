"""Analysis of a benchmark: score curves, the areas under them, paired differences and agreement of scores, with intervals."""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

import numpy as np
import pandas as pd
import torch

from channelscope import scores as scoring
from channelscope.benchmark.trial import FROM_SCRATCH, ORIGINAL, RECONSTRUCTION, Trial, allocated_as
from channelscope.errors import InputError, SampleError, ShapeError
from channelscope.formulas.intervals import bootstrap_means, effect_size, holm, sign_flip, sign_flip_contrasts
from channelscope.formulas.ranks import spearman
from channelscope.pruning.repair import Method
from channelscope.stats.tally import Tally
from channelscope.tables.quantities import OURS, Column
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


FLIPS = 200
"""Sign patterns per test that Holm corrects for, so that the smallest corrected p is .005."""

FEWEST = 4
"""Number of shared scores below which two protocols have no rank correlation."""


def analyze(done: Mapping[Trial, Mapping[str, Any]]) -> dict[str, pd.DataFrame]:
    """Tables of a benchmark.

    Parameters
    ----------
    done
        Trial → row, as `TrialStore.done` returns them.

    Returns
    -------
    dict[str, DataFrame]
        `benchmark`, every trial; `benchmark_auc`, `benchmark_paired`, `benchmark_factorial` and `benchmark_agreement`; and
        `benchmark_left_out`, the trials that no area contains. `COLUMNS` describes the columns.

    Raises
    ------
    SampleError
        Without a measured trial, or without the unpruned network.

    Examples
    --------
    >>> hits = np.array([True, True, True, False])
    >>> row = {"accuracy": 0.75, "loss": 1.0, "kept": 0.5, "parameters": 9, "images": 4, "hits": hits, "reason": ""}
    >>> trial = Trial(0, "l1", 0.5, "global", "none")
    >>> done = {ORIGINAL: {**row, "hits": hits | True}, trial: row}
    >>> tables = analyze(done)  # from accuracy 1 for the unpruned network to 0.75 for half of it
    >>> tables["benchmark_auc"][["score", "budgets", "auc", "n", "images"]].values.tolist()
    [['l1', '0.5', 0.875, 1, 4]]
    """
    if ORIGINAL not in done or len(done) < 2:
        raise SampleError("nothing has been measured yet: the unpruned network and at least one cell are needed")
    found = areas(done)
    resampled = Resampled(found)
    return {
        "benchmark": curves(done),
        "benchmark_auc": _aucs(found, resampled),
        "benchmark_paired": paired(found, resampled),
        "benchmark_factorial": _factorial(found, resampled),
        "benchmark_agreement": agreement(found),
        "benchmark_left_out": left_out(done),
    }


def axis(score: str) -> str:
    """Family of a score: which question it asks.

    Parameters
    ----------
    score
        Name of the score.

    Returns
    -------
    str
        local, target, size, gradient, …; repair for reconstruction.

    Examples
    --------
    >>> axis("capture"), axis("reconstruction")
    ('local', 'repair')
    """
    return "repair" if score == RECONSTRUCTION else scoring.REGISTRY[score].family


def curves(done: Mapping[Trial, Mapping[str, Any]]) -> pd.DataFrame:
    """Every measured trial.

    Parameters
    ----------
    done
        Trial → row, the unpruned network among them.

    Returns
    -------
    DataFrame
        One row per trial, the unpruned network first: accuracy with its Wilson interval, loss [nats], and what was kept.

    Examples
    --------
    >>> hits = np.array([True, True, True, False])
    >>> row = {"accuracy": 0.75, "loss": 1.0, "kept": 0.5, "parameters": 9, "images": 4, "hits": hits, "reason": ""}
    >>> trial = Trial(0, "l1", 0.5, "global", "none")
    >>> done = {ORIGINAL: {**row, "hits": hits | True}, trial: row}
    >>> curves(done)[["score", "budget", "accuracy", "kept"]].values.tolist()
    [['unpruned', 1.0, 0.75, 0.5], ['l1', 0.5, 0.75, 0.5]]
    """
    rows = []
    for cell in (
        ORIGINAL,
        *sorted(set(done) - {ORIGINAL}, key=lambda cell: (cell.seed, cell.score, protocol_of(cell).place, cell.budget)),
    ):
        row = done[cell]
        low, high = Tally(float(row["images"]), float(row["hits"].sum())).accuracy_interval()
        about = {"score": cell.score or "unpruned", "axis": axis(cell.score) if cell.score else "", "seed": cell.seed}
        about |= {**protocol_of(cell)._asdict(), "budget": cell.budget}
        about |= {"accuracy": row["accuracy"], "accuracy_low": low, "accuracy_high": high, "loss": row["loss"], "images": row["images"]}
        rows.append({**about, "kept": row["kept"], "parameters": row["parameters"], "note": row["reason"]})
    return pd.DataFrame(rows)


def left_out(done: Mapping[Trial, Mapping[str, Any]]) -> pd.DataFrame:
    """Every measured trial that no area contains, with the reason.

    Parameters
    ----------
    done
        Trial → row.

    Returns
    -------
    DataFrame
        One row per trial: score, seed, protocol, budget and note.

    Examples
    --------
    >>> hits = np.array([True, True, True, False])
    >>> row = {"accuracy": 0.75, "loss": 1.0, "kept": 0.5, "parameters": 9, "images": 4, "hits": hits, "reason": ""}
    >>> trial = Trial(0, "l1", 0.5, "global", "none")
    >>> done = {ORIGINAL: {**row, "hits": hits | True}, trial: row}
    >>> other = {Trial(0, "l2", budget, "global", "none"): row for budget in (0.5, 0.3)}
    >>> left_out(done | other)[["score", "budget", "note"]].values.tolist()
    [['l2', 0.3, 'not every score was measured at this budget: areas reach over 0.5']]
    """
    rows = []
    for rule, curves in curves_by_protocol(done).items():
        budgets = common_budgets(curves)
        for (score, seed), curve in curves.items():
            missing, unmet = set(budgets) - set(curve), unmet_budgets(curve, budgets)
            for budget in sorted(curve, reverse=True):
                note = ""
                if missing:
                    note = f"the score was not measured at {listed(missing)}"
                elif unmet:
                    note = f"the score does not meet {listed(unmet)}: {curve[unmet[0]]['reason']}"
                elif budget not in budgets:
                    note = f"not every score was measured at this budget: areas reach over {listed(budgets)}"
                if note:
                    rows.append({"score": score, "seed": seed, **rule._asdict(), "budget": budget, "note": note})
    return pd.DataFrame(rows, columns=["score", "seed", "allocation", "repair", "epochs", "budget", "note"])


def _aucs(found: list[ScoreCurve], resampled: Resampled) -> pd.DataFrame:
    """Area of every score with its interval over images and its spread over seeds."""
    rows = []
    lows, highs = resampled.intervals([resampled.mixture(area) for area in found]) if found else ([], [])
    for area, low, high in zip(found, lows, highs, strict=True):
        spread = float(area.images.mean(1).std(ddof=1)) if len(area.seeds) > 1 else float("nan")
        numbers = {"auc": area.auc, "auc_low": low, "auc_high": high, "spread": spread}
        about = {"score": area.score, "axis": axis(area.score), **area.rule._asdict(), "budgets": listed(area.budgets)}
        rows.append({**about, **numbers, **_sample_sizes(area)})
    columns = ["score", "axis", "allocation", "repair", "epochs", "budgets", "auc", "auc_low", "auc_high", "spread", "n", "images"]
    return pd.DataFrame(rows, columns=columns)


def _sample_sizes(area: ScoreCurve) -> dict[str, int]:
    """Numbers of seeds and of images."""
    return {"n": len(area.seeds), "images": area.images.shape[1]}


def paired(found: list[ScoreCurve], resampled: Resampled | None = None) -> pd.DataFrame:
    """Differences of every pair of scores under the same protocol, on the same images and seeds.

    Parameters
    ----------
    found
        Curves, those of a protocol one after the other.
    resampled
        Their means over resampled images; computed if not given.

    Returns
    -------
    DataFrame
        One row per pair: difference of the areas with its interval over images, p-values over images and over seeds, and the
        effect size over seeds. Holm's correction is over the pairs of a protocol.

    Examples
    --------
    >>> protocol = Protocol("global", "none", 0)
    >>> found = [ScoreCurve(name, protocol, (0.5,), (0,), np.full((1, 4), auc)) for name, auc in (("l1", 0.5), ("l2", 0.25))]
    >>> paired(found)[["first", "second", "difference", "difference_low", "difference_high"]].values.tolist()
    [['l1', 'l2', 0.25, 0.25, 0.25]]

    References
    ----------
    Fisher 1935; Holm 1979.
    """
    resampled = Resampled(found) if resampled is None else resampled
    rows = []
    for rule, members in itertools.groupby(found, key=lambda area: area.rule):
        shared = [(one, two, [seed for seed in one.seeds if seed in two.seeds]) for one, two in itertools.combinations(members, 2)]
        shared = [pair for pair in shared if pair[2]]
        if shared:
            numbers = _differences(shared, resampled)
            about = [{"first": one.score, "second": two.score, **rule._asdict()} for one, two, _ in shared]
            rows += [head | row for head, row in zip(about, numbers, strict=True)]
    head = ["first", "second", "allocation", "repair", "epochs"]
    return pd.DataFrame(
        rows, columns=[*head, "difference", "difference_low", "difference_high", "p", "p_holm", "p_seeds", "effect", "n", "images"]
    )


def _differences(shared: list[tuple[ScoreCurve, ScoreCurve, list[int]]], resampled: Resampled) -> list[dict[str, Any]]:
    """Difference, interval and p-value over images of pairs under one protocol, and their statistics over seeds."""
    mixtures = [resampled.mixture(one, seeds) - resampled.mixture(two, seeds) for one, two, seeds in shared]
    used = np.any(mixtures, axis=0)
    between = torch.from_numpy(np.stack(mixtures, 1)[used])
    p = sign_flip_contrasts(torch.from_numpy(resampled.images[:, used]), between, max(DRAWS, FLIPS * len(shared)))
    by_seed = [_by_seed(one, two, seeds, resampled) for one, two, seeds in shared]
    columns = {
        "difference": [float(each.mean()) for each in by_seed],
        **dict(zip(("difference_low", "difference_high"), resampled.intervals(mixtures), strict=True)),
        "p": p.tolist(),
        "p_holm": holm(p).tolist(),
        "p_seeds": _over_seeds(by_seed),
        "effect": [effect_size(each) if len(each) > 1 else float("nan") for each in by_seed],
        "n": [len(each) for each in by_seed],
        "images": [len(resampled.images)] * len(shared),
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _by_seed(one: ScoreCurve, two: ScoreCurve, seeds: Iterable[int], resampled: Resampled) -> torch.Tensor:
    """Difference of two areas for each seed."""
    means = [[resampled.means[resampled.places[area.score, area.rule, seed]] for area in (one, two)] for seed in seeds]
    return torch.tensor([first - second for first, second in means], dtype=torch.float64)


def _over_seeds(by_seed: list[torch.Tensor]) -> list[float]:
    """p-value over seeds of each pair, nan for one seed; pairs with equally many seeds are tested together."""
    found = np.full(len(by_seed), np.nan)
    for count in {len(each) for each in by_seed} - {1}:
        same = [place for place, each in enumerate(by_seed) if len(each) == count]
        found[same] = sign_flip(torch.stack([by_seed[place] for place in same])).numpy()
    return found.tolist()


def _factorial(found: list[ScoreCurve], resampled: Resampled) -> pd.DataFrame:
    """Mean area of the scores of each family under each protocol."""
    grouped = sorted(found, key=lambda area: (axis(area.score), area.rule.place))
    cells = [(key, list(members)) for key, members in itertools.groupby(grouped, key=lambda area: (axis(area.score), area.rule))]
    mixtures = [np.mean([resampled.mixture(area) for area in inside], axis=0) for _, inside in cells]
    lows, highs = resampled.intervals(mixtures) if cells else ([], [])
    rows = []
    for ((kind, rule), inside), low, high in zip(cells, lows, highs, strict=True):
        numbers = {"auc": float(np.mean([area.auc for area in inside])), "auc_low": low, "auc_high": high}
        rows.append({"axis": kind, **rule._asdict(), **numbers, "scores": len(inside), "images": len(resampled.images)})
    return pd.DataFrame(rows, columns=["axis", "allocation", "repair", "epochs", "auc", "auc_low", "auc_high", "scores", "images"])


def agreement(found: list[ScoreCurve]) -> pd.DataFrame:
    """Spearman's rho of the scores' areas between every two protocols that share at least four scores.

    Parameters
    ----------
    found
        Curves.

    Returns
    -------
    DataFrame
        One row per pair of protocols; a rho near 1 means that the order of the scores does not depend on the protocol.

    Examples
    --------
    >>> found = [
    ...     ScoreCurve(name, Protocol("global", repair, 0), (0.5,), (0,), np.full((1, 4), auc))
    ...     for repair in ("none", "batchnorm")
    ...     for name, auc in (("l1", 0.5), ("l2", 0.6), ("fpgm", 0.7), ("random", 0.2))
    ... ]
    >>> agreement(found)[["first", "second", "spearman", "scores"]].round(3).values.tolist()
    [['global, none', 'global, batchnorm', 1.0, 4]]

    References
    ----------
    Spearman 1904.
    """
    table: dict[Protocol, dict[str, float]] = {}
    for area in found:
        table.setdefault(area.rule, {})[area.score] = area.auc
    rows = []
    for one, two in itertools.combinations(table, 2):
        shared = sorted(set(table[one]) & set(table[two]))
        if len(shared) >= FEWEST:
            values = [torch.tensor([table[rule][score] for score in shared], dtype=torch.float64) for rule in (one, two)]
            rows.append({"first": str(one), "second": str(two), "spearman": float(spearman(*values)), "scores": len(shared)})
    return pd.DataFrame(rows, columns=["first", "second", "spearman", "scores"])


def _part(meaning: str, source: str = OURS) -> Column:
    return Column("fraction", 3, meaning, source)


def _interval(name: str, of: str) -> dict[str, Column]:
    return {
        f"{name}_low": _part(f"lower end of the 95 % interval of {of} over images"),
        f"{name}_high": _part(f"upper end of the 95 % interval of {of} over images"),
    }


AUC = "mean accuracy over the removed fraction of the multiply-adds, from the unpruned network to the smallest of its budgets"

COLUMNS = {
    "score": Column(meaning="what channels are ranked by", source=OURS),
    "axis": Column(meaning="which question the score asks", source=OURS),
    "first": Column(meaning="the score, or rule, with the larger area", source=OURS),
    "second": Column(meaning="the other", source=OURS),
    "allocation": Column(
        meaning="global: one threshold; uniform: the same fraction of every layer; as(score): layer by layer as that score", source=OURS
    ),
    "repair": Column(meaning="what is done after removal; scratch: the same shape trained from new weights", source=OURS),
    "epochs": Column("epochs", 0, "of fine-tuning, or of training from scratch", OURS, low=0),
    "budget": Column("fraction", 2, "multiply-adds allowed", OURS, 0.0, 1.0),
    "budgets": Column(meaning="multiply-adds allowed, as fractions: those that all scores under the rule were measured at", source=OURS),
    "seed": Column("", 0, "of the calibration images", OURS, low=0),
    "accuracy": Column("fraction", 4, "accuracy", OURS, 0.0, 1.0),
    **_interval("accuracy", "the accuracy"),
    "loss": Column("nats", 3, "mean cross-entropy", OURS, low=0.0),
    "images": Column("images", 0, "evaluated on", OURS, low=0),
    "kept": Column("fraction", 4, "multiply-adds kept, of the unpruned network's", OURS, 0.0, 1.0),
    "parameters": Column("", 0, "parameters kept", OURS, low=0),
    "note": Column(meaning="why there is no number, or no area that contains it", source=OURS),
    "auc": Column("fraction", 4, AUC, "Safaai et al. 2026", 0.0, 1.0),
    **_interval("auc", "the area"),
    "spread": Column("fraction", 4, "standard deviation of the area over seeds", OURS, low=0.0),
    "n": Column("seeds", 0, "seeds averaged", OURS, low=0),
    "difference": Column("fraction", 4, "area of the first minus that of the second, on the same images and seeds", OURS),
    **_interval("difference", "the difference"),
    "p": Column("", 4, "sign-flip permutation p-value over images: for these pruned networks", "Fisher 1935", 0.0, 1.0),
    "p_holm": Column("", 4, "the same, adjusted for all pairs under the rule", "Holm 1979", 0.0, 1.0),
    "p_seeds": Column(
        "", 4, "sign-flip permutation p-value over seeds, each one cluster; at least 2/2ⁿ with n seeds", "Fisher 1935", 0.0, 1.0
    ),
    "effect": Column("", 2, "mean difference over its standard deviation over seeds (Cohen's d_z)", "Cohen 1988"),
    "scores": Column("scores", 0, "scores compared", OURS, low=0),
    "spearman": Column("", 2, "rank correlation of the scores' areas under the two rules", OURS, -1.0, 1.0),
}
