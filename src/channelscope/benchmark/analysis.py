"""Curves, areas, paired differences and the factorial of a benchmark, from the images each pruned network got right."""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

import numpy as np
import pandas as pd
import torch

from channelscope import scores as scoring
from channelscope.benchmark.grid import FROM_SCRATCH, ORIGINAL, RECONSTRUCTION, Trial, allocated_as
from channelscope.errors import SampleError
from channelscope.formulas.curves import flops_auc
from channelscope.formulas.intervals import bootstrap_means
from channelscope.formulas.ranks import spearman
from channelscope.formulas.significance import effect_size, holm, sign_flip, sign_flip_contrasts
from channelscope.pruning.recovery.repair import Method
from channelscope.stats.tally import Tally
from channelscope.tables.schema import Column

DRAWS = 1000

LEVEL = 0.95
"""Coverage of every interval."""

FLIPS = 200
"""Sign patterns for every test among which Holm corrects, so that the smallest corrected p is .005."""

FEWEST = 4
"""Scores that two rules must share for a rank correlation between them."""

STEPS = (*reversed(get_args(Method)), FROM_SCRATCH)
"""repairs from none to the furthest-reaching"""


class Protocol(NamedTuple):
    """What all scores are treated by."""

    allocation: str
    """global, uniform or as(SCORE)"""
    repair: str
    """none, batchnorm, peers, least_squares, or scratch"""
    epochs: int
    """of fine-tuning"""

    @property
    def place(self) -> tuple[bool, str, int, int]:
        """Sorts rules as they are read: allocations of their own first, repairs from none up, before training and after."""
        return bool(allocated_as(self.allocation)), self.allocation, STEPS.index(self.repair), self.epochs

    def __str__(self) -> str:
        return f"{self.allocation}, {self.repair}" + (f", {self.epochs} epochs" if self.epochs else "")


@dataclass(frozen=True)
class ScoreCurve:
    """A score under one rule: its curves, as one number an image and seed."""

    score: str
    """the score"""
    rule: Protocol
    """what the score was treated by"""
    budgets: tuple[float, ...]
    """budgets of its curves, which every score under the rule has, largest first"""
    seeds: tuple[int, ...]
    """in which order `images` has them"""
    images: np.ndarray
    """float64 (seeds, images): each image's share of the FLOPs-AUC, which is their mean"""

    @property
    def auc(self) -> float:
        """FLOPs-AUC, the mean over seeds."""
        return float(self.images.mean())


