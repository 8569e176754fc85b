"""Record: everything one site left behind for one set of images."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache

import torch

from channelscope.stats.classes import Classes
from channelscope.stats.maps import Maps
from channelscope.stats.moments import Moments
from channelscope.stats.sensitivity import Sensitivity
from channelscope.types import Float, Tensor


@dataclass(frozen=True)
class Record:
    """Statistics of one site over one set of images; `+` merges disjoint image sets.

    The moments at the read point are joined with the target columns: channels first, then targets.
    """

    read: Moments
    """read point, local readout (positions of each image), channels and targets (repeated for each position)"""
    pooled: Moments
    """read point, one sample per image (average over positions), channels and targets"""
    cut: Moments
    """cut point, positions of each image, channels"""
    classes: Classes | None = None
    """class counts and means of the pooled samples; None without labels"""
    sensitivity: Sensitivity | None = None
    """sums of first-order effects on the loss, when asked for"""
    maps: Maps | None = None
    """sums of feature-map ranks and independences, when asked for"""

    def __add__(self, other: "Record") -> "Record":
        """Statistics of the union of two disjoint image sets."""
        return Record(*(_plus(getattr(self, field.name), getattr(other, field.name)) for field in fields(self)))

    @property
    def channels(self) -> int:
        """Number of channels."""
        return len(self.cut)

    @property
    def images(self) -> int:
        """Number of images."""
        return round(self.pooled.count)

    def pack(self, prefix: str) -> Iterator[tuple[str, Tensor]]:
        """Named tensors that hold the record: scatters as float32 triangles, class means as float32 offsets."""
        for name in ("read", "pooled", "cut"):
            moments: Moments = getattr(self, name)
            yield f"{prefix}{name}.count", torch.tensor(moments.count, dtype=torch.float64)
            yield f"{prefix}{name}.mean", moments.mean
            yield f"{prefix}{name}.scatter", triangle(moments.scatter)
        if self.classes is not None:
            yield f"{prefix}classes.counts", self.classes.counts.clone()
            offsets = self.classes.means - self.pooled.mean[: self.channels]
            yield f"{prefix}classes.offsets", torch.where(self.classes.counts[:, None] > 0, offsets, 0.0).float()
        for name in ("sensitivity", "maps"):
            part = getattr(self, name)
            if part is not None:
                for field in fields(part):
                    yield f"{prefix}{name}.{field.name}", torch.as_tensor(getattr(part, field.name), dtype=torch.float64)

    @classmethod
    def unpack(cls, tensors: Mapping[str, Tensor], prefix: str) -> "Record":
        """Inverse of `pack`, up to its rounding."""
        parts = {}
        for name in ("read", "pooled", "cut"):
            head = f"{prefix}{name}."
            parts[name] = Moments(float(tensors[f"{head}count"]), tensors[f"{head}mean"], square(tensors[f"{head}scatter"]))
        if f"{prefix}classes.counts" in tensors:
            counts = tensors[f"{prefix}classes.counts"]
            means = tensors[f"{prefix}classes.offsets"].double() + parts["pooled"].mean[: len(parts["cut"])]
            parts["classes"] = Classes(counts, torch.where(counts[:, None] > 0, means, 0.0))
        for name, kind in (("sensitivity", Sensitivity), ("maps", Maps)):
            if f"{prefix}{name}.images" in tensors:
                values = [tensors[f"{prefix}{name}.{field.name}"] for field in fields(kind)]
                parts[name] = kind(float(values[0]), *values[1:])
        return cls(**parts)


def _plus(a, b):
    return None if a is None or b is None else a + b


def triangle(matrix: Float[Tensor, "d d"]) -> Float[Tensor, "d(d+1)/2"]:
    """Upper triangle of a symmetric matrix, row by row, float32."""
    return matrix.reshape(-1)[_upper(len(matrix))].float()


def square(packed: Float[Tensor, "d(d+1)/2"]) -> Float[Tensor, "d d"]:
    """Inverse of `triangle`, float64."""
    d = (int((8 * len(packed) + 1) ** 0.5) - 1) // 2
    matrix = torch.empty(d * d, dtype=torch.float64)
    upper = _upper(d)
    matrix[upper % d * d + upper // d] = matrix[upper] = packed.double()
    return matrix.view(d, d)


@lru_cache(maxsize=16)
def _upper(d: int) -> Tensor:
    rows, columns = torch.triu_indices(d, d)
    return rows * d + columns
