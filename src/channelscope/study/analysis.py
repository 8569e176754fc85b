"""analysis: curves, areas, paired differences and the factorial, from which images each pruned network got right."""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

import numpy as np
import pandas as pd
import torch

from channelscope import scores as scoring
from channelscope.errors import SampleError
from channelscope.formulas.ranks import spearman
from channelscope.formulas.resampling import bootstrap_mean, effect_size, flops_auc, holm, sign_flip
from channelscope.repair import Method
from channelscope.stats.tally import Tally
from channelscope.study.cell import ORIGINAL, RECONSTRUCTION, SCRATCH, Cell, allocated_as

DRAWS = 1000
FLIPS = 200
"""Sign patterns for every test among which Holm corrects, so that the smallest corrected p is .005."""
FEWEST = 4
"""Scores that two rules must share for a rank correlation between them."""
STEPS = (*reversed(get_args(Method)), SCRATCH)
"""repairs from none to the furthest-reaching"""


class Rule(NamedTuple):
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
class Area:
    """A score under one rule: its curves, as one number an image and seed."""

    score: str
    """the score"""
    rule: Rule
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


def analysis(done: Mapping[Cell, Mapping[str, Any]]) -> dict[str, pd.DataFrame]:
    """Tables of a benchmark: benchmark (every cell), auc, paired, factorial, agreement and left_out (cells that no area contains).

    Raises   SampleError without a measured cell, or without the unpruned network.
    """
    if ORIGINAL not in done or len(done) < 2:
        raise SampleError("nothing has been measured yet: the unpruned network and at least one cell are needed")
    found = areas(done)
    return {
        "benchmark": curves(done),
        "benchmark_auc": _aucs(found),
        "benchmark_paired": paired(found),
        "benchmark_factorial": _factorial(found),
        "benchmark_agreement": agreement(found),
        "benchmark_left_out": left_out(done),
    }


def axis(score: str) -> str:
    """Which question a score asks."""
    return "repair" if score == RECONSTRUCTION else scoring.REGISTRY[score].axis


def curves(done: Mapping[Cell, Mapping[str, Any]]) -> pd.DataFrame:
    """One row a cell, the unpruned network first."""
    rows = []
    for cell in (ORIGINAL, *sorted(set(done) - {ORIGINAL}, key=lambda cell: (cell.seed, cell.score, _rule(cell).place, cell.budget))):
        row = done[cell]
        low, high = Tally(float(row["images"]), float(row["hits"].sum())).accuracy_interval()
        about = {"score": cell.score or "unpruned", "axis": axis(cell.score) if cell.score else "", "seed": cell.seed}
        about |= {**_rule(cell)._asdict(), "budget": cell.budget}
        about |= {"accuracy": row["accuracy"], "accuracy_low": low, "accuracy_high": high, "loss": row["loss"], "images": row["images"]}
        rows.append({**about, "kept": row["kept"], "parameters": row["parameters"], "note": row["reason"]})
    return pd.DataFrame(rows)


def _rule(cell: Cell) -> Rule:
    return Rule(cell.allocation, cell.repair, cell.epochs)


Curve = dict[float, Mapping[str, Any]]
"""budget → row of one score under one rule with one seed"""


def areas(done: Mapping[Cell, Mapping[str, Any]]) -> list[Area]:
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
    found: list[Area] = []
    for rule, curves in _by_rule(done).items():
        budgets = _common(curves)
        removed = torch.tensor([0.0, *(1 - budget for budget in budgets)], dtype=torch.float64)
        weights = np.array([flops_auc(removed, unit) for unit in torch.eye(len(removed), dtype=torch.float64)])  # linear in the curve
        images: dict[str, dict[int, np.ndarray]] = {}
        for (score, seed), curve in curves.items():
            if set(budgets) <= set(curve) and not _unmet(curve, budgets):
                points = np.stack([whole, *(curve[budget]["hits"].astype(float) for budget in budgets)])
                images.setdefault(score, {})[seed] = weights @ points
        found += [Area(score, rule, budgets, tuple(seeds), np.stack(list(seeds.values()))) for score, seeds in images.items()]
    return sorted(found, key=lambda area: (area.rule.place, -area.auc, area.score))


def left_out(done: Mapping[Cell, Mapping[str, Any]]) -> pd.DataFrame:
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


def _by_rule(done: Mapping[Cell, Mapping[str, Any]]) -> dict[Rule, dict[tuple[str, int], Curve]]:
    curves: dict[Rule, dict[tuple[str, int], Curve]] = {}
    for cell, row in done.items():
        if cell != ORIGINAL:
            curves.setdefault(_rule(cell), {}).setdefault((cell.score, cell.seed), {})[cell.budget] = row
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


