"""collect: one pass over the calibration images, everything the scores need."""

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

from channelscope import store
from channelscope.collect.watch import Watch
from channelscope.errors import DataError, InputError, MismatchError
from channelscope.net.find import sites
from channelscope.net.gradients import check_gradients
from channelscope.net.graph import evaluating
from channelscope.net.readout import Readout
from channelscope.stats.profile import Profile

CHECKED = 2
"""Images on which the traced network's gradients are compared with the network's own."""


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
             finite (the site is named), SiteError for a network without sites; with sensitivity, TracingError where the
             network has gradients of its own that its steps do not show (torch.autograd.Function, torch.no_grad()).
    """
    if shards < 0:
        raise InputError(f"shards must be 0 (none) or more, received {shards}")
    stream = numbered(batches)
    first = next(stream, None)
    if first is None:
        raise DataError("there are no images to profile: the batches are empty")
    device = next(model.parameters(), first[0]).device
    found = sites(model, first[0][:1].to(device))
    extras = {"labels": _labeled(first[1]), "sensitivity": sensitivity, "maps": maps}
    if sensitivity and not extras["labels"]:
        raise DataError("sensitivity=True needs labels, and the images have none")
    if sensitivity:
        check_gradients(found, first[0][:CHECKED].to(device))
    watch = Watch(found, first[0][:1].to(device), Readout.parse(readout), shards, seed, frozenset(name for name in extras if extras[name]))
    earlier = store.load(checkpoint) + watch.profile() if checkpoint is not None and Path(checkpoint).exists() else None
    skip, clock = earlier.images if earlier else 0, store.Clock()
    with evaluating(model), torch.set_grad_enabled(sensitivity):
        for images, labels, index in chain([first], stream):
            if skip >= len(images):
                skip -= len(images)
                continue
            if skip:
                raise MismatchError(f"the checkpoint {checkpoint} ends inside a batch: resume with the batch size it was begun with")
            if tuple(images.shape[1:]) != watch.input_shape:
                raise DataError(f"all images must have the shape of the first, {watch.input_shape}, received {tuple(images.shape[1:])}")
            watch.batch(images.to(device), labels if labels is None else labels.to(device), index.to(device))
            if checkpoint is not None and clock.due():
                store.save(_joined(earlier, watch.profile()), checkpoint)
    profile = _joined(earlier, watch.profile())
    if checkpoint is not None:
        Path(checkpoint).unlink(missing_ok=True)
    return profile


def _joined(earlier: Profile | None, later: Profile) -> Profile:
    return later if earlier is None else earlier + later


def _labeled(labels: Tensor | None) -> bool:
    return labels is not None and bool((labels >= 0).any())


def numbered(batches: Iterable) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
    """Batches as (images, labels, index) with the running count where no index was given; empty ones are left out.

    Raises   DataError for images, labels or an index of the wrong shape.
    """
    seen = 0
    for batch in batches:
        images, labels, *rest = (batch, None) if isinstance(batch, Tensor) else batch
        if images.dim() != 4:
            raise DataError(f"a batch of images must be batch × channels × height × width, received shape {tuple(images.shape)}")
        index = rest[0] if rest else torch.arange(seen, seen + len(images))
        for name, column in (("labels", labels), ("index", index)):
            if column is not None and column.shape != (len(images),):
                raise DataError(f"{len(images)} images need as many {name}, received shape {tuple(column.shape)}")
        seen += len(images)
        if len(images):
            yield images, labels, index
