"""The angle between the gradients of the two axes in a trained network and in simulations (the mechanism of H2)."""

from collections.abc import Iterable, Iterator
from typing import Literal

import pandas as pd
import torch
from scipy import stats
from torch import nn

from channelscope.data.batches import batch_count, labeled_batches, on_device_of
from channelscope.errors import DataError, InputError, SiteError
from channelscope.experiments.columns import table
from channelscope.formulas.gradients import LinearAxes, information_step, linear_axes, network_step
from channelscope.formulas.ranks import spearman
from channelscope.formulas.resampling import bootstrap_mean
from channelscope.network.module_state import eval_mode
from channelscope.network.patches import followable, patch_products, pooled_patches
from channelscope.network.sites import Sites
from channelscope.profiling.store import trace_profiled
from channelscope.progress import progress_bar
from channelscope.site import Site
from channelscope.stats.profile import Profile
from channelscope.stats.tally import margin
from channelscope.types import Float, Tensor

Readout = Literal["positions", "pooled"]


def gradient_angles(
    model: nn.Module,
    profile: Profile,
    batches: Iterable,
    readout: Readout = "positions",
    sites: tuple[str, ...] | None = None,
    progress: bool = True,
) -> dict[str, pd.DataFrame]:
    """Cosine of the gradients of input capture and task information with respect to each channel's own weights.

    Each layer is taken as what it is at its read point, linear channels Y = w'X of patches X, with the logit margin as target. The
    products Σw come from one pass; Σ itself, which has (C_in k²)² entries, is never formed.

    progress draw a bar with the time left on a terminal

    Parameters
    ----------
    batches
        (images, labels) or (images, labels, index); as a rule the calibration images.
    readout
        What a sample is, for both gradients: every position of an image (the target repeated), or the image's average.
    sites
        Sites to look at; by default all.

    Returns
    -------
    dict[str, pd.DataFrame]
        `gradients`: one row per channel: cosine, both informations, and the identity w'g = 0 relative to |w| |g|;
        `gradient_layers`: mean |cosine| of each layer with a bootstrap interval over channels; `gradient_skipped`: site and
        reason.

    Raises
    ------
    MismatchError
        If the profile is of another network or other weights.
    SiteError
        Where nothing is left.
    """
    if readout not in ("positions", "pooled"):
        raise InputError(f'readout is "positions" or "pooled", received {readout!r}')
    if "margin" not in profile.targets:
        raise DataError("the directions are those of the logit margin, and the profile was collected without labels")
    found = trace_profiled(model, profile)
    chosen = [site for site in profile.sites if sites is None or site.name in {found[name].name for name in sites}]
    skipped = {site.name: reason for site in chosen if (reason := followable(found.graph.modules[site.name]))}
    pairs = [_Pair(found.graph.modules[site.name], site, profile, readout) for site in chosen if site.name not in skipped]
    if not pairs:
        raise SiteError("; ".join(f"{name}: {reason}" for name, reason in skipped.items()) or "no site was chosen")
    _passed_weights(found, pairs, batches, progress)
    rows, layers = [], []
    for pair in pairs:
        axes, identity = pair.axes()
        rows.append(_channel_rows(pair.site, axes, identity))
        mean = bootstrap_mean(axes.cosine.abs())
        where = {"site": pair.site.name, "depth": pair.site.depth}
        ends = {"cosine": mean.value, "cosine_low": mean.low, "cosine_high": mean.high}
        layers.append({**where, **ends, "identity": float(identity.max()), "n": mean.n})
    return {
        "gradients": table("gradients", pd.concat(rows, ignore_index=True)),
        "gradient_layers": table("gradient_layers", layers),
        "gradient_skipped": table("gradient_skipped", pd.DataFrame(list(skipped.items()), columns=["site", "reason"])),
    }


def _passed_weights(found: Sites, pairs: list["_Pair"], batches: Iterable, progress: bool) -> None:
    """Every batch through the network once, and what each pair needs of it added up."""
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
    """Cov(X, Y) and Cov(X, T) of one layer, growing batch by batch; outputs and target are centred by the profile's means first."""

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
        """Take over one batch."""
        shape = [-1 if axis == self.site.channel_axis + 1 else 1 for axis in range(outputs.dim())]
        rest = outputs - self.center.to(outputs).view(shape)
        gap = target - self.middle
        if self.readout == "pooled":
            self._add_pooled(inputs, rest, gap)
            return
        positions = self.site.positions
        constant = outputs.narrow(self.site.channel_axis + 1, 0, self.groups)
        ones = torch.ones_like(constant)
        repeated = gap.to(outputs).view(-1, *[1] * (outputs.dim() - 1)) * ones
        self.with_outputs += patch_products(self.module, inputs, rest).cpu()  # type: ignore[arg-type]
        self.with_target += patch_products(self.module, inputs, repeated).cpu()  # type: ignore[arg-type]
        self.inputs += patch_products(self.module, inputs, ones).cpu()  # type: ignore[arg-type]
        self._sums(rest.double().movedim(self.site.channel_axis + 1, -1).flatten(0, -2).sum(0).cpu(), gap, positions)

    def _add_pooled(self, inputs: Tensor, rest: Tensor, gap: Tensor) -> None:
        patches = pooled_patches(self.module, inputs, tuple(rest.shape[2:])).double().cpu()  # type: ignore[arg-type]
        flat = rest.double().movedim(self.site.channel_axis + 1, 1)
        own = (flat.flatten(2).mean(2) if flat.dim() > 2 else flat).cpu()
        grouped = own.unflatten(1, (self.groups, -1))
        self.with_outputs += torch.einsum("bgo,bgt->got", grouped, patches).flatten(0, 1)
        self.with_target += torch.einsum("b,bgt->gt", gap, patches)
        self.inputs += patches.sum(0)
        self._sums(own.sum(0), gap, 1)

    def _sums(self, outputs: Tensor, gap: Tensor, positions: int) -> None:
        self.outputs += outputs
        self.target += float(gap.sum()) * positions
        self.square += float(gap.square().sum()) * positions
        self.count += len(gap) * positions

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
        slip = (self.weights * axes.residual).sum(1).abs() / (self.weights.norm(dim=1) * axes.residual.norm(dim=1))
        return axes, slip