class Resampled:
    """The means of some areas over the same resampled images, from which the interval of every mixture of them follows.

    Parameters
    ----------
    found
        Areas over the same images.
    draws
        Number of resamples.
    """

    def __init__(self, found: Sequence[ScoreCurve], draws: int = DRAWS):
        keys = [(area.score, area.rule, seed) for area in found for seed in area.seeds]
        self.places = {key: place for place, key in enumerate(keys)}
        self.images = np.concatenate([area.images for area in found]).T if found else np.zeros((1, 0))
        self.means = self.images.mean(0)
        self.draws = bootstrap_means(torch.from_numpy(self.images), draws).numpy()

    def mixture(self, area: ScoreCurve, seeds: Iterable[int] | None = None) -> np.ndarray:
        """Weights of the columns whose sum is the area's mean over its seeds, or over some of them."""
        chosen = area.seeds if seeds is None else tuple(seeds)
        weights = np.zeros(len(self.places))
        weights[[self.places[area.score, area.rule, seed] for seed in chosen]] = 1 / len(chosen)
        return weights

    def intervals(self, mixtures: Sequence[np.ndarray]) -> tuple[list[float], list[float]]:
        """Lower and upper ends of the 95 % intervals over images, of each mixture."""
        low, high = np.quantile(self.draws @ np.stack(mixtures, 1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
        return low.tolist(), high.tolist()


def analyze(done: Mapping[Trial, Mapping[str, Any]]) -> dict[str, pd.DataFrame]:
    """Tables of a benchmark: benchmark (every cell), auc, paired, factorial, agreement and left_out (cells that no area contains).

    Raises
    ------
    SampleError
        Without a measured cell, or without the unpruned network.
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
    """Which question a score asks."""
    return "repair" if score == RECONSTRUCTION else scoring.REGISTRY[score].family


def curves(done: Mapping[Trial, Mapping[str, Any]]) -> pd.DataFrame:
    """One row a cell, the unpruned network first."""
    rows = []
    for cell in (
        ORIGINAL,
        *sorted(set(done) - {ORIGINAL}, key=lambda cell: (cell.seed, cell.score, _protocol_rows(cell).place, cell.budget)),
    ):
        row = done[cell]
        low, high = Tally(float(row["images"]), float(row["hits"].sum())).accuracy_interval()
        about = {"score": cell.score or "unpruned", "axis": axis(cell.score) if cell.score else "", "seed": cell.seed}
        about |= {**_protocol_rows(cell)._asdict(), "budget": cell.budget}
        about |= {"accuracy": row["accuracy"], "accuracy_low": low, "accuracy_high": high, "loss": row["loss"], "images": row["images"]}
        rows.append({**about, "kept": row["kept"], "parameters": row["parameters"], "note": row["reason"]})
    return pd.DataFrame(rows)


def _protocol_rows(cell: Trial) -> Protocol:
    return Protocol(cell.allocation, cell.repair, cell.epochs)


Curve = dict[float, Mapping[str, Any]]
"""budget → row of one score under one rule with one seed"""


def areas(done: Mapping[Trial, Mapping[str, Any]]) -> list[ScoreCurve]:
    """Every score under every rule, over the budgets that all scores under that rule have.

    Parameters
    ----------
    done
        The measured cells, the unpruned network among them.

    Returns
    -------
    list
        By rule, the largest area first. A score and seed for which one of these budgets could not be met is left out, and so
        are further budgets: `left_out` names both.
    """
    whole = done[ORIGINAL]["hits"].astype(float)
    found: list[ScoreCurve] = []
    for rule, curves in _by_rule(done).items():
        budgets = _common(curves)
        removed = torch.tensor([0.0, *(1 - budget for budget in budgets)], dtype=torch.float64)
        weights = np.array([flops_auc(removed, unit) for unit in torch.eye(len(removed), dtype=torch.float64)])  # linear in the curve
        images: dict[str, dict[int, np.ndarray]] = {}
        for (score, seed), curve in curves.items():
            if set(budgets) <= set(curve) and not _unmet(curve, budgets):
                points = np.stack([whole, *(curve[budget]["hits"].astype(float) for budget in budgets)])
                images.setdefault(score, {})[seed] = weights @ points
        found += [ScoreCurve(score, rule, budgets, tuple(seeds), np.stack(list(seeds.values()))) for score, seeds in images.items()]
    return sorted(found, key=lambda area: (area.rule.place, -area.auc, area.score))


def left_out(done: Mapping[Trial, Mapping[str, Any]]) -> pd.DataFrame:
    """Every measured cell that no area contains, with the reason.

    Parameters
    ----------
    done
        The measured cells.

    Returns
    -------
    DataFrame
        One row a cell: score, seed, rule, budget and note.
    """
    rows = []
    for rule, curves in _by_rule(done).items():
        budgets = _common(curves)
        for (score, seed), curve in curves.items():
            missing, unmet = set(budgets) - set(curve), _unmet(curve, budgets)
            for budget in sorted(curve, reverse=True):
                note = ""
                if missing:
                    note = f"the score was not measured at {_listed(missing)}"
                elif unmet:
                    note = f"the score does not meet {_listed(unmet)}: {curve[unmet[0]]['reason']}"
                elif budget not in budgets:
                    note = f"not every score was measured at this budget: areas reach over {_listed(budgets)}"
                if note:
                    rows.append({"score": score, "seed": seed, **rule._asdict(), "budget": budget, "note": note})
    return pd.DataFrame(rows, columns=["score", "seed", "allocation", "repair", "epochs", "budget", "note"])


def _by_rule(done: Mapping[Trial, Mapping[str, Any]]) -> dict[Protocol, dict[tuple[str, int], Curve]]:
    curves: dict[Protocol, dict[tuple[str, int], Curve]] = {}
    for cell, row in done.items():
        if cell != ORIGINAL:
            curves.setdefault(_protocol_rows(cell), {}).setdefault((cell.score, cell.seed), {})[cell.budget] = row
    return curves


def _common(curves: Mapping[tuple[str, int], Curve]) -> tuple[float, ...]:
    """Budgets that all curves have, largest first; where there is none, those of the curves that share the most frequent one."""
    counts = Counter(budget for curve in curves.values() for budget in curve)
    frequent = max(counts, key=lambda budget: (counts[budget], budget))
    sharing = [set(curve) for curve in curves.values() if frequent in curve]
    return tuple(sorted(set.intersection(*sharing), reverse=True))


def _unmet(curve: Curve, budgets: tuple[float, ...]) -> list[float]:
    return [budget for budget in budgets if budget in curve and not curve[budget]["images"]]


def _listed(budgets: Iterable[float]) -> str:
    return ", ".join(f"{budget:g}" for budget in sorted(budgets, reverse=True))


def _aucs(found: list[ScoreCurve], resampled: Resampled) -> pd.DataFrame:
    rows = []
    lows, highs = resampled.intervals([resampled.mixture(area) for area in found]) if found else ([], [])
    for area, low, high in zip(found, lows, highs, strict=True):
        spread = float(area.images.mean(1).std(ddof=1)) if len(area.seeds) > 1 else float("nan")
        numbers = {"auc": area.auc, "auc_low": low, "auc_high": high, "spread": spread}
        about = {"score": area.score, "axis": axis(area.score), **area.rule._asdict(), "budgets": _listed(area.budgets)}
        rows.append({**about, **numbers, **_correct_counts(area)})
    columns = ["score", "axis", "allocation", "repair", "epochs", "budgets", "auc", "auc_low", "auc_high", "spread", "n", "images"]
    return pd.DataFrame(rows, columns=columns)


def _correct_counts(area: ScoreCurve) -> dict[str, int]:
    return {"n": len(area.seeds), "images": area.images.shape[1]}


def paired(found: list[ScoreCurve], resampled: Resampled | None = None) -> pd.DataFrame:
    """Every pair of scores under the same rule, on the same images and seeds.

    Parameters
    ----------
    found
        The areas, those of a rule one after the other.
    resampled
        Their means over resampled images, where they are there already.

    Returns
    -------
    DataFrame
        One row a pair: the difference of the areas with its interval over images, p-values over images and over seeds, and
        the effect over seeds. Holm's correction is over a rule's pairs.
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
    """Of pairs under one rule: difference, interval and p over images, and what the seeds say."""
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
    """p-value over seeds of each pair, nan for one seed; pairs with as many seeds are tested together."""
    found = np.full(len(by_seed), np.nan)
    for count in {len(each) for each in by_seed} - {1}:
        same = [place for place, each in enumerate(by_seed) if len(each) == count]
        found[same] = sign_flip(torch.stack([by_seed[place] for place in same])).numpy()
    return found.tolist()


def _factorial(found: list[ScoreCurve], resampled: Resampled) -> pd.DataFrame:
    """Mean area of the scores on each axis under each rule."""
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
    """Spearman correlation of the scores' areas between every two rules: near 1, the ranking of scores is not the rule's doing."""
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


OURS = "this library"


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
