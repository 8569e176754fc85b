"""ProfileCollector: accumulators of every site, updated batch by batch while the network runs."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from operator import add
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.node import map_arg

from channelscope.errors import InputError, NumericError, TracingError
from channelscope.network.graph import memory_format
from channelscope.network.module_state import eval_mode, fingerprints, weights_hash
from channelscope.network.nest import closed, logits_of, tensors
from channelscope.network.operations import layers_called
from channelscope.network.sites import Sites, by_image
from channelscope.profiling.weight_norms import following_batchnorm, weight_norms
from channelscope.site import Site
from channelscope.stats.channel_sums import ClassMeansAccumulator, FeatureMapSums, Sensitivity
from channelscope.stats.moments import BLOCK_BYTES, Moments, MomentsAccumulator, ShardSlices, products_bytes
from channelscope.stats.profile import Profile, pack_moments, pack_sums
from channelscope.stats.readout import Readout, channels_last
from channelscope.stats.tally import Tally, margin

TARGETS = ("margin", "correct_logit", "top_margin")

TARGETS_WITHOUT_LABELS = ("top_margin",)


class ShardedBatch:
    """Images of one batch in the order of shards, with their labels and index, and the values of each site that are needed later.

    Examples
    --------
    >>> batch = ShardedBatch(torch.zeros(4, 1, 1, 1), None, torch.arange(4), seed=0, shards=2)
    >>> batch.index.tolist(), batch.spans
    ([0, 2, 1, 3], [(0, slice(0, 2, None)), (1, slice(2, 4, None))])
    """

    def __init__(self, images: Tensor, labels: Tensor | None, index: Tensor, seed: int, shards: int):
        owners = index.cpu() % shards if shards else torch.zeros_like(index).cpu()
        order = owners.argsort(stable=True)
        ends = torch.bincount(owners).cumsum(0).tolist()
        bounds = zip([0, *ends], ends, strict=False)
        self.spans: ShardSlices = [(shard, slice(start, stop)) for shard, (start, stop) in enumerate(bounds) if stop > start]
        self.owners, self.seed = owners[order], seed
        self.images, self.index = images[order.to(images.device)], index[order.to(index.device)]
        self.labels = labels if labels is None else labels[order.to(labels.device)]
        self.pooled: dict[str, Tensor] = {}
        self.values: dict[tuple[str, str], Tensor] = {}
        self._positions: dict[tuple[Readout, int], Tensor | None] = {}

    def where(self, readout: Readout, positions: int) -> Tensor | None:
        """Drawn positions, the same for every site of the same size; None where all are taken."""
        key = (readout, positions)
        if key not in self._positions:
            self._positions[key] = readout.where(self.index, positions, self.seed)
        return self._positions[key]


def target_columns(logits: Tensor, labels: Tensor | None) -> Tensor:
    """Target columns of each image: margin, logit of the correct class and top margin; without labels the top margin alone.

    Parameters
    ----------
    logits
        (images, classes).
    labels
        (images,) class of each image, or None.

    Returns
    -------
    Tensor
        (images, 3), or (images, 1) without labels.

    Examples
    --------
    >>> target_columns(torch.tensor([[1.0, 4.0, 2.0]]), torch.tensor([2])).tolist()
    [[-2.0, 2.0, 2.0]]
    """
    top = logits.topk(2, 1).values
    gap = top[:, 0] - top[:, 1]
    if labels is None:
        return gap[:, None]
    return torch.stack([margin(logits, labels), logits.gather(1, labels[:, None])[:, 0], gap], 1)


POOLED = Readout("pooled")

CUT_READOUT = Readout("positions", 16)

SHARDS = 10
"""Shards of a profile where memory allows."""

MEMORY = 4 * 10**9
"""Bytes that the statistics of a pass may take where the number of shards is not given."""

WAITING = 2**28
"""Bytes of the samples of all sites that wait to be multiplied."""

IMAGES = 5000
"""Images that the estimate of memory counts with: as many pairs of shard and class occur as they would at random."""


@dataclass(frozen=True)
class MemoryPlan:
    """How many shards there are, and whether their products are summed in float32.

    Examples
    --------
    >>> MemoryPlan.within([(512, 3)] * 20, classes=100)
    MemoryPlan(shards=10, compact=False)
    >>> MemoryPlan.within([(3072, 3)] * 12, classes=10)
    MemoryPlan(shards=5, compact=True)
    """

    shards: int
    """number of image subsets, 0 for none"""
    compact: bool
    """whether sums are in float32 instead of float64, and those of all images are left to be added up from the shards"""

    @classmethod
    def within(cls, sizes: Sequence[tuple[int, int]], classes: int, shards: int | None = None) -> "MemoryPlan":
        """The plan that fits into memory: as many shards as asked for, or up to ten, two at least; float64 where it fits.

        Parameters
        ----------
        sizes
            Channels of every site, and at how many points its moments are taken.
        classes
            Number of classes, 0 without labels.
        shards
            Number of shards; None for as many as memory allows.
        """
        counts = range(SHARDS, 1, -1) if shards is None else (shards,)
        plans = [cls(counts[0], False), *(cls(count, True) for count in counts)]
        return next((plan for plan in plans if plan.most(sizes, classes) <= MEMORY), plans[-1])

    def most(self, sizes: Sequence[tuple[int, int]], classes: int) -> int:
        """Bytes that the statistics take at most: while images pass, or when they are packed."""
        owners, stored = max(self.shards, 1), self.shards if self.compact and self.shards else self.shards + 1
        pairs = classes * owners * (1 - math.exp(-IMAGES / (classes * owners))) if classes else 0  # of class and shard that occur
        seen = classes * (1 - math.exp(-IMAGES / classes)) if classes and 0 < self.shards < stored else 0
        channels, largest = sum(channels for channels, _ in sizes), max(channels for channels, _ in sizes)
        passing = owners * sum(points * products_bytes(width, self.compact) for width, points in sizes) + WAITING
        packed = stored * sum(2 * points * width**2 for width, points in sizes) + 3 * 8 * largest**2
        return round(max(passing + (4 if self.compact else 8) * pairs * channels, packed + 4 * (pairs + seen) * channels))


class ProfileCollector:
    """Accumulates the statistics of every site, batch by batch.

    Parameters
    ----------
    found
        The sites of a network.
    image
        One image of the shape and type of all.
    readout
        Samples of the local axis.
    shards
        Number of image subsets; 0 for none, None for ten or as many as memory allows.
    seed
        Seed of the drawn positions.
    extras
        Any of labels, sensitivity and maps.

    Examples
    --------
    >>> from channelscope.network.sites import sites
    >>> from channelscope.zoo.toys import exact_copy
    >>> toy = exact_copy()
    >>> image = toy.batches[0][0][:1]
    >>> collector = ProfileCollector(sites(toy.model, image), image, Readout("pooled"), 0, 0, frozenset({"labels"}))
    >>> with torch.no_grad():
    ...     collector.batch(*toy.batches[0])
    >>> collector.profile().images
    64
    """

    def __init__(self, found: Sites, image: Tensor, readout: Readout, shards: int | None, seed: int, extras: frozenset[str]):
        self.found, self.readout, self.seed = found, readout, seed
        self.labeled, self.sensitivity, self.maps = (name in extras for name in ("labels", "sensitivity", "maps"))
        self.targets = TARGETS if self.labeled else TARGETS_WITHOUT_LABELS
        self.images, self.unlabeled, self.tally = 0, 0, Tally()
        self.fingerprints: list[Tensor] = []
        self.input_shape, self.classes = tuple(image.shape[1:]), _class_count(found)
        self.layout = memory_format(found.graph.model, image)
        _check_windows(found, image)
        self.weights = weight_norms(found)
        self.affine = {
            site.name: torch.stack(following_batchnorm(found.graph, site))
            for site in found
            if site.activation_is_affine and self._same_positions(site)
        }
        sizes = [(site.channels, len(self._points(site))) for site in found]
        self.plan = MemoryPlan.within(sizes, self.classes if self.labeled else 0, shards)
        self.shards, waiting = self.plan.shards, WAITING / sum(points * channels**1.5 for channels, points in sizes)
        self.sums = {site.name: self._accumulators(site, int(waiting * site.channels**1.5)) for site in found}
        self.class_sums = ClassMeansAccumulator(self.classes, max(self.shards, 1), self.plan.compact)
        self.extras: dict[tuple[str, str, int], Any] = {}

    def _same_positions(self, site: Site) -> bool:
        """Whether both readouts take the same positions."""
        drawn = self.readout.of(site.positions) == CUT_READOUT.of(site.positions)
        return site.positions == 1 or (self.readout.kind == "positions" and drawn)

    def _points(self, site: Site) -> dict[str, int]:
        """Where moments of a site are taken, and the number of target columns there."""
        points = {"pooled": len(self.targets)}
        if self.readout.kind == "positions" and site.positions > 1:
            points["read"] = 0 if self._all_positions(site) else len(self.targets)
        if site.name not in self.affine:
            points["cut"] = 0
        return points

    def _accumulators(self, site: Site, waiting: int) -> dict[str, MomentsAccumulator]:
        owners, block = max(self.shards, 1), min(waiting, BLOCK_BYTES)
        points = self._points(site).items()
        return {point: MomentsAccumulator(site.channels, targets, owners, self.plan.compact, block) for point, targets in points}

    def _all_positions(self, site: Site) -> bool:
        """Whether all positions are samples; their sum over an image then follows from the pooled sample."""
        return self.readout.of(site.positions) == site.positions

    def batch(self, images: Tensor, labels: Tensor | None, index: Tensor) -> None:
        """Run one batch and add the statistics of every site.

        Parameters
        ----------
        images
            (images, channels, height, width).
        labels
            (images,) class of each image, or None.
        index
            (images,) index of each image.

        Raises
        ------
        NumericError
            For activations that are not finite.
        """
        batch = ShardedBatch(images, labels if self.labeled else None, index, self.seed, self.shards)
        steps: dict[str, list[Callable[[Tensor], None]]] = defaultdict(list)
        for site in self.found:
            steps[site.preactivation].append(partial(self._read, batch, site))
            steps[site.activation].append(partial(self._cut, batch, site))
        after = {name: partial(_per_sample, each) for name, each in steps.items()}
        images = batch.images.contiguous(memory_format=self.layout)
        logits = logits_of(self.found.graph.run(images.requires_grad_(self.sensitivity), hooks=after, out_of_place=self.sensitivity))
        _finite(logits, "the output", batch.index)
        if batch.labels is not None:
            self.tally = self.tally + Tally.of(logits, batch.labels)
            if self.sensitivity:
                self._add_gradients(batch, logits, batch.labels)
            self.class_sums.add(batch.owners, batch.labels, batch.pooled)
        targets = target_columns(logits.detach(), batch.labels)
        for points in self.sums.values():
            for sums in points.values():
                sums.close(targets)
        self.images += len(images)
        self.fingerprints.append(fingerprints(batch.images, batch.index))

    def _read(self, batch: ShardedBatch, site: Site, maps: Tensor) -> None:
        sums = self.sums[site.name]
        detached, axis = by_image(site, maps.detach())
        pooled = POOLED.samples(detached, axis)
        _finite(pooled, site.name, batch.index)
        batch.pooled[site.name] = pooled[:, 0]
        sums["pooled"].add(pooled, batch.spans)
        if "read" in sums:
            where = batch.where(self.readout, site.positions)
            sums["read"].add(self.readout.samples(detached, axis, where), batch.spans, lent=where is None)
        if self.sensitivity:
            batch.values[site.name, "read"] = maps

    def _cut(self, batch: ShardedBatch, site: Site, maps: Tensor) -> None:
        detached, axis = by_image(site, maps.detach())
        if site.name not in self.affine:
            where = batch.where(CUT_READOUT, site.positions)
            self.sums[site.name]["cut"].add(CUT_READOUT.samples(detached, axis, where), batch.spans, lent=where is None)
        if self.sensitivity:
            batch.values[site.name, "cut"] = maps
        if self.maps:
            grid = detached.movedim(axis + 1, 1)
            grid = grid if grid.dim() == 4 else grid.flatten(2)[:, :, None] if grid.dim() > 2 else grid[:, :, None, None]
            for shard, rows in batch.spans:
                self._accumulate((site.name, "maps", shard), FeatureMapSums.of(grid[rows].cpu()))

    def _add_gradients(self, batch: ShardedBatch, logits: Tensor, labels: Tensor) -> None:
        loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
        followed = [
            key for key, value in batch.values.items() if value.requires_grad and loss.requires_grad
        ]  # not what is computed under torch.no_grad()
        given = [batch.values[key] for key in followed]
        gradients = torch.autograd.grad(loss, given, allow_unused=True) if given else ()
        gradient_of = dict.fromkeys(batch.values) | dict(zip(followed, gradients, strict=True))
        products: dict[tuple[str, str], Tensor] = {}
        for key, value in batch.values.items():
            site, value, slope = self.found[key[0]], value.detach(), gradient_of[key]
            bias = self.found.graph.modules[site.name].bias if key[1] == "read" else None
            if isinstance(bias, Tensor):
                value = value - bias.detach().view([-1 if axis == site.channel_axis + 1 else 1 for axis in range(value.dim())])
            effects = by_image(site, torch.zeros_like(value) if slope is None else value * slope)
            products[key] = channels_last(*effects).sum(1).cpu()
        for shard, rows in batch.spans:
            for site in self.found:
                part = Sensitivity.of(products[site.name, "read"][rows], products[site.name, "cut"][rows])
                self._accumulate((site.name, "sensitivity", shard), part)

    def _accumulate(self, key: tuple[str, str, int], part: Any) -> None:
        self.extras[key] = self.extras[key] + part if key in self.extras else part

    def profile(self, last: bool = False) -> Profile:
        """The profile of all images so far; the last one gives up the sums, and nothing may be added afterwards."""
        model = self.found.graph.model
        tensors: dict[str, Tensor] = {}
        for site in self.found:
            tensors.update(self._packed(site, last))
        return Profile(
            network=vars(model)["card"].name if "card" in vars(model) else type(model).__name__,
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
            weight_norms=self.weights,
            tensors=tensors,
            unlabeled=self.unlabeled,
            fingerprints=torch.cat([torch.empty(0, dtype=torch.int64), *self.fingerprints]).sort().values,
        )

    def _packed(self, site: Site, last: bool) -> Iterator[tuple[str, Tensor]]:
        """Packed statistics of a site, of each shard and of all; in memory is one shard's matrix and their sum.

        Where memory is short and there are shards, the statistics of all images are left to be added up from them.
        """
        owners = [f"{shard}/{site.name}/" for shard in range(self.shards)]
        whole = None if self.plan.compact and owners else f"total/{site.name}/"
        repeated: list[Moments] = []
        means: list[Tensor] = []
        for point, sums in self.sums[site.name].items():
            total = None
            for shard, moments in enumerate(sums.moments(free=last)):
                if point == "pooled" and self._all_positions(site):
                    repeated.append(_targets_alone(moments, site.channels))
                if point == "read" and repeated:
                    moments = _with_repeated_targets(moments, repeated[shard])
                if owners:
                    yield from pack_moments(f"{owners[shard]}{point}.", moments)
                if point == "pooled":
                    means.append(moments.mean[: site.channels])
                if whole:
                    total = moments if total is None or not total.count else total.add_(moments) if moments.count else total
            if whole and total is not None:
                yield from pack_moments(f"{whole}{point}.", total)
                means += [total.mean[: site.channels]] if point == "pooled" else []
        parts = [self._optional_sums(site, shard) for shard in range(max(self.shards, 1))]
        if last:
            self.class_sums.discard(site.name)
        for owner, mean, part in zip(owners, means, parts, strict=False):
            yield from pack_sums(owner, mean, self.affine.get(site.name), part)
        if whole:
            of_all = {name: reduce(add, (part[name] for part in parts)) for name in parts[0]}
            yield from pack_sums(whole, means[-1], self.affine.get(site.name), of_all)

    def _optional_sums(self, site: Site, shard: int) -> dict[str, Any]:
        parts: dict[str, Any] = {}
        if self.labeled:
            parts["classes"] = self.class_sums.of(site.name, shard, site.channels)
        if self.sensitivity:
            parts["sensitivity"] = self.extras.get((site.name, "sensitivity", shard), Sensitivity.zero(site.channels))
        if self.maps:
            parts["maps"] = self.extras.get((site.name, "maps", shard), FeatureMapSums.zero(site.channels))
        return parts


def _targets_alone(pooled: Moments, channels: int) -> Moments:
    """The rows of the targets: count, mean of the targets, and scatter (targets, channels and targets)."""
    return Moments(pooled.count, pooled.mean[channels:].clone(), pooled.scatter[channels:].clone())


def _with_repeated_targets(channels: Moments, targets: Moments) -> Moments:
    """Moments of all positions, joined with the targets repeated at each; an image's positions sum to a multiple of its pooled sample."""
    c, ratio = len(channels), channels.count / targets.count if targets.count else 1.0
    scatter = channels.scatter.new_empty(c + len(targets), c + len(targets))
    scatter[:c, :c], scatter[c:] = channels.scatter, targets.scatter * ratio
    scatter[:c, c:] = scatter[c:, :c].T
    return Moments(channels.count, torch.cat([channels.mean, targets.mean]), scatter)


