"""Rule: the choices behind a CID; two CIDs are comparable only where they agree."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from channelscope.discarding.cells import SIDE, Cells
from channelscope.discarding.constraint import Constraint
from channelscope.discarding.variance import Variance
from channelscope.errors import InputError
from channelscope.types import Bool, Float, Tensor

KAPPA = {"data": 0.1, "local": 1.5}
"""κ unless said otherwise"""


@dataclass(frozen=True)
class Rule:
    """What is held constant while noise is added."""

    mode: Literal["fast", "exact"] = "fast"
    """fast: at most 20 passes an image; exact: up to 600, with the distance from the optimum measured"""
    normalizer: Literal["data", "local"] = "data"
    """how far a feature may move is measured by its variance over the data, or by its answer to faint noise at the same image"""
    kappa: float | None = None
    """fraction κ of that measure; by default 0.1 under data, 1.5 under local"""
    noise: float = 0.01
    """standard deviation of the faint noise, in pixels of 0 to 1"""
    side: int = SIDE
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

        Raises   InputError if it does not vary.
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
        counts = cells.sum(varies.double().sum(0))
        cap = (cells.sum(pixels.each.sum(0)) / counts.clamp(min=1)).sqrt().float()
        return (cap if self.cap else cap.new_full(cap.shape, math.inf)), varies

    def convention(self) -> dict[str, Any]:
        """What must agree between two CIDs for them to be compared; the mode may differ, for both modes seek the same optimum."""
        plain = {key: value for key, value in asdict(self).items() if key != "mode"}
        return plain | {"kappa": self.fraction, "noise": self.noise if self.normalizer == "local" else None}
