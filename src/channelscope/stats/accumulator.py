"""Accumulator: moments of several shards growing batch by batch, in memory that does not grow with the images."""

import torch

from channelscope.stats.moments import Moments, centred
from channelscope.types import Float, Int, Tensor

BLOCK = 8192
"""Samples gathered before they are multiplied: merging a shard costs as much as the products of some hundred samples."""
BLOCK_BYTES = 16 * 2**20
"""Most memory the gathered samples of one accumulator take."""


class Accumulator:
    """Collects samples of `d` coordinates, each belonging to a shard, and merges blocks of them in float64."""

    def __init__(self, d: int, shards: int):
        self.shards = [Moments.zero(d) for _ in range(shards)]
        self._block = max(256, min(BLOCK, BLOCK_BYTES // (4 * d)))
        self._rows: list[Tensor] = []
        self._owners: list[Tensor] = []
        self._waiting = 0

    def add(self, rows: Float[Tensor, "samples d"], owners: Int[Tensor, "samples"]) -> None:
        """Take over samples and the shard each belongs to; they are multiplied once a block is full."""
        self._rows.append(rows)
        self._owners.append(owners)
        self._waiting += len(rows)
        if self._waiting >= self._block:
            self.flush()

    def flush(self) -> None:
        """Merge what is waiting: centred in each shard, multiplied in the samples' precision, added in float64."""
        if not self._rows:
            return
        rows = self._rows[0] if len(self._rows) == 1 else torch.cat(self._rows)
        owners = torch.cat(self._owners)
        self._rows, self._owners, self._waiting = [], [], 0
        if len(self.shards) == 1:
            self.shards[0] = merged(self.shards[0], centred(rows))
            return
        order = owners.argsort(stable=True)
        counts = torch.bincount(owners, minlength=len(self.shards)).tolist()
        for shard, own in enumerate(rows[order].split(counts)):
            if len(own):
                self.shards[shard] = merged(self.shards[shard], centred(own))

    def finish(self) -> list[Moments]:
        """Moments of every shard."""
        self.flush()
        return self.shards


def merged(total: Moments, block: Moments) -> Moments:
    """`total + block`, reusing total's memory: this runs for every site, shard and block."""
    count = total.count + block.count
    gap = block.mean - total.mean
    total.scatter.add_(block.scatter).addr_(gap, gap, alpha=total.count * block.count / count)
    return Moments(count, total.mean + gap * (block.count / count), total.scatter)
