"""One pass over the calibration images, alone or shared by several processes, and the file that a profile is stored in."""

import json
import time
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, distributed, nn

from channelscope.data.batches import indexed_batches, on_device_of, some_labeled, warn_unlabeled
from channelscope.errors import DataError, FormatError, InputError, MismatchError, near_paths
from channelscope.network.module_state import eval_mode, weights_hash, zero_batch
from channelscope.network.sites import Sites, sites
from channelscope.profiling.collector import MEMORY, SHARDS, ProfileCollector, check_gradients
from channelscope.site import Site
from channelscope.stats.profile import Profile
from channelscope.stats.readout import Readout
from channelscope.stats.tally import Tally
from channelscope.storage import atomic_file


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
    shards: int | None = None,
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
        Number of image subsets (index mod shards) for jackknife intervals, 0 for none. None for ten, or, with a warning, as many
        as let the statistics fit into 4 GB, two at least.
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
    if shards is not None and shards < 0:
        raise InputError(f"shards must be 0 (none) or more, received {shards}")
    stream = indexed_batches(batches)
    first = next(stream, None)
    if first is None:
        raise DataError("there are no images to profile: the batches are empty")
    image = on_device_of(first[0][:1], model)
    earlier = load(checkpoint) if checkpoint is not None and Path(checkpoint).exists() else None
    labels = sensitivity or (first[1] is not None if earlier is None else "margin" in earlier.targets)
    found = _sites(model, on_device_of(first[0][:CHECKED], model), sensitivity)
    begin = partial(ProfileCollector, found, image, Readout.parse(readout), shards, seed)
    part = _Part(lambda labels: begin(_extras(labels=labels, sensitivity=sensitivity, maps=maps)), labels, earlier)
    if shards is None and part.collector.shards < SHARDS:
        warnings.warn(
            f"{part.collector.shards} shards of the images instead of {SHARDS}, because the statistics of {len(found)} sites with up to "
            f"{max(site.channels for site in found):,} channels would not fit into {MEMORY / 1e9:g} GB otherwise: intervals are coarser. "
            "Give a number of shards to decide yourself",
            UserWarning,
            stacklevel=2,
        )
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
                save(self.profile(), checkpoint)

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

    def profile(self, last: bool = False) -> Profile:
        """The profile of everything so far."""
        now = self.collector.profile(last)
        return now if self.earlier is None else self.earlier + now

    def finished(self, checkpoint: Path | None) -> Profile:
        """The profile of all images; the checkpoint is deleted."""
        profile = self.profile(last=True)
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


FORMAT = 2

HEADER_FIELDS = ("network", "weights_hash", "input_shape", "classes", "readout", "cut_readout", "targets", "seed", "shards", "images")

WEIGHTS = "weights/"

FINGERPRINTS = "fingerprints"


def save(profile: Profile, path: str | Path) -> Path:
    """Write a profile to one file, which appears complete or not at all.

    Parameters
    ----------
    profile
        The profile.
    path
        The file to write or replace.

    Returns
    -------
    Path
        The file; `load` returns the same profile, to the bit.

    Examples
    --------
    >>> import tempfile
    >>> from channelscope import collect
    >>> from channelscope.zoo.toys import exact_copy
    >>> toy = exact_copy()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     load(save(collect(toy.model, toy.batches), Path(folder, "toy.profile"))).images
    256
    """
    path = Path(path)
    header = {name: getattr(profile, name) for name in HEADER_FIELDS}
    header |= {
        "format": FORMAT,
        "sites": [site.as_dict() for site in profile.sites],
        "skipped": dict(profile.skipped),
        "tally": asdict(profile.tally),
        "unlabeled": profile.unlabeled,
    }
    tensors = dict(profile.tensors) | {FINGERPRINTS: profile.fingerprints}
    for site, facts in profile.weight_norms.items():
        tensors |= {f"{WEIGHTS}{site}/{name}": values for name, values in facts.items()}
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    header["checksum"] = _checksum(header, tensors)
    with atomic_file(path) as half:
        save_file(tensors, half, metadata={"channelscope": json.dumps(header)})
    return path


