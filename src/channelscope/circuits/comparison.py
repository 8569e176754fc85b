"""Criteria compared on many features and sizes, evaluated on the same held-out images."""

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from channelscope import tables
from channelscope.circuits.criteria import CRITERIA, CircuitOptions, criterion_named
from channelscope.circuits.evaluation import CIRCUIT_COLUMNS, HeldOutImages, fidelity_row
from channelscope.circuits.feature import LocatedFeature, activation_range, image_batches, locate_feature
from channelscope.errors import BudgetError, InputError, SampleError
from channelscope.formulas.intervals import Interval, bootstrap
from channelscope.network.graph import Graph
from channelscope.network.module_state import weights_hash
from channelscope.network.sites import sites_of
from channelscope.progress import progress_bar
from channelscope.storage import ResumableStore
from channelscope.types import Float, Tensor

COMPARED = ("gate", "actgrad", "snip", "force", "iterated_gate", "iterated_actgrad", "magnitude", "random")

COMPARED_FRACTIONS = (0.5, 0.2, 0.1, 0.05)

TABLES = """
CREATE TABLE IF NOT EXISTS measured (feature TEXT, criterion TEXT, kept REAL, row TEXT NOT NULL, PRIMARY KEY (feature, criterion, kept));
"""

ROWS = ["feature", "criterion", "kept", "kernels", "relevant", "r", "r_low", "r_high", "error", "error_low", "error_high", "images"]


def sample_features(graph: Graph, images: Tensor | Iterable, count: int, seed: int = 0) -> list[str]:
    """Names of channels to compare criteria on: spread over the layers from first to last, drawn at random, active on the images.

    The first layer is left out, because its relevant kernels are those of one channel.

    Parameters
    ----------
    graph
        The traced network.
    images
        Images (images, C, H, W), or batches of them; a channel counts as active if it varies over them.
    count
        Number of channels.
    seed
        Seed of the draw.

    Returns
    -------
    list[str]
        `layer:channel`, in execution order.

    Raises
    ------
    SampleError
        If fewer channels than asked for are active.

    Examples
    --------
    >>> from torch import nn
    >>> from channelscope.network.graph import trace
    >>> model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 1, 1), nn.Conv2d(1, 2, 1)).eval()
    >>> image = torch.eye(3)[None, None]
    >>> sample_features(trace(model, image), image, 1)
    ['1:0']

    References
    ----------
    Hamblin, Konkle, Alvarez 2022 (many features); the draw is this library's.
    """
    pictures, noise = list(image_batches(images)), np.random.default_rng(seed)
    layers = [(site.name, noise.permutation(site.channels).tolist()) for site in sites_of(graph)][1:]
    found: list[str] = []
    while len(found) < count and any(left for _, left in layers):
        places = np.linspace(0, len(layers) - 1, min(count - len(found), len(layers))).round().astype(int)
        for name, left in [layers[place] for place in places]:
            if left:
                feature = f"{name}:{left.pop()}"
                try:
                    activation_range(locate_feature(graph, feature), pictures)
                except SampleError:
                    continue
                found.append(feature)
        layers = [layer for layer in layers if layer[1]]
    if len(found) < count:
        raise SampleError(f"expected {count} channels that activate on these images, found {len(found)}")
    order = {site.name: depth for depth, site in enumerate(sites_of(graph))}
    return sorted(found, key=lambda feature: order[feature.partition(":")[0]])