def _per_sample(steps: list[Callable[[Tensor], None]], value: Tensor) -> None:
    for step in steps:
        step(value)


def _class_count(found: Sites) -> int:
    """Number of logits; InputError for a network that is no classifier."""
    shapes = found.graph.shapes
    parts = map_arg(found.graph.nodes["output"].args[0], lambda node: torch.empty(shapes[node.name], device="meta"))
    output = closed(found.graph.output, parts)
    logits = logits_of(output)
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else ()
    if len(shape) != 2 or shape[1] < 2:
        received = " and ".join("×".join(map(str, each.shape)) for each in tensors(output)) or "no tensor"
        maps = any(each.dim() == 4 for each in tensors(output))
        hint = "; of maps, pass a module that returns their mean over positions" if maps else ""
        raise InputError(f"the network must return logits of shape images × classes (at least 2 classes), received {received}{hint}")
    return shape[1]


@torch.no_grad()
def _check_windows(found: Sites, image: Tensor) -> None:
    """Raise InputError where the windows of an image are not rows of a site's value one after the other."""
    names = [site.name for site in found if site.windows > 1]
    steps = tuple(found[name].preactivation for name in names)
    pair = torch.cat([image[:1], image[:1].flip(-1) + 1])
    with eval_mode(found.graph.model):
        alone, both = (found.graph.run(part, outputs=steps, out_of_place=True) if steps else () for part in (image[:1], pair))
    for name, one, two in zip(names, alone, both, strict=True):
        if len(two) != 2 * len(one) or not torch.allclose(one, two[: len(one)], atol=AGREEMENT * float(one.abs().max())):
            raise InputError(f"the rows of the value of {name} are not one image after the other: its statistics cannot be taken by image")


