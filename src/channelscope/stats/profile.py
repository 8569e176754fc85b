"""SiteRecord: every statistic of one site for one set of images; Profile: those of every site of a network."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, lru_cache, reduce
from itertools import accumulate
from operator import add
from typing import Any

import torch

from channelscope.display import Facts, Shown, spread
from channelscope.errors import MismatchError, SampleError, ShapeError, SiteError, no_such
from channelscope.site import Site
from channelscope.stats.channel_sums import ClassMeans, FeatureMapSums, Sensitivity
from channelscope.stats.moments import Moments
from channelscope.stats.tally import Tally
from channelscope.types import Float, Int, Tensor


@dataclass(frozen=True, repr=False)
class SiteRecord(Shown):
    """Statistics of one site over one set of images; `+` merges disjoint image sets.

    The moments at the read point are joined with the target columns: channels first, then targets. Moments that follow from
    other fields are not stored twice.
    """

    pooled: Moments
    """read point, one sample per image (average over positions), channels and targets"""
    stored_preactivation: Moments | None
    """`read`, or None where it is `pooled`: a pooled readout, or one position per image"""
    stored_activation: Moments | None
    """`cut`, or None where it follows from `read` by `affine`"""
    affine: Float[Tensor, "2 channels"] | None = None
    """factor and shift that take the read point to the cut point; None if more than that lies between, or other positions are read"""
    classes: ClassMeans | None = None
    """class counts and means of the pooled samples; None without labels"""
    sensitivity: Sensitivity | None = None
    """sums of first-order effects on the loss, when asked for"""
    maps: FeatureMapSums | None = None
    """sums of feature-map ranks and independences, when asked for"""

    def facts(self) -> Facts:
        """How many channels and images, and what was measured."""
        parts = {"classes": self.classes, "sensitivity": self.sensitivity, "maps": self.maps}
        kept = ", ".join(name for name, part in parts.items() if part is not None) or "moments alone"
        return f"SiteRecord({self.channels} channels, {self.images:,} images)", [
            ("also holds", kept),
            ("variance before the activation", spread(self.preactivation.variance[: self.channels])),
        ]

    @property
    def preactivation(self) -> Moments:
        """Read point, local readout (positions of each image), channels and targets (repeated for each position)."""
        return self.pooled if self.stored_preactivation is None else self.stored_preactivation

    @cached_property
    def activation(self) -> Moments:
        """Cut point, positions of each image, channels."""
        if self.stored_activation is not None:
            return self.stored_activation
        if self.affine is None:
            raise ShapeError("a record needs moments at the cut point, or the affine map that leads there")
        return self.preactivation[: self.affine.shape[1]].scaled(*self.affine)

    def __add__(self, other: "SiteRecord") -> "SiteRecord":
        """Statistics of the union of two disjoint image sets."""
        parts: dict = {
            field.name: _plus(getattr(self, field.name), getattr(other, field.name)) for field in fields(self) if field.name != "affine"
        }
        return SiteRecord(**parts, affine=self.affine)

    @property
    def channels(self) -> int:
        """Number of channels."""
        return len(self.activation) if self.affine is None else self.affine.shape[1]

    @property
    def images(self) -> int:
        """Number of images."""
        return round(self.pooled.count)

    def pack(self, prefix: str) -> Iterator[tuple[str, Tensor]]:
        """Named tensors that hold the record: scatters as float32 triangles, means of the classes seen as float32 offsets."""
        for name, moments in (("read", self.stored_preactivation), ("pooled", self.pooled), ("cut", self.stored_activation)):
            if moments is not None:
                yield from pack_moments(f"{prefix}{name}.", moments)
        sums = {"classes": self.classes, "sensitivity": self.sensitivity, "maps": self.maps}
        yield from pack_sums(prefix, self.pooled.mean[: self.channels], self.affine, sums)

    @classmethod
    def unpack(cls, tensors: Mapping[str, Tensor], prefix: str) -> "SiteRecord":
        """Inverse of `pack`, up to its rounding."""
        parts: dict = {"stored_preactivation": None, "stored_activation": None, "affine": tensors.get(f"{prefix}affine")}
        for name, place in (("read", "stored_preactivation"), ("pooled", "pooled"), ("cut", "stored_activation")):
            head = f"{prefix}{name}."
            if f"{head}count" in tensors:
                parts[place] = Moments(float(tensors[f"{head}count"]), tensors[f"{head}mean"], unpack_symmetric(tensors[f"{head}scatter"]))
        if f"{prefix}classes.counts" in tensors:
            counts, offsets = tensors[f"{prefix}classes.counts"], tensors[f"{prefix}classes.offsets"].double()
            means = counts.new_zeros(len(counts), offsets.shape[1])
            means[counts > 0] = offsets + parts["pooled"].mean[: offsets.shape[1]]
            parts["classes"] = ClassMeans(counts, means)
        for name, kind in (("sensitivity", Sensitivity), ("maps", FeatureMapSums)):
            if f"{prefix}{name}.images" in tensors:
                values = [tensors[f"{prefix}{name}.{field.name}"] for field in fields(kind)]
                parts[name] = kind(float(values[0]), *values[1:])
        return cls(**parts)


def pack_moments(prefix: str, moments: Moments) -> Iterator[tuple[str, Tensor]]:
    """Named tensors of the moments at one point: the scatter as a float32 triangle.

    Examples
    --------
    >>> [name for name, _ in pack_moments("pooled.", Moments.zero(2))]
    ['pooled.count', 'pooled.mean', 'pooled.scatter']
    """
    yield f"{prefix}count", torch.tensor(moments.count, dtype=torch.float64)
    yield f"{prefix}mean", moments.mean.clone()
    yield f"{prefix}scatter", pack_symmetric(moments.scatter)


def pack_sums(
    prefix: str, mean: Float[Tensor, "channels"], affine: Float[Tensor, "2 channels"] | None, sums: Mapping[str, Any]
) -> Iterator[tuple[str, Tensor]]:
    """Named tensors of what a record holds besides moments; means of the classes seen as float32 offsets from the mean of all.

    Examples
    --------
    >>> sums = {"classes": ClassMeans.of(torch.tensor([[2.0]]), torch.tensor([1]), 3)}
    >>> dict(pack_sums("", torch.tensor([1.5]), None, sums))["classes.offsets"]
    tensor([[0.5000]])
    """
    if affine is not None:
        yield f"{prefix}affine", affine.clone()
    for name, part in sums.items():
        if isinstance(part, ClassMeans):
            yield f"{prefix}{name}.counts", part.counts.clone()
            yield f"{prefix}{name}.offsets", (part.means[part.counts > 0] - mean).float()
        elif part is not None:
            for each in fields(part):
                yield f"{prefix}{name}.{each.name}", torch.as_tensor(getattr(part, each.name), dtype=torch.float64)


def _plus(a, b):
    return None if a is None or b is None else a + b


def pack_symmetric(matrix: Float[Tensor, "d d"]) -> Float[Tensor, "pairs"]:
    """Upper triangle of a symmetric matrix, row by row.

    Parameters
    ----------
    matrix
        Symmetric.

    Returns
    -------
    Tensor
        Float32, d(d + 1)/2 numbers.

    Examples
    --------
    >>> pack_symmetric(torch.tensor([[1.0, 2.0], [2.0, 3.0]])).tolist()
    [1.0, 2.0, 3.0]
    """
    return matrix.flatten().index_select(0, _triangle_indices(len(matrix))).float()


def unpack_symmetric(packed: Float[Tensor, "pairs"]) -> Float[Tensor, "d d"]:
    """Symmetric matrix of a packed upper triangle; inverse of `pack_symmetric`.

    Parameters
    ----------
    packed
        d(d + 1)/2 numbers, row by row.

    Returns
    -------
    Tensor
        Float64 (d, d).

    Examples
    --------
    >>> unpack_symmetric(torch.tensor([1.0, 2.0, 3.0])).tolist()
    [[1.0, 2.0], [2.0, 3.0]]
    """
    d = (int((8 * len(packed) + 1) ** 0.5) - 1) // 2
    return packed.double().index_select(0, _matrix_indices(d)).view(d, d)


@lru_cache(maxsize=8)
def _triangle_indices(d: int) -> Tensor:
    """Where the numbers of a triangle lie in its matrix."""
    rows, columns = torch.triu_indices(d, d)
    return rows * d + columns


@lru_cache(maxsize=8)
def _matrix_indices(d: int) -> Tensor:
    """Where the numbers of a matrix lie in its triangle."""
    place = torch.empty(d * d, dtype=torch.long)
    place[_triangle_indices(d)] = torch.arange(d * (d + 1) // 2)
    place = place.view(d, d).triu()
    return (place + place.triu(1).T).flatten()


MUST_AGREE = ("weights_hash", "sites", "input_shape", "classes", "readout", "cut_readout", "targets", "seed", "shards")


@dataclass(frozen=True, repr=False)
class Profile(Shown):
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
    """packed records: 'total/SITE/…' and 'SHARD/SITE/…'; without the first where memory was short"""
    unlabeled: int = 0
    """images left out because others have a label and they have none"""
    computed: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    """what scores have computed of the sites, for the next (`LayerStatistics.of_all`); part of no file"""
    fingerprints: Int[Tensor, "images"] = field(default_factory=lambda: torch.empty(0, dtype=torch.int64), repr=False)
    """one number per image (network/module_state.py), sorted; empty in profiles written before there were any"""

    def facts(self) -> Facts:
        """What was measured, on how many images and where."""
        channels, size = sum(site.channels for site in self.sites), " × ".join(map(str, self.input_shape))
        return f"Profile({self.network}: {self.images:,} images, {channels:,} channels at {len(self.sites)} sites)", [
            ("weights", f"{self.weights_hash[:12]}, input {size}, {self.classes} classes, {len(self.skipped)} layers skipped"),
            ("readout", f"{self.readout}, at the cut point {self.cut_readout}, seed {self.seed}, {self.shards} shards"),
            ("targets", (", ".join(self.targets) or "none") + (f"; {self.tally}" if self.tally.images else "")),
        ]

    def plot(
        self,
        x: str = "capture",
        y: str = "relevance",
        layers: list[str] | None = None,
        title: str | None = None,
        errors: bool = False,
        interactive: bool = False,
    ) -> Any:
        """Axes with the channels of each layer on two scores, one panel a layer; see `channelscope.plot`."""
        from channelscope.drawing import plot

        return plot(self, x, y, layers, title, errors, interactive)

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
        if shard is None and f"{prefix}pooled.count" not in self.tensors and f"0/{name}/pooled.count" in self.tensors:
            return reduce(add, (self.record(site, each) for each in range(self.shards)))
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
                if f"{owner}/{site.name}/pooled.count" in self.tensors:
                    yield f"{owner}/{site.name}/"


def _sum(a: Mapping[str, Tensor], b: Mapping[str, Tensor], prefixes: Iterator[str]) -> Iterator[tuple[str, Tensor]]:
    for prefix in prefixes:
        yield from (SiteRecord.unpack(a, prefix) + SiteRecord.unpack(b, prefix)).pack(prefix)


def _brief(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "…"
