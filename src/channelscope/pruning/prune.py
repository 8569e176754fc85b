"""Cut, shrink and repair in one step, and the comparison of the two networks."""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from channelscope.display import Facts, Shown
from channelscope.errors import BudgetError, InputError, SampleError
from channelscope.network.cost import MacCounter, cost
from channelscope.network.module_state import eval_mode, zero_batch
from channelscope.network.nest import logits_of
from channelscope.network.removal.groups import Groups, groups
from channelscope.progress import progress_bar
from channelscope.pruning.blocks import Block, blocks_of, vanished_blocks, widened, without_blocks
from channelscope.pruning.budget import Budget, LatencyReport, cut_to_latency
from channelscope.pruning.calibration import rechunked, zero_input
from channelscope.pruning.cut import Allocation, allocated_scores, cut, remove_to_budget, shrink, shrink_blocks
from channelscope.pruning.latency import LatencyTable, TimeCounter, measure_latency
from channelscope.pruning.normalization import layer_contexts
from channelscope.pruning.repair import Method, RepairReport, repair
from channelscope.pruning.timing import latency_samples
from channelscope.ranking import Ranking
from channelscope.stats.profile import Profile
from channelscope.stats.tally import Tally
from channelscope.subset import Subset
from channelscope.tables.quantities import Column

MIN_IMAGES = 8
"""Fewest images that are divided into images to fit to and images to compare on."""

HELD_OUT_EVERY = 4
"""One image of so many is held out where pruning chooses between rankings."""


@dataclass(frozen=True, repr=False)
class PruningResult(Shown):
    """A smaller network, the channels it keeps and what was done to its weights."""

    model: nn.Module
    """the smaller network after the repair, in evaluation mode"""
    unrepaired: nn.Module
    """the smaller network as `shrink` made it; the same object as `model` where the method is none"""
    kept: Subset
    """the channels of the original that are kept"""
    repair: RepairReport
    """what the repair did"""
    ranking: Ranking
    """the ranking that was followed, chosen where there were several"""
    blocks: tuple[str, ...] = ()
    """the residual blocks that were left out"""
    latency: LatencyReport | None = None
    """how a budget of time is met"""
    divergence: float = math.nan
    """where there was a choice: mean divergence from the original on images held out from the fit [nats]"""

    def plot(self, layers: list[str] | None = None, title: str | None = None) -> np.ndarray:
        """Axes with the fraction of each layer's channels that is kept; see `channelscope.plot`."""
        return self.kept.plot(layers, title)

    def facts(self) -> Facts:
        """The kept channels of every site, the ranking's name and the repair."""
        sites = ((name, f"{int(marks.sum()):,} of {len(marks):,}") for name, marks in self.kept.masks.items())
        return f"PruningResult({self.kept.count:,} of {self.kept.total:,} channels kept by {self.ranking.name}, {self.repair!r})", sites

    def __repr__(self) -> str:
        """The numbers of channels, the ranking's name and the repair."""
        return self.facts()[0]