def _finite(values: Tensor, place: str, index: Tensor) -> None:
    """Raise NumericError for nan and infinity, with the place and the first images."""
    fine = values.isfinite().flatten(1)
    if not bool(fine.all()):
        images = sorted(index.to(values.device)[~fine.all(1)].tolist())
        listed = ", ".join(map(str, images[:5])) + (", …" if len(images) > 5 else "")
        raise NumericError(f"at {place}: activations are not finite (nan or infinity) for {len(images)} images of the batch: {listed}")


AGREEMENT = 1e-3
"""Relative difference of two gradients up to which they are the same in single precision."""


def check_gradients(found: Sites, images: Tensor) -> None:
    """Compare the gradients of the traced forward pass with those of the network itself, at the output of every site's layer.

    A recorded pass keeps the backward pass of a `torch.autograd.Function` and the effect of `torch.no_grad()`. A hook that
    changes the gradient of a tensor is no step, so gradients are compared here.

    Parameters
    ----------
    found
        The sites of a network whose output is a tensor.
    images
        One or a few images, batch × channels × height × width.

    Raises
    ------
    TracingError
        If the gradients differ at a site, with the last such site and what to do.

    Examples
    --------
    >>> from channelscope.network.sites import sites
    >>> model, images = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)), torch.randn(2, 1, 2, 2)
    >>> check_gradients(sites(model, images), images)
    """
    with eval_mode(found.graph.model), torch.enable_grad():
        own, traced = _own(found, images), _traced(found, images)
    for site in reversed(found.found):
        scale = max(float(own[site.name].norm()), float(traced[site.name].norm()))
        if float((own[site.name] - traced[site.name]).norm()) > AGREEMENT * scale:
            raise TracingError(
                f"at {site.name}: expected the network's own gradients, but tracing changes them: behind it lies a hook on a tensor "
                "(register_hook). Leave out what needs gradients (sensitivity=True), or write the hook as a torch.autograd.Function"
            )


