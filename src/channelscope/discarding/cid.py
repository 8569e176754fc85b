"""CID, the conditional information discarded by each layer: options, calibration statistics, and the result for each image."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from channelscope.data.batches import indexed_batches
from channelscope.discarding.jacobian import PerImageRandom, SensitivityEstimator
from channelscope.discarding.map_cache import MapCache, fingerprint
from channelscope.discarding.noise import GRID_SIDE, Cells, entropy
from channelscope.discarding.optimum import Constraint, optimal_noise
from channelscope.discarding.pixel_network import LayerOutput, PixelNetwork
from channelscope.errors import InputError, SampleError, at
from channelscope.stats.variance import Variance
from channelscope.types import Bool, Float, Int, Tensor

KAPPA = {"data": 0.1, "local": 1.5}
"""κ unless said otherwise"""


@dataclass(frozen=True)
class CIDOptions:
    """What is held constant while noise is added."""

    mode: Literal["fast", "exact"] = "fast"
    """fast: at most 20 passes an image; exact: up to 600, with the distance from the optimum measured"""
    normalizer: Literal["data", "local"] = "data"
    """how far a feature may move is measured by its variance over the data, or by its answer to faint noise at the same image"""
    kappa: float | None = None
    """fraction κ of that measure; by default 0.1 under data, 1.5 under local"""
    noise: float = 0.01
    """standard deviation of the faint noise, in pixels of 0 to 1"""
    side: int = GRID_SIDE
    """at most this many cells along a side of the image; pixels of a cell share one noise level"""
    cap: bool = True
    """noise stays below the data's standard deviation; without it pixels that a layer cannot see are refused"""

    def __post_init__(self) -> None:
        """Refuse what leaves the constraint undefined."""
        if self.kappa is not None and not (math.isfinite(self.kappa) and self.kappa > 0):
            raise InputError(f"expected κ above zero, received {self.kappa}")
        if not (math.isfinite(self.noise) and self.noise > 0):
            raise InputError(f"expected a noise level above zero, received {self.noise}")
        if self.side < 1:
            raise InputError(f"expected at least one cell along a side, received {self.side}")

    @property
    def fraction(self) -> float:
        """κ."""
        return KAPPA[self.normalizer] if self.kappa is None else self.kappa

    def constraint(self, feature: Variance) -> Constraint:
        """The constraint on a feature that varies so much over the data.

        Raises
        ------
        InputError
            If it does not vary.
        """
        if not feature.total > 0:
            raise InputError(
                f"the feature is the same for all {feature.count} images: it has no variance over the data, and so no CID; "
                "give images that differ, or another layer"
            )
        return Constraint(self.normalizer, self.fraction, feature.total, self.noise)

    def caps(self, pixels: Variance, cells: Cells) -> tuple[Float[Tensor, "cells"], Bool[Tensor, "C H W"]]:
        """Caps of the cells (root mean variance of their varying values, infinite without caps), and which values vary at all."""
        varies = pixels.each > 0
        counts = cells.sum_by_cell(varies.double().sum(0))
        cap = (cells.sum_by_cell(pixels.each.sum(0)) / counts.clamp(min=1)).sqrt().float()
        return (cap if self.cap else cap.new_full(cap.shape, math.inf)), varies

    def convention(self) -> dict[str, Any]:
        """What must agree between two CIDs for them to be compared; the mode may differ, for both modes seek the same optimum."""
        plain = {key: value for key, value in asdict(self).items() if key != "mode"}
        return plain | {"kappa": self.fraction, "noise": self.noise if self.normalizer == "local" else None}


NUMBERS = {
    "cid": "cid",
    "error": "cid_se",
    "gap": "entropy_gap",
    "uniform": "isotropic_entropy",
    "ratio": "constraint_ratio",
    "ratio_error": "ratio_error",
    "capped": "capped",
    "unseen": "outside_receptive_field",
}
"""Numbers of each image in tables and stored maps → field of `OptimalNoise`."""


