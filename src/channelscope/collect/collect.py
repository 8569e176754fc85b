"""collect: one pass over the calibration images, everything the scores need."""

from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from channelscope import store
from channelscope.collect.watch import Watch
from channelscope.errors import DataError, MismatchError
from channelscope.net.find import sites
from channelscope.net.graph import evaluating
from channelscope.net.readout import Readout
from channelscope.stats.profile import Profile


def collect(
    model: nn.Module,
    batches: Iterable,
    readout: str | Readout = "positions(16)",
    shards: int = 10,
    seed: int = 0,
    sensitivity: bool = False,
    maps: bool = False,
    checkpoint: Path | None = None,
) -> Profile:
    """Profile `model` over `batches`, one forward pass in evaluation mode; the model is left as it was.

    batches      any iterable of (images, labels) or (images, labels, index); labels may be None or all −1 for
                 unlabeled images; index defaults to the running count
    readout      samples of the local axis: positions(16), positions(all) or pooled
    shards       groups of images (index mod shards) kept apart for intervals; 0 for none
    sensitivity  also sum first-order effects on the loss (a backward pass; needs labels)
    maps         also sum feature-map ranks and independences (HRank, CHIP; slow)
    checkpoint   file to keep the unfinished profile in; a pass that finds one goes on from there and deletes it at the end

    Raises   DataError for images or labels the network cannot take, NumericError for activations that are not
             finite (the site is named), SiteError for a network without sites.
    """
    stream = _numbered(batches)
    first = next(stream, None)
    if first is None:
        raise DataError("there are no images to profile: the batches are empty")
    device = next(model.parameters()).device
    found = sites(model, first[0][:1].to(device))
    labeled = first[1] is not None and bool((first[1] >= 0).any())
    if sensitivity and not labeled:
        raise DataError("sensitivity=True needs labels, and the images have none")
    watch = Watch(found, Readout.parse(readout), shards, seed, labeled, sensitivity, maps)
    earlier = store.load(checkpoint) if checkpoint is not None and Path(checkpoint).exists() else None
    skip, clock = earlier.images if earlier else 0, store.Clock()
    with evaluating(model), torch.set_grad_enabled(sensitivity):
        for images, labels, index in chain([first], stream):
            if skip >= len(images):
                skip -= len(images)
                continue
            if skip:
                raise MismatchError(f"the checkpoint {checkpoint} ends inside a batch: resume with the batch size it was begun with")
            watch.batch(images.to(device), labels if labels is None else labels.to(device), index.to(device))
            if checkpoint is not None and clock.due():
                store.save(_joined(earlier, watch.profile(model)), checkpoint)
    profile = _joined(earlier, watch.profile(model) if watch.images else None)
    if checkpoint is not None:
        Path(checkpoint).unlink(missing_ok=True)
    return profile


def _joined(earlier: Profile | None, later: Profile | None) -> Profile:
    if earlier is None or later is None:
        return earlier or later  # type: ignore[return-value]
    return earlier + later


def _numbered(batches: Iterable) -> Any:
    """Batches as (images, labels, index) with the running count where no index was given."""
    seen = 0
    for batch in batches:
        if isinstance(batch, Tensor):
            batch = (batch, None)
        images, labels, *rest = batch
        if images.dim() != 4:
            raise DataError(f"a batch of images must be batch × channels × height × width, received shape {tuple(images.shape)}")
        index = rest[0] if rest else torch.arange(seen, seen + len(images))
        seen += len(images)
        yield images, labels, index
