"""The order in which channels can be removed when their consumers are re-fitted, and the cost of each removal."""

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from channelscope.errors import InputError
from channelscope.formulas.gaussian import ledoit_wolf_penalty
from channelscope.network.cost import MacCounter
from channelscope.network.graph import Hook
from channelscope.network.module_state import eval_mode
from channelscope.network.operations import layer_of
from channelscope.network.operations.opened import used_weight
from channelscope.network.patches import input_patches, patch_width
from channelscope.network.removal.groups import Groups, groups
from channelscope.network.removal.labeled_graph import Layer
from channelscope.progress import progress_bar
from channelscope.pruning.calibration import DrawnPositions, rechunked, return_freed_memory, zero_input
from channelscope.ranking import Ranking
from channelscope.stats.moments import NormalEquations
from channelscope.types import Bool, Float, Int, Tensor

EXPONENTS = (1.5, 2.0)

MAX_FAN_IN = 8192
"""Inputs times kernel size beyond which a consumer's covariance is not formed, and its share of the cost not counted."""

MOST_RIDGE = 10.0
"""Largest penalty that too few images ask for, as a fraction of the mean variance of what a consumer reads."""

GRADIENT_BYTES = 2 * 10**9
"""Most bytes of the values of all steps that a backward pass holds: so many images go through the network at once."""


def optimal_brain_surgeon(
    model: nn.Module | Groups,
    calibration: Iterable,
    *,
    exponent: float = 1.5,
    ridge: float = 0.01,
    positions: int = 64,
    seed: int = 0,
    progress: bool = True,
) -> Ranking:
    """A ranking for pruning with repair: the least costly group is removed, its consumers are re-fitted, and so on.

        cost = n Σ over the n consumers of tr( A_b' G A_b [P_bb]⁻¹ )        chosen: least cost / MACs saved^exponent

    A are a consumer's weights re-fitted to the inputs that are left, P = (C + λI)⁻¹ of the covariance C of what it reads, b the
    columns that read the group, and G the Fisher information of its output's values, from random combinations of the logits: one
    consumer's term is the KL divergence of the output, to second order, if that consumer is re-fitted. λ is the penalty that so few
    images ask for (`ledoit_wolf_penalty`): that a wide layer has more inputs than the images have directions is no evidence that its
    inputs replace one another. What several consumers change may add up, to n times the sum of their terms at most (Cauchy-Schwarz),
    and counts as if it did (docs/results/repair.md). Outputs of a consumer that were removed themselves no longer count. Needs neither
    labels nor training; one forward and one backward pass.

    Parameters
    ----------
    model
        The network, or its `groups`.
    calibration
        Batches of (images, …); labels are not used.
    exponent
        Power of the multiply-adds saved; above 1, for later layers make up for what earlier ones lose (docs/results/repair.md).
    ridge
        Smallest λ, as a fraction of the mean variance of what a consumer reads.
    positions
        Positions that each image contributes to the covariances.
    seed
        Of the positions and of the combinations of the logits.
    progress
        Whether bars are drawn.

    Returns
    -------
    Ranking
        The place in the order of removal, 0 for the first to go and 1 for the last; comparable between layers. Channels
        that cannot be removed are infinite.

    Raises
    ------
    InputError
        For a network whose output is not logits, images × classes.
    SampleError
        Without images.

    Examples
    --------
    >>> from channelscope.zoo.toys import exact_copy
    >>> toy = exact_copy()
    >>> ranking = optimal_brain_surgeon(toy.model, toy.batches)
    >>> int(ranking[ranking.sites[0].name].argmin())  # channel 3 is twice channel 0, and no consumer has a weight on it
    3

    References
    ----------
    Optimal brain surgeon (Hassibi & Stork 1993) on channel blocks with a Fisher metric.
    """
    return optimal_brain_surgeons(
        model, calibration, exponents=(exponent,), ridge=ridge, positions=positions, seed=seed, progress=progress
    )[0]


