"""Angle between the weight gradients of input capture and task information, in networks and in a simulation (mechanism of H2)."""

from collections.abc import Iterable, Iterator
from typing import Literal

import pandas as pd
import torch
from torch import nn

from channelscope.data.batches import batch_count, labeled_batches, on_device_of
from channelscope.errors import DataError, SiteError, check_choice
from channelscope.formulas.information import LinearAxes, information_step, linear_axes, network_step
from channelscope.formulas.intervals import bootstrap_mean, t_interval
from channelscope.formulas.ranks import spearman
from channelscope.network.module_state import eval_mode
from channelscope.network.patches import followable, patch_products, pooled_patches
from channelscope.network.sites import Sites
from channelscope.profiling.collect import trace_profiled
from channelscope.progress import progress_bar
from channelscope.site import Site
from channelscope.stats.profile import Profile
from channelscope.stats.tally import margin
from channelscope.tables.frame import fill
from channelscope.tables.quantities import PAPER, Column, Schema
from channelscope.types import Float, Tensor

Readout = Literal["positions", "pooled"]

COSINE = Column.correlation("Euclidean cosine of the two gradient directions", PAPER)

IDENTITY = Column("", 3, "|w'g| / (|w| |g|): zero but for rounding", PAPER, 0.0)

THEORY = Schema("gradients", "site depth channel capture relevance", {"cosine": COSINE, "identity": IDENTITY})

THEORY_LAYERS = Schema("gradient_layers", "site depth n", {"cosine": COSINE, "identity": IDENTITY})

THEORY_SKIPPED = Schema("gradient_skipped", "site reason")


def gradient_angles(
    model: nn.Module,
    profile: Profile,
    batches: Iterable,
    readout: Readout = "positions",
    sites: tuple[str, ...] | None = None,
    progress: bool = True,
) -> dict[str, pd.DataFrame]:
    """Cosine between the gradients of input capture and of task information with respect to each channel's own weights.

    Each layer is treated as linear channels Y = w'X of its input patches X, read before its activation, with the logit margin as
    target. The products Σw come from one pass over the images; Σ itself, with (C_in k²)² entries, is never formed.

    Parameters
    ----------
    model
        The profiled network.
    profile
        Its statistics, collected with labels.
    batches
        (images, labels) or (images, labels, index); as a rule the calibration images.
    readout
        What a sample is, for both gradients: every position of an image (with the image's target), or the image's average.
    sites
        Names of the sites to measure; by default all.
    progress
        Whether to draw a progress bar on a terminal.

    Returns
    -------
    dict[str, DataFrame]
        `gradients`: one row per channel: cosine, both informations in nats, and |w'g| / (|w| |g|) with g the gradient of task
        information, which is zero but for rounding. `gradient_layers`: mean |cosine| of each layer with a bootstrap interval over
        channels. `gradient_skipped`: sites that cannot be measured, with the reason.

    Raises
    ------
    MismatchError
        If the profile is of another network or other weights.
    DataError
        If the profile has no labels, or there are no images.
    InputError
        For an unknown readout.
    SiteError
        If no site can be measured.

    Examples
    --------
    >>> from channelscope import collect, zoo
    >>> toy = zoo.toys.independent_channels()  # inputs are uncorrelated with equal variances: the angle is right
    >>> profile = collect(toy.model, toy.batches)
    >>> frame = gradient_angles(toy.model, profile, toy.batches, progress=False)["gradient_layers"]
    >>> float(frame["cosine"].item()) < 1e-6
    True

    References
    ----------
    Safaai et al. 2026.
    """
    check_choice("readout", readout, ("positions", "pooled"))
    if "margin" not in profile.targets:
        raise DataError("the directions are those of the logit margin, and the profile was collected without labels")
    found = trace_profiled(model, profile)
    chosen = [site for site in profile.sites if sites is None or site.name in {found[name].name for name in sites}]
    skipped = {site.name: reason for site in chosen if (reason := followable(found.graph.modules[site.name]))}
    pairs = [_Pair(found.graph.modules[site.name], site, profile, readout) for site in chosen if site.name not in skipped]
    if not pairs:
        raise SiteError("; ".join(f"{name}: {reason}" for name, reason in skipped.items()) or "no site was chosen")
    _add_batches(found, pairs, batches, progress)
    rows, layers = [], []
    for pair in pairs:
        axes, identity = pair.axes()
        rows.append(_channel_rows(pair.site, axes, identity))
        mean = bootstrap_mean(axes.cosine.abs())
        where = {"site": pair.site.name, "depth": pair.site.depth}
        ends = {"cosine": mean.value, "cosine_low": mean.low, "cosine_high": mean.high}
        layers.append({**where, **ends, "identity": float(identity.max()), "n": mean.n})
    return {
        "gradients": fill(THEORY, pd.concat(rows, ignore_index=True)),
        "gradient_layers": fill(THEORY_LAYERS, layers),
        "gradient_skipped": fill(THEORY_SKIPPED, [{"site": name, "reason": reason} for name, reason in skipped.items()]),
    }