def prune(
    ranking: Ranking | Sequence[Ranking],
    model: nn.Module | Groups,
    calibration: Iterable | Profile | None = None,
    *,
    macs: float = 0.5,
    allocation: Allocation = "global",
    method: Method = "least_squares",
    budget: Budget | None = None,
    progress: bool = True,
) -> PruningResult:
    """A smaller dense network that costs at most a fraction `macs` of the multiply-adds; the original stays as it is.

    With a `Budget` it costs at most a fraction of the multiply-adds or of the time that a pass takes on the device where the network
    is, its layers have widths in multiples of a number, and whole residual blocks may go: several numbers of blocks are then tried
    as several rankings are, in the order of the divergence that leaving out each alone makes, over the cost that it saves.

    Parameters
    ----------
    ranking
        One number per channel; or several rankings to choose from. Each of several is tried with three quarters of the images,
        and the one whose network has the smallest Kullback-Leibler divergence from the original on the rest is followed with all.
    model
        The network, or its `groups`.
    calibration
        What `repair` needs: batches of images, or for peers a profile. The smaller network is also compared with the silenced
        one on the first images.
    macs
        Fraction of the network's multiply-adds to keep, above 0 and at most 1, counted as executed.
    allocation
        How removal is spread over the layers, as in `cut`.
    method
        How the smaller network is repaired, as in `repair`.
    budget
        Takes the place of `macs`.
    progress
        Whether a bar is drawn.

    Returns
    -------
    PruningResult
        The smaller network in evaluation mode, before and after its repair, and the channels it keeps.

    Raises
    ------
    BudgetError
        If the budget cannot be met, or the smaller network does not meet it.
    InputError
        Without a ranking, or for several rankings and no images to choose by.
    SampleError
        For several rankings and fewer than 8 images.

    Examples
    --------
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.Flatten()).eval()
    >>> found = groups(model, zero_batch(model, (3, 8, 8)))
    >>> ranking = Ranking("by hand", "", "high", {"0": np.array([3.0, 1.0, 4.0, 2.0])}, found.sites, (3, 8, 8))
    >>> _ = torch.manual_seed(0)
    >>> result = prune(ranking, model, [torch.rand(10, 3, 8, 8)], macs=0.5)
    >>> result.kept["0"].tolist(), result.model[0].out_channels, result.repair.images
    ([True, False, True, False], 2, 10)
    """
    rankings = [ranking] if isinstance(ranking, Ranking) else list(ranking)
    if not rankings:
        raise InputError("prune: expected a ranking, received none")
    budget = Budget(macs) if budget is None else budget
    calibration = list(calibration) if isinstance(calibration, Iterator) else calibration
    found = model if isinstance(model, Groups) else groups(model, zero_batch(model, rankings[0].input_shape))
    batches = _read(calibration, found, only_first=method == "none" and len(rankings) == 1 and not budget.blocks)
    trials = _Trials(found, budget, batches, allocation)
    sets = _block_sets(found, batches, budget, trials.table)

    def follow(choice: Choice, calibration: Any) -> PruningResult:
        ranking, blocks = rankings[choice[0]], sets[choice[1]]
        kept, report, small = trials.cut(ranking, blocks)
        unrepaired = small if method == "none" else copy.deepcopy(small)
        repaired = repair(small, found, kept, calibration, method=method, progress=advance)
        return PruningResult(small, unrepaired, replace(kept, groups=None), repaired, ranking, tuple(each.name for each in blocks), report)

    choice: Choice = (0, 0)
    distances: dict[Choice, float] = {}
    repairs = 1 + (len(sets) > 1) * len(sets) + (len(rankings) > 1) * (len(rankings) - (len(sets) > 1))
    layers = len(layer_contexts(found.graph, found.layers))
    with progress_bar("removal and repair, layers", repairs * layers if method == "least_squares" else None, progress) as advance:
        if len(sets) > 1:
            choice = _nearest([(0, place) for place in range(len(sets))], follow, found, batches, distances)
        if len(rankings) > 1:
            choice = _nearest([(place, choice[1]) for place in range(len(rankings))], follow, found, batches, distances)
        return replace(follow(choice, batches or calibration), divergence=distances.get(choice, math.nan))


class _Trials:
    """The cuts by several rankings and without several sets of blocks; nothing is traced, timed or shrunk twice."""

    def __init__(self, found: Groups, budget: Budget, batches: list, allocation: Allocation):
        self.found, self.budget, self.batches = found, budget, batches
        self.allocation: Allocation = allocation
        self.table = None if budget.of == "macs" else budget.table or measure_latency(found, batch=budget.batch)
        self.without: dict[tuple[str, ...], tuple[Groups, LatencyTable | None]] = {(): (found, self.table)}
        self.made: dict[tuple[int, tuple[str, ...]], tuple[Subset, LatencyReport | None, nn.Module]] = {}

    def inner(self, blocks: Sequence[Block]) -> tuple[Groups, LatencyTable | None]:
        """The groups of the network without some blocks, and its table of latencies."""
        key = tuple(block.sum_step for block in blocks)
        if key not in self.without:
            inner = groups(without_blocks(self.found, blocks), self.found.example)
            self.without[key] = inner, None if self.table is None else measure_latency(inner, batch=self.budget.batch)
        return self.without[key]

    def cut(self, ranking: Ranking, blocks: Sequence[Block]) -> tuple[Subset, LatencyReport | None, nn.Module]:
        """The channels of the original that are kept, how a latency is met, and a copy of the smaller network."""
        key = id(ranking), tuple(block.sum_step for block in blocks)
        if key not in self.made:
            kept, report = self._kept(ranking, blocks)
            vanished = vanished_blocks(self.found, self.found.kept(kept)) if self.budget.blocks else []
            first = self.batches[:1]
            small = (
                shrink_blocks(self.found, kept, vanished, self.inner(vanished)[0], first) if vanished else shrink(self.found, kept, first)
            )
            if self.budget.of == "macs" and not self.budget.closest:
                _check_cost(small, self.found, self.budget.fraction)
            self.made[key] = kept, report, small.eval()
        kept, report, small = self.made[key]
        return kept, report, copy.deepcopy(small)

    def _kept(self, ranking: Ranking, blocks: Sequence[Block]) -> tuple[Subset, LatencyReport | None]:
        found, budget, allocation = self.found, self.budget, self.allocation
        if budget.of == "macs" and not blocks and budget.multiple is None:
            return cut(ranking, found, macs=budget.fraction, allocation=allocation, closest=budget.closest), None
        inner, table = self.inner(blocks)
        scores = allocated_scores(ranking, inner, allocation)
        report = None
        if table is None:
            counter = MacCounter(inner)
            fraction = min(1.0, budget.fraction * MacCounter(found).total / counter.total)
            kept = remove_to_budget(scores, inner, counter, fraction, closest=budget.closest, multiple=budget.multiple or 1)
        else:
            kept, report = cut_to_latency(scores, inner, budget, found.graph.model, table)
        return widened(kept, inner, found, blocks), report


