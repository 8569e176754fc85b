"""Reconstruction of images from a layer's feature: ridge and residual decoders, and their uncertainty under the CID's noise."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F

from channelscope.data.batches import indexed_batches
from channelscope.discarding.cid import CIDOptions, CIDResult, describe_discarding
from channelscope.discarding.jacobian import LayerOutput, PerImageRandom, PixelNetwork, standard_normal
from channelscope.discarding.noise import GAUSSIAN_ENTROPY, Cells
from channelscope.errors import SampleError, ShapeError, at
from channelscope.formulas.intervals import t_interval
from channelscope.stats.moments import NormalEquations
from channelscope.types import Float, Tensor

RIDGE = 1e-3
"""penalty of the linear decoder, in units of the mean diagonal"""

NEIGHBORHOOD_UP_TO = 256
"""number of channels up to which a position is decoded together with its neighbors (3 × 3)"""

HIDDEN, BLOCKS, EPOCHS, RATE = 48, 2, 20, 2e-3
"""channels and residual blocks of the trained decoder, passes over the calibration images, and Adam's step"""

FeatureImageBatches = Iterable[tuple[Float[Tensor, "images C h w"], Float[Tensor, "images 3 H W"]]]
"""batches of features and the images they come from"""


class RidgeDecoder:
    """Linear least-squares prediction of each block of pixels from the feature at its position, with one penalty for all weights.

    Examples
    --------
    A feature that is the image itself gives the image back.

    >>> images = torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    >>> decoder = RidgeDecoder([(images, images)])
    >>> round(float((decoder(images) - images).abs().max()), 2)
    0.0
    """

    def __init__(self, pairs: FeatureImageBatches):
        """Fit the normal equations in float64 in one pass.

        Parameters
        ----------
        pairs
            Batches of features and images.

        Raises
        ------
        ShapeError
            If the feature is no map, or the image's sides are not the same multiple of the map's.
        SampleError
            Without images.

        References
        ----------
        Hoerl & Kennard 1970; checked by tests/discarding/test_reconstruction.py.
        """
        equations: NormalEquations | None = None
        for features, images in pairs:
            self.block = _block(features, images)
            batch = NormalEquations.of(_feature_rows(features).double()[None], _blocks(images, self.block).double()[None])
            equations = batch if equations is None else equations + batch
        if equations is None:
            raise SampleError("a decoder is fitted on images, received none")
        products = equations.xx[0]
        penalty = RIDGE * products.diagonal().mean()
        diagonal = torch.where(penalty > 0, penalty, 1.0).expand(len(products))
        slopes = torch.linalg.solve(products + torch.diag(diagonal), equations.xt[0])
        self.weights, self.intercept = slopes.float(), (equations.t_mean[0] - equations.x_mean[0] @ slopes).float()

    def __call__(self, features: Float[Tensor, "images C h w"]) -> Float[Tensor, "images 3 H W"]:
        """Reconstructed images."""
        rows, columns = features.shape[2:]
        blocks = (_feature_rows(features) @ self.weights + self.intercept).unflatten(0, (len(features), rows, columns)).permute(0, 3, 1, 2)
        return F.pixel_shuffle(blocks, self.block)


class ResidualDecoder(nn.Module):
    """A residual network that corrects a linear decoder; before training it equals the linear decoder."""

    def __init__(self, ridge: RidgeDecoder, channels: int, colors: int):
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


