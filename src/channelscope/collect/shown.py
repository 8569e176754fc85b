"""Shown: one batch, sorted by shard, and what the sites show of it while the network runs."""

import torch
from torch import Tensor

from channelscope.net.readout import Readout
from channelscope.stats.accumulator import Spans
from channelscope.stats.tally import margin

LABELED = ("margin", "correct_logit", "top_margin")
UNLABELED = ("top_margin",)


class Shown:
    """Images of one batch in shard order, with their labels and index, and what was kept of each site's values."""

    def __init__(self, images: Tensor, labels: Tensor | None, index: Tensor, seed: int, shards: int):
        owners = index.cpu() % shards if shards else torch.zeros_like(index).cpu()
        order = owners.argsort(stable=True)
        ends = torch.bincount(owners).cumsum(0).tolist()
        bounds = zip([0, *ends], ends, strict=False)
        self.spans: Spans = [(shard, slice(start, stop)) for shard, (start, stop) in enumerate(bounds) if stop > start]
        self.owners, self.seed = owners[order], seed
        self.images, self.index = images[order.to(images.device)], index[order.to(index.device)]
        self.labels = labels if labels is None else labels[order.to(labels.device)]
        self.pooled: dict[str, Tensor] = {}
        self.values: dict[tuple[str, str], Tensor] = {}
        self._wheres: dict[tuple[Readout, int], Tensor | None] = {}

    def where(self, readout: Readout, positions: int) -> Tensor | None:
        """The drawn positions, the same for every site of the same size."""
        key = (readout, positions)
        if key not in self._wheres:
            self._wheres[key] = readout.where(self.index, positions, self.seed)
        return self._wheres[key]


def columns(logits: Tensor, labels: Tensor | None) -> Tensor:
    """Target columns of each image: margin, logit of the correct class and top margin; the last alone without labels."""
    top = logits.topk(2, 1).values
    gap = top[:, 0] - top[:, 1]
    if labels is None:
        return gap[:, None]
    return torch.stack([margin(logits, labels), logits.gather(1, labels[:, None])[:, 0], gap], 1)
