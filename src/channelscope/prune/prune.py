"""prune: cut, shrink and repair, in one step."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from channelscope.net.budget import Allocation, cut
from channelscope.net.edits import blank
from channelscope.net.groups import Groups, groups
from channelscope.net.subset import Subset
from channelscope.net.surgery import shrink
from channelscope.ranking import Ranking
from channelscope.repair import Method, Report, repair
from channelscope.stats.profile import Profile


@dataclass(frozen=True)
class Pruned:
    """A smaller network and how it came to be."""

    model: nn.Module
    """the smaller network, in evaluation mode"""
    kept: Subset
    """the channels of the original it was made of"""
    report: Report
    """what the repair did"""


def prune(
    ranking: Ranking,
    model: nn.Module | Groups,
    source: Iterable | Profile | None = None,
    macs: float = 0.5,
    allocation: Allocation = "global",
    method: Method = "least_squares",
) -> Pruned:
    """A smaller dense network that costs at most a fraction `macs` of the multiply-adds; the original stays as it is.

    source   what `repair` needs: batches of calibration images, or for peers a profile

    Raises   what `cut`, `shrink` and `repair` raise.
    """
    found = model if isinstance(model, Groups) else groups(model, blank(model, ranking.input_shape))
    kept = cut(ranking, found, macs, allocation)
    small = shrink(found.graph.model, kept, found).eval()
    return Pruned(small, kept, repair(small, found, kept, source, method))
