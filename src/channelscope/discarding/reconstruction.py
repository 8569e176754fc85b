"""Reconstruction: how much of the image can still be had from a feature, by a linear decoder or a trained one on top of it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from channelscope.discarding.noise import GAUSSIAN_ENTROPY
from channelscope.errors import SampleError, ShapeError
from channelscope.types import Float, Tensor

RIDGE = 1e-3
"""penalty of the linear decoder, in units of the mean diagonal"""
WIDE = 256
"""a map of at most this many channels is read with its neighbors (3 × 3), a wider one by itself"""
HIDDEN, BLOCKS, EPOCHS, RATE = 48, 2, 20, 2e-3
"""channels and residual blocks of the trained decoder, passes over the calibration images, and Adam's step"""

Pairs = Iterable[tuple[Float[Tensor, "images C h w"], Float[Tensor, "images 3 H W"]]]
"""batches of features and the images they come from"""


class Ridge:
    """The best linear prediction of each block of pixels from the feature at its place, the same everywhere."""

    def __init__(self, pairs: Pairs):
        """Fit on batches of (features, images): one pass, normal equations in float64.

        Raises   ShapeError where the feature is no map, or the image's sides are not multiples of the map's.
        Source   Hoerl & Kennard 1970; checked by tests/discarding/test_reconstruction.py
        """
        whole: _Scatter | None = None
        for features, images in pairs:
            self.block = _block(features, images)
            own = _Scatter.of(_rows(features).double(), _blocks(images, self.block).double())
            whole = own if whole is None else whole + own
        if whole is None:
            raise SampleError("a decoder is fitted on images, received none")
        penalty = RIDGE * whole.products.diagonal().mean()
        diagonal = torch.where(penalty > 0, penalty, 1.0).expand(len(whole.products))
        slopes = torch.linalg.solve(whole.products + torch.diag(diagonal), whole.crossed)
        self.weights, self.intercept = slopes.float(), (whole.y - whole.x @ slopes).float()

    def __call__(self, features: Float[Tensor, "images C h w"]) -> Float[Tensor, "images 3 H W"]:
        """Reconstructed images."""
        rows, columns = features.shape[2:]
        blocks = (_rows(features) @ self.weights + self.intercept).unflatten(0, (len(features), rows, columns)).permute(0, 3, 1, 2)
        return F.pixel_shuffle(blocks, self.block)


@dataclass(frozen=True)
class _Scatter:
    """Sums about the means of rows x and y; those of two sets of rows add up."""

    count: int
    x: Float[Tensor, "inputs"]
    """mean"""
    y: Float[Tensor, "outputs"]
    """mean"""
    products: Float[Tensor, "inputs inputs"]
    """Σ (x − x̄)(x − x̄)'"""
    crossed: Float[Tensor, "inputs outputs"]
    """Σ (x − x̄)(y − ȳ)'"""

    @classmethod
    def of(cls, x: Float[Tensor, "rows inputs"], y: Float[Tensor, "rows outputs"]) -> "_Scatter":
        off = x - x.mean(0)
        return cls(len(x), x.mean(0), y.mean(0), off.T @ off, off.T @ (y - y.mean(0)))

    def __add__(self, other: "_Scatter") -> "_Scatter":
        count = self.count + other.count
        share, apart, beside = self.count * other.count / count, other.x - self.x, other.y - self.y
        return _Scatter(
            count,
            self.x + apart * other.count / count,
            self.y + beside * other.count / count,
            self.products + other.products + share * apart[:, None] * apart,
            self.crossed + other.crossed + share * apart[:, None] * beside,
        )


