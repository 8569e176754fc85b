"""groups: do channels that are alike on one axis fall together on the other?"""

import numpy as np
import pandas as pd
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, silhouette_score

from channelscope.errors import SampleError, at
from channelscope.formulas.information import CEILING
from channelscope.scores import Convention, Layer, capture, excess, overlap, relevance
from channelscope.site import Site
from channelscope.stats.profile import Profile

SEEDS = 5
PERMUTATIONS = 200


def groups(profile: Profile, k: int = 4, seed: int = 0, **options) -> pd.DataFrame:
    """k-means groupings of each layer's channels on local features (I_X, R̄) and on target features (I_T, S), z-scored.

    Returns  one row per site: adjusted Rand index of the two groupings with its permutation null (channels shuffled),
             silhouettes, stability (mean Rand index between seeds), and n, the channels with both features. Layers with fewer
             than 4 k usable channels are left at nan: their groups would be single channels.
    preset="paper" puts the target excess into both feature sets, as the published code does.
    """
    convention, _ = Convention.split(options)
    rows = []
    for site in profile.sites:
        with at(site.name):
            rows.append(_row(profile, site, convention, k, seed))
    frame = pd.DataFrame(rows)
    frame.attrs["name"] = "groups"
    return frame


def _row(profile: Profile, site: Site, convention: Convention, k: int, seed: int) -> dict:
    row = {"site": site.name, "depth": site.depth}
    features = _features(profile, site, convention)
    known = np.logical_and.reduce([np.isfinite(column).all(1) for column in features.values()])
    row["n"] = int(known.sum())
    if row["n"] < 4 * k:
        return row
    local, target = (_scaled(columns[known]) for columns in features.values())
    one, other = (_labels(columns, k, seed) for columns in (local, target))
    ari = adjusted_rand_score(one, other)
    shuffle = np.random.default_rng(seed)
    null = rand_indices(one, np.stack([shuffle.permutation(other) for _ in range(PERMUTATIONS)]), k)
    return row | {
        "ari": ari,
        "null_mean": null.mean(),
        "null_high": np.quantile(null, 0.95),
        "p": (1 + (null >= ari).sum()) / (1 + PERMUTATIONS),
        "silhouette_local": _silhouette(local, one),
        "silhouette_target": _silhouette(target, other),
        "stability_local": _stability(local, k, seed),
        "stability_target": _stability(target, k, seed),
    }


def rand_indices(one: np.ndarray, others: np.ndarray, k: int) -> np.ndarray:
    """Adjusted Rand index of one labeling (n,) with each of many (m, n), all with labels 0 … k − 1 (Hubert & Arabie 1985)."""
    tables = np.einsum("ni,mnj->mij", np.eye(k)[one], np.eye(k)[others])
    together, rows, columns = (_pairs(counts).reshape(len(others), -1).sum(1) for counts in (tables, tables.sum(2), tables.sum(1)))
    chance = rows * columns / _pairs(np.array(float(len(one))))
    with np.errstate(invalid="ignore"):
        return (together - chance) / ((rows + columns) / 2 - chance)


def _pairs(counts: np.ndarray) -> np.ndarray:
    return counts * (counts - 1) / 2


def _features(profile: Profile, site: Site, convention: Convention) -> dict[str, np.ndarray]:
    layer = Layer(profile, site, profile.record(site), convention)
    try:
        together = excess.formula(layer)
        target = [relevance.formula(layer), together]
    except SampleError:
        together = None
        target = []
    local = [capture.formula(layer), overlap.formula(layer, ceiling=CEILING)]
    if convention.paper and together is not None:
        local.append(together)
    blank = np.full((site.channels, 1), np.nan)
    return {
        name: np.stack([c.numpy() for c in columns], 1) if columns else blank for name, columns in (("local", local), ("target", target))
    }


def _scaled(columns: np.ndarray) -> np.ndarray:
    """z-scores; a constant column stays constant."""
    spread = columns.std(0)
    return (columns - columns.mean(0)) / np.where(spread > 0, spread, 1)


def _labels(columns: np.ndarray, k: int, seed: int) -> np.ndarray:
    return KMeans(k, n_init=4, random_state=seed).fit_predict(columns)


def _silhouette(columns: np.ndarray, labels: np.ndarray) -> float:
    return float(silhouette_score(columns, labels)) if 1 < len(set(labels)) < len(labels) else float("nan")


def _stability(columns: np.ndarray, k: int, seed: int) -> float:
    """Mean adjusted Rand index between k-means from single random starts of different seeds."""
    labels = [KMeans(k, n_init=1, random_state=seed + s).fit_predict(columns) for s in range(SEEDS)]
    pairs = [adjusted_rand_score(labels[i], labels[j]) for i in range(SEEDS) for j in range(i)]
    return float(np.mean(pairs))