def _add_batches(found: Sites, pairs: list["_Pair"], batches: Iterable, progress: bool) -> None:
    """Run every batch once and add what each layer needs to its sums."""
    inputs = [found.graph.nodes[pair.site.preactivation].all_input_nodes[0].name for pair in pairs]
    wanted = tuple(dict.fromkeys([*inputs, *(pair.site.preactivation for pair in pairs), "output"]))
    model = found.graph.model
    device = next(model.parameters()).device
    with eval_mode(model), torch.no_grad(), progress_bar("directions", batch_count(batches), progress) as step:
        for images, labels, _ in labeled_batches(batches):
            values = dict(zip(wanted, found.graph.run(on_device_of(images, model), outputs=wanted, out_of_place=True), strict=True))
            target = margin(values["output"].double(), labels.to(device)).cpu()
            for pair, source in zip(pairs, inputs, strict=True):
                pair.add(values[source], values[pair.site.preactivation], target)
            step(1)


class _Pair:
    """Cov(X, Y) and Cov(X, T) of one layer, summed batch by batch; outputs and target are centered by the profile's means."""

    def __init__(self, module: nn.Module, site: Site, profile: Profile, readout: Readout):
        self.module, self.site, self.readout = module, site, readout
        pooled = profile.record(site).pooled
        self.center, self.middle = pooled.mean[: site.channels], float(pooled.mean[site.channels + profile.targets.index("margin")])
        self.weights = module.weight.detach().double().cpu().flatten(1)  # type: ignore[union-attr,operator]
        self.groups = site.groups
        self.count = 0.0
        taps = self.weights.shape[1]
        self.with_outputs, self.outputs = torch.zeros(site.channels, taps).double(), torch.zeros(site.channels).double()
        self.with_target, self.inputs = (torch.zeros(self.groups, taps).double() for _ in range(2))
        self.target, self.square = 0.0, 0.0

    def add(self, inputs: Tensor, outputs: Tensor, target: Float[Tensor, "images"]) -> None:
        """Add one batch."""
        shape = [-1 if axis == self.site.channel_axis + 1 else 1 for axis in range(outputs.dim())]
        centered = outputs - self.center.to(outputs).view(shape)
        deviation = target - self.middle
        if self.readout == "pooled":
            self._add_pooled(inputs, centered, deviation)
            return
        positions = self.site.positions
        constant = outputs.narrow(self.site.channel_axis + 1, 0, self.groups)
        ones = torch.ones_like(constant)
        repeated = deviation.to(outputs).view(-1, *[1] * (outputs.dim() - 1)) * ones
        self.with_outputs += patch_products(self.module, inputs, centered).cpu()  # type: ignore[arg-type]
        self.with_target += patch_products(self.module, inputs, repeated).cpu()  # type: ignore[arg-type]
        self.inputs += patch_products(self.module, inputs, ones).cpu()  # type: ignore[arg-type]
        self._sums(centered.double().movedim(self.site.channel_axis + 1, -1).flatten(0, -2).sum(0).cpu(), deviation, positions)

    def _add_pooled(self, inputs: Tensor, centered: Tensor, deviation: Tensor) -> None:
        """Add one batch of averages over positions."""
        patches = pooled_patches(self.module, inputs, tuple(centered.shape[2:])).double().cpu()  # type: ignore[arg-type]
        flat = centered.double().movedim(self.site.channel_axis + 1, 1)
        own = (flat.flatten(2).mean(2) if flat.dim() > 2 else flat).cpu()
        grouped = own.unflatten(1, (self.groups, -1))
        self.with_outputs += torch.einsum("bgo,bgt->got", grouped, patches).flatten(0, 1)
        self.with_target += torch.einsum("b,bgt->gt", deviation, patches)
        self.inputs += patches.sum(0)
        self._sums(own.sum(0), deviation, 1)

    def _sums(self, outputs: Tensor, deviation: Tensor, positions: int) -> None:
        """Add the sums that center the products."""
        self.outputs += outputs
        self.target += float(deviation.sum()) * positions
        self.square += float(deviation.square().sum()) * positions
        self.count += len(deviation) * positions

    def axes(self) -> tuple[LinearAxes, Float[Tensor, "channels"]]:
        """Both gradients of every channel, and |w'g| / (|w| |g|)."""
        if not self.count:
            raise DataError("there are no images to measure on: the batches are empty")
        mean = self.inputs / self.count
        own = mean.repeat_interleave(self.site.channels // self.groups, 0)
        product = self.with_outputs / self.count - own * (self.outputs / self.count)[:, None]
        cross = self.with_target / self.count - mean * (self.target / self.count)
        variance = self.square / self.count - (self.target / self.count) ** 2
        power = (self.weights * product).sum(1)
        noise = float(power[power > 0].median()) if bool((power > 0).any()) else float("nan")
        blocks = [
            linear_axes(weights, products, column, variance, noise)
            for weights, products, column in zip(self.weights.chunk(self.groups), product.chunk(self.groups), cross, strict=True)
        ]
        axes = LinearAxes(*(torch.cat([getattr(block, name) for block in blocks]) for name in LinearAxes.__dataclass_fields__))
        identity = (self.weights * axes.residual).sum(1).abs() / (self.weights.norm(dim=1) * axes.residual.norm(dim=1))
        return axes, identity


def _channel_rows(site: Site, axes: LinearAxes, identity: Tensor) -> pd.DataFrame:
    """Rows of `gradients` for one site."""
    columns = {"cosine": axes.cosine, "capture": axes.capture, "relevance": axes.relevance, "identity": identity}
    return pd.DataFrame(
        {"site": site.name, "depth": site.depth, "channel": range(site.channels), **{name: part.numpy() for name, part in columns.items()}}
    )


STRONG = 10.0
"""Variance of the one strong input direction; all others have 1."""

SHARE = 0.6
"""Fraction of the predictable target that lies on it."""

NOISE = 0.25
"""Variance of the unpredictable part of the target, over that of the predictable part."""

OUTPUT_WEIGHTS = 0.125
"""Standard deviation of the linear network's initial output weights."""

RATES = {"channels": 0.02, "network": 0.002}
"""System → step size."""


SIMULATION = Schema(
    "simulation",
    "n capture relevance",
    {
        "system": Column.text("what follows the gradient: single channels, or a linear network"),
        "step": Column.count("gradient steps"),
        "alignment": Column.correlation("Spearman's rho of input capture and task information over the channels", "Spearman 1904"),
        "cosine": COSINE,
    },
)


def simulate(
    channels: int = 64, inputs: int = 24, steps: int = 300, every: int = 10, seeds: int = 5, isotropic: bool = False
) -> dict[str, pd.DataFrame]:
    """Alignment of input capture and task information while channels learn, in two systems.

    In `channels` each channel ascends its own task information. In `network` the channels are the hidden layer of a linear network
    that descends its squared error. One input direction has a large variance and most of the target, so that random channels
    aligned with it have both more variance and more task information.

    Parameters
    ----------
    channels
        Number of channels.
    inputs
        Number of inputs.
    steps
        Number of gradient steps.
    every
        Steps between two rows of the table.
    seeds
        Number of independent starts.
    isotropic
        Whether all input directions have the same variance: the control, in which the gradients are orthogonal.

    Returns
    -------
    dict[str, DataFrame]
        `simulation`: one row per system and step: Spearman's rho of the two quantities (alignment), mean |cosine| of their
        gradients and the mean informations in nats, each the mean over seeds with a 95 % Student interval.

    Examples
    --------
    >>> frame = simulate(channels=8, inputs=4, steps=2, every=1, seeds=2, isotropic=True)["simulation"]
    >>> len(frame), bool((frame["cosine"] < 1e-6).all())
    (6, True)
    """
    rows = []
    for system in RATES:
        runs = [list(_run_training(system, channels, inputs, steps, every, seed, isotropic)) for seed in range(seeds)]
        for at_step in zip(*runs, strict=True):
            row = {"system": system, "step": at_step[0]["step"], "n": seeds}
            for name in ("alignment", "cosine", "capture", "relevance"):
                row[name], row[f"{name}_low"], row[f"{name}_high"] = t_interval([one[name] for one in at_step])
            rows.append(row)
    return {"simulation": fill(SIMULATION, rows)}


def problem(inputs: int, seed: int, isotropic: bool = False) -> tuple[Float[Tensor, "inputs inputs"], Float[Tensor, "inputs"], float]:
    """Covariances of the simulation's inputs and target.

    Parameters
    ----------
    inputs
        Number of inputs.
    seed
        Seed of the directions.
    isotropic
        Whether all input directions have the same variance.

    Returns
    -------
    tuple[Tensor, Tensor, float]
        Σ (inputs, inputs), Cov(X, T) (inputs,) and Var T. The part of T that the inputs predict has variance 1.

    Examples
    --------
    >>> covariance, cross, variance = problem(inputs=4, seed=0)
    >>> round(float(covariance.trace()), 3), variance  # 10 + 3 · 1
    (13.0, 1.25)
    >>> round(float(cross @ torch.linalg.solve(covariance, cross)), 3)
    1.0
    """
    source = torch.Generator().manual_seed(seed)
    frame = torch.linalg.qr(torch.randn(inputs, inputs, generator=source, dtype=torch.float64)).Q
    variances = torch.ones(inputs, dtype=torch.float64)
    if not isotropic:
        variances[0] = STRONG
    remaining = torch.randn(inputs - 1, generator=source, dtype=torch.float64)
    share = torch.cat([torch.tensor([SHARE]).double(), (1 - SHARE) * remaining.square() / remaining.square().sum()])
    slopes = (share / variances).sqrt() * torch.cat([torch.ones(1).double(), remaining.sign()])
    covariance = frame @ torch.diag(variances) @ frame.T
    return covariance, covariance @ (frame @ slopes), 1 + NOISE


def _run_training(system: str, channels: int, inputs: int, steps: int, every: int, seed: int, isotropic: bool) -> Iterator[dict]:
    """Numbers of one run at every recorded step."""
    covariance, cross, variance = problem(inputs, seed, isotropic)
    source = torch.Generator().manual_seed(seed + 1_000_003)
    weights = torch.randn(channels, inputs, generator=source, dtype=torch.float64) / inputs**0.5
    readout = OUTPUT_WEIGHTS * torch.randn(channels, generator=source, dtype=torch.float64)
    for step in range(steps + 1):
        if step % every == 0:
            axes = linear_axes(weights, weights @ covariance, cross, variance)
            yield {"step": step, **_numbers_at_step(axes)}
        if system == "channels":
            weights = information_step(weights, covariance, cross, variance, RATES[system])
        else:
            weights, readout = network_step(weights, readout, covariance, cross, RATES[system])


def _numbers_at_step(axes: LinearAxes) -> dict[str, float]:
    """Alignment, mean |cosine| and mean informations of the channels at one step."""
    return {
        "alignment": float(spearman(axes.capture, axes.relevance)),
        "cosine": float(axes.cosine.abs().nanmean()),
        "capture": float(axes.capture.mean()),
        "relevance": float(axes.relevance.mean()),
    }