SHARES_OF_BLOCKS = (0.0, 0.5, 1.0)
"""Shares of what has to be saved that are saved by leaving out blocks, of which the best is chosen."""

N_JUDGING = 200
"""Images on which the divergence that leaving out a block makes is measured."""


def _block_sets(found: Groups, batches: list, budget: Budget, table: LatencyTable | None) -> list[list[Block]]:
    """Sets of blocks to leave out: none, and so many that they save some share of what has to be saved."""
    blocks = blocks_of(found) if budget.blocks else []
    if not blocks:
        return [[]]
    if not batches:
        raise InputError("blocks: to choose between residual blocks, batches of images are needed")
    counter = MacCounter(found) if table is None else TimeCounter(found, table)
    shares = counter.shares()
    names = {layer.node: layer.name for layer in found.layers} if table is None else {}
    saved = [sum(shares.get(names.get(step, step), 0.0) for step in block.steps) for block in blocks]
    few = rechunked([tuple(part[:N_JUDGING] for part in map(torch.cat, zip(*batches, strict=True)))], found)
    order = np.argsort(np.array(block_divergences(found, blocks, few)) / np.maximum(saved, np.finfo(float).tiny))
    sets: list[list[Block]] = []
    for share in SHARES_OF_BLOCKS:
        chosen: list[Block] = []
        spent = 0.0
        for place in order.tolist():
            if spent + saved[place] <= share * (1 - budget.fraction):
                chosen.append(blocks[place])
                spent += saved[place]
        chosen.sort(key=blocks.index)
        if chosen not in sets:
            sets.append(chosen)
    return sets


def block_divergences(found: Groups, blocks: Sequence[Block], batches: Sequence[tuple[Tensor, ...]]) -> list[float]:
    """Mean Kullback-Leibler divergence, in nats, that leaving out each block alone makes in the class probabilities.

    Parameters
    ----------
    found
        The network's `groups`.
    blocks
        Blocks of it.
    batches
        Its inputs.

    Examples
    --------
    >>> from channelscope import zoo
    >>> model = zoo.build("resnet20", classes=10, channels=1, image_size=8).eval()
    >>> model.layer1[0].bn2.weight.data.zero_(), model.layer1[0].bn2.bias.data.zero_()[:1]  # a branch that gives nothing
    (tensor([0., 0., 0., 0., 0., 0., 0., 0., 0., 0., 0., 0., 0., 0., 0., 0.]), tensor([0.]))
    >>> found = groups(model, torch.zeros(1, 1, 8, 8))
    >>> [round(each, 6) for each in block_divergences(found, blocks_of(found)[:1], [(torch.rand(4, 1, 8, 8),)])]
    [0.0]
    """
    expected = list(log_probabilities(found.graph.model, batches))
    return [mean_divergence(without_blocks(found, [block]), batches, expected) for block in blocks]


Choice = tuple[int, int]
"""Places of a ranking and of a set of blocks."""


