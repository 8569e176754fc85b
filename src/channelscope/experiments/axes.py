"""The two axes: their alignment layer by layer, and whether channels alike on one axis are alike on the other."""

from collections.abc import Sequence

import pandas as pd
import torch

from channelscope.errors import SampleError, at
from channelscope.formulas.clustering import adjusted_rand, adjusted_rand_null, cluster_stability, kmeans_labels, silhouette
from channelscope.formulas.information import CEILING
from channelscope.formulas.ranks import spearman
from channelscope.formulas.resampling import bootstrap_mean, jackknife
from channelscope.scores.layer_statistics import LayerStatistics, ScoreOptions
from channelscope.scores.local import capture, overlap
from channelscope.scores.registry import Score, lookup
from channelscope.scores.target import excess, relevance
from channelscope.site import Site
from channelscope.stats.profile import Profile
from channelscope.tables.frame import fill
from channelscope.tables.schema import Schema
from channelscope.types import Float, Tensor

PERMUTATIONS = 200

GROUPS = Schema("groups", "site depth n ari null_mean null_high p silhouette_local silhouette_target stability_local stability_target")


def axis_clusters(profile: Profile, k: int = 4, seed: int = 0, **options) -> pd.DataFrame:
    """k-means groupings of each layer's channels on local features (I_X, R̄) and on target features (I_T, S), z-scored.

    preset="paper" puts the target excess into both feature sets, as the published code does.

    Returns
    -------
    pd.DataFrame
        One row per site: adjusted Rand index of the two groupings with its permutation null (channels shuffled),
        silhouettes, stability between random starts, and n, the channels with all features. Layers with fewer than 4 k of
        them, or too few images for the target, stay nan: their groups would be single channels.
    """
    convention = ScoreOptions.of(options)
    rows = []
    for site in profile.sites:
        with at(site.name):
            layer = LayerStatistics(profile, site, profile.record(site), convention)
            rows.append({"site": site.name, "depth": site.depth, **_compare_partitions(layer, k, seed)})
    return fill(GROUPS, rows)


def _compare_partitions(layer: LayerStatistics, k: int, seed: int) -> dict[str, float]:
    try:
        local, target = _cluster_features(layer)
    except SampleError:
        return {"n": 0}
    known = local.isfinite().all(1) & target.isfinite().all(1)
    local, target = local[known], target[known]
    if len(local) < 4 * k:
        return {"n": len(local)}
    one, other = kmeans_labels(local, k, seed), kmeans_labels(target, k, seed)
    ari, null = adjusted_rand(one, other), adjusted_rand_null(one, other, PERMUTATIONS, seed)
    return {
        "n": len(local),
        "ari": ari,
        "null_mean": float(null.mean()),
        "null_high": float(null.quantile(0.95)),
        "p": float(1 + (null >= ari).sum()) / (1 + PERMUTATIONS),
        "silhouette_local": silhouette(local, one),
        "silhouette_target": silhouette(target, other),
        "stability_local": cluster_stability(local, k),
        "stability_target": cluster_stability(target, k),
    }


def _cluster_features(layer: LayerStatistics) -> tuple[Float[Tensor, "channels local"], Float[Tensor, "channels target"]]:
    together = excess.formula(layer)
    local = [capture.formula(layer), overlap.formula(layer, ceiling=CEILING)]
    if layer.convention.paper:
        local.append(together)
    return torch.stack(local, 1), torch.stack([relevance.formula(layer), together], 1)


LOCAL = ("capture", "overlap", "support", "rayleigh")

TARGET = ("relevance", "excess")

ALIGNMENT = Schema("alignment", "site depth local target rho low high n images")

ALIGNMENT_MEAN = Schema("alignment_mean", "local target rho low high n pooled")


def axis_alignment(
    profile: Profile, local_axis: Sequence[str] = LOCAL, target_axis: Sequence[str] = TARGET, **options
) -> dict[str, pd.DataFrame]:
    """Rank correlation of every local quantity with every target quantity, layer by layer and over layers.

    A layer whose score is refused for want of images has nan there.

    Returns
    -------
    dict[str, pd.DataFrame]
        `alignment`: one row per site and pair, Spearman's rho over the site's channels with a jackknife interval over
        image shards; `alignment_mean`: the mean over layers with a bootstrap interval over layers, beside the pooled
        value, which mixes layers and is never to be read alone.
    """
    convention = ScoreOptions.of(options)
    whole = {name: [] for name in (*local_axis, *target_axis)}
    rows = []
    for site in profile.sites:
        with at(site.name):
            values, replicates = _values(profile, site, convention, lookup((*local_axis, *target_axis)))
        for name, column in values.items():
            whole[name].append(column)
        for one in local_axis:
            for other in target_axis:
                rho = spearman(values[one], values[other])
                low, high = _alignment_interval(rho, [spearman(each[one], each[other]) for each in replicates])
                rows.append(
                    {
                        "site": site.name,
                        "depth": site.depth,
                        "local": one,
                        "target": other,
                        "rho": float(rho),
                        "low": low,
                        "high": high,
                        "n": int((values[one].isfinite() & values[other].isfinite()).sum()),
                        "images": profile.images,
                    }
                )
    alignment = pd.DataFrame(rows)
    means = _over_layers(alignment, {name: torch.cat(parts) for name, parts in whole.items()})
    return {"alignment": fill(ALIGNMENT, alignment), "alignment_mean": fill(ALIGNMENT_MEAN, means)}


def _values(
    profile: Profile, site: Site, convention: ScoreOptions, wanted: list[Score]
) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """Every wanted quantity of one layer, and again without each shard of images."""
    layer = LayerStatistics(profile, site, profile.record(site), convention)
    left_out = profile.jackknife_records(site) if profile.shards > 1 else []
    return _columns(layer, wanted), [_columns(LayerStatistics(profile, site, record, convention), wanted) for record in left_out]


def _columns(layer: LayerStatistics, wanted: list[Score]) -> dict[str, Tensor]:
    columns = {}
    for one in wanted:
        try:
            columns[one.name] = one.formula(layer).double()
        except SampleError:
            columns[one.name] = torch.full((layer.channels,), torch.nan, dtype=torch.float64)
    return columns


def _alignment_interval(rho: Tensor, replicates: list[Tensor]) -> tuple[float, float]:
    """Jackknife interval clipped to −1 … 1; nan without shards."""
    if not replicates:
        return float("nan"), float("nan")
    interval = jackknife(rho, torch.stack([torch.as_tensor(each) for each in replicates])).interval()
    return max(interval.low, -1.0), min(interval.high, 1.0)


def _over_layers(alignment: pd.DataFrame, whole: dict[str, Tensor]) -> list[dict]:
    rows = []
    for (one, other), pairs in alignment.groupby(["local", "target"], sort=False):
        known = pairs["rho"].dropna()
        mean = bootstrap_mean(torch.tensor(known.to_numpy())) if len(known) > 1 else None
        rows.append(
            {
                "local": one,
                "target": other,
                "rho": mean.value if mean else float(known.mean()),
                "low": mean.low if mean else float("nan"),
                "high": mean.high if mean else float("nan"),
                "n": len(known),
                "pooled": float(spearman(whole[one], whole[other])),
            }
        )
    return rows