def _checksum(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """CRC-32 of the header and of every tensor's name, type, shape and bytes."""
    found = zlib.crc32(json.dumps(header).encode())
    for name, value in sorted(tensors.items()):
        found = zlib.crc32(f"{name} {value.dtype} {tuple(value.shape)}".encode(), found)
        found = zlib.crc32(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().data, found)
    return f"{found:08x}"


def load(path: str | Path) -> Profile:
    """Profile of a file that `save` wrote.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    Profile
        The profile as it was saved.

    Raises
    ------
    FormatError
        If the file is missing, damaged (by its checksum, where it has one), not a profile, or of another format version.

    Examples
    --------
    >>> try:
    ...     load("nowhere.profile")
    ... except FormatError as error:
    ...     print(str(error).split(":")[0])
    no profile at nowhere.profile
    """
    path = Path(path)
    if not path.is_file():
        raise FormatError(f"no profile at {path}: write one with `channelscope profile … --out {path.name}`{near_paths(path)}")
    path.open("rb").close()  # a file that may not be read is no damaged one
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if "channelscope" not in metadata:
                raise FormatError(f"{path} is a safetensors file but not a profile; network weights go to --weights")
            header = dict(json.loads(metadata["channelscope"]))
            if header.get("format") != FORMAT:
                raise FormatError(f"{path} has profile format {header.get('format')}, this version reads {FORMAT}: collect it again")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        stored = header.pop("checksum", None)
        if stored not in (None, expected := _checksum(header, tensors)):
            raise FormatError(f"{path} is damaged: its checksum is {stored}, that of its contents {expected}; collect it again")
        return _profile(header, tensors)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"{path} is damaged or not a profile: {type(error).__name__}: {error}") from error


def _profile(header: dict[str, Any], tensors: dict[str, Tensor]) -> Profile:
    """The profile of a file's header and tensors."""
    weights: dict[str, dict] = {}
    for name in [name for name in tensors if name.startswith(WEIGHTS)]:
        site, fact = name.removeprefix(WEIGHTS).rsplit("/", 1)
        weights.setdefault(site, {})[fact] = tensors.pop(name)
    sites = tuple(Site.from_dict(site) for site in header["sites"])
    plain: dict[str, Any] = {name: tuple(header[name]) if isinstance(header[name], list) else header[name] for name in HEADER_FIELDS}
    later = {"unlabeled": header.get("unlabeled", 0)}
    if FINGERPRINTS in tensors:
        later["fingerprints"] = tensors.pop(FINGERPRINTS)
    tally = Tally(**header["tally"])
    return Profile(**plain, sites=sites, skipped=header["skipped"], tally=tally, weight_norms=weights, tensors=tensors, **later)


def trace_profiled(model: nn.Module, profile: Profile) -> Sites:
    """Sites of a network, after a check that the profile is of this network with these weights.

    Parameters
    ----------
    model
        The network.
    profile
        A profile of the network.

    Returns
    -------
    Sites
        The sites, with the traced graph.

    Raises
    ------
    MismatchError
        If the weights or the sites differ.

    Examples
    --------
    >>> from channelscope import collect
    >>> from channelscope.zoo.toys import exact_copy
    >>> toy = exact_copy()
    >>> [site.name for site in trace_profiled(toy.model, collect(toy.model, toy.batches))]
    ['conv']
    """
    identity = weights_hash(model)
    if identity != profile.weights_hash:
        raise MismatchError(
            f"the profile is of {profile.network} with weights {profile.weights_hash[:12]}, the network given has weights {identity[:12]}: "
            "give the network that was profiled, or collect its profile"
        )
    found = sites(model, zero_batch(model, profile.input_shape))
    if found.found != profile.sites:
        differ = sorted({site.name for site in found} ^ {site.name for site in profile.sites}) or ["their read or cut points"]
        raise MismatchError(f"the profile's sites are not the network's: they differ in {', '.join(differ[:5])}; collect it again")
    return found