def _nearest(
    choices: list[Choice], follow: Callable[[Choice, Any], PruningResult], found: Groups, batches: list, distances: dict[Choice, float]
) -> Choice:
    """The choice whose network, fitted without the held-out images, is nearest to the original on these; distances are kept."""
    if not batches:
        raise InputError("prune: to choose between several rankings, batches of images are needed")
    inputs = [torch.cat(parts) for parts in zip(*batches, strict=True)]
    held_out = torch.arange(len(inputs[0]), device=inputs[0].device) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    if len(held_out) < MIN_IMAGES:
        raise SampleError(f"prune: to choose between several rankings, at least {MIN_IMAGES} images are needed, received {len(held_out)}")
    fitting, validation = (rechunked([tuple(part[mask] for part in inputs)], found) for mask in (~held_out, held_out))
    del inputs  # a copy of all images
    expected = list(log_probabilities(found.graph.model, validation))
    for each in choices:
        if each not in distances:
            distances[each] = mean_divergence(follow(each, fitting).model, validation, expected)
    return min(choices, key=distances.__getitem__)


def _read(calibration: Iterable | Profile | None, found: Groups, only_first: bool) -> list[tuple[Tensor, ...]]:
    """All images of the batches, or of the first batch; none of a profile."""
    if calibration is None or isinstance(calibration, Profile):
        return []
    if not only_first:
        return rechunked(calibration, found)
    first = list(islice(calibration, 1))
    return rechunked(first, found) if first else []


def _check_cost(small: nn.Module, found: Groups, macs: float) -> None:
    """Refuse a smaller network that costs more than it should, counted as executed."""
    full, spent = (cost(network, found.example).total_macs for network in (found.graph.model, small))
    if spent > macs * full:
        raise BudgetError(
            f"macs: expected at most {macs:g} of {full:,} multiply-adds, the smaller network carries out {spent:,} ({spent / full:.3f}): "
            "part of its cost does not follow its channels; ask for less, or take it with closest=True"
        )


def kl_divergence(small: nn.Module, model: nn.Module | Groups, calibration: Iterable) -> float:
    """Mean Kullback-Leibler divergence of a network's class probabilities from those of the original.

    Parameters
    ----------
    small
        The smaller network, which returns logits (images, classes).
    model
        The original network, or its `groups`.
    calibration
        Batches of images; labels are not used.

    Returns
    -------
    float
        Mean over the images of Σ p log(p / q) in nats, p of the original and q of the smaller network; 0 if the two agree.

    Raises
    ------
    SampleError
        Without images.

    Examples
    --------
    >>> model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.Conv2d(1, 2, 1, bias=False), nn.Flatten())
    >>> model[0].weight.data, model[1].weight.data = torch.ones(1, 1, 1, 1), torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)
    >>> uniform = nn.Sequential(model, nn.Threshold(9.0, 0.0))  # every logit is 0
    >>> round(kl_divergence(uniform, model, [torch.ones(5, 1, 1, 1)]), 3)
    0.111
    """
    calibration = list(calibration)
    found = model if isinstance(model, Groups) else groups(model, zero_input(model, calibration))
    batches = rechunked(calibration, found)
    return mean_divergence(small, batches, log_probabilities(found.graph.model, batches))


@torch.no_grad()
def log_probabilities(model: nn.Module, batches: Iterable[tuple[Tensor, ...]]) -> Iterator[Tensor]:
    """Log probabilities of the classes, (images, classes) for each batch of inputs.

    Examples
    --------
    >>> [each.exp().tolist() for each in log_probabilities(nn.Flatten(), [(torch.zeros(1, 2, 1, 1),)])]
    [[[0.5, 0.5]]]
    """
    with eval_mode(model):
        for batch in batches:
            yield logits_of(model(*batch)).log_softmax(1)


def mean_divergence(model: nn.Module, batches: Iterable[tuple[Tensor, ...]], expected: Iterable[Tensor]) -> float:
    """Mean Kullback-Leibler divergence of a network's class probabilities from given ones, in nats per image.

    Parameters
    ----------
    model
        Network that returns logits (images, classes).
    batches
        Its inputs.
    expected
        Log probabilities (images, classes) of each batch.

    Examples
    --------
    >>> expected = [torch.tensor([[0.25, 0.75]]).log()]
    >>> round(mean_divergence(nn.Flatten(), [(torch.zeros(1, 2, 1, 1),)], expected), 3)
    0.131
    """
    total, count = 0.0, 0
    for received, original in zip(log_probabilities(model, batches), expected, strict=True):
        total += float(F.kl_div(received, original, reduction="sum", log_target=True))
        count += len(received)
    return total / count


