"""Fidelity: how closely a circuit follows its feature on held-out images, over images × positions."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from channelscope.circuits.saliency import Batch
from channelscope.circuits.target import Target, extremes, readings
from channelscope.errors import ShapeError
from channelscope.formulas.resampling import Interval, shard_weights
from channelscope.net.subset import Subset
from channelscope.types import Float, Tensor

DRAWS = 1000
"""Bootstrap samples of the images behind an interval."""
ROUNDING = 64 * torch.finfo(torch.float64).eps
"""Variance over mean square below which values count as equal."""


@dataclass(frozen=True, eq=False)
class Fidelity:
    """Sums per image from which both measures follow; fidelities on disjoint images add up."""

    sums: Float[Tensor, "images 7"]
    """float64: positions, Σy, Σŷ, Σy², Σŷ², Σyŷ, Σ(ŷ − y)²"""

    @classmethod
    def of(cls, feature: Float[Tensor, "images positions"], guess: Float[Tensor, "images positions"]) -> "Fidelity":
        """From the feature y and what stands for it, ŷ.

        Raises   ShapeError if the two do not match.
        """
        if feature.shape != guess.shape:
            raise ShapeError(f"fidelity: expected two tensors of one shape, received {tuple(feature.shape)} and {tuple(guess.shape)}")
        y, g = feature.double().cpu(), guess.double().cpu()
        return cls(torch.stack([part.sum(1) for part in (torch.ones_like(y), y, g, y * y, g * g, y * g, (g - y).square())], 1))

    def __add__(self, other: "Fidelity") -> "Fidelity":
        """Over the images of both."""
        return Fidelity(torch.cat([self.sums, other.sums]))

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.sums)

    @property
    def r(self) -> Interval:
        """Pearson's correlation; nan where either side is the same everywhere. Does not see a wrong gain."""
        return self._interval(correlation)

    @property
    def error(self) -> Interval:
        """Normalized squared error Σ(ŷ − y)²/Σ(y − ȳ)²: 0 is exact, 1 is what the feature's mean reaches, and more is worse."""
        return self._interval(normalized_error)

    def _interval(self, measure) -> Interval:
        value = float(measure(self.sums.sum(0)))
        low = high = float("nan")
        if self.images > 1:
            draws = measure(shard_weights(self.images, DRAWS) @ self.sums)
            draws = draws[~draws.isnan()]
            if 2 * len(draws) >= DRAWS:
                low, high = draws.quantile(torch.tensor([0.025, 0.975], dtype=draws.dtype)).tolist()
        return Interval(value, low, high, self.images, f"bootstrap over {self.images} images, {DRAWS:,} draws")


def correlation(sums: Float[Tensor, "... 7"]) -> Float[Tensor, "..."]:
    """Pearson's r from the sums of a Fidelity.

    Undefined (nan) where either side does not vary.
    Source   Hamblin, Konkle, Alvarez 2022 (evaluation); checked by tests/pencil_circuits.py::fidelity
    """
    n, y, g, yy, gg, yg, _ = sums.unbind(-1)
    across, own, guess = yg - y * g / n, yy - y * y / n, gg - g * g / n
    varies = (own > ROUNDING * yy) & (guess > ROUNDING * gg)
    return torch.where(varies, across / (own.clamp(min=0) * guess.clamp(min=0)).sqrt(), torch.nan).clamp(-1, 1)


def normalized_error(sums: Float[Tensor, "... 7"]) -> Float[Tensor, "..."]:
    """Σ(ŷ − y)²/Σ(y − ȳ)² from the sums of a Fidelity.

    Undefined (nan) where the feature does not vary.
    Source   Hamblin, Konkle, Alvarez 2022 (evaluation); checked by tests/pencil_circuits.py::fidelity
    """
    n, y, _, yy, _, _, off = sums.unbind(-1)
    own = yy - y * y / n
    return torch.where(own > ROUNDING * yy, off / own, torch.nan)


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Images that circuits are judged on, with the positions that count and the feature's values there."""

    target: Target
    """the feature and its network"""
    batches: list[Batch]
    """images, and the positions that count in each by the unmasked network"""
    truth: list[Float[Tensor, "images chosen"]]
    """values of the feature, batch by batch"""

    @classmethod
    @torch.no_grad()
    def of(cls, target: Target, images: Tensor | Iterable) -> "HeldOut":
        """Run the network once.

        Raises   SampleError without images, or if the feature is the same on all of them.
        """
        found = list(readings(target, images))
        extremes(target, [seen for *_, seen in found])
        return cls(target, [(pictures, places) for pictures, places, *_ in found], [values for _, _, values, _ in found])

    @property
    def images(self) -> int:
        """Number of images."""
        return sum(len(each) for each, _ in self.batches)

    @torch.no_grad()
    def fidelity(self, circuit: Subset) -> Fidelity:
        """How closely the network with only these kernels follows the feature; `~circuit` asks what is left without them."""
        with self.target.without((~circuit).marks):
            guesses = [self.target.map(images).gather(1, places) for images, places in self.batches]
        found = [Fidelity.of(values, guess) for values, guess in zip(self.truth, guesses, strict=True)]
        return sum(found[1:], found[0])
