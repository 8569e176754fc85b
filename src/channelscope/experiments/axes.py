"""The two axes: rank correlation of their quantities, agreement of the clusters of channels on each, and task mass by layer."""

from collections.abc import Sequence

import pandas as pd
import torch

from channelscope.errors import SampleError, at
from channelscope.formulas.clustering import adjusted_rand, adjusted_rand_null, cluster_stability, kmeans_labels, silhouette
from channelscope.formulas.information import CEILING
from channelscope.formulas.intervals import Interval, bootstrap_mean, jackknife_interval
from channelscope.formulas.ranks import spearman
from channelscope.progress import track
from channelscope.scores.axes import capture, excess, overlap, relevance
from channelscope.scores.score import LayerStatistics, Score, ScoreOptions, lookup
from channelscope.site import Site
from channelscope.stats.profile import Profile
from channelscope.tables.frame import fill, format_interval
from channelscope.tables.quantities import Column, Schema
from channelscope.types import Float, Tensor

PERMUTATIONS = 200

SOURCE = "code of Safaai et al. 2026"

GROUPS = Schema("groups", "site depth n ari null_mean null_high p silhouette_local silhouette_target stability_local stability_target")


def axis_clusters(profile: Profile, k: int = 4, seed: int = 0, **options) -> pd.DataFrame:
    """Agreement of two k-means clusterings of each layer's channels: on local and on target quantities.

    The local features are input capture and peer overlap, the target features task information and target excess, all z-scored.
    `preset="paper"` puts the target excess into both sets, as the published code does.

    Parameters
    ----------
    profile
        Statistics of the network.
    k
        Number of clusters.
    seed
        Seed of k-means and of the permutations.
    **options
        Options of the scores: target, shrinkage, preset, ….

    Returns
    -------
    DataFrame
        Table `groups`, one row per site: adjusted Rand index of the two clusterings with mean, 95th percentile and p-value of
        its permutation null, silhouettes, stability between random starts, and n, the number of channels with all features.
        Sites with fewer than 4 k such channels, or too few images for the target, have nan.

    Examples
    --------
    >>> from channelscope import collect, zoo
    >>> toy = zoo.toys.independent_channels()
    >>> frame = axis_clusters(collect(toy.model, toy.batches), k=2)
    >>> frame[["site", "n"]].values.tolist()  # five channels are too few for two clusters
    [['conv', 5]]

    References
    ----------
    Hubert & Arabie 1985; Rousseeuw 1987.
    """
    convention = ScoreOptions.of(options)
    rows = []
    for site in track(profile.sites, "clusters"):
        with at(site.name):
            layer = LayerStatistics(profile, site, profile.record(site), convention)
            rows.append({"site": site.name, "depth": site.depth, **_compare_partitions(layer, k, seed)})
    return fill(GROUPS, rows)


def _compare_partitions(layer: LayerStatistics, k: int, seed: int) -> dict[str, float]:
    """The row of one layer, without its site."""
    try:
        local, target = _cluster_features(layer)
    except SampleError:
        return {"n": 0}
    known = local.isfinite().all(1) & target.isfinite().all(1)
    local, target = local[known], target[known]
    if len(local) < 4 * k:
        return {"n": len(local)}
    local_labels, target_labels = kmeans_labels(local, k, seed), kmeans_labels(target, k, seed)
    ari, null = adjusted_rand(local_labels, target_labels), adjusted_rand_null(local_labels, target_labels, PERMUTATIONS, seed)
    return {
        "n": len(local),
        "ari": ari,
        "null_mean": float(null.mean()),
        "null_high": float(null.quantile(0.95)),
        "p": float(1 + (null >= ari).sum()) / (1 + PERMUTATIONS),
        "silhouette_local": silhouette(local, local_labels),
        "silhouette_target": silhouette(target, target_labels),
        "stability_local": cluster_stability(local, k),
        "stability_target": cluster_stability(target, k),
    }


def _cluster_features(layer: LayerStatistics) -> tuple[Float[Tensor, "channels local"], Float[Tensor, "channels target"]]:
    """Local and target features of one layer, one column each."""
    pair_excess = excess.formula(layer)
    local = [capture.formula(layer), overlap.formula(layer, ceiling=CEILING)]
    if layer.convention.paper:
        local.append(pair_excess)
    return torch.stack(local, 1), torch.stack([relevance.formula(layer), pair_excess], 1)


