"""SensitivityEstimator: how a feature responds to noise in each cell, from sums over noisy passes."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch

from channelscope.discarding.noise import Cells
from channelscope.errors import NumericError
from channelscope.types import Bool, Float, Int, Tensor

FeatureFunction = Callable[[Tensor], Tensor]
"""a network up to one layer: images (B, C, H, W) → features (B, …), differentiable, image by image"""

ORTHOGONAL_PROBES_UP_TO = 128
"""a feature of at most this many numbers is probed along orthogonal vectors, so that as many draws know its Jacobian"""

PROBE_STREAM = 2**31
"""number of the draw that the orthogonal vectors come from"""


@dataclass(frozen=True)
class PerImageRandom:
    """Random numbers that belong to an image: batch size, order and layer do not change them."""

    seed: int
    """seed of the run"""
    index: Int[Tensor, "images"]
    """index of each image in its data set"""

    def roll(self, draw: int) -> list[torch.Generator]:
        """One generator per image for one draw."""
        states = [np.random.SeedSequence([self.seed, int(index), draw]).generate_state(1, np.uint64)[0] for index in self.index]
        return [torch.Generator().manual_seed(int(state >> np.uint64(1))) for state in states]


def standard_normal(dice: list[torch.Generator], shape: Iterable[int]) -> Tensor:
    """Standard normal numbers of one shape per image, stacked.

    References
    ----------
    Torch.randn.
    """
    return torch.stack([torch.randn(tuple(shape), generator=one) for one in dice])


def rademacher(dice: list[torch.Generator], size: int) -> Tensor:
    """Random signs ±1 (Rademacher), one row per image.

    References
    ----------
    Hutchinson 1990.
    """
    return torch.stack([torch.randint(0, 2, (size,), generator=one) for one in dice]).float() * 2 - 1


@dataclass(frozen=True)
class NoiseSamples:
    """What some noisy passes over a batch of images measured; `+` puts the passes of two calls together."""

    response: Float[Tensor, "draws images"]
    """|f(x + σe) − f(x)|² of each draw"""
    spent: Float[Tensor, "draws images"]
    """½ d|Δf|²/d ln σ for all cells together: the response itself where the feature is linear; no rows without curvature"""
    sensitivity: Float[Tensor, "probes images cells"]
    """squared norms of the Jacobian's columns at the noisy image, summed over each cell's values (one unbiased sample a probe)"""
    effective: Float[Tensor, "draws images cells"]
    """what the cell's noise adds to the response per unit of σ²: ½ ∂E|Δf|²/∂ln σ_i over σ_i² (one unbiased sample a draw);
    no rows where curvature was not asked for"""

    def __add__(self, other: "NoiseSamples") -> "NoiseSamples":
        """All passes of both."""
        return NoiseSamples(*(torch.cat([vars(self)[name], vars(other)[name]]) for name in vars(self)))

    @property
    def probed(self) -> "NoiseSamples":
        """What the probes measured alone."""
        return NoiseSamples(self.response[:0], self.spent[:0], self.sensitivity, self.effective[:0])


class SensitivityEstimator:
    """A batch of images in front of one layer: adds noise, watches the feature, counts its passes."""

    def __init__(
        self,
        feature: FeatureFunction,
        images: Float[Tensor, "images C H W"],
        cells: Cells,
        varies: Bool[Tensor, "C H W"],
        dice: PerImageRandom,
    ):
        """One clean pass. `varies` marks the values that get noise; raises NumericError if the feature is not finite."""
        self.feature = feature
        self.images = images
        self.cells = cells
        self.varies = varies.to(images)
        self.values = cells.sum_by_cell(self.varies.sum(0))
        self.dice = dice
        self.passes = 0
        with torch.no_grad():
            self.clean = self._forward(images)
        if not bool(self.clean.isfinite().all()):
            raise NumericError("the feature of the clean images is not finite: check the network and the normalization of its images")
        self.size = self.clean.shape[1]
        self._basis = _orthogonal(dice.roll(PROBE_STREAM), self.size) if self.size <= ORTHOGONAL_PROBES_UP_TO else None
        self._outer: Tensor | float = 0.0
        self._probes = 0
        self.linear: Tensor | None = None  # mean Jacobian (B, size, C, H, W) at noisy images, once a cycle of probes knows it
        self.missed: Tensor | None = None  # share of |Δf|² that it missed in the draw that completed it (B,)

    def response(self, sigma: Float[Tensor, "images cells"], draw: int) -> Float[Tensor, "images"]:
        """An unbiased sample of E|f(x + σe) − f(x)|²: one pass.

        Where the mean Jacobian J is known, |Jσe|² is replaced by its mean Σ σ² |J_i|² (a control variate: for a linear
        feature no noise is left).
        """
        with torch.no_grad():
            noise, _ = self._noise(sigma, self.dice.roll(draw))
            return self._size_of(self._forward(self.images + noise) - self.clean, noise, sigma)

    def _size_of(self, change: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        size = change.square().sum(1)
        return size if self.linear is None else size - self._linearly(noise).square().sum(1) + (sigma.square() * self._columns()).sum(1)

    def _linearly(self, noise: Tensor) -> Tensor:
        """Change of the feature that the mean Jacobian predicts."""
        return torch.einsum("bdchw,bchw->bd", self.linear, noise)

    def _columns(self) -> Tensor:
        """Squared norms of the mean Jacobian's columns, summed over each cell's values."""
        assert self.linear is not None
        return self.cells.sum_by_cell((self.linear.square().sum(1) * self.varies).sum(1))

    def jacobian_sample(self, sigma: Float[Tensor, "images cells"], draw: int, probes: int = 1, curvature: bool = False) -> NoiseSamples:
        """Response and sensitivities at the noise of one draw: one pass forward, `probes` backward, one more for curvature.

        The sensitivity is (J'v)² at the noisy image for a random v of mean square 1 in feature space, so that its mean is
        the squared column norm: signs, or vectors that are orthogonal over a cycle of probes where the feature has at most
        FULL numbers.
        """
        dice = self.dice.roll(draw)
        noisy, unit, feature = self._noisy(sigma, dice)
        squares = torch.stack([self._square(feature, noisy, dice) for _ in range(probes)])
        change = (feature - self.clean).detach()
        if self.linear is not None and self.missed is None:
            apart = change - self._linearly((noisy - self.images).detach())
            self.missed = apart.square().sum(1) / change.square().sum(1).clamp(min=torch.finfo(change.dtype).tiny)
        spent, effective = self._share(sigma, unit, feature, noisy, change) if curvature else (sigma[None, :, 0][:0], sigma[None][:0])
        response = self._size_of(change, (noisy - self.images).detach(), sigma)
        return NoiseSamples(response[None], spent, squares, effective)

    def _square(self, feature: Tensor, noisy: Tensor, dice: list[torch.Generator]) -> Tensor:
        vector = rademacher(dice, self.size) if self._basis is None else self._basis[:, self._probes % self.size]
        effective_sample = self._backward(feature, noisy, vector.to(feature)) * self.varies
        if self._basis is not None:
            self._outer = self._outer + vector[:, :, None, None, None].to(effective_sample) * effective_sample[:, None]
            self._probes += 1
            if self._probes % self.size == 0:
                self.linear = self._outer / self._probes  # the best linear predictor of the response (Stein)
        return self.cells.sum_by_cell(effective_sample.square().sum(1))

    def pull(self, sigma: Float[Tensor, "images cells"], draw: int, mirrored: bool = False) -> NoiseSamples:
        """Response and effective sensitivities alone: one pass forward, one backward; `mirrored` takes the noise −e."""
        noisy, unit, feature = self._noisy(sigma, self.dice.roll(draw), -1 if mirrored else 1)
        change = (feature - self.clean).detach()
        spent, effective = self._share(sigma, unit, feature, noisy, change)
        response = self._size_of(change, (noisy - self.images).detach(), sigma)
        return NoiseSamples(response[None], spent, sigma[None][:0], effective)

    def _share(self, sigma: Tensor, unit: Tensor, feature: Tensor, noisy: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
        """The mean of σ_i e_i (J'Δf)_i is ½ ∂E|Δf|²/∂ln σ_i: differentiate under the mean. Where J is known, as in `respond`."""
        slope = self._backward(feature, noisy, change)
        if self.linear is not None:
            predicted = self._linearly((noisy - self.images).detach())
            slope = slope - torch.einsum("bdchw,bd->bchw", self.linear, predicted)
        effective = self.cells.sum_by_cell((slope * unit * self.varies).sum(1)) / sigma.where(sigma > 0, torch.inf)
        if self.linear is not None:
            effective = effective + self._columns()
        return (effective * sigma.square()).sum(1)[None], effective[None]

    def _noisy(self, sigma: Tensor, dice: list[torch.Generator], sign: int = 1) -> tuple[Tensor, Tensor, Tensor]:
        noise, unit = self._noise(sigma, dice)
        noisy = (self.images + sign * noise).requires_grad_()
        return noisy, sign * unit, self._forward(noisy)

    def _noise(self, sigma: Tensor, dice: list[torch.Generator]) -> tuple[Tensor, Tensor]:
        unit = standard_normal(dice, self.images.shape[1:]).to(self.images)
        return self.cells.expand_to_pixels(sigma)[:, None] * self.varies * unit, unit

    def _forward(self, images: Tensor) -> Tensor:
        self.passes += 1
        return self.feature(images).flatten(1)

    def _backward(self, feature: Tensor, images: Tensor, vector: Tensor) -> Tensor:
        self.passes += 1
        return torch.autograd.grad(feature, images, vector, retain_graph=True)[0]


def _orthogonal(dice: list[torch.Generator], size: int) -> Tensor:
    """Random orthogonal matrices, one per image, rows of mean square 1."""
    return torch.linalg.qr(standard_normal(dice, (size, size)))[0] * size**0.5