def _own(found: Sites, images: Tensor) -> dict[str, Tensor]:
    """Gradients of the network, by hooks on the layers."""
    seen: dict[str, Tensor] = {}

    def keep(name: str, module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        seen[name] = output
        return output.clone()  # what follows may change it in place

    handles = [found.graph.modules[site.name].register_forward_hook(partial(keep, site.name)) for site in found]
    try:
        with layers_called(found.graph.body):
            output = found.graph.body(images.detach().clone().requires_grad_())
    finally:
        for handle in handles:
            handle.remove()
    return _slopes(output, seen)


def _traced(found: Sites, images: Tensor) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}

    def keep(name: str, value: Tensor) -> None:
        seen[name] = value

    after = {site.preactivation: partial(keep, site.name) for site in found}
    return _slopes(found.graph.run(images.detach().clone().requires_grad_(), hooks=after, out_of_place=True), seen)


def _slopes(output: Tensor, seen: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gradient of a fixed mixture of the outputs with respect to each value; zero where none flows."""
    mixture = torch.randn(output.shape, generator=torch.Generator().manual_seed(0)).to(output)
    slopes = {name: torch.zeros_like(value) for name, value in seen.items()}
    reached = [name for name, value in seen.items() if value.requires_grad] if output.requires_grad else []
    if reached:
        found = torch.autograd.grad((output * mixture).sum(), [seen[name] for name in reached], allow_unused=True)
        slopes |= {name: slope for name, slope in zip(reached, found, strict=True) if slope is not None}
    return slopes
