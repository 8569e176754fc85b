"""Watch: accumulators of every site, fed batch by batch while the network runs."""

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from channelscope.errors import DataError, InputError, NumericError
from channelscope.net.find import Sites
from channelscope.net.identity import weights_hash
from channelscope.net.readout import Readout, positions_last
from channelscope.net.weights import cut_affine, weight_facts
from channelscope.site import Site
from channelscope.stats.accumulator import Accumulator
from channelscope.stats.classes import Classes
from channelscope.stats.maps import Maps
from channelscope.stats.profile import Profile
from channelscope.stats.record import Record
from channelscope.stats.sensitivity import Sensitivity
from channelscope.stats.tally import Tally, margin

LABELED = ("margin", "correct_logit", "top_margin")
UNLABELED = ("top_margin",)
POOLED = Readout("pooled")
CUT_READOUT = Readout("positions", 16)


class Watch:
    """Takes what every site shows for each batch; `profile` is what has been seen so far."""

    def __init__(self, found: Sites, readout: Readout, shards: int, seed: int, labeled: bool, sensitivity: bool, maps: bool):
        self.found, self.readout, self.shards, self.seed = found, readout, shards, seed
        self.sensitivity, self.maps, self.labeled = sensitivity, maps, labeled
        self.targets = LABELED if labeled else UNLABELED
        self.images, self.tally, self.classes = 0, Tally(), 0
        self.input_shape: tuple[int, ...] = ()
        shares_positions = readout == CUT_READOUT or (readout.kind == "positions" and readout.count is None)
        self.derived = {site.name for site in found if site.affine and shares_positions}
        self.sums = {site.name: self._accumulators(site) for site in found}
        self.class_sums: dict[str, tuple[Tensor, Tensor]] = {}
        self.class_counts = torch.zeros(0)
        self.extras: dict[tuple[str, str, int], Any] = {}

    def _accumulators(self, site: Site) -> dict[str, Accumulator]:
        joined, owners = site.channels + len(self.targets), max(self.shards, 1)
        sums = {"read": Accumulator(joined, owners), "pooled": Accumulator(joined, owners)}
        return sums if site.name in self.derived else sums | {"cut": Accumulator(site.channels, owners)}

    def batch(self, images: Tensor, labels: Tensor | None, index: Tensor) -> None:
        """Run one batch and take what every site shows."""
        shown = _Shown(index, self.seed)
        steps: dict[str, list[Callable[[Tensor], None]]] = defaultdict(list)
        for site in self.found:
            steps[site.read].append(partial(self._read, shown, site))
            steps[site.cut].append(partial(self._cut, shown, site))
        if self.sensitivity:
            images = images.detach().requires_grad_()
        logits = self.found.graph.run(images, after={name: partial(_each, each) for name, each in steps.items()}, pure=self.sensitivity)
        labels = labels if self.labeled else None
        logits = _checked(logits, labels)
        self.input_shape, self.classes = tuple(images.shape[1:]), logits.shape[1]
        self._add(shown, logits.detach(), labels)
        if labels is not None:
            self.tally = self.tally + Tally.of(logits, labels)
            self._add_classes(shown, labels.cpu())
            if self.sensitivity:
                self._add_gradients(shown, logits, labels)
        self.images += len(images)

    def _read(self, shown: "_Shown", site: Site, maps: Tensor) -> None:
        room, detached = len(self.targets), maps.detach()
        pooled = POOLED.rows(detached, site.axis, room=room)
        if not bool(pooled[:, : site.channels].isfinite().all()):
            raise NumericError(f"at {site.name}: activations are not finite (nan or infinity) for images {shown.index[:5].tolist()}…")
        shown.rows[site.name, "pooled"] = pooled
        shown.rows[site.name, "read"] = self.readout.rows(detached, site.axis, shown.where(self.readout, site.positions), room)
        if self.sensitivity:
            shown.values[site.name, "read"] = maps

    def _cut(self, shown: "_Shown", site: Site, maps: Tensor) -> None:
        detached = maps.detach()
        if site.name not in self.derived:
            shown.rows[site.name, "cut"] = CUT_READOUT.rows(detached, site.axis, shown.where(CUT_READOUT, site.positions))
        if self.sensitivity:
            shown.values[site.name, "cut"] = maps
        if self.maps:
            grid = detached.movedim(site.axis + 1, 1) if detached.dim() == 4 else positions_last(detached, site.axis)[:, :, None, :]
            for shard, rows in self._by_shard(shown.index):
                self._grow((site.name, "maps", shard), Maps.of(grid[rows].cpu()))

    def _owners(self, index: Tensor) -> Tensor:
        return index.cpu() % self.shards if self.shards else torch.zeros_like(index).cpu()

    def _by_shard(self, index: Tensor) -> list[tuple[int, Tensor]]:
        owners = self._owners(index)
        return [(shard, (owners == shard).nonzero()[:, 0]) for shard in owners.unique().tolist()]

    def _add(self, shown: "_Shown", logits: Tensor, labels: Tensor | None) -> None:
        """Join the targets to the samples and hand them to the accumulators."""
        columns, owners = _columns(logits, labels), self._owners(shown.index)
        for (name, point), rows in shown.rows.items():
            repeats = len(rows) // len(owners)
            if point != "cut":
                rows[:, -len(self.targets) :] = columns.to(rows.dtype).repeat_interleave(repeats, 0)
            self.sums[name][point].add(rows.float().cpu(), owners.repeat_interleave(repeats))

    def _add_classes(self, shown: "_Shown", labels: Tensor) -> None:
        keys, slots = self._owners(shown.index) * self.classes + labels, max(self.shards, 1) * self.classes
        for site in self.found:
            rows = shown.rows[site.name, "pooled"][:, : site.channels].double().cpu()
            if site.name not in self.class_sums:
                self.class_sums[site.name] = (rows.mean(0), torch.zeros(slots, site.channels, dtype=torch.float64))
            origin, sums = self.class_sums[site.name]
            sums.index_add_(0, keys, rows - origin)
        counts = torch.bincount(keys, minlength=slots).double()
        self.class_counts = counts if len(self.class_counts) == 0 else self.class_counts + counts

    def _add_gradients(self, shown: "_Shown", logits: Tensor, labels: Tensor) -> None:
        loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
        slopes = torch.autograd.grad(loss, list(shown.values.values()), allow_unused=True)
        products: dict[tuple[str, str], Tensor] = {}
        for (key, value), slope in zip(shown.values.items(), slopes, strict=True):
            site, value = self.found[key[0]], value.detach()
            bias = self.found.graph.modules[site.name].bias if key[1] == "read" else None
            if isinstance(bias, Tensor):
                value = value - bias.detach().view([-1 if axis == site.axis + 1 else 1 for axis in range(value.dim())])
            products[key] = positions_last(torch.zeros_like(value) if slope is None else value * slope, site.axis).sum(2).cpu()
        for shard, rows in self._by_shard(shown.index):
            for site in self.found:
                part = Sensitivity.of(products[site.name, "read"][rows], products[site.name, "cut"][rows])
                self._grow((site.name, "sensitivity", shard), part)

    def _grow(self, key: tuple[str, str, int], part: Any) -> None:
        self.extras[key] = self.extras[key] + part if key in self.extras else part

    def profile(self, model: nn.Module) -> Profile:
        """The finished profile of what was seen so far."""
        tensors: dict[str, Tensor] = {}
        for site in self.found:
            shards = self._records(site)
            total = shards[0]
            for record in shards[1:]:
                total = total + record
            tensors.update(total.pack(f"total/{site.name}/"))
            for shard in range(self.shards):
                tensors.update(shards[shard].pack(f"{shard}/{site.name}/"))
        return Profile(
            network=model.__dict__.get("channelscope_name", type(model).__name__),
            weights_hash=weights_hash(model),
            input_shape=self.input_shape,
            classes=self.classes,
            sites=self.found.found,
            skipped=self.found.skipped,
            readout=str(self.readout),
            cut_readout=str(CUT_READOUT),
            targets=self.targets,
            seed=self.seed,
            shards=self.shards,
            images=self.images,
            tally=self.tally,
            weights=weight_facts(self.found),
            tensors=tensors,
        )

    def _records(self, site: Site) -> list[Record]:
        points = {point: sums.finish() for point, sums in self.sums[site.name].items()}
        if site.name in self.derived:
            factor, shift = cut_affine(self.found.graph, site)
            points["cut"] = [read[: site.channels].scaled(factor, shift) for read in points["read"]]
        return [
            Record(**{point: moments[shard] for point, moments in points.items()}, **self._parts(site, shard))
            for shard in range(max(self.shards, 1))
        ]

    def _parts(self, site: Site, shard: int) -> dict[str, Any]:
        parts: dict[str, Any] = {}
        if self.labeled:
            own = slice(shard * self.classes, (shard + 1) * self.classes)
            origin, sums = self.class_sums[site.name]
            parts["classes"] = Classes.from_sums(self.class_counts[own], sums[own], origin)
        if self.sensitivity:
            parts["sensitivity"] = self.extras.get((site.name, "sensitivity", shard), Sensitivity.zero(site.channels))
        if self.maps:
            parts["maps"] = self.extras.get((site.name, "maps", shard), Maps.zero(site.channels))
        return parts


