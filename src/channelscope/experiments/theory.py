"""theory: do the two axes pull a trained channel's weights in different directions? (the mechanism of H2)"""

from collections.abc import Iterable
from typing import Literal

import pandas as pd
import torch
from torch import nn

from channelscope.errors import DataError, InputError, SiteError
from channelscope.experiments.columns import table
from channelscope.experiments.progress import bar, how_many
from channelscope.experiments.traced import traced
from channelscope.formulas.gradients import LinearAxes, linear_axes
from channelscope.formulas.resampling import bootstrap_mean
from channelscope.net.batches import labeled, placed
from channelscope.net.find import Sites
from channelscope.net.graph import evaluating
from channelscope.net.patches import followable, patch_products, pooled_patches
from channelscope.site import Site
from channelscope.stats.profile import Profile
from channelscope.stats.tally import margin
from channelscope.types import Float, Tensor

Readout = Literal["positions", "pooled"]


def theory(
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

    batches  (images, labels) or (images, labels, index); as a rule the calibration images
    readout  what a sample is, for both gradients: every position of an image (the target repeated), or the image's average
    sites    sites to look at; by default all
    progress draw a bar with the time left on a terminal

    Returns  `theory`: one row per channel: cosine, both informations, and the identity w'g = 0 relative to |w| |g|;
             `theory_layers`: mean |cosine| of each layer with a bootstrap interval over channels; `theory_skipped`: site and reason.
    Raises   MismatchError if the profile is of another network or other weights; SiteError where nothing is left.
    """
    if readout not in ("positions", "pooled"):
        raise InputError(f'readout is "positions" or "pooled", received {readout!r}')
    if "margin" not in profile.targets:
        raise DataError("the directions are those of the logit margin, and the profile was collected without labels")
    found = traced(model, profile)
    chosen = [site for site in profile.sites if sites is None or site.name in {found[name].name for name in sites}]
    skipped = {site.name: reason for site in chosen if (reason := followable(found.graph.modules[site.name]))}
    pairs = [_Pair(found.graph.modules[site.name], site, profile, readout) for site in chosen if site.name not in skipped]
    if not pairs:
        raise SiteError("; ".join(f"{name}: {reason}" for name, reason in skipped.items()) or "no site was chosen")
    _passed(found, pairs, batches, progress)
    rows, layers = [], []
    for pair in pairs:
        axes, identity = pair.axes()
        rows.append(_channels(pair.site, axes, identity))
        mean = bootstrap_mean(axes.cosine.abs())
        where = {"site": pair.site.name, "depth": pair.site.depth}
        ends = {"cosine": mean.value, "cosine_low": mean.low, "cosine_high": mean.high}
        layers.append({**where, **ends, "identity": float(identity.max()), "n": mean.n})
    return {
        "theory": table("theory", pd.concat(rows, ignore_index=True)),
        "theory_layers": table("theory_layers", layers),
        "theory_skipped": table("theory_skipped", pd.DataFrame(list(skipped.items()), columns=["site", "reason"])),
    }


def _passed(found: Sites, pairs: list["_Pair"], batches: Iterable, progress: bool) -> None:
    """Every batch through the network once, and what each pair needs of it added up."""
    inputs = [found.graph.nodes[pair.site.read].all_input_nodes[0].name for pair in pairs]
    wanted = tuple(dict.fromkeys([*inputs, *(pair.site.read for pair in pairs), "output"]))
    model = found.graph.model
    device = next(model.parameters()).device
    with evaluating(model), torch.no_grad(), bar("directions", how_many(batches), progress) as step:
        for images, labels, _ in labeled(batches):
            values = dict(zip(wanted, found.graph.run(placed(images, model), want=wanted, pure=True), strict=True))
            target = margin(values["output"].double(), labels.to(device)).cpu()
            for pair, source in zip(pairs, inputs, strict=True):
                pair.add(values[source], values[pair.site.read], target)
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
        shape = [-1 if axis == self.site.axis + 1 else 1 for axis in range(outputs.dim())]
        rest = outputs - self.center.to(outputs).view(shape)
        gap = target - self.middle
        if self.readout == "pooled":
            self._add_pooled(inputs, rest, gap)
            return
        positions = self.site.positions
        constant = outputs.narrow(self.site.axis + 1, 0, self.groups)
        ones = torch.ones_like(constant)
        repeated = gap.to(outputs).view(-1, *[1] * (outputs.dim() - 1)) * ones
        self.with_outputs += patch_products(self.module, inputs, rest).cpu()  # type: ignore[arg-type]
        self.with_target += patch_products(self.module, inputs, repeated).cpu()  # type: ignore[arg-type]
        self.inputs += patch_products(self.module, inputs, ones).cpu()  # type: ignore[arg-type]
        self._sums(rest.double().movedim(self.site.axis + 1, -1).flatten(0, -2).sum(0).cpu(), gap, positions)

    def _add_pooled(self, inputs: Tensor, rest: Tensor, gap: Tensor) -> None:
        patches = pooled_patches(self.module, inputs, tuple(rest.shape[2:])).double().cpu()  # type: ignore[arg-type]
        flat = rest.double().movedim(self.site.axis + 1, 1)
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


def _channels(site: Site, axes: LinearAxes, identity: Tensor) -> pd.DataFrame:
    columns = {"cosine": axes.cosine, "capture": axes.capture, "relevance": axes.relevance, "identity": identity}
    return pd.DataFrame(
        {"site": site.name, "depth": site.depth, "channel": range(site.channels), **{name: part.numpy() for name, part in columns.items()}}
    )
