"""restore: how much of each image every layer's feature still gives back, under the noise that the feature survives."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import pandas as pd
import torch

from channelscope.discarding.cells import Cells
from channelscope.discarding.discard import Discarded
from channelscope.discarding.frames import described, t_interval
from channelscope.discarding.jacobian import Dice, normal
from channelscope.discarding.reconstruction import Ridge, trained, uncertainty
from channelscope.discarding.rule import Rule
from channelscope.discarding.view import Layer, View
from channelscope.errors import at
from channelscope.net.batches import numbered
from channelscope.types import Tensor

DRAWS = 8
"""noises of an image"""
FIRST = 50_000
"""number of the first: noise that the optimum has not seen"""


def restored(
    view: View,
    calibration: Iterable,
    batches: Iterable,
    found: Sequence[Discarded],
    rule: Rule,
    train: bool,
    step: Callable[[], None],
    seed: int = 0,
) -> pd.DataFrame:
    """One row per layer and decoder: RU with a t interval over images, with the feature's noise and without; variance and bias.

    Decoders are fitted on calibration images without noise. `found` is in the order of batches, layers within a batch.
    The noise belongs to the images and the seed of the run.

    Raises   ShapeError at a layer whose feature is no map that divides the image.
    Source   Ma et al. 2022, section 3 (reconstruction uncertainty); checked by tests/discarding/test_restore.py
    """
    rows = []
    for layer in dict.fromkeys(each.layer for each in found):
        with at(layer.name):
            linear = Ridge(_pairs(view, calibration, layer))
        decoders: dict[str, Callable[[Tensor], Tensor]] = {"ridge": linear}
        if train:
            decoders["trained"] = trained(linear, lambda layer=layer: _pairs(view, calibration, layer), seed)
        own = [each for each in found if each.layer == layer]
        for name, decode in decoders.items():
            rows.append({"layer": layer.name, "depth": layer.depth, "decoder": name} | _row(view, decode, batches, own, seed))
        step()
    return described("reconstruction", rows, rule, draws=DRAWS)


def _pairs(view: View, batches: Iterable, layer: Layer) -> Iterator[tuple[Tensor, Tensor]]:
    for images, _, _ in numbered(batches, labels=False):
        pixels = view.pixels(images)
        yield view.features(pixels, [layer])[0], pixels


def _row(
    view: View, decode: Callable[[Tensor], Tensor], batches: Iterable, found: Sequence[Discarded], seed: int
) -> dict[str, float | int]:
    noisy, clean, spread, off = [], [], [], []
    for (images, _, index), each in zip(numbered(batches, labels=False), found, strict=True):
        pixels = view.pixels(images)
        cells = Cells.of((view.shape[1], view.shape[2]), _side(each.sigma.shape[1], view))
        deviation = cells.spread(each.sigma)[:, None].to(pixels)
        noise = [deviation * normal(Dice(seed, index).roll(FIRST + draw), view.shape).to(pixels) for draw in range(DRAWS)]
        with_noise = uncertainty(decode, view.feature(each.layer), pixels, noise)
        without = uncertainty(decode, view.feature(each.layer), pixels, [torch.zeros_like(deviation)])
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


def _side(count: int, view: View) -> int:
    """Cells along a side, from their number."""
    height, width = view.shape[1:]
    return next(side for side in range(1, max(height, width) + 1) if min(side, height) * min(side, width) == count)