class _Shown:
    """What the sites showed for one batch."""

    def __init__(self, index: Tensor, seed: int):
        self.index, self.seed = index, seed
        self.rows: dict[tuple[str, str], Tensor] = {}
        self.values: dict[tuple[str, str], Tensor] = {}
        self._wheres: dict[tuple[Readout, int], Tensor | None] = {}

    def where(self, readout: Readout, positions: int) -> Tensor | None:
        """The drawn positions, the same for every site of the same size."""
        key = (readout, positions)
        if key not in self._wheres:
            self._wheres[key] = readout.where(self.index, positions, self.seed)
        return self._wheres[key]


def _each(steps: list[Callable[[Tensor], None]], value: Tensor) -> None:
    for step in steps:
        step(value)


def _checked(logits: Any, labels: Tensor | None) -> Tensor:
    if not isinstance(logits, Tensor) or logits.dim() != 2 or logits.shape[1] < 2:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(f"the network must return logits of shape images × classes (at least 2 classes), received {shape}")
    if labels is not None and (int(labels.max()) >= logits.shape[1] or int(labels.min()) < 0):
        raise DataError(f"labels must lie in 0 … {logits.shape[1] - 1}, received {int(labels.min())} … {int(labels.max())}")
    return logits


def _columns(logits: Tensor, labels: Tensor | None) -> Tensor:
    top = logits.topk(2, 1).values
    gap = top[:, 0] - top[:, 1]
    if labels is None:
        return gap[:, None]
    return torch.stack([margin(logits, labels), logits.gather(1, labels[:, None])[:, 0], gap], 1)