def train_decoder(ridge: RidgeDecoder, pairs: Callable[[], FeatureImageBatches], seed: int = 0) -> ResidualDecoder:
    """A residual decoder trained to the least squared error.

    Parameters
    ----------
    ridge
        Linear decoder that it corrects.
    pairs
        Function that begins a pass over batches of features and images.
    seed
        Seed of the initial weights.

    Returns
    -------
    ResidualDecoder
        The decoder in evaluation mode.

    Examples
    --------
    The image is |feature|, which is not linear: training lowers the error.

    >>> features = torch.randn(16, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    >>> ridge = RidgeDecoder([(features, features.abs())])
    >>> decoder = train_decoder(ridge, lambda: [(features, features.abs())] * 4)
    >>> errors = [float((decode(features) - features.abs()).square().mean()) for decode in (decoder, ridge)]
    >>> errors[0] < errors[1] / 2
    True

    References
    ----------
    Ma et al. 2022 (residual decoder); He et al. 2016 (residual blocks).
    """
    features, images = next(iter(pairs()))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        decoder = ResidualDecoder(ridge, features.shape[1], images.shape[1]).to(features.device)
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
class ReconstructionUncertainty:
    """Variance and squared bias of reconstructions, by image and value."""

    variance: Float[Tensor, "images C H W"]
    """variance over the noise in pixels²; 0 for a single draw"""
    bias: Float[Tensor, "images C H W"]
    """unbiased estimate of the squared distance of the expected reconstruction from the image, which may be negative, in pixels²;
    the squared error itself for a single draw"""

    @property
    def ru(self) -> Float[Tensor, "images C H W"]:
        """½ ln(2πe E(x̂ − x)²) in nats."""
        return 0.5 * (self.variance + self.bias).log() + GAUSSIAN_ENTROPY


def reconstruction_uncertainty(
    decode: Callable[[Tensor], Tensor], feature: Callable[[Tensor], Tensor], images: Float[Tensor, "images C H W"], noise: Iterable[Tensor]
) -> ReconstructionUncertainty:
    """Reconstruction uncertainty of images under several draws of noise.

    Parameters
    ----------
    decode
        Feature → image.
    feature
        Image → feature.
    images
        Images in pixels of 0 to 1.
    noise
        Draws of noise, of the images' shape; a single draw of zeros gives the uncertainty without noise.

    Returns
    -------
    ReconstructionUncertainty
        Variance and squared bias.

    Examples
    --------
    Noise of ±0.1 on a perfect decoder: the variance is 0.02 from two draws, the squared bias −0.01 (unbiased: −0.02/2).

    >>> same, images = (lambda values: values), torch.zeros(1, 1, 1, 1)
    >>> uncertainty = reconstruction_uncertainty(same, same, images, [images + 0.1, images - 0.1])
    >>> round(uncertainty.variance.item(), 4), round(uncertainty.bias.item(), 4)
    (0.02, -0.01)

    References
    ----------
    Ma et al. 2022, equation 6; variance and bias x_shift are ours; checked by tests/discarding/test_reconstruction.py.
    """
    with torch.no_grad():
        found = torch.stack([decode(feature(images + each)) for each in noise])
    draws = len(found)
    variance = found.var(0, correction=1) if draws > 1 else torch.zeros_like(images)
    return ReconstructionUncertainty(variance, (found.mean(0) - images).square() - variance / draws)


def _block(features: Tensor, images: Tensor) -> int:
    """Side of the square of pixels at one position of the map."""
    if features.dim() != 4:
        raise ShapeError(f"a decoder needs maps (C, h, w), received a feature of shape {tuple(features.shape[1:])}: name earlier layers")
    (rows, columns), (height, width) = features.shape[2:], images.shape[2:]
    if height % rows or width % columns or height // rows != width // columns:
        raise ShapeError(f"a decoder needs maps whose sides divide the image's, received {rows}×{columns} of {height}×{width}: name others")
    return height // rows


def _feature_rows(features: Tensor) -> Tensor:
    """One row per position: its channels, with the neighbors' up to NEIGHBORHOOD_UP_TO channels."""
    if features.shape[1] <= NEIGHBORHOOD_UP_TO:
        features = F.unfold(features, 3, padding=1).unflatten(2, features.shape[2:])
    return features.permute(0, 2, 3, 1).flatten(0, 2)


def _blocks(images: Tensor, block: int) -> Tensor:
    return F.pixel_unshuffle(images, block).permute(0, 2, 3, 1).flatten(0, 2)


NOISE_DRAWS = 8
"""draws of noise for each image"""

NOISE_STREAM = 50_000
"""number of the first draw, which the optimization does not use"""


