"""Profiles on disk: one safetensors file with a JSON header, format 2."""

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from channelscope.errors import FormatError, MismatchError
from channelscope.network.module_state import weights_hash, zero_batch
from channelscope.network.sites import Sites, sites
from channelscope.site import Site
from channelscope.stats.profile import Profile
from channelscope.stats.tally import Tally
from channelscope.storage import atomic_file

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
        raise FormatError(f"no profile at {path}: write one with `channelscope profile … --out {path.name}`")
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
