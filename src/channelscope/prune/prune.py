"""prune: cut, shrink and repair, in one step."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from channelscope.errors import InputError, SampleError
from channelscope.net.budget import Allocation, cut
from channelscope.net.edits import blank
from channelscope.net.graph import evaluating
from channelscope.net.groups import Groups, groups
from channelscope.net.subset import Subset
from channelscope.net.surgery import shrink
from channelscope.ranking import Ranking
from channelscope.repair import Method, Report, repair
from channelscope.repair.calibration import chunks
from channelscope.stats.profile import Profile

FEWEST = 8
"""Images that can be divided into some to fit to and some to judge by."""


@dataclass(frozen=True)
class Pruned:
    """A smaller network and how it came to be."""

    model: nn.Module
    """the smaller network, in evaluation mode"""
    kept: Subset
    """the channels of the original it was made of"""
    report: Report
    """what the repair did"""
    ranking: Ranking
    """what was ranked by, chosen where there were several"""


def prune(
    ranking: Ranking | Sequence[Ranking],
    model: nn.Module | Groups,
    source: Iterable | Profile | None = None,
    macs: float = 0.5,
    allocation: Allocation = "global",
    method: Method = "least_squares",
) -> Pruned:
    """A smaller dense network that costs at most a fraction `macs` of the multiply-adds; the original stays as it is.

    ranking  one, or several to choose from: the one whose network, made with every fourth image set aside, has outputs nearest to
             the original's on these, by Kullback-Leibler divergence; it is then made again with all images
    source   what `repair` needs: batches of calibration images, or for peers a profile

    Raises   what `cut`, `shrink` and `repair` raise; InputError for several rankings and no images to choose by, SampleError for
             fewer than 8.
    """
    rankings = [ranking] if isinstance(ranking, Ranking) else list(ranking)
    if not rankings:
        raise InputError("prune: expected a ranking, received none")
    source = list(source) if isinstance(source, Iterator) else source
    found = model if isinstance(model, Groups) else groups(model, blank(model, rankings[0].input_shape))

    def made(ranking: Ranking, source: Any) -> Pruned:
        kept = cut(ranking, found, macs, allocation)
        small = shrink(found.graph.model, kept, found).eval()
        return Pruned(small, kept, repair(small, found, kept, source, method), ranking)

    if len(rankings) == 1:
        return made(rankings[0], source)
    if source is None or isinstance(source, Profile):
        raise InputError("prune: to choose between several rankings, batches of images are needed")
    inputs = [torch.cat(parts) for parts in zip(*chunks(source, found), strict=True)]
    aside = torch.arange(len(inputs[0]), device=inputs[0].device) % 4 == 3
    if len(aside) < FEWEST:
        raise SampleError(f"prune: to choose between several rankings, at least {FEWEST} images are needed, received {len(aside)}")
    seen, judges = ([tuple(part[mask] for part in inputs)] for mask in (~aside, aside))
    distances = [divergence(made(each, seen).model, found.graph.model, judges, found) for each in rankings]
    return made(rankings[distances.index(min(distances))], source)


@torch.no_grad()
def divergence(small: nn.Module, model: nn.Module, source: Iterable, found: Groups) -> float:
    """Mean Kullback-Leibler divergence of a network's output from the original's over images [nats]."""
    total, count = 0.0, 0
    with evaluating(small), evaluating(model):
        for batch in chunks(source, found):
            ours, theirs = (network(*batch).log_softmax(1) for network in (small, model))
            total += float(F.kl_div(ours, theirs, reduction="sum", log_target=True))
            count += len(batch[0])
    return total / count