def reconstruction_table(
    network: PixelNetwork,
    calibration: Iterable,
    batches: Iterable,
    results: Sequence[CIDResult],
    options: CIDOptions,
    train: bool,
    step: Callable[[], None] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """One row per layer and decoder: mean uncertainty with a t interval, under the CID's noise and without; variance and bias.

    Parameters
    ----------
    network
        Network from pixels on.
    calibration
        Batches of images on which the decoders are fitted, without noise.
    batches
        The batches of images that `results` belong to.
    results
        Results of `discard`, in its order.
    options
        Options that `results` were computed with.
    train
        Add a decoder that is trained on top of the linear one.
    step
        Called after each layer.
    seed
        Seed of the noise and of the trained decoder.

    Returns
    -------
    DataFrame
        The table `reconstruction`; `ru` in nats per value.

    Raises
    ------
    ShapeError
        At a layer whose feature is no map that divides the image.

    Examples
    --------
    >>> from channelscope.discarding.cid import CalibrationStatistics, discard
    >>> network = PixelNetwork(nn.Conv2d(1, 1, 1), (1, 2, 2), [0.0], [1.0])
    >>> batches, layers = [torch.rand(4, 1, 2, 2, generator=torch.Generator().manual_seed(0))], network.layers(["conv2d"])
    >>> results = list(discard(network, batches, CalibrationStatistics.over(network, batches, layers), layers, CIDOptions()))
    >>> frame = reconstruction_table(network, batches, batches, results, CIDOptions(), train=False)
    >>> frame[["layer", "decoder", "n"]].values.tolist(), bool(frame.ru[0] > frame.ru_clean[0])
    ([['conv2d', 'ridge', 4]], True)

    References
    ----------
    Ma et al. 2022, section 3 (reconstruction uncertainty); checked by tests/discarding/test_reconstruction_table.py.
    """
    rows = []
    for layer in dict.fromkeys(each.layer for each in results):
        with at(layer.name):
            linear = RidgeDecoder(_pairs(network, calibration, layer))
        decoders: dict[str, Callable[[Tensor], Tensor]] = {"ridge": linear}
        if train:
            decoders["trained"] = train_decoder(linear, lambda layer=layer: _pairs(network, calibration, layer), seed)
        own = [each for each in results if each.layer == layer]
        for name, decode in decoders.items():
            rows.append({"layer": layer.name, "depth": layer.depth, "decoder": name} | _table_row(network, decode, batches, own, seed))
        if step is not None:
            step()
    return describe_discarding("reconstruction", rows, options, draws=NOISE_DRAWS)


def _pairs(network: PixelNetwork, batches: Iterable, layer: LayerOutput) -> Iterator[tuple[Tensor, Tensor]]:
    for images, _, _ in indexed_batches(batches, labels=False):
        pixels = network.denormalize(images)
        yield network.layer_values(pixels, [layer])[0], pixels


def _table_row(
    network: PixelNetwork, decode: Callable[[Tensor], Tensor], batches: Iterable, results: Sequence[CIDResult], seed: int
) -> dict[str, float | int]:
    noisy, clean, spread, off = [], [], [], []
    for (images, _, index), each in zip(indexed_batches(batches, labels=False), results, strict=True):
        pixels = network.denormalize(images)
        cells = Cells.of((network.shape[1], network.shape[2]), _side(each.noise_std.shape[1], network))
        deviation = cells.expand_to_pixels(each.noise_std)[:, None].to(pixels)
        noise = [
            deviation * standard_normal(PerImageRandom(seed, index).generators(NOISE_STREAM + draw), network.shape).to(pixels)
            for draw in range(NOISE_DRAWS)
        ]
        with_noise = reconstruction_uncertainty(decode, network.layer_value(each.layer), pixels, noise)
        without = reconstruction_uncertainty(decode, network.layer_value(each.layer), pixels, [torch.zeros_like(deviation)])
        noisy.append(with_noise.ru.mean((1, 2, 3)))
        clean.append(without.ru.mean((1, 2, 3)))
        spread.append(with_noise.variance.mean((1, 2, 3)))
        off.append(with_noise.bias.mean((1, 2, 3)))
    ru = pd.Series(torch.cat(noisy).tolist())
    return {
        "n": len(ru),
        **dict(zip(("ru", "ru_low", "ru_high"), t_interval(ru), strict=True)),
        "ru_clean": float(torch.cat(clean).mean()),
        "variance": float(torch.cat(spread).mean()),
        "bias": float(torch.cat(off).mean()),
    }


def _side(count: int, network: PixelNetwork) -> int:
    """Number of cells along a side of the grid, from the number of cells."""
    height, width = network.shape[1:]
    return next(side for side in range(1, max(height, width) + 1) if min(side, height) * min(side, width) == count)