TASK_MASS = Schema(
    "task_mass",
    "site depth n images",
    {
        "duplicate": Column("nats", 3, "task information that peers duplicate: sum over channels of I_T times peer support", SOURCE),
        "nonreplaceable": Column(
            "nats", 3, "task information that peers cannot supply: sum over channels of I_T (1 − peer support)", SOURCE
        ),
        "task": Column("nats", 3, "task information of the layer's channels: sum of both masses", SOURCE),
        "duplicate_share": Column("fraction", 3, "duplicate part of the sum of both; undefined where that could be 0", SOURCE, 0.0, 1.0),
        "note": Column.text("why the share is undefined"),
    },
)

MASSES = ("duplicate", "nonreplaceable", "task", "duplicate_share")


def task_mass(profile: Profile, **options) -> pd.DataFrame:
    """Duplicate and non-replaceable task mass of every layer: Σ t_i E_i and Σ t_i (1 − E_i), t task information, E peer support.

    Task information is corrected for its bias, so that the sums do not grow with the number of channels that say nothing.
    Where the interval of Σ t_i covers 0, a share of it could be any number: it is undefined, with the reason.

    Parameters
    ----------
    profile
        Statistics of the network.
    **options
        Options of the scores: target, shrinkage, ….

    Returns
    -------
    DataFrame
        Table `task_mass`, one row per site: both sums and their total [nats] and the duplicate share of it, with jackknife intervals
        over image shards; n is the number of channels. All are nan where a score needs more images, the share also where the total
        could be 0; `note` says why.

    Examples
    --------
    >>> from channelscope import collect, zoo
    >>> toy = zoo.toys.suppressor_pair()
    >>> frame = task_mass(collect(toy.model, toy.batches))
    >>> frame[["site", "duplicate", "nonreplaceable", "n"]].round(3).values.tolist()
    [['conv', 0.126, 0.235, 3]]

    References
    ----------
    Later configurations of the code of Safaai et al. 2026. Ratios whose denominator could be 0: Fieller 1954.
    """
    convention = ScoreOptions.of(options)
    wanted = lookup(["duplicate_task", "nonreplaceable_task"])
    rows = []
    for site in track(profile.sites, "task masses"):
        with at(site.name):
            values, replicates = _values(profile, site, convention, wanted)
        rows.append({"site": site.name, "depth": site.depth, "images": profile.images, **_mass_row(values, replicates)})
    return fill(TASK_MASS, rows)


def _mass_row(values: dict[str, Tensor], replicates: list[dict[str, Tensor]]) -> dict[str, float | str]:
    """The row of one layer, without its site: every mass with its interval, the share only where the total is not about 0."""
    whole, parts = _masses(values), [_masses(each) for each in replicates]
    found = {name: jackknife_interval(whole[place], [part[place] for part in parts]) for place, name in enumerate(MASSES)}
    known = int(values["duplicate_task"].isfinite().sum())
    note = _why_no_share(found["task"]) if known else "there are too few images for the peer support of a channel"
    row: dict[str, float | str] = {"n": known}
    for name, each in found.items():
        ends = (each.value, each.low, each.high) if name != "duplicate_share" or not note else (float("nan"),) * 3
        row |= dict(zip((name, f"{name}_low", f"{name}_high"), ends, strict=True))
    return row | {"note": note}


def _why_no_share(task: Interval) -> str:
    """Why a share of this sum would say nothing: it could be 0; empty where it is above 0."""
    if task.value > 0 and not task.low <= 0:
        return ""
    return f"a share of {format_interval(task.value, task.low, task.high, digits=3)} nats of task information says nothing: it could be 0"


def _masses(values: dict[str, Tensor]) -> Float[Tensor, "4"]:
    """Sums of both masses, their total, and the duplicate share of it; nan where no channel has them."""
    duplicate, rest = (
        values[name].nansum() if bool(values[name].isfinite().any()) else torch.tensor(torch.nan, dtype=torch.float64)
        for name in ("duplicate_task", "nonreplaceable_task")
    )
    return torch.stack([duplicate, rest, duplicate + rest, duplicate / (duplicate + rest)])


LOCAL = ("capture", "overlap", "support", "rayleigh")

TARGET = ("relevance", "excess")

ALIGNMENT = Schema("alignment", "site depth local target rho low high n images")

ALIGNMENT_MEAN = Schema("alignment_mean", "local target rho low high n pooled")


