"""Profile: the statistics of every site of a network over the calibration images."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate
from operator import add

import numpy as np
import torch

from channelscope.errors import MismatchError, SampleError, SiteError, no_such
from channelscope.site import Site
from channelscope.stats.site_record import SiteRecord
from channelscope.stats.tally import Tally
from channelscope.types import Int, Tensor

MUST_AGREE = ("weights_hash", "sites", "input_shape", "classes", "readout", "cut_readout", "targets", "seed", "shards")


@dataclass(frozen=True)
class Profile:
    """Statistics of every site over some images; the profile of a union of image sets is the sum of their profiles.

    Records are held packed, as they lie on disk; `record(site)` unpacks one.

    Examples
    --------
    >>> from channelscope import collect
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.Flatten(), torch.nn.Linear(18, 3))
    >>> profile = collect(model, [torch.rand(4, 1, 3, 3)])
    >>> profile.images, [site.name for site in profile.sites], profile.record("0").channels
    (4, ['0'], 2)
    """

    network: str
    """name the network was loaded by, or its class"""
    weights_hash: str
    """identity of the weights that were profiled"""
    input_shape: tuple[int, ...]
    """shape of one image (C, H, W)"""
    classes: int
    """number of logits"""
    sites: tuple[Site, ...]
    """sites in execution order"""
    skipped: Mapping[str, str]
    """what could not be a site, and why"""
    readout: str
    """what a sample of the local axis is, such as positions(16)"""
    cut_readout: str
    """what a sample at the cut point is"""
    targets: tuple[str, ...]
    """target columns joined to the channels, in order"""
    seed: int
    """seed of the drawn positions"""
    shards: int
    """number of shards (image index mod shards), 0 for none"""
    images: int
    """images profiled"""
    tally: Tally
    """accuracy and loss on these images; empty without labels"""
    weight_norms: Mapping[str, Mapping[str, Tensor]]
    """site → name → one number per channel read off the weights: l1, l2, gamma (BatchNorm scale), distances (FPGM), outgoing (readers)"""
    tensors: Mapping[str, Tensor] = field(repr=False)
    """packed records: 'total/SITE/…' and 'SHARD/SITE/…'"""
    unlabeled: int = 0
    """images left out because others have a label and they have none"""
    fingerprints: Int[Tensor, "images"] = field(default_factory=lambda: torch.empty(0, dtype=torch.int64), repr=False)
    """one number per image (network/module_state.py), sorted; empty in profiles written before there were any"""

    def __repr__(self) -> str:
        """What was measured, on how many images and where, on four lines."""
        channels, size = sum(site.channels for site in self.sites), " × ".join(map(str, self.input_shape))
        return "\n".join(
            (
                f"Profile({self.network}: {self.images:,} images, {channels:,} channels at {len(self.sites)} sites)",
                f"  weights {self.weights_hash[:12]}, input {size}, {self.classes} classes, {len(self.skipped)} layers skipped",
                f"  readout {self.readout}, at the cut point {self.cut_readout}, seed {self.seed}, {self.shards} shards",
                f"  targets {', '.join(self.targets) or 'none'}" + (f"; {self.tally}" if self.tally.images else ""),
            )
        )

    def plot(self, x: str = "capture", y: str = "relevance", layers: list[str] | None = None, title: str | None = None) -> np.ndarray:
        """Axes with the channels of each layer on two scores, one panel a layer; see `channelscope.plot`."""
        from channelscope.drawing import plot

        return plot(self, x, y, layers, title)

    def site(self, name: str) -> Site:
        """The site of that name.

        Raises
        ------
        SiteError
            If there is none, with the nearest names.
        """
        for site in self.sites:
            if site.name == name:
                return site
        raise SiteError(no_such("site", name, [site.name for site in self.sites]))

    def record(self, site: Site | str, shard: int | None = None) -> SiteRecord:
        """Statistics of one site.

        Parameters
        ----------
        site
            The site or its name.
        shard
            One shard of the images; None for all images.

        Raises
        ------
        SiteError
            If there is no such site, with the nearest names.
        SampleError
            If the profile has no such shard.
        """
        name = site if isinstance(site, str) else site.name
        prefix = f"{'total' if shard is None else shard}/{name}/"
        if f"{prefix}pooled.count" not in self.tensors:
            self.site(name)
            raise SampleError(f"the profile has no shard {shard}: it was collected with shards={self.shards}")
        return SiteRecord.unpack(self.tensors, prefix)

    def jackknife_records(self, site: Site | str) -> list[SiteRecord]:
        """Statistics of one site without each shard in turn: the replicates of a delete-a-group jackknife.

        Raises
        ------
        SampleError
            Without shards: there is nothing to leave out.
        """
        if self.shards < 2:
            raise SampleError(f"intervals over images need at least 2 shards, the profile has {self.shards}: collect with shards=10")
        records = [self.record(site, shard) for shard in range(self.shards)]
        before = list(accumulate(records[:-1], add))
        after = list(accumulate(records[:0:-1], add))[::-1]
        middle = [a + b for a, b in zip(before[:-1], after[1:], strict=True)]
        return [after[0], *middle, before[-1]]

    def __add__(self, other: "Profile") -> "Profile":
        """Profile of the union of two disjoint image sets, of the same network measured in the same way.

        Raises
        ------
        MismatchError
            If they are of different networks, weights or measurements, or have images in common.
        """
        for name in MUST_AGREE:
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise MismatchError(f"profiles can only be added when their {name} agree: {_brief(mine)} is not {_brief(theirs)}")
        common = int(torch.isin(self.fingerprints, other.fingerprints).sum()) if len(self.fingerprints) else self._same(other)
        if common:
            raise MismatchError(
                f"profiles can only be added when they have no image in common: {common:,} of the {self.images:,} images of one are "
                f"among the {other.images:,} of the other, and would be counted twice"
            )
        return replace(
            self,
            images=self.images + other.images,
            tally=self.tally + other.tally,
            tensors=dict(_sum(self.tensors, other.tensors, self._prefixes())),
            unlabeled=self.unlabeled + other.unlabeled,
            fingerprints=torch.cat([self.fingerprints, other.fingerprints]).sort().values,
        )

    def _same(self, other: "Profile") -> int:
        """Number of images if every statistic is that of the other profile, to the bit; else 0."""
        alike = self.images == other.images and all(torch.equal(value, other.tensors[name]) for name, value in self.tensors.items())
        return self.images if alike else 0

    def _prefixes(self) -> Iterator[str]:
        for owner in ("total", *range(self.shards)):
            for site in self.sites:
                yield f"{owner}/{site.name}/"


def _sum(a: Mapping[str, Tensor], b: Mapping[str, Tensor], prefixes: Iterator[str]) -> Iterator[tuple[str, Tensor]]:
    for prefix in prefixes:
        yield from (SiteRecord.unpack(a, prefix) + SiteRecord.unpack(b, prefix)).pack(prefix)


def _brief(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "…"