class Trained(nn.Module):
    """A residual network that corrects the linear decoder; the network under study stays as it is."""

    def __init__(self, ridge: Ridge, channels: int, colors: int):
        super().__init__()
        self.ridge = ridge
        self.enter = nn.Conv2d(channels, HIDDEN, 1)
        self.blocks = nn.ModuleList(_residue() for _ in range(BLOCKS))
        self.leave = nn.Conv2d(HIDDEN, colors * ridge.block**2, 1)
        for start in self.leave.parameters():
            nn.init.zeros_(start)  # before training it is the linear decoder

    def forward(self, features: Tensor) -> Tensor:
        """Reconstructed images."""
        hidden = self.enter(features)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.ridge(features) + F.pixel_shuffle(self.leave(hidden), self.ridge.block)


def _residue() -> nn.Sequential:
    return nn.Sequential(nn.ReLU(), nn.Conv2d(HIDDEN, HIDDEN, 3, padding=1), nn.ReLU(), nn.Conv2d(HIDDEN, HIDDEN, 3, padding=1))


def trained(ridge: Ridge, pairs: Callable[[], Pairs], seed: int = 0) -> Trained:
    """A residual decoder trained on batches of (features, images) to the least squared error; `pairs()` begins a pass.

    Source   Ma et al. 2022 (residual decoder); He et al. 2016 (residual blocks)
    """
    features, images = next(iter(pairs()))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        decoder = Trained(ridge, features.shape[1], images.shape[1]).to(features.device)
    scale = features.square().mean().sqrt()
    with torch.no_grad():
        decoder.enter.weight /= scale
    adam = torch.optim.Adam(decoder.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, EPOCHS)
    for _ in range(EPOCHS):
        for features, images in pairs():
            adam.zero_grad()
            (decoder(features) - images).square().mean().backward()
            adam.step()
        schedule.step()
    return decoder.eval().requires_grad_(False)


@dataclass(frozen=True)
class Uncertainty:
    """How far reconstructions are from the images, value by value."""

    variance: Float[Tensor, "images C H W"]
    """over the noise; 0 for a single draw"""
    bias: Float[Tensor, "images C H W"]
    """squared distance of the expected reconstruction from the image: what the draws' own scatter adds to it is taken off, so
    that it can be below zero; the squared error itself for a single draw"""

    @property
    def ru(self) -> Float[Tensor, "images C H W"]:
        """½ ln(2πe E(x̂ − x)²) in nats."""
        return 0.5 * (self.variance + self.bias).log() + GAUSSIAN_ENTROPY


def uncertainty(
    decode: Callable[[Tensor], Tensor], feature: Callable[[Tensor], Tensor], images: Float[Tensor, "images C H W"], noise: Iterable[Tensor]
) -> Uncertainty:
    """Reconstruction uncertainty of images whose pixels carry each of some noises; a zero noise alone gives the clean one.

    Source   Ma et al. 2022, equation 6; variance and bias apart are ours; checked by tests/discarding/test_reconstruction.py
    """
    with torch.no_grad():
        found = torch.stack([decode(feature(images + each)) for each in noise])
    draws = len(found)
    variance = found.var(0, correction=1) if draws > 1 else torch.zeros_like(images)
    return Uncertainty(variance, (found.mean(0) - images).square() - variance / draws)


def _block(features: Tensor, images: Tensor) -> int:
    """Side of the square of pixels that belongs to one place of the map."""
    if features.dim() != 4:
        raise ShapeError(f"a decoder needs maps (C, h, w), received a feature of shape {tuple(features.shape[1:])}: name earlier layers")
    (rows, columns), (height, width) = features.shape[2:], images.shape[2:]
    if height % rows or width % columns or height // rows != width // columns:
        raise ShapeError(f"a decoder needs maps whose sides divide the image's, received {rows}×{columns} of {height}×{width}: name others")
    return height // rows


def _rows(features: Tensor) -> Tensor:
    """One row per place: its numbers, and its neighbors' where the map is narrow."""
    if features.shape[1] <= WIDE:
        features = F.unfold(features, 3, padding=1).unflatten(2, features.shape[2:])
    return features.permute(0, 2, 3, 1).flatten(0, 2)


def _blocks(images: Tensor, block: int) -> Tensor:
    return F.pixel_unshuffle(images, block).permute(0, 2, 3, 1).flatten(0, 2)