def axis_alignment(
    profile: Profile, local_axis: Sequence[str] = LOCAL, target_axis: Sequence[str] = TARGET, **options
) -> dict[str, pd.DataFrame]:
    """Rank correlation of every local quantity with every target quantity, layer by layer and averaged over layers.

    Parameters
    ----------
    profile
        Statistics of the network.
    local_axis, target_axis
        Names of scores.
    **options
        Options of the scores: target, shrinkage, ….

    Returns
    -------
    dict[str, DataFrame]
        `alignment`: one row per site and pair, Spearman's rho over the site's channels with a jackknife interval over image
        shards, nan where a score needs more images. `alignment_mean`: one row per pair, the mean over layers with a bootstrap
        interval over layers, and `pooled`, rho over all channels at once, which mixes differences between layers in.

    Examples
    --------
    >>> from channelscope import collect, zoo
    >>> toy = zoo.toys.independent_channels()  # capture grows with the channel; the margin reads channels 0, 2 and 4
    >>> profile = collect(toy.model, toy.batches)
    >>> frame = axis_alignment(profile, ["capture"], ["capture", "relevance"])["alignment_mean"]
    >>> frame.set_index("target")["rho"].round(3).to_dict()
    {'capture': 1.0, 'relevance': 0.3}

    References
    ----------
    Spearman 1904; Safaai et al. 2026.
    """
    convention = ScoreOptions.of(options)
    pooled = {name: [] for name in (*local_axis, *target_axis)}
    rows = []
    for site in track(profile.sites, "alignment"):
        with at(site.name):
            values, replicates = _values(profile, site, convention, lookup((*local_axis, *target_axis)))
        for name, column in values.items():
            pooled[name].append(column)
        for local in local_axis:
            for target in target_axis:
                rho = spearman(values[local], values[target])
                low, high = _alignment_interval(rho, [spearman(each[local], each[target]) for each in replicates])
                rows.append(
                    {
                        "site": site.name,
                        "depth": site.depth,
                        "local": local,
                        "target": target,
                        "rho": float(rho),
                        "low": low,
                        "high": high,
                        "n": int((values[local].isfinite() & values[target].isfinite()).sum()),
                        "images": profile.images,
                    }
                )
    alignment = pd.DataFrame(rows)
    means = _over_layers(alignment, {name: torch.cat(parts) for name, parts in pooled.items()})
    return {"alignment": fill(ALIGNMENT, alignment), "alignment_mean": fill(ALIGNMENT_MEAN, means)}


def _values(
    profile: Profile, site: Site, convention: ScoreOptions, wanted: list[Score]
) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """Values of some scores for one layer, and the same with each shard of images left out."""
    layer = LayerStatistics(profile, site, profile.record(site), convention)
    left_out = profile.jackknife_records(site) if profile.shards > 1 else []
    return _columns(layer, wanted), [_columns(LayerStatistics(profile, site, record, convention), wanted) for record in left_out]


def _columns(layer: LayerStatistics, wanted: list[Score]) -> dict[str, Tensor]:
    """Values of some scores for one layer, nan where a score needs more images."""
    columns = {}
    for score in wanted:
        try:
            columns[score.name] = score.formula(layer).double()
        except SampleError:
            columns[score.name] = torch.full((layer.channels,), torch.nan, dtype=torch.float64)
    return columns


def _alignment_interval(rho: Tensor, replicates: list[Tensor]) -> tuple[float, float]:
    """Jackknife interval, clipped to −1 … 1; nan without shards."""
    interval = jackknife_interval(rho, replicates)
    return max(interval.low, -1.0), min(interval.high, 1.0)


def _over_layers(alignment: pd.DataFrame, pooled: dict[str, Tensor]) -> list[dict]:
    """Mean of rho over layers and pooled rho, one row per pair."""
    rows = []
    for (local, target), pairs in alignment.groupby(["local", "target"], sort=False):
        known = pairs["rho"].dropna()
        mean = bootstrap_mean(torch.tensor(known.to_numpy())) if len(known) > 1 else None
        rows.append(
            {
                "local": local,
                "target": target,
                "rho": mean.value if mean else float(known.mean()),
                "low": mean.low if mean else float("nan"),
                "high": mean.high if mean else float("nan"),
                "n": len(known),
                "pooled": float(spearman(pooled[local], pooled[target])),
            }
        )
    return rows
