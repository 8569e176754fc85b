"""One pass over the calibration images: everything that the scores need; alone, or shared by several processes."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, distributed, nn

from channelscope.data.batches import indexed_batches, on_device_of, some_labeled, warn_unlabeled
from channelscope.errors import DataError, InputError, MismatchError
from channelscope.network.module_state import eval_mode
from channelscope.network.sites import Sites, sites
from channelscope.profiling import store
from channelscope.profiling.collector import ProfileCollector, check_gradients
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


def rank_batches(batches: Iterable, rank: int, world: int) -> Iterator:
    """Batches of one process: every `world`-th, starting with number `rank`.

    Parameters
    ----------
    batches
        Batches of all processes, each as for `data.batches.read_batch`.
    rank
        Number of this process.
    world
        Number of processes.

    Yields
    ------
    tuple
        Images, labels and index; without an index of their own, images are numbered over the batches of all processes.

    Examples
    --------
    >>> batches = [torch.zeros(2, 1, 4, 4)] * 3
    >>> [index.tolist() for _, _, index in rank_batches(batches, 0, 2)]
    [[0, 1], [4, 5]]
    """
    for number, batch in enumerate(indexed_batches(batches)):
        if number % world == rank:
            yield batch


def sum_on_rank_zero(profile: Profile) -> Profile | None:
    """Sum of the profiles of all processes of the default group.

    Parameters
    ----------
    profile
        The profile of this process, of at least one batch.

    Returns
    -------
    Profile or None
        The sum on rank 0, None on the other ranks.

    Examples
    --------
    >>> import tempfile
    >>> from channelscope import collect
    >>> from channelscope.zoo.toys import exact_copy
    >>> toy = exact_copy()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     distributed.init_process_group("gloo", init_method=f"file://{folder}/group", rank=0, world_size=1)
    ...     total = sum_on_rank_zero(collect(toy.model, rank_batches(toy.batches, 0, 1)))
    ...     distributed.destroy_process_group()
    >>> total.images
    256
    """
    rank, world = distributed.get_rank(), distributed.get_world_size()
    facts: list = [None] * world
    own = {name: getattr(profile, name) for name in ("images", "tally", "unlabeled", "fingerprints")}
    distributed.all_gather_object(facts, (own, {name: value.shape for name, value in profile.tensors.items()}))
    names = sorted(profile.tensors)
    if rank:
        for name in names:
            distributed.send(profile.tensors[name].contiguous(), 0)
        return None
    total = profile
    for other in range(1, world):
        counts, shapes = facts[other]
        tensors = {}
        for name in names:
            tensors[name] = torch.empty(shapes[name], dtype=profile.tensors[name].dtype)
            distributed.recv(tensors[name], other)
        total = total + replace(profile, **counts, tensors=tensors)
    return total