def optimal_brain_surgeons(
    model: nn.Module | Groups,
    calibration: Iterable,
    *,
    exponents: Sequence[float] = EXPONENTS,
    ridge: float = 0.01,
    positions: int = 64,
    seed: int = 0,
    progress: bool = True,
) -> list[Ranking]:
    """One `optimal_brain_surgeon` ranking for each exponent, from the same passes; `prune` can choose between them.

    Which exponent is best depends on the network and on the budget (docs/results/repair.md).

    Parameters
    ----------
    model, calibration, ridge, positions, seed, progress
        As in `optimal_brain_surgeon`.
    exponents
        Powers of the multiply-adds saved.

    Returns
    -------
    list of Ranking
        One for each exponent.

    Examples
    --------
    >>> from channelscope.zoo.toys import exact_copy
    >>> toy = exact_copy()
    >>> [ranking.name for ranking in optimal_brain_surgeons(toy.model, toy.batches, exponents=(1.0, 2.0))]
    ['reconstruction(ridge=0.01, exponent=1)', 'reconstruction(ridge=0.01, exponent=2)']
    """
    calibration = list(calibration) if isinstance(calibration, Iterator) else calibration
    found = model if isinstance(model, Groups) else groups(model, zero_input(model, calibration))
    batches = rechunked(calibration, found)
    images = sum(len(batch[0]) for batch in batches)
    with progress_bar("reconstruction ranking, images", images, progress) as advance:
        draws = DrawnPositions(images, positions, seed=seed, device=batches[0][0].device)
        consumers = _consumers(found, batches, ridge, draws, advance)
    rankings = []
    with progress_bar("reconstruction ranking, order of removal", len(exponents) * len(found), progress) as advance:
        for number, exponent in enumerate(exponents, 1):
            last = number == len(exponents)
            order = _removal_order(found, consumers if last else [consumer.copy() for consumer in consumers], exponent, advance)
            rankings.append(_ranking(found, order, ridge, exponent))
    del consumers
    return_freed_memory()
    return rankings


def _ranking(found: Groups, order: list[int], ridge: float, exponent: float) -> Ranking:
    position = np.append(np.empty(len(found)), np.inf)
    position[order] = np.arange(len(found)) / max(len(found) - 1, 1)
    values = {
        site.name: position[found.group_of[found.first_id[site.name] : found.first_id[site.name] + site.channels]] for site in found.sites
    }
    notes = {
        name: {int(channel): found.unprunable[name] for channel in np.flatnonzero(np.isinf(values[name]))} for name in found.unprunable
    }
    shape = tuple(found.example[0].shape[1:])
    name = f"reconstruction(ridge={ridge:g}, exponent={exponent:g})"
    return Ranking(name, "", "high", values, found.sites, shape, notes, "local", "Hassibi & Stork 1993", comparable_across_layers=True)


COMPACTED_BELOW = 0.85
"""Share of a layer's inputs, or outputs, below which those that are gone are taken out of its matrices."""


