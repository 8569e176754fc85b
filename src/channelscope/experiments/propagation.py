"""Propagation: rank correlation of the scores of connected layers, within and across the two axes (H3)."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd
import torch
from torch import nn

from channelscope.errors import SampleError, at
from channelscope.formulas.information import CEILING
from channelscope.formulas.intervals import bootstrap_mean, permutation_p
from channelscope.formulas.ranks import partial_correlation, ranks
from channelscope.network.operations import layer_of
from channelscope.network.sites import InputChannels, consumers
from channelscope.profiling.collect import trace_profiled
from channelscope.progress import track
from channelscope.scores.axes import capture, excess, overlap, relevance
from channelscope.scores.score import LayerStatistics, ScoreOptions
from channelscope.site import Site
from channelscope.stats.profile import Profile
from channelscope.tables.frame import fill
from channelscope.tables.quantities import HEADLINE, Column, Schema
from channelscope.types import Bool, Float, Tensor

LOCAL = HEADLINE[:2]

LEAST = 8
"""Channels below which a layer has no partial correlation with two quantities held equal."""


@dataclass(frozen=True, eq=False)
class Connection:
    """A layer and a layer that reads it, with no layer in between."""

    site: Site
    """the layer that is read"""
    consumer: Site
    """the layer that reads it"""
    summed: bool
    """whether through a residual sum"""
    influence: Float[Tensor, "channels consumers"]
    """|W[j, i]|₁ · standard deviation of channel i at its cut point"""


MEAN = {
    "axes": Column.text("from which axis to which"),
    "rho": Column.correlation("partial rank correlation with the two upstream means of the other axis held equal", "Spearman 1904"),
    "plain": Column.correlation("the same rank correlation with nothing held equal"),
}

PAIR = {
    "upstream": Column.text("quantity of the channels that are read"),
    "downstream": Column.text("quantity of the channels that read them"),
    "pair": Column.text("from which quantity to which"),
}

PROPAGATION = Schema("propagation", "site depth note null_mean p n", {"consumer": Column.text("the layer that reads"), **PAIR, **MEAN})

PROPAGATION_MEAN = Schema("propagation_mean", "low high null_mean p n", {**PAIR, **MEAN})

PROPAGATION_AXES = Schema("propagation_axes", "low high null_mean p n", MEAN)


def axis_propagation(model: nn.Module, profile: Profile, permutations: int = 200, seed: int = 0, **options) -> dict[str, pd.DataFrame]:
    """Partial rank correlation of each layer's quantities with the influence-weighted mean of the layer it reads.

    For every channel j of a reading layer the upstream mean of a quantity is Σ_i influence_ij q_i / Σ_i influence_ij. A
    correlation holds the two upstream means of the other axis equal, so that an effect along one axis is not credited to the
    other. The null shuffles the quantities among the upstream channels; the weights and all marginals stay.

    Parameters
    ----------
    model
        The profiled network.
    profile
        Its statistics.
    permutations
        Number of shuffles.
    seed
        Seed of the shuffles.
    **options
        Options of the scores: target, shrinkage, ….

    Returns
    -------
    dict[str, DataFrame]
        `propagation`: one row per connection and pair of quantities. `propagation_mean`: one row per pair, the mean over
        connections with a bootstrap interval over connections and the permutation p-value of that mean. `propagation_axes`: the
        same for the four pairs of axes.

    Raises
    ------
    MismatchError
        If the profile is of another network or other weights.
    SampleError
        If no connection has at least 8 channels on both sides.

    Examples
    --------
    >>> from channelscope import collect
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 2))
    >>> with torch.no_grad():
    ...     _ = model[1].weight.copy_(torch.eye(12)[:, :, None, None])  # every channel copies one channel
    >>> batches = [(torch.randn(100, 3, 4, 4), torch.arange(100) % 2)]
    >>> tables = axis_propagation(model.eval(), collect(model, batches), permutations=50)
    >>> tables["propagation_mean"].set_index("pair").loc["capture → capture", "rho"].round(3)
    np.float64(1.0)

    References
    ----------
    Safaai et al. 2026.
    """
    convention = ScoreOptions.of(options)
    values = _values(profile, convention)
    rows, drawn = [], []
    for number, connection in enumerate(connections(model, profile)):
        upstream, downstream = values[connection.site.name], values[connection.consumer.name]
        source = torch.Generator().manual_seed(seed * 1_000_003 + number)
        for (one, other), (rho, plain, n) in _correlations(connection.influence, upstream, downstream, permutations, source).items():
            rows.append(
                {
                    "site": connection.site.name,
                    "depth": connection.site.depth,
                    "consumer": connection.consumer.name,
                    "note": "through a residual sum" if connection.summed else "",
                    "upstream": one,
                    "downstream": other,
                    "pair": f"{one} → {other}",
                    "axes": _axes(one, other),
                    "rho": float(rho[0]),
                    "plain": plain,
                    "null_mean": float(rho[1:].mean()),
                    "p": float(permutation_p(rho[0].abs(), rho[1:].abs())),
                    "n": n,
                }
            )
            drawn.append(rho)
    if not rows:
        raise SampleError(
            f"no layer reads another one channel by channel with at least {LEAST} channels on both sides: there is nothing to follow"
        )
    frame, every = pd.DataFrame(rows), torch.stack(drawn)
    return {
        "propagation": fill(PROPAGATION, frame),
        "propagation_mean": fill(PROPAGATION_MEAN, _means(frame, every, ["axes", "pair", "upstream", "downstream"])),
        "propagation_axes": fill(PROPAGATION_AXES, _means(frame, every, ["axes"])),
    }


def connections(model: nn.Module, profile: Profile) -> Iterator[Connection]:
    """Every pair of sites of which one reads the other with no layer in between, found in the traced graph.

    Layers whose inputs mix several channels of the site, as behind a LayerNorm, are left out.

    Parameters
    ----------
    model
        The profiled network.
    profile
        Its statistics.

    Returns
    -------
    Iterator[Connection]
        By the depth of the site that is read.

    Examples
    --------
    >>> from channelscope import collect, zoo
    >>> toy = zoo.toys.residual_pair()  # a stem, and a block of two convolutions added to the stem
    >>> [(each.site.name, each.consumer.name) for each in connections(toy.model, collect(toy.model, toy.batches))]
    [('stem', 'inner'), ('inner', 'outer')]
    """
    found = trace_profiled(model, profile)
    inputs = InputChannels(found)
    known = {site.name: site for site in profile.sites}
    for site in track(profile.sites, "connections"):
        every = [each for each in consumers(found.graph, site) if each.layer in known]
        marks = inputs.by_layer(site) if every else {}
        spread = profile.record(site).activation.variance.sqrt()
        for each in every:
            if bool((marks[each.layer].sum(0) <= 1).all()):
                strength = _connection_strength(found.graph.modules[each.layer], marks[each.layer])
                yield Connection(site, known[each.layer], each.through_sum, spread[:, None] * strength)


def _connection_strength(module: nn.Module, marks: Bool[Tensor, "channels inputs"]) -> Float[Tensor, "channels consumers"]:
    """Summed absolute weights from each channel of a site to each output of its consumer."""
    layer = layer_of(module)
    assert layer is not None
    norms = torch.block_diag(*layer.split(module.weight.detach().double().cpu()).abs().sum(3))  # type: ignore[operator,union-attr]
    return marks.double() @ norms.T


def _values(profile: Profile, convention: ScoreOptions) -> dict[str, Float[Tensor, "channels quantities"]]:
    """Site → the four quantities of its channels; nan where they are undefined."""
    values = {}
    for site in profile.sites:
        with at(site.name):
            layer = LayerStatistics(profile, site, profile.record(site), convention)
            quantities = [capture.formula(layer), overlap.formula(layer, ceiling=CEILING), relevance.formula(layer), excess.formula(layer)]
            values[site.name] = torch.stack([each.double() for each in quantities], 1)
    return values


def _correlations(
    influence: Tensor, upstream: Tensor, downstream: Tensor, permutations: int, source: torch.Generator
) -> dict[tuple[str, str], tuple[Float[Tensor, "draws"], float, int]]:
    """Pair of quantities → partial correlation (draw 0: the data; then shuffled), the plain correlation, and the number of channels."""
    valid = ~upstream.isnan().any(1)
    values, weights = upstream[valid], influence[valid]
    read = (weights.sum(0) > 0) & ~downstream.isnan().any(1)
    n = int(read.sum())
    if min(n, len(values)) < LEAST:
        return {}
    share = weights[:, read] / weights[:, read].sum(0)
    orders = torch.stack([torch.arange(len(values)), *(torch.randperm(len(values), generator=source) for _ in range(permutations))])
    means = ranks((share.T @ values[orders]).transpose(1, 2))
    downstream_ranks = ranks(downstream[read].T)
    found = {}
    for (i, one), (j, other) in itertools.product(enumerate(HEADLINE), enumerate(HEADLINE)):
        held = [k for k, name in enumerate(HEADLINE) if (name in LOCAL) != (one in LOCAL)]
        columns = torch.stack([means[:, i], downstream_ranks[j].expand(len(means), n), *(means[:, k] for k in held)], 2)
        rho, plain = partial_correlation(columns), float(partial_correlation(columns[0, :, :2]))
        if not rho.isnan().any():
            found[one, other] = (rho, plain, n)
    return found


def _axes(one: str, other: str) -> str:
    """The axes of two quantities, as "local → target"."""
    return f"{'local' if one in LOCAL else 'target'} → {'local' if other in LOCAL else 'target'}"


def _means(frame: pd.DataFrame, drawn: Float[Tensor, "rows draws"], by: list[str]) -> list[dict]:
    """Means over connections of the rows that agree in `by`, with an interval over connections and the p-value of the mean."""
    rows = []
    for key, places in frame.groupby(by, sort=False).indices.items():
        group, chosen = frame.iloc[places], drawn[torch.as_tensor(places)]
        by_connection = group.groupby(["site", "consumer"], sort=False)["rho"].mean()
        ends = bootstrap_mean(torch.tensor(by_connection.to_numpy()))
        null = chosen.mean(0)
        rows.append(
            {
                **dict(zip(by, key if isinstance(key, tuple) else (key,), strict=True)),
                "rho": float(by_connection.mean()),
                "low": ends.low,
                "high": ends.high,
                "plain": float(group["plain"].mean()),
                "null_mean": float(null[1:].mean()),
                "p": float(permutation_p(null[0].abs(), null[1:].abs())),
                "n": len(by_connection),
            }
        )
    return rows
