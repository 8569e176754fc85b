"""SiteRecord: every statistic of one site for one set of images."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache

import torch

from channelscope.errors import ShapeError
from channelscope.stats.channel_sums import ClassMeans, FeatureMapSums, Sensitivity
from channelscope.stats.moments import Moments
from channelscope.types import Float, Tensor


@dataclass(frozen=True)
class SiteRecord:
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
                yield f"{prefix}{name}.count", torch.tensor(moments.count, dtype=torch.float64)
                yield f"{prefix}{name}.mean", moments.mean.clone()
                yield f"{prefix}{name}.scatter", pack_symmetric(moments.scatter)
        if self.affine is not None:
            yield f"{prefix}affine", self.affine.clone()
        if self.classes is not None:
            yield f"{prefix}classes.counts", self.classes.counts.clone()
            offsets = self.classes.means - self.pooled.mean[: self.channels]
            yield f"{prefix}classes.offsets", offsets[self.classes.counts > 0].float()
        for name in ("sensitivity", "maps"):
            part = getattr(self, name)
            if part is not None:
                for field in fields(part):
                    yield f"{prefix}{name}.{field.name}", torch.as_tensor(getattr(part, field.name), dtype=torch.float64)

    @classmethod
    def unpack(cls, tensors: Mapping[str, Tensor], prefix: str) -> "SiteRecord":
        """Inverse of `pack`, up to its rounding."""
        parts: dict = {"stored_preactivation": None, "stored_activation": None, "affine": tensors.get(f"{prefix}affine")}
        for name, field in (("read", "stored_preactivation"), ("pooled", "pooled"), ("cut", "stored_activation")):
            head = f"{prefix}{name}."
            if f"{head}count" in tensors:
                parts[field] = Moments(float(tensors[f"{head}count"]), tensors[f"{head}mean"], unpack_symmetric(tensors[f"{head}scatter"]))
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
    return matrix.float().flatten().index_select(0, _triangle_indices(len(matrix)))


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