class RefittedLayer:
    """One layer that reads groups, its weights re-fitted to whatever inputs are left."""

    def __init__(self, layer: Layer, owner: np.ndarray, weights: Tensor, covariance: Tensor, metric: Tensor, ridge: float):
        taps = weights.shape[1] // len(layer.inputs)
        columns = np.repeat(_group_of(layer.inputs, owner), taps)
        load = ridge * covariance.diagonal().mean()
        if load == 0:
            load = load + 1  # nothing it reads ever varies: every input costs nothing
        loaded = covariance.clone()
        loaded.diagonal().add_(load)
        lower, failed = torch.linalg.cholesky_ex(loaded)
        self.inverse = torch.linalg.inv(loaded) if failed else torch.cholesky_inverse(lower)
        self.weights, self.metric = weights.clone(), metric
        self.weighted = metric @ weights
        members, sizes = np.unique(columns[columns >= 0], return_counts=True)
        self.blocks: list[ColumnBlock] = []
        for size in np.unique(sizes):
            inside = members[sizes == size]
            at = torch.from_numpy(np.stack([np.flatnonzero(columns == each) for each in inside]))
            self.blocks.append(ColumnBlock(inside, at, self.weights.T[at] @ self.weighted.T[at].transpose(1, 2)))
        outputs = _group_of(layer.outputs, owner)
        self.rows = {int(group): torch.from_numpy(np.flatnonzero(outputs == group)) for group in np.unique(outputs[outputs >= 0])}
        self.left_rows, self.left_columns = (torch.ones(size, dtype=torch.bool) for size in weights.shape)

    def copy(self) -> "RefittedLayer":
        """A copy of what `remove` changes; the rest is shared."""
        other = copy.copy(self)
        other.inverse, other.weights, other.weighted = self.inverse.clone(), self.weights.clone(), self.weighted.clone()
        other.blocks = [ColumnBlock(block.members, block.columns, block.quadratic_forms.clone()) for block in self.blocks]
        other.rows, other.left_rows, other.left_columns = dict(self.rows), self.left_rows.clone(), self.left_columns.clone()
        return other

    @property
    def groups(self) -> set[int]:
        """The groups whose removal changes this layer."""
        return {*self.rows, *(int(member) for block in self.blocks for member in block.members)}

    def costs(self, groups: int) -> np.ndarray:
        """Cost of removing each of so many groups, with the remaining inputs re-fitted [nats]; 0 for those it does not read."""
        result = np.zeros(groups)
        for block in self.blocks:
            inner = self.inverse[block.columns[:, :, None], block.columns[:, None, :]]
            forms = block.quadratic_forms
            solved = forms / inner if forms.shape[1] == 1 else torch.linalg.solve(inner, forms)
            result[block.members] = solved.diagonal(dim1=1, dim2=2).sum(1).numpy() / 2
        return result

    def remove(self, group: int) -> None:
        """Remove a group's inputs and outputs and re-fit the weights on the remaining inputs."""
        if group in self.rows:
            rows = self.rows.pop(group)
            lost = self.weights[rows]
            self._subtract_update(lost, self.weighted[rows], self.metric[rows][:, rows])
            self.weighted.addmm_(self.metric[:, rows], lost, alpha=-1)
            self.weights[rows] = 0
            self.left_rows[rows] = False
        for index, block in enumerate(self.blocks):
            selected = block.members == group
            if selected.any():
                gone = block.columns[int(selected.argmax())]
                step = torch.linalg.solve(self.inverse[gone][:, gone], self.inverse[gone])
                weights, weighted = self.weights[:, gone], self.weighted[:, gone]
                self._subtract_update(step, weights.T @ self.weighted, weights.T @ weighted)
                self.weights.addmm_(weights, step, alpha=-1)
                self.weighted.addmm_(weighted, step, alpha=-1)
                self.inverse.addmm_(self.inverse[:, gone], step, alpha=-1)
                left = torch.from_numpy(~selected)
                self.blocks[index] = ColumnBlock(block.members[~selected], block.columns[left], block.quadratic_forms[left])
                self.left_columns[gone] = False
        self._compact()

    def _compact(self) -> None:
        """Take what is gone out of the matrices, once it is enough for the smaller ones to pay."""
        rows, columns = (left.nonzero().flatten() for left in (self.left_rows, self.left_columns))
        if len(columns) < COMPACTED_BELOW * len(self.left_columns):
            self.inverse, self.weights = self.inverse[columns][:, columns], self.weights[:, columns]
            self.weighted = self.weighted[:, columns]
            place = _places(self.left_columns)
            self.blocks = [ColumnBlock(block.members, place[block.columns], block.quadratic_forms) for block in self.blocks]
            self.left_columns = self.left_columns[columns]
        if len(rows) < COMPACTED_BELOW * len(self.left_rows):
            self.weights, self.weighted, self.metric = self.weights[rows], self.weighted[rows], self.metric[rows][:, rows]
            place = _places(self.left_rows)
            self.rows = {group: place[own] for group, own in self.rows.items()}
            self.left_rows = self.left_rows[rows]

    def _subtract_update(self, step: Tensor, cross: Tensor, inner: Tensor) -> None:
        """Subtract step' · cross + cross' · step − step' · inner · step, an update of A' G A, from every diagonal block."""
        for block in self.blocks:
            steps, crosses = step.T[block.columns], cross.T[block.columns]
            part = steps @ (crosses - steps @ inner / 2).transpose(1, 2)
            block.quadratic_forms.sub_(part + part.transpose(1, 2))


def _places(left: Bool[Tensor, "values"]) -> Int[Tensor, "values"]:
    """Place of each value among those that are left."""
    return left.long().cumsum(0) - 1