def compare_criteria(
    graph: Graph,
    features: Sequence[str],
    images: Tensor | Iterable,
    held_out: Tensor | Iterable,
    criteria: Sequence[str] = COMPARED,
    sizes: Sequence[float] = COMPARED_FRACTIONS,
    unfinished: Path | None = None,
    seed: int = 0,
) -> dict[str, pd.DataFrame]:
    """Tables of how closely the circuits of several criteria and sizes follow their features on held-out images.

    Criteria that are made for one size are scored again for each size.

    Parameters
    ----------
    graph
        The traced network.
    features
        Names of the features, as `Feature.parse` reads them.
    images
        Images (images, C, H, W), or batches of them, on which kernels are scored.
    held_out
        Images on which circuits are evaluated.
    criteria
        Names of criteria, keys of `CRITERIA`.
    sizes
        Fractions of the relevant kernels, above 0 and up to 1.
    unfinished
        File that holds the rows of an interrupted run; a run that finds it continues from there, and deletes it at the end.
    seed
        Seed of random scores and of bootstraps.

    Returns
    -------
    dict[str, pd.DataFrame]
        `circuit_compare`, one row per feature, criterion and size; `circuit_medians`, one row per criterion and size:
        medians of |r| and of the error over features, and the distance to the best criterion.

    Raises
    ------
    InputError
        For unknown criteria, sizes that are not fractions, and names or sizes given twice; the errors of `locate_feature` and
        `activation_range` for features that cannot be used.
    MismatchError
        If `unfinished` is of another network, other images or another seed.

    Examples
    --------
    Six of 30 kernels of the toy are not zero: the gate criterion finds them, and the circuit is exact.

    >>> from channelscope.network.graph import trace
    >>> from channelscope.zoo import toys
    >>> toy = toys.independent_channels()
    >>> graph = trace(toy.model, toy.batches[0][0])
    >>> found = compare_criteria(graph, ["logit:1"], toy.batches, toy.batches, ["gate"], [0.2])
    >>> found["circuit_compare"][["criterion", "kernels", "relevant", "r"]].round(3).values.tolist()
    [['gate', 6, 30, 1.0]]

    References
    ----------
    Hamblin, Konkle, Alvarez 2022 (evaluation).
    """
    _usable(features, criteria, sizes)
    scoring_batches, held_out_batches = list(image_batches(images)), list(image_batches(held_out))
    facts = {"features": list(features), "sizes": list(sizes), "criteria": list(criteria), "seed": seed}
    made = {"weights": weights_hash(graph.model), "seed": seed, "images": _digest([*scoring_batches, *held_out_batches])}
    targets = {feature: locate_feature(graph, feature) for feature in features}
    for target in targets.values():
        activation_range(target, scoring_batches)
    store = ResumableStore(unfinished, made, TABLES, "a comparison of criteria")
    done = {tuple(key): json.loads(row) for *key, row in store.select("SELECT feature, criterion, kept, row FROM measured")}
    groups = [[name for name in criteria if CRITERIA[name].needs_size is slow] for slow in (False, True)]
    missing = [[key for key in itertools.product([feature], group, sizes) if key not in done] for group in groups for feature in features]
    with progress_bar("comparison of criteria, circuits", sum(map(len, missing))) as advance:
        for wanted in filter(None, missing):
            for row in _feature(targets[wanted[0][0]], scoring_batches, held_out_batches, wanted, seed):
                key = row["feature"], row["criterion"], row["kept"]
                store.insert("measured", *key, json.dumps(row))
                done[key] = row
                advance()
    rows = [done[key] for key in itertools.product(features, criteria, sizes)]
    frame = pd.DataFrame(rows, columns=ROWS)
    found = {"circuit_compare": frame, "circuit_medians": medians(frame, seed)}
    store.close(finished=True)
    return {name: tables.table(each, name, CIRCUIT_COLUMNS, facts) for name, each in found.items()}


def _usable(features: Sequence[str], criteria: Sequence[str], sizes: Sequence[float]) -> None:
    for what, given in (("features", features), ("criteria", criteria), ("sizes", sizes)):
        if not given or len(set(given)) < len(given):
            raise InputError(f"compare: expected one or more {what}, each once; received {', '.join(map(str, given)) or 'none'}")
    for name in criteria:
        criterion_named(name)
    for size in sizes:
        if not isinstance(size, float) or not 0 < size <= 1:
            raise InputError(f"compare: expected sizes as fractions of the relevant kernels, above 0 and up to 1.0; received {size}")


