"""Cut, shrink and repair in one step, and the comparison of the two networks."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from channelscope.errors import BudgetError, InputError, SampleError
from channelscope.evaluation import evaluate
from channelscope.network.cost import cost
from channelscope.network.module_state import eval_mode, zero_batch
from channelscope.network.removal.groups import Groups, groups
from channelscope.pruning.cut import Allocation, cut
from channelscope.pruning.recovery.calibration import rechunked
from channelscope.pruning.recovery.repair import Method, RepairReport, repair
from channelscope.pruning.shrink import shrink
from channelscope.ranking import Ranking
from channelscope.stats.profile import Profile
from channelscope.subset import Subset
from channelscope.tables.schema import Column

MIN_IMAGES = 8
"""Images that can be divided into some to fit to and some to judge by."""


@dataclass(frozen=True)
class Pruned:
    """A smaller network and how it came to be."""

    model: nn.Module
    """the smaller network, in evaluation mode"""
    kept: Subset
    """the channels of the original it was made of"""
    repair: RepairReport
    """what the repair did"""
    ranking: Ranking
    """what was ranked by, chosen where there were several"""


def prune(
    ranking: Ranking | Sequence[Ranking],
    model: nn.Module | Groups,
    calibration: Iterable | Profile | None = None,
    macs: float = 0.5,
    allocation: Allocation = "global",
    method: Method = "least_squares",
    closest: bool = False,
) -> Pruned:
    """A smaller dense network that costs at most a fraction `macs` of the multiply-adds; the original stays as it is.

    Parameters
    ----------
    ranking
        One, or several to choose from: the one whose network, made with every fourth image set aside, has outputs nearest to the
        original's on these, by Kullback-Leibler divergence; it is then made again with all images.
    model
        The network, or its `groups`.
    source
        What `repair` needs: batches of calibration images, or for peers a profile. The smaller network is compared with the
        silenced one on some of the images too.
    macs
        Fraction of the network's multiply-adds to keep, above 0 and at most 1, counted as executed.
    allocation
        How removal is spread over the layers, as in `cut`.
    method
        How the smaller network is repaired, as in `repair`.
    closest
        Where the budget cannot be met, take the smallest that can.

    Returns
    -------
    Pruned
        The smaller network in evaluation mode, and how it came to be.

    Raises
    ------
    BudgetError
        If the budget cannot be met, or the smaller network does not meet it.
    InputError
        For several rankings and no images to choose by.
    SampleError
        For several rankings and fewer than 8 images.
    """
    rankings = [ranking] if isinstance(ranking, Ranking) else list(ranking)
    if not rankings:
        raise InputError("prune: expected a ranking, received none")
    calibration = list(calibration) if isinstance(calibration, Iterator) else calibration
    found = model if isinstance(model, Groups) else groups(model, zero_batch(model, rankings[0].input_shape))
    batches = _read(calibration, found, only_first=method == "none" and len(rankings) == 1)

    def made(ranking: Ranking, source: Any) -> Pruned:
        kept = cut(ranking, found, macs, allocation, closest=closest)
        small = shrink(found.graph.model, kept, found, batches[0] if batches else None).eval()
        if not closest:
            _met(small, found, macs)
        return Pruned(small, replace(kept, groups=None), repair(small, found, kept, source, method), ranking)

    return made(rankings[0] if len(rankings) == 1 else _nearest(rankings, made, found, batches), batches or calibration)


def _nearest(rankings: list[Ranking], made: Callable[[Ranking, Any], Pruned], found: Groups, batches: list) -> Ranking:
    """The ranking whose network, made without every fourth image, is nearest to the original on these."""
    if not batches:
        raise InputError("prune: to choose between several rankings, batches of images are needed")
    inputs = [torch.cat(parts) for parts in zip(*batches, strict=True)]
    aside = torch.arange(len(inputs[0]), device=inputs[0].device) % 4 == 3
    if len(aside) < MIN_IMAGES:
        raise SampleError(f"prune: to choose between several rankings, at least {MIN_IMAGES} images are needed, received {len(aside)}")
    seen, judges = ([tuple(part[mask] for part in inputs)] for mask in (~aside, aside))
    distances = [kl_divergence(made(each, seen).model, found.graph.model, judges, found) for each in rankings]
    return rankings[distances.index(min(distances))]


def _read(source: Iterable | Profile | None, found: Groups, only_first: bool) -> list[tuple[Tensor, ...]]:
    """All images of the batches, or of the first batch; none of a profile."""
    if source is None or isinstance(source, Profile):
        return []
    if not only_first:
        return rechunked(source, found)
    first = list(islice(source, 1))
    return rechunked(first, found) if first else []


def _met(small: nn.Module, found: Groups, macs: float) -> None:
    """Refuse a smaller network that costs more than it should, counted as executed."""
    full, spent = (cost(network, found.example).total_macs for network in (found.graph.model, small))
    if spent > macs * full:
        raise BudgetError(
            f"macs: expected at most {macs:g} of {full:,} multiply-adds, the smaller network carries out {spent:,} ({spent / full:.3f}): "
            "part of its cost does not follow its channels; ask for less, or take it with closest=True (--closest)"
        )


@torch.no_grad()
def kl_divergence(small: nn.Module, model: nn.Module, source: Iterable, found: Groups) -> float:
    """Mean Kullback-Leibler divergence of a network's output from the original's over images [nats]."""
    total, count = 0.0, 0
    with eval_mode(small), eval_mode(model):
        for batch in rechunked(source, found):
            ours, theirs = (network(*batch).log_softmax(1) for network in (small, model))
            total += float(F.kl_div(ours, theirs, reduction="sum", log_target=True))
            count += len(batch[0])
    return total / count


RUNS = 15

SUMMARY_COLUMNS = {
    "state": Column(meaning="the network: original, pruned as it is, repaired, fine-tuned"),
    "accuracy": Column("fraction", 4, "accuracy", low=0.0, high=1.0),
    "accuracy_low": Column("fraction", 4, "lower end of the 95 % Wilson interval of the accuracy", low=0.0, high=1.0),
    "accuracy_high": Column("fraction", 4, "upper end of it", low=0.0, high=1.0),
    "loss": Column("nats", 3, "mean cross-entropy"),
    "images": Column("images", 0, "labeled images evaluated on"),
    "macs": Column("MACs", 0, "multiply-adds per image"),
    "kept": Column("fraction", 4, "multiply-adds as a fraction of the original's", low=0.0, high=1.0),
    "parameters": Column("", 0, "parameters"),
    "latency": Column("ms", 2, "median time of one image on this machine, one thread setting for all"),
    "latency_low": Column("ms", 2, "first quartile of it"),
    "latency_high": Column("ms", 2, "third quartile of it"),
}


def compare_networks(networks: Mapping[str, nn.Module], batches: Iterable, image_shape: tuple[int, ...]) -> pd.DataFrame:
    """One row a network; the first is the original. Latencies are measured in turns, so that all see the same machine.

    Parameters
    ----------
    batches
        Labeled images to evaluate on; may be read more than once.
    """
    rows = []
    taken = latency_samples(networks, image_shape)
    full = 0
    for state, model in networks.items():
        tally, spent = evaluate(model, batches), cost(model, zero_batch(model, image_shape))
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


@torch.no_grad()
def latency_samples(networks: Mapping[str, nn.Module], image_shape: tuple[int, ...], runs: int = RUNS) -> dict[str, list[float]]:
    """Seconds for one image, several times, in turns; on a CUDA device until it has finished."""
    taken: dict[str, list[float]] = {state: [] for state in networks}
    for turn in range(runs + 1):
        for state, model in networks.items():
            image = zero_batch(model, image_shape)
            with eval_mode(model):
                begun = time.perf_counter()
                model(image)
                if image.is_cuda:
                    torch.cuda.synchronize(image.device)
            if turn:  # the first turn warms up
                taken[state].append(time.perf_counter() - begun)
    return taken