@dataclass(frozen=True)
class ColumnBlock:
    """The groups that a consumer reads with equally many columns."""

    members: np.ndarray
    """(members,) groups"""
    columns: Int[Tensor, "members columns"]
    """the columns of each"""
    quadratic_forms: Float[Tensor, "members columns columns"]
    """A_b' G A_b of each"""


def _group_of(numbers: Int[Tensor, "channels"], owner: np.ndarray) -> np.ndarray:
    return np.where(numbers.numpy() >= 0, owner[numbers.numpy()], -1)


def consumer_counts(consumers: Sequence[RefittedLayer], groups: int) -> np.ndarray:
    """How many layers read each of so many groups: by so much what removing it costs each of them is multiplied.

    Examples
    --------
    >>> layers = [Layer(name, name, torch.arange(size), torch.tensor([-1]), 1, 1) for name, size in (("a", 2), ("b", 1))]
    >>> def reader(layer):
    ...     size = len(layer.inputs)
    ...     return RefittedLayer(layer, np.arange(2), torch.ones(1, size), torch.eye(size), torch.eye(1), ridge=0.01)
    >>> consumer_counts([reader(layer) for layer in layers], 2).tolist()
    [2.0, 1.0]
    """
    count = np.zeros(groups)
    for consumer in consumers:
        for block in consumer.blocks:
            count[block.members] += 1
    return count


def _removal_order(found: Groups, consumers: list[RefittedLayer], exponent: float, advance: Callable[[float], None]) -> list[int]:
    """Groups, first removed first; of groups of which one has to stay, the last comes after all that can go."""
    counter = MacCounter(found)
    reading: dict[int, list[RefittedLayer]] = defaultdict(list)
    for consumer in consumers:
        for group in consumer.groups:
            reading[group].append(consumer)
    share = {consumer: consumer.costs(len(found)) for consumer in consumers}
    cost = np.sum(list(share.values()), axis=0) if share else np.zeros(len(found))
    count = consumer_counts(consumers, len(found))
    prices = Prices(found, counter)
    left, stays = (np.full(len(found), value) for value in (True, False))
    parts: dict[int, list[np.ndarray]] = defaultdict(list)
    for part in map(np.array, found.parts):
        stays[part] |= len(part) == 1
        for group in part:
            parts[int(group)].append(part)
    order: list[int] = []
    while left.any():
        cost_per_saved_mac = count * cost.clip(min=0) / prices.powers(left, exponent)
        if not (left & ~stays).any():
            advance(int(left.sum()))
            return [*order, *sorted(np.flatnonzero(left).tolist(), key=lambda group: cost_per_saved_mac[group])]
        pick = int(np.where(left & ~stays, cost_per_saved_mac, np.inf).argmin())
        prices.remove(pick)
        left[pick] = False
        order.append(pick)
        advance(1)
        for part in parts[pick]:
            here = part[left[part]]
            stays[here] |= len(here) == 1
        for consumer in reading[pick]:
            consumer.remove(pick)
            before, share[consumer] = share[consumer], consumer.costs(len(found))
            cost += share[consumer] - before
    return order


class Prices:
    """Multiply-adds that removing a group saves: the same for all groups of the same layers, and changed by what else those layers lose."""

    def __init__(self, found: Groups, counter: MacCounter):
        families: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for index, group in enumerate(found.members):
            families[tuple(name for name, _ in group.members)].append(index)
        self.counter, self.kinds = counter, list(families.values())
        self.saved = np.ones(len(self.kinds))
        self.kind_of = np.empty(len(found), dtype=np.int64)
        self.reached: dict[int, set[int]] = defaultdict(set)
        for kind, members in enumerate(self.kinds):
            self.kind_of[members] = kind
            for layer in {layer for group in members for layer in counter.counts[group]}:
                self.reached[layer].add(kind)
        self.stale = set(range(len(self.kinds)))

    def remove(self, group: int) -> None:
        """Take a group out."""
        self.counter.remove(group)
        self.stale |= {kind for layer in self.counter.counts[group] for kind in self.reached[layer]} | {int(self.kind_of[group])}

    def powers(self, left: np.ndarray, exponent: float) -> np.ndarray:
        """What each group that is left saves, at least 1, to the power of the exponent."""
        for kind in self.stale:
            members = self.kinds[kind] = [group for group in self.kinds[kind] if left[group]]
            if members:
                self.saved[kind] = max(self.counter.remove(members[0]), 1)
                self.counter.add(members[0])
        self.stale = set()
        return (self.saved**exponent)[self.kind_of]