SUMMARY_COLUMNS = {
    "state": Column(meaning="the network: original, pruned as it is, repaired, fine-tuned"),
    "accuracy": Column("fraction", 4, "accuracy", low=0.0, high=1.0),
    "accuracy_low": Column("fraction", 4, "lower end of the 95 % Wilson interval of the accuracy", low=0.0, high=1.0),
    "accuracy_high": Column("fraction", 4, "upper end of the 95 % Wilson interval of the accuracy", low=0.0, high=1.0),
    "loss": Column("nats", 3, "mean cross-entropy"),
    "images": Column("images", 0, "labeled images evaluated on"),
    "macs": Column("MACs", 0, "multiply-adds per image"),
    "kept": Column("fraction", 4, "multiply-adds as a fraction of the original's", low=0.0, high=1.0),
    "parameters": Column("", 0, "parameters"),
    "latency": Column("ms", 2, "median time of one image on this machine, one thread setting for all"),
    "latency_low": Column("ms", 2, "first quartile of the latency"),
    "latency_high": Column("ms", 2, "third quartile of the latency"),
}


LAYER_COLUMNS = {
    "site": Column.text("layer"),
    "depth": Column.count("position in execution order"),
    "channels": Column.count("channels of the original", "channels"),
    "kept": Column.count("channels kept", "channels"),
    "share": Column("fraction", 3, "channels kept as a fraction", low=0.0, high=1.0),
    "reason": Column.text("why channels of this layer cannot be removed"),
}


def kept_by_layer(found: Groups, kept: Subset) -> pd.DataFrame:
    """How many channels of each layer are kept, one row a layer in execution order.

    Parameters
    ----------
    found
        The groups of the original network.
    kept
        The channels that are kept.

    Returns
    -------
    pandas.DataFrame
        The columns of `LAYER_COLUMNS`; `reason` is empty where all channels of a layer could be removed.

    Examples
    --------
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.Flatten()).eval()
    >>> found = groups(model, zero_batch(model, (3, 8, 8)))
    >>> kept = found.to_subset(np.array([True, False, True, False]))
    >>> kept_by_layer(found, kept)[["site", "channels", "kept", "share"]].values.tolist()
    [['0', 4, 2, 0.5]]
    """
    rows = []
    for depth, site in enumerate(found.sites):
        count = int(kept[site.name].sum()) if site.name in kept else site.channels
        row = {"site": site.name, "depth": depth, "channels": site.channels, "kept": count, "share": count / site.channels}
        rows.append(row | {"reason": found.unprunable.get(site.name, "")})
    return pd.DataFrame(rows, columns=list(LAYER_COLUMNS))


def compare_networks(networks: Mapping[str, nn.Module], tallies: Mapping[str, Tally], image_shape: tuple[int, ...]) -> pd.DataFrame:
    """Accuracy, cost, size and latency of networks, one row for each; the first is the original.

    Latencies are interleaved between the networks, so that a change of the machine's load reaches all of them.

    Parameters
    ----------
    networks
        State (original, pruned, repaired, …) → network that returns logits.
    tallies
        State → what `evaluate_networks` found.
    image_shape
        Shape of one image (C, H, W).

    Returns
    -------
    pandas.DataFrame
        The columns of `SUMMARY_COLUMNS`.

    Examples
    --------
    >>> networks = {"original": nn.Sequential(nn.Flatten(), nn.Linear(8, 2)), "pruned": nn.Sequential(nn.Flatten(), nn.Linear(8, 2))}
    >>> from channelscope.evaluation import evaluate_networks
    >>> tallies, _ = evaluate_networks(networks, [(torch.zeros(10, 2, 2, 2), torch.zeros(10, dtype=torch.int64))])
    >>> frame = compare_networks(networks, tallies, (2, 2, 2))
    >>> frame[["state", "images", "macs", "kept", "parameters"]].values.tolist()
    [['original', 10, 16, 1.0, 18], ['pruned', 10, 16, 1.0, 18]]
    """
    rows = []
    taken = latency_samples(networks, image_shape)
    full = 0
    for state, model in networks.items():
        tally, spent = tallies[state], cost(model, zero_batch(model, image_shape))
        full = full or spent.total_macs
        low, high = tally.accuracy_interval()
        first, middle, third = np.quantile(taken[state], [0.25, 0.5, 0.75]) * 1000
        rows.append(
            {
                "state": state,
                "accuracy": tally.accuracy,
                "accuracy_low": low,
                "accuracy_high": high,
                "loss": tally.loss,
                "images": int(tally.images),
                "macs": spent.total_macs,
                "kept": spent.total_macs / full,
                "parameters": spent.total_parameters,
                "latency": middle,
                "latency_low": first,
                "latency_high": third,
            }
        )
    return pd.DataFrame(rows)
