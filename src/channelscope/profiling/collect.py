"""One pass over the calibration images: everything that the scores need."""

import time
from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

from channelscope.data.batches import indexed_batches, on_device_of, some_labeled, warn_unlabeled
from channelscope.errors import DataError, InputError, MismatchError
from channelscope.network.gradients import check_gradients
from channelscope.network.module_state import eval_mode
from channelscope.network.sites import Sites, sites
from channelscope.profiling import store
from channelscope.profiling.collector import ProfileCollector
from channelscope.stats.profile import Profile
from channelscope.stats.readout import Readout


class CheckpointTimer:
    """Timer of checkpoints: `due()` is true once per interval of wall-clock time.

    Examples
    --------
    >>> CheckpointTimer(seconds=0).due(), CheckpointTimer(seconds=60).due()
    (True, False)
    """

    def __init__(self, seconds: float = 60.0):
        self.seconds = seconds
        self.last = time.monotonic()

    def due(self) -> bool:
        """Whether the interval has passed since `due` was last true, or since the start."""
        if time.monotonic() - self.last < self.seconds:
            return False
        self.last = time.monotonic()
        return True


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
    """Profile of a network over some images, from one forward pass in evaluation mode; the network is left as it was.

    Where some images have a label, those without are left out with a warning and counted in `profile.unlabeled`.

    Parameters
    ----------
    model
        A network that returns logits, images × classes.
    batches
        Any iterable of batches: (images, labels), (images, labels, index), images alone, or dictionaries (data/batches.py).
        Labels may be None or −1 for unlabeled images; the index defaults to the running count.
    readout
        Samples of the local axis: positions(16), positions(all) or pooled.
    shards
        Number of image subsets (index mod shards) for jackknife intervals; 0 for none.
    seed
        Seed of the drawn positions.
    sensitivity
        Whether to sum first-order effects on the loss too (a backward pass; needs labels).
    maps
        Whether to sum feature-map ranks and independences too (HRank, CHIP; slow).
    checkpoint
        File of the unfinished profile: a pass resumes from it if it exists, and deletes it at the end.

    Returns
    -------
    Profile
        Statistics of all sites; profiles of disjoint image sets add up with +.

    Raises
    ------
    DataError
        For images or labels that cannot be read or that the network cannot take.
    NumericError
        For activations that are not finite; the site is named.
    SiteError
        For a network without sites.
    TracingError
        With sensitivity, for gradients that the traced graph does not reproduce (torch.autograd.Function, torch.no_grad()).

    Examples
    --------
    >>> from channelscope.zoo.toys import label_channel
    >>> toy = label_channel()
    >>> profile = collect(toy.model, toy.batches)
    >>> profile.images, profile.site("conv").channels, profile.tally.accuracy == toy.truth["accuracy"]
    (256, 4, True)
    """
    if shards < 0:
        raise InputError(f"shards must be 0 (none) or more, received {shards}")
    stream = indexed_batches(batches)
    first = next(stream, None)
    if first is None:
        raise DataError("there are no images to profile: the batches are empty")
    image = on_device_of(first[0][:1], model)
    earlier = store.load(checkpoint) if checkpoint is not None and Path(checkpoint).exists() else None
    labels = sensitivity or (first[1] is not None if earlier is None else "margin" in earlier.targets)
    found = _sites(model, on_device_of(first[0][:CHECKED], model), sensitivity)
    begin = partial(ProfileCollector, found, image, Readout.parse(readout), shards, seed)
    part = _Part(lambda labels: begin(_extras(labels=labels, sensitivity=sensitivity, maps=maps)), labels, earlier)
    with eval_mode(model), torch.set_grad_enabled(sensitivity):
        part.run(chain([first], stream), model, checkpoint)
    return part.finished(checkpoint)


def _sites(model: nn.Module, images: Tensor, sensitivity: bool) -> Sites:
    """The network's sites, after its gradients have been checked where they are needed."""
    found = sites(model, images[:1])
    if sensitivity:
        check_gradients(found, images)
    return found


def _extras(**wanted: bool) -> frozenset[str]:
    return frozenset(name for name, value in wanted.items() if value)


class _Part:
    """Profile of one call, added to an earlier one: of all images, or of the labeled ones as soon as one has a label."""

    def __init__(self, begin: Callable[[bool], ProfileCollector], labels: bool, earlier: Profile | None):
        self.begin, self.collector = begin, begin(labels)
        self.earlier = None if earlier is None else earlier + self.collector.profile()

    def run(self, stream: Iterable, model: nn.Module, checkpoint: Path | None) -> None:
        """Add every batch that is not in the earlier profile."""
        shape, clock = self.collector.input_shape, CheckpointTimer()
        skip = 0 if self.earlier is None else self.earlier.images + self.earlier.unlabeled
        for images, labels, index in stream:
            if tuple(images.shape[1:]) != shape:
                raise DataError(f"all images must have the shape of the first, {shape}, received {tuple(images.shape[1:])}")
            if skip >= len(images):
                skip -= len(images)
                self.passed(labels)
                continue
            if skip:
                raise MismatchError(f"the checkpoint {checkpoint} ends inside a batch: resume with the batch size it was begun with")
            self.add(on_device_of(images, model), labels, index)
            if checkpoint is not None and clock.due():
                store.save(self.profile(), checkpoint)

    def add(self, images: Tensor, labels: Tensor | None, index: Tensor) -> None:
        """Run one batch, or the labeled images of it."""
        if labels is not None and not self.collector.labeled:
            seen, self.earlier = self.profile(), None
            self.collector = self.begin(True)
            self.collector.unlabeled = seen.images
        if not self.collector.labeled:
            self.collector.batch(images, None, index)
            return
        kept = some_labeled(images, None if labels is None else labels.to(images.device), index.to(images.device))
        self.collector.unlabeled += len(images) - (0 if kept is None else len(kept[0]))
        if kept is not None:
            self.collector.batch(*kept)

    def passed(self, labels: Tensor | None) -> None:
        """Raise MismatchError for labels of images that an earlier profile took without labels."""
        if labels is not None and not self.collector.labeled:
            raise MismatchError("the checkpoint was begun on images without labels, and these have labels: delete it and begin again")

    def profile(self) -> Profile:
        """The profile of everything so far."""
        now = self.collector.profile()
        return now if self.earlier is None else self.earlier + now

    def finished(self, checkpoint: Path | None) -> Profile:
        """The profile of all images; the checkpoint is deleted."""
        profile = self.profile()
        if not profile.images:
            raise DataError("sensitivity=True needs labels, and the images have none")
        warn_unlabeled(profile.unlabeled, profile.images + profile.unlabeled)
        if checkpoint is not None:
            Path(checkpoint).unlink(missing_ok=True)
        return profile