@dataclass(frozen=True)
class CalibrationStatistics:
    """What the data's images are like: how much their pixels vary, and the features of some layers."""

    pixels: Variance
    """of every pixel value (C, H, W)"""
    features: tuple[Variance, ...]
    """of every number of each layer's feature"""

    @classmethod
    def over(
        cls, view: PixelNetwork, batches: Iterable, layers: Sequence[LayerOutput], step: Callable[[], None]
    ) -> "CalibrationStatistics":
        """One pass over (images, …) batches; `step` is called after each.

        Raises
        ------
        SampleError
            For fewer than two images.
        """
        found: list[Variance] | None = None
        for images, _, _ in indexed_batches(batches, labels=False):
            pixels = view.denormalize(images)
            own = [Variance.of(each) for each in (pixels, *view.layer_values(pixels, layers))]
            found = own if found is None else [mine + new for mine, new in zip(found, own, strict=True)]
            step()
        if found is None or found[0].count < 2:
            raise SampleError(f"a variance over the data needs at least 2 images, received {0 if found is None else found[0].count}")
        return cls(found[0], tuple(found[1:]))


@dataclass(frozen=True)
class CIDResult:
    """What one layer discarded of some images."""

    layer: LayerOutput
    """the layer"""
    index: Int[Tensor, "images"]
    """index of each image in its data set"""
    noise_std: Float[Tensor, "images cells"]
    """noise in each cell, in pixels of 0 to 1; 0 in cells that are left out"""
    numbers: dict[str, Float[Tensor, "images"]]
    """CID and what says how sure it is: the fields of `OptimalNoise`"""
    constraint_reached: Tensor
    """False where the constraint cannot be reached"""
    passes: int
    """passes per image"""
    degrees_of_freedom: int
    """degrees of freedom of the errors"""
    seconds: float
    """wall-clock time per image"""

    @property
    def entropy(self) -> Float[Tensor, "images cells"]:
        """H in nats per value; −inf in cells that are left out."""
        return entropy(self.noise_std)


def discard(
    view: PixelNetwork,
    batches: Iterable,
    backdrop: CalibrationStatistics,
    layers: Sequence[LayerOutput],
    rule: CIDOptions,
    kept: MapCache | None = None,
    seed: int = 0,
) -> Iterator[CIDResult]:
    """For every batch of images (data/batches.py) and layer: the noise of most entropy that the layer's feature survives.

        CID = max mean_i H(σ_i)   subject to   E|f(x + σe) − f(x)|² = κ σ_f²  and  σ_i ≤ cap_i

    Parts that `kept` has are read, not computed. Random numbers belong to the images (their index and the seed): batch
    size and order change nothing.

    Returns
    -------
    Iterator[CIDResult]
        A `CIDResult` per batch and layer, in that order.

    Raises
    ------
    InputError
        At a layer whose feature does not vary.
    NumericError
        Where gradients are not finite, or where a pixel is not seen and there are no caps.
    MismatchError
        If `kept` is of another run.

    References
    ----------
    Ma et al. 2022 (arXiv 1906.04109), equations 2–4; checked by tests/discarding/test_cid.py.
    """
    kept = kept or MapCache(None, {})
    cells = Cells.of((view.shape[1], view.shape[2]), rule.side)
    cap, varies = rule.caps(backdrop.pixels, cells)
    constraints = []
    for layer, feature in zip(layers, backdrop.features, strict=True):
        with at(layer.name):
            constraints.append(rule.constraint(feature))
    for number, (images, _, index) in enumerate(indexed_batches(batches, labels=False)):
        pixels, mark = view.denormalize(images), fingerprint(images, index)
        for layer, constraint in zip(layers, constraints, strict=True):
            part = f"{layer.name}/{number:04d}"
            found = kept.read(part, mark)
            if found is None:
                begun = time.monotonic()
                with at(layer.name):
                    scene = SensitivityEstimator(view.layer_value(layer), pixels, cells, varies, PerImageRandom(seed, index))
                    best = optimal_noise(scene, constraint, cap, rule.mode)
                spent = torch.tensor([best.passes, best.degrees_of_freedom, (time.monotonic() - begun) / len(images)], dtype=torch.float64)
                values = {name: vars(best)[field] for name, field in NUMBERS.items()}
                found = values | {"sigma": best.noise_std, "reached": best.constraint_reached, "index": index, "spent": spent}
                kept.write(part, mark, found | {"entropy": entropy(best.noise_std), "pixels": (pixels * 255).round().clamp(0, 255).byte()})
            passes, freedom, seconds = found["spent"].tolist()
            numbers = {name: found[name] for name in NUMBERS}
            yield CIDResult(layer, found["index"], found["sigma"], numbers, found["reached"], int(passes), int(freedom), seconds)