def _channel_rows(site: Site, axes: LinearAxes, identity: Tensor) -> pd.DataFrame:
    columns = {"cosine": axes.cosine, "capture": axes.capture, "relevance": axes.relevance, "identity": identity}
    return pd.DataFrame(
        {"site": site.name, "depth": site.depth, "channel": range(site.channels), **{name: part.numpy() for name, part in columns.items()}}
    )


STRONG = 10.0
"""variance of the one strong input direction; all others have 1"""

SHARE = 0.6
"""share of the predictable target that lies on it"""

NOISE = 0.25
"""variance of what cannot be predicted, over that of what can"""

OUTPUT_WEIGHTS = 0.125
"""standard deviation of the linear network's first readout"""

RATES = {"channels": 0.02, "network": 0.002}
"""step sizes"""


def simulate(
    channels: int = 64, inputs: int = 24, steps: int = 300, every: int = 10, seeds: int = 5, isotropic: bool = False
) -> dict[str, pd.DataFrame]:
    """Alignment of input capture and task information while channels learn, for two ways of learning.

    `channels`: each one ascends its own task information. `network`: all are the hidden layer of a linear network that descends
    its squared error. One input direction is strong and carries most of the target, so that random channels begin coupled:
    whoever has more of it has more variance and says more.

    Parameters
    ----------
    channels
        Number of channels.
    inputs
        Number of inputs.
    steps
        Gradient steps.
    every
        Steps between rows of the table.
    seeds
        Independent starts.
    isotropic
        All input directions alike: the control, in which the gradients' cosine is zero and nothing is coupled.

    Returns
    -------
    dict[str, pd.DataFrame]
        `simulate`: one row per system and step: alignment, mean |cosine| and mean informations, each mean over seeds
        with a 95 % Student interval.
    """
    rows = []
    for system in RATES:
        runs = [list(_run_training(system, channels, inputs, steps, every, seed, isotropic)) for seed in range(seeds)]
        for at_step in zip(*runs, strict=True):
            row = {"system": system, "step": at_step[0]["step"], "n": seeds}
            for name in ("alignment", "cosine", "capture", "relevance"):
                row |= _band(name, torch.tensor([one[name] for one in at_step]))
            rows.append(row)
    return {"simulation": table("simulation", rows)}


def problem(inputs: int, seed: int, isotropic: bool = False) -> tuple[Float[Tensor, "inputs inputs"], Float[Tensor, "inputs"], float]:
    """Σ, c = Cov(X, T) and Var T of one input and target."""
    source = torch.Generator().manual_seed(seed)
    frame = torch.linalg.qr(torch.randn(inputs, inputs, generator=source, dtype=torch.float64)).Q
    variances = torch.ones(inputs, dtype=torch.float64)
    if not isotropic:
        variances[0] = STRONG
    rest = torch.randn(inputs - 1, generator=source, dtype=torch.float64)
    share = torch.cat([torch.tensor([SHARE]).double(), (1 - SHARE) * rest.square() / rest.square().sum()])
    slopes = (share / variances).sqrt() * torch.cat([torch.ones(1).double(), rest.sign()])
    covariance = frame @ torch.diag(variances) @ frame.T
    return covariance, covariance @ (frame @ slopes), 1 + NOISE


def _run_training(system: str, channels: int, inputs: int, steps: int, every: int, seed: int, isotropic: bool) -> Iterator[dict]:
    covariance, cross, variance = problem(inputs, seed, isotropic)
    source = torch.Generator().manual_seed(seed + 1_000_003)
    weights = torch.randn(channels, inputs, generator=source, dtype=torch.float64) / inputs**0.5
    readout = OUTPUT_WEIGHTS * torch.randn(channels, generator=source, dtype=torch.float64)
    for step in range(steps + 1):
        if step % every == 0:
            axes = linear_axes(weights, weights @ covariance, cross, variance)
            yield {"step": step, **_angle_note(axes)}
        if system == "channels":
            weights = information_step(weights, covariance, cross, variance, RATES[system])
        else:
            weights, readout = network_step(weights, readout, covariance, cross, RATES[system])


def _angle_note(axes: LinearAxes) -> dict[str, float]:
    return {
        "alignment": float(spearman(axes.capture, axes.relevance)),
        "cosine": float(axes.cosine.abs().nanmean()),
        "capture": float(axes.capture.mean()),
        "relevance": float(axes.relevance.mean()),
    }


def _band(name: str, values: Float[Tensor, "seeds"]) -> dict[str, float]:
    """Mean over seeds and its Student interval."""
    n = len(values)
    mean = float(values.mean())
    reach = float(stats.t.ppf(0.975, n - 1) * values.std() / n**0.5) if n > 1 else float("nan")
    return {name: mean, f"{name}_low": mean - reach, f"{name}_high": mean + reach}