def _aucs(found: list[Area]) -> pd.DataFrame:
    rows = []
    for area in found:
        images = bootstrap_mean(torch.from_numpy(area.images.mean(0)), DRAWS)
        spread = float(area.images.mean(1).std(ddof=1)) if len(area.seeds) > 1 else float("nan")
        numbers = {"auc": area.auc, "auc_low": images.low, "auc_high": images.high, "spread": spread}
        about = {"score": area.score, "axis": axis(area.score), **area.rule._asdict(), "budgets": _listed(area.budgets)}
        rows.append({**about, **numbers, **_counted(area)})
    columns = ["score", "axis", "allocation", "repair", "epochs", "budgets", "auc", "auc_low", "auc_high", "spread", "n", "images"]
    return pd.DataFrame(rows, columns=columns)


def _counted(area: Area) -> dict[str, int]:
    return {"n": len(area.seeds), "images": area.images.shape[1]}


def paired(found: list[Area]) -> pd.DataFrame:
    """Every pair of scores under the same rule, on the same images and seeds; Holm's correction is over a rule's pairs."""
    rows = []
    for rule, members in itertools.groupby(found, key=lambda area: area.rule):
        pairs, gaps = [], []
        for one, two in itertools.combinations(members, 2):
            seeds = [seed for seed in one.seeds if seed in two.seeds]
            if seeds:
                gap = one.images[[one.seeds.index(seed) for seed in seeds]] - two.images[[two.seeds.index(seed) for seed in seeds]]
                pairs.append({"first": one.score, "second": two.score, **rule._asdict(), **_difference(gap)})
                gaps.append(gap.mean(0))
        if pairs:
            p = sign_flip(torch.from_numpy(np.stack(gaps)), max(DRAWS, FLIPS * len(gaps)))
            numbers = zip(pairs, p.tolist(), holm(p).tolist(), strict=True)
            rows += [{**pair, "p": value, "p_holm": corrected} for pair, value, corrected in numbers]
    head = ["first", "second", "allocation", "repair", "epochs"]
    return pd.DataFrame(
        rows, columns=[*head, "difference", "difference_low", "difference_high", "p", "p_holm", "p_seeds", "effect", "n", "images"]
    )


def _difference(gap: np.ndarray) -> dict[str, Any]:
    """Of (seeds, images): mean, its interval and p over images, and what the seeds say."""
    images, seeds = torch.from_numpy(gap.mean(0)), torch.from_numpy(gap.mean(1))
    interval = bootstrap_mean(images, DRAWS)
    several = len(seeds) > 1
    return {
        "difference": float(gap.mean()),
        "difference_low": interval.low,
        "difference_high": interval.high,
        "p_seeds": float(sign_flip(seeds)) if several else float("nan"),
        "effect": effect_size(seeds) if several else float("nan"),
        "n": len(seeds),
        "images": len(images),
    }


def _factorial(found: list[Area]) -> pd.DataFrame:
    """Mean area of the scores on each axis under each rule."""
    rows = []
    grouped = sorted(found, key=lambda area: (axis(area.score), area.rule.place))
    for (kind, rule), members in itertools.groupby(grouped, key=lambda area: (axis(area.score), area.rule)):
        inside = list(members)
        interval = bootstrap_mean(torch.from_numpy(np.mean([area.images.mean(0) for area in inside], axis=0)), DRAWS)
        numbers = {"auc": interval.value, "auc_low": interval.low, "auc_high": interval.high}
        rows.append({"axis": kind, **rule._asdict(), **numbers, "scores": len(inside), "images": inside[0].images.shape[1]})
    return pd.DataFrame(rows, columns=["axis", "allocation", "repair", "epochs", "auc", "auc_low", "auc_high", "scores", "images"])


def agreement(found: list[Area]) -> pd.DataFrame:
    """Spearman correlation of the scores' areas between every two rules: near 1, the ranking of scores is not the rule's doing."""
    table: dict[Rule, dict[str, float]] = {}
    for area in found:
        table.setdefault(area.rule, {})[area.score] = area.auc
    rows = []
    for one, two in itertools.combinations(table, 2):
        shared = sorted(set(table[one]) & set(table[two]))
        if len(shared) >= FEWEST:
            values = [torch.tensor([table[rule][score] for score in shared], dtype=torch.float64) for rule in (one, two)]
            rows.append({"first": str(one), "second": str(two), "spearman": float(spearman(*values)), "scores": len(shared)})
    return pd.DataFrame(rows, columns=["first", "second", "spearman", "scores"])
