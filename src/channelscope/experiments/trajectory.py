"""Training trajectory: hulls, target excess, communities and alignment of the axes at every checkpoint (H2)."""

from collections.abc import Iterable, Iterator

import numpy as np
import pandas as pd

from channelscope.errors import InputError, SampleError, at
from channelscope.experiments.communities import pair_matrices
from channelscope.experiments.hulls import HullOptions
from channelscope.formulas.clustering import communities
from channelscope.formulas.information import CEILING
from channelscope.formulas.intervals import t_interval
from channelscope.formulas.ranks import spearman
from channelscope.scores.axes import overlap, triplet_excess_by_layer
from channelscope.scores.score import REGISTRY, LayerStatistics, ScoreOptions
from channelscope.site import Site
from channelscope.stats.profile import Profile
from channelscope.tables.frame import fill
from channelscope.tables.quantities import HEADLINE, OURS, PAPER, Column, Schema

PUBLISHED = {"hull_size": (3.08, 4.27), "saturated": (0.067, 0.195), "ratio": (0.192, 0.381), "capture_relevance": (0.71, 0.22)}
"""Quantity → at the start and at the end of training, as published (Safaai et al. 2026: six layers, 2,000 images)"""

LOCAL, TARGET = HEADLINE[:2], HEADLINE[2:]


TRAJECTORY_LAYERS = Schema(
    "trajectory_layers",
    "site depth epoch accuracy support",
    {
        "run": Column.text("training run"),
        "hull_size": Column("members", 3, "peers in a channel's replaceability hull", PAPER, 0.0),
        "saturated": Column.fraction("share of channels whose hull is full before the threshold is reached", PAPER),
        "triple": Column("nats", 4, "S3: what three channels say about the target beyond their best pair", PAPER, 0.0),
        "ratio": Column("", 3, "S3/S2: triplet excess over the pair excess inside the same triples", PAPER, 0.0),
        "modularity_r": Column.correlation("modularity of the R-graph", PAPER),
        "modularity_s": Column.correlation("modularity of the S-graph", PAPER),
        "gap": Column("", 3, "modularity of the R-graph minus that of the S-graph", PAPER),
        **{
            f"{one}_{other}": Column.correlation(f"Spearman's rho of {one} and {other} over a layer's channels")
            for one in LOCAL
            for other in TARGET
        },
    },
)

QUANTITY = Column.text("column of `trajectory_layers`")

TRAJECTORY = Schema(
    "trajectory", "epoch low high n", {"quantity": QUANTITY, "value": Column("", 4, "mean over the runs of the mean over layers", OURS)}
)

TRAJECTORY_CHANGE = Schema(
    "trajectory_change",
    "n",
    {
        "quantity": QUANTITY,
        "first": Column("", 4, "mean over the runs at the first epoch", OURS),
        "last": Column("", 4, "mean over the runs at the last epoch", OURS),
        "change": Column("", 4, "last minus first epoch, paired within runs", OURS),
        "published_first": Column("", 3, "as published, at the start of training", PAPER),
        "published_last": Column("", 3, "as published, at the end of training", PAPER),
        "verdict": Column.text("whether the published direction holds, is reversed, or is open (the interval over runs contains zero)"),
    },
)


def training_trajectory(
    stages: Iterable[tuple[str, int, Profile]], layers: int | None = 6, rule: HullOptions | None = None, triples: int = 2000, **options
) -> dict[str, pd.DataFrame]:
    """Every quantity at every checkpoint of one or more training runs, as curves with intervals over the runs.

    Parameters
    ----------
    stages
        (run, epoch, profile) of the same images; epoch 0 is the initialization.
    layers
        Number of layers measured, evenly spaced in depth; None for all.
    rule
        How hulls grow; by default `HullOptions()`.
    triples
        Number of sampled triples of channels for S3.
    **options
        Options of the scores: target, shrinkage, ….

    Returns
    -------
    dict[str, DataFrame]
        `trajectory_layers`: one row per run, epoch and layer. `trajectory`: one row per epoch and quantity, the mean over
        runs of the mean over layers, with a 95 % Student interval over runs. `trajectory_change`: last minus first epoch, paired
        within runs, with the published values.

    Raises
    ------
    SampleError
        Without stages.

    Examples
    --------
    >>> from channelscope import collect, zoo
    >>> toy = zoo.toys.exact_copy()
    >>> profile = collect(toy.model, toy.batches)
    >>> frame = training_trajectory([("seed0", 0, profile), ("seed0", 1, profile)])["trajectory_change"]
    >>> frame.set_index("quantity").loc["hull_size", ["first", "last", "change"]].tolist()  # the same profile twice
    [1.0, 1.0, 0.0]

    References
    ----------
    Safaai et al. 2026.
    """
    rule = rule or HullOptions()
    convention = ScoreOptions.of(options)
    rows = []
    for run, epoch, profile in stages:
        for site in spaced_sites(profile.sites, layers):
            with at(f"epoch {epoch} of {run}, {site.name}"):
                layer = LayerStatistics(profile, site, profile.record(site), convention)
                where = {"run": str(run), "epoch": epoch, "site": site.name, "depth": site.depth}
                rows.append(where | {"accuracy": profile.tally.accuracy} | _quantities(layer, rule, triples))
    if not rows:
        raise SampleError("a trajectory needs at least one checkpoint, received none")
    frame = pd.DataFrame(rows)
    means = frame.drop(columns=["site", "depth"]).groupby(["run", "epoch"], sort=False).mean()
    return {
        "trajectory_layers": fill(TRAJECTORY_LAYERS, frame),
        "trajectory": fill(TRAJECTORY, _curves(means)),
        "trajectory_change": fill(TRAJECTORY_CHANGE, _changes(means)),
    }