def _consumers(
    found: Groups, batches: list[tuple[Tensor, ...]], ridge: float, draws: DrawnPositions, advance: Callable[[float], None]
) -> list[RefittedLayer]:
    """Every layer that reads removable channels, with the statistics of what it reads and of its output's gradient."""
    graph = found.graph
    modules: dict[str, Any] = graph.modules
    layers = [layer for layer in found.layers if layer.taps and layer.groups == 1 and bool((layer.inputs >= 0).any())]
    layers = [layer for layer in layers if _has_patches(modules[layer.name])]
    sources = {layer.name: graph.nodes[layer.node].all_input_nodes[0].name for layer in layers}
    reads: dict[str, InputMoments] = defaultdict(InputMoments)
    metrics: dict[str, Tensor] = {}
    total = 0
    nodes = [layer.node for layer in layers]
    with eval_mode(graph.model):
        for batch, signs in with_signs(found, batches, torch.Generator().manual_seed(draws.seed)):
            values, gradients = inputs_and_output_gradients(found, batch, nodes, list(sources.values()), signs)
            start, total = total, total + len(batch[0])
            for layer in layers:
                module, gradient = modules[layer.name], gradients[layer.node]
                flat = gradient.reshape(-1, gradient.shape[-1]) if layer.linear else gradient.movedim(1, -1).reshape(-1, gradient.shape[1])
                metrics[layer.name] = metrics.get(layer.name, 0) + (flat.T @ flat).double().cpu()  # type: ignore[operator]
                read = values[sources[layer.name]]
                if layer.linear and not len(flat) % len(batch[0]):
                    read = read.reshape(len(batch[0]), -1, read.shape[-1])  # windows of an image are positions of it
                drawn = draws.of(len(flat) // len(batch[0])) if len(read) == len(batch[0]) else None
                where = None if drawn is None else drawn[start:total]
                taken = input_patches(module, read, tuple(gradient.shape[1:]), where)
                reads[layer.name].add(taken, len(batch[0]))
            advance(len(batch[0]))
    consumers = []
    for layer in layers:
        moments, weights = reads.pop(layer.name), used_weight(modules[layer.name]).double().cpu().flatten(1)
        covariance = moments.covariance()
        penalty = max(ridge, moments.ridge(covariance))
        consumers.append(RefittedLayer(layer, found.group_of, weights, covariance, metrics.pop(layer.name) / total, penalty))
    return consumers


class InputMoments:
    """The covariance of what a layer reads, and how much that of one image differs from another's.

    Examples
    --------
    >>> moments = InputMoments()
    >>> moments.add(torch.tensor([[[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]]), images=2)
    >>> moments.covariance().tolist(), moments.ridge(moments.covariance())
    ([[0.5, 0.0], [0.0, 0.5]], 4.0)
    """

    def __init__(self) -> None:
        self.total: NormalEquations | None = None
        self.squares = 0.0
        self.images = 0

    def add(self, taken: Float[Tensor, "groups samples inputs"], images: int) -> None:
        """Add what was taken of some images, as much of each; of values that are the same for all, once for all."""
        part = NormalEquations.of(taken, taken[:, :, :0])
        self.total = part if self.total is None else self.total + part
        images = 1 if taken.shape[1] % images else images
        of_image = (taken[0] - self.total.x_mean[0].to(taken)).unflatten(0, (images, -1))
        each, inputs = of_image.shape[1:]
        product = of_image @ of_image.mT if each < inputs else of_image.mT @ of_image  # their squares have the same sum
        self.squares += float((product / each).square().sum())
        self.images += images

    def covariance(self) -> Float[Tensor, "inputs inputs"]:
        """The covariance of all samples, on the CPU."""
        assert self.total is not None
        return self.total.covariance[0].cpu()

    def ridge(self, covariance: Float[Tensor, "inputs inputs"]) -> float:
        """The penalty for so few images, as a fraction of the mean variance."""
        return min(ledoit_wolf_penalty(covariance, self.squares / self.images, self.images), MOST_RIDGE)


def with_signs(
    found: Groups, batches: Sequence[tuple[Tensor, ...]], generator: torch.Generator
) -> Iterator[tuple[tuple[Tensor, ...], Float[Tensor, "images classes"]]]:
    """Few enough images for a backward pass, and a random sign for each class of each: the same however many go at once.

    Parameters
    ----------
    found
        The network's `groups`.
    batches
        Its inputs.
    generator
        Of the signs.

    Raises
    ------
    InputError
        For a network whose output is not logits, images × classes.

    Examples
    --------
    >>> found = groups(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 8), nn.Flatten()), torch.zeros(1, 3, 8, 8))
    >>> [(len(images), signs.abs().sum()) for (images,), signs in with_signs(found, [(torch.zeros(5, 3, 8, 8),)], torch.Generator())]
    [(5, tensor(10.))]
    """
    logits = found.graph.run(*found.example, out_of_place=True)
    _check_logits(logits)
    values = sum(map(math.prod, found.graph.shapes.values())) / len(found.example[0])
    most = max(int(GRADIENT_BYTES / (values * found.example[0].element_size())), 1)
    for batch in batches:
        signs = torch.empty(len(batch[0]), logits.shape[1], dtype=logits.dtype).bernoulli_(0.5, generator=generator) * 2 - 1
        yield from zip(zip(*(part.split(most) for part in batch), strict=True), signs.split(most), strict=True)


def _has_patches(module: nn.Module) -> bool:
    """Whether a layer reads patches of its input, and few enough values at once for their covariance."""
    layer = layer_of(module)
    return layer is not None and not layer.transposed and patch_width(module) <= MAX_FAN_IN


def _check_logits(logits: Any) -> None:
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        received = " × ".join(map(str, logits.shape)) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise InputError(f"how much a value matters is measured by the network's logits: expected images × classes, received {received}")


def inputs_and_output_gradients(
    found: Groups, batch: tuple[Tensor, ...], outputs: list[str], inputs: list[str], signs: Float[Tensor, "images classes"]
) -> tuple[dict[str, Tensor], dict[str, Float[Tensor, "..."]]]:
    """Values of some steps, and the gradient there of a random combination of the logits.

    With class probabilities p and random signs z the logit of class k has the weight √p_k z_k − p_k Σ_j √p_j z_j. The covariance of
    these weights is diag(p) − pp', that of the gradient of the cross-entropy for labels drawn from p: the second moments of the
    gradients are the Fisher information in the mean, as with drawn labels, but no rare label outweighs the other images.

    Parameters
    ----------
    found
        The network's `groups`.
    batch
        Its inputs.
    outputs
        The steps whose gradients are wanted.
    inputs
        The steps whose values are.
    signs
        Of each class, as `with_signs` gives them.

    Examples
    --------
    >>> found = groups(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 8), nn.Flatten()), torch.zeros(1, 3, 8, 8))
    >>> ((batch, signs),) = with_signs(found, [(torch.zeros(5, 3, 8, 8),)], torch.Generator())
    >>> values, gradients = inputs_and_output_gradients(found, batch, ["_0"], ["_1"], signs)
    >>> gradients["_0"].shape, values["_1"].shape
    (torch.Size([5, 4, 8, 8]), torch.Size([5, 2, 1, 1]))

    References
    ----------
    Martens, Sutskever & Swersky 2012 (curvature propagation).
    """
    values: dict[str, Tensor] = {}

    def keep(name: str) -> Hook:
        def watch(value: Tensor) -> None:
            values[name] = value

        return watch

    with torch.enable_grad():
        given = tuple(part.detach().clone().requires_grad_(part.is_floating_point()) for part in batch)
        logits = found.graph.run(*given, hooks={name: keep(name) for name in dict.fromkeys((*outputs, *inputs))}, out_of_place=True)
        probabilities = logits.detach().softmax(1)
        scattered = probabilities.sqrt() * signs.to(probabilities)
        weights = scattered - probabilities * scattered.sum(1, keepdim=True)
        gradients = torch.autograd.grad(logits, [values[name] for name in outputs], weights, materialize_grads=True)
    return {name: values[name].detach() for name in inputs}, dict(zip(outputs, gradients, strict=True))
