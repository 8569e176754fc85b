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
    null = np.array([adjusted_rand_score(one, shuffle.permutation(other)) for _ in range(PERMUTATIONS)])
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
    return KMeans(k, n_init=10, random_state=seed).fit_predict(columns)


def _silhouette(columns: np.ndarray, labels: np.ndarray) -> float:
    return float(silhouette_score(columns, labels)) if 1 < len(set(labels)) < len(labels) else float("nan")


def _stability(columns: np.ndarray, k: int, seed: int) -> float:
    """Mean adjusted Rand index between k-means from single random starts of different seeds."""
    labels = [KMeans(k, n_init=1, random_state=seed + s).fit_predict(columns) for s in range(SEEDS)]
    pairs = [adjusted_rand_score(labels[i], labels[j]) for i in range(SEEDS) for j in range(i)]
    return float(np.mean(pairs))