def spaced_sites(sites: tuple[Site, ...], layers: int | None) -> list[Site]:
    """Sites evenly spaced in depth: the first, the last, and others between them.

    Parameters
    ----------
    sites
        All sites, in execution order.
    layers
        Number of sites; None for all.

    Returns
    -------
    list[Site]
        At most `layers` sites, in execution order.

    Raises
    ------
    InputError
        For fewer than one.

    Examples
    --------
    >>> from channelscope import collect, zoo
    >>> toy = zoo.toys.residual_pair()
    >>> [site.name for site in spaced_sites(collect(toy.model, toy.batches).sites, 2)]
    ['stem', 'outer']
    """
    if layers is not None and layers < 1:
        raise InputError(f"layers: expected at least 1, received {layers}")
    if layers is None or layers >= len(sites):
        return list(sites)
    return [sites[place] for place in np.linspace(0, len(sites) - 1, layers).round().astype(int)]


def _quantities(layer: LayerStatistics, rule: HullOptions, triples: int) -> dict[str, float]:
    """All quantities of one layer."""
    hulls = rule(layer)
    alive = ~hulls.support.isnan()
    triple, ratio = triplet_excess_by_layer(layer, triples)
    modularity_r, modularity_s = (communities(pairs).modularity for pairs in pair_matrices(layer).values())
    quantities = {
        "hull_size": float(hulls.size[alive].double().mean()),
        "saturated": float(hulls.saturated[alive].double().mean()),
        "support": float(hulls.support.nanmean()),
        "triple": triple,
        "ratio": ratio,
        "modularity_r": modularity_r,
        "modularity_s": modularity_s,
        "gap": modularity_r - modularity_s,
    }
    for one in LOCAL:
        values = REGISTRY[one].formula(layer, **({"ceiling": CEILING} if one == overlap.name else {}))
        for other in TARGET:
            quantities[f"{one}_{other}"] = float(spearman(values, REGISTRY[other].formula(layer)))
    return quantities


def _curves(means: pd.DataFrame) -> Iterator[dict]:
    """Rows of `trajectory`."""
    for epoch, runs in means.groupby("epoch"):
        for quantity in means.columns:
            yield {"epoch": epoch, "quantity": quantity, **_band(runs[quantity].to_numpy())}


def _changes(means: pd.DataFrame) -> Iterator[dict]:
    """Rows of `trajectory_change`; the direction holds where the interval over runs excludes zero on the published side."""
    runs = [own.droplevel("run").sort_index() for _, own in means.groupby("run", sort=False)]
    first, last = (pd.DataFrame([own.iloc[place] for own in runs]).reset_index(drop=True) for place in (0, -1))
    for quantity in means.columns:
        change = _band((last[quantity] - first[quantity]).to_numpy())
        start, end = PUBLISHED.get(quantity, (float("nan"), float("nan")))
        yield {
            "quantity": quantity,
            "first": float(first[quantity].mean()),
            "last": float(last[quantity].mean()),
            "change": change["value"],
            "change_low": change["low"],
            "change_high": change["high"],
            "n": change["n"],
            "published_first": start,
            "published_last": end,
            "verdict": _verdict(change, end - start),
        }


def _verdict(change: dict[str, float], published: float) -> str:
    """holds, reversed or open; empty where nothing was published."""
    if np.isnan(published):
        return ""
    if not change["low"] * change["high"] > 0:
        return "open"
    return "holds" if change["value"] * published > 0 else "reversed"


def _band(values: np.ndarray) -> dict[str, float]:
    """Mean over runs with its Student interval; nan values are left out."""
    mean, low, high = t_interval(values)
    return {"value": mean, "low": low, "high": high, "n": int((~np.isnan(values)).sum())}