def _feature(
    target: LocatedFeature, scoring_batches: list[Tensor], held_out_batches: list[Tensor], wanted: list, seed: int
) -> Iterator[dict[str, Any]]:
    """Rows of one feature: additive criteria are scored once, the others once a size."""
    held = HeldOutImages.of(target, held_out_batches)
    known: dict[str, Any] = {}
    for feature, criterion, size in sorted(wanted, key=lambda key: (key[1], -key[2])):
        options = CircuitOptions(criterion, np.format_float_positional(size))
        row = {"feature": feature, "criterion": criterion, "kept": size, "relevant": target.relevant_count, "images": held.images}
        try:
            options.kernels(target)
        except BudgetError:
            yield row | {"kernels": 0, **dict.fromkeys(ROWS[5:11], float("nan"))}  # no path is that short
            continue
        if CRITERIA[criterion].needs_size or criterion not in known:
            known[criterion] = options.scores(target, scoring_batches, seed)
        circuit = options.circuit(known[criterion])
        yield row | {"kernels": circuit.count, **fidelity_row(held, circuit)}


def medians(frame: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Medians over features with bootstrap intervals, one row for each criterion and size.

    A circuit that computes a constant has no r and counts as r = 0. Where no path from the images is as short as the size, there is
    no circuit: r counts as 0, and the median of the error is over the `n_error` features of the `n` that have one.

    Parameters
    ----------
    frame
        One row per feature, criterion and size, with columns feature, criterion, kept, r and error.
    seed
        Seed of the bootstraps.

    Returns
    -------
    pd.DataFrame
        `behind` is the median of paired differences in |r| to the criterion with the highest median at that size; `best` is 1
        where the interval of `behind` reaches zero.

    Examples
    --------
    >>> rows = [["a", "gate", 0.1, 0.9, 0.2], ["a", "random", 0.1, -0.1, 1.0], ["b", "gate", 0.1, 0.7, 0.4], ["b", "random", 0.1, 0.1, 1.2]]
    >>> found = medians(pd.DataFrame(rows, columns=["feature", "criterion", "kept", "r", "error"]))
    >>> found[["criterion", "median_r", "median_error", "behind"]].round(3).values.tolist()
    [['gate', 0.8, 0.3, 0.0], ['random', 0.1, 1.1, 0.7]]

    References
    ----------
    Hamblin, Konkle, Alvarez 2022 (medians over features with intervals).
    """
    rows = []
    for size, part in frame.groupby("kept", sort=False):
        strength = part.assign(r=part["r"].abs().fillna(0)).pivot(index="feature", columns="criterion", values="r")
        errors = part.pivot(index="feature", columns="criterion", values="error")
        best = strength.median().idxmax()
        for criterion in part["criterion"].unique():
            r, error = _median(strength[criterion], seed), _median(errors[criterion].dropna(), seed)
            behind = _median(strength[best] - strength[criterion], seed)
            row: dict[str, Any] = {"criterion": criterion, "kept": size, "n": r.n}
            row |= {"median_r": r.value, "median_r_low": r.low, "median_r_high": r.high}
            row |= {"n_error": error.n, "median_error": error.value, "median_error_low": error.low, "median_error_high": error.high}
            row |= {"behind": behind.value, "behind_low": behind.low, "behind_high": behind.high}
            rows.append(row | {"best": int(criterion == best or not behind.low > 0)})
    return pd.DataFrame(rows)


def _median(values: pd.Series, seed: int) -> Interval:
    column: Float[Tensor, "n"] = torch.tensor(values.to_numpy(dtype=float))
    if not len(column):
        return Interval(float("nan"), float("nan"), float("nan"), 0, "nothing to take a median of")
    return bootstrap(lambda each: float(np.median(each)), column, seed=seed)


def _digest(pictures: list[Tensor]) -> str:
    whole = hashlib.sha256()
    for each in pictures:
        whole.update(each.cpu().numpy().tobytes())
    return whole.hexdigest()
