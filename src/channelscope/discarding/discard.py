"""discard: how much of each pixel's information every layer has thrown away, image by image."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from channelscope.discarding.cells import Cells
from channelscope.discarding.jacobian import Dice, Scene
from channelscope.discarding.kept import Kept, digest
from channelscope.discarding.noise import entropy
from channelscope.discarding.optimum import optimum
from channelscope.discarding.rule import Rule
from channelscope.discarding.variance import Variance
from channelscope.discarding.view import Layer, View
from channelscope.errors import SampleError, at
from channelscope.net.batches import numbered
from channelscope.types import Float, Int, Tensor

NUMBERS = ("cid", "error", "gap", "uniform", "ratio", "ratio_error", "capped", "unseen")
"""what an Optimum says of each image beside its noise"""


@dataclass(frozen=True)
class Backdrop:
    """What the data's images are like: how much their pixels vary, and the features of some layers."""

    pixels: Variance
    """of every pixel value (C, H, W)"""
    features: tuple[Variance, ...]
    """of every number of each layer's feature"""

    @classmethod
    def over(cls, view: View, batches: Iterable, layers: Sequence[Layer], step: Callable[[], None]) -> "Backdrop":
        """One pass over (images, …) batches; `step` is called after each.

        Raises   SampleError for fewer than two images.
        """
        found: list[Variance] | None = None
        for images, _, _ in numbered(batches, labels=False):
            pixels = view.pixels(images)
            own = [Variance.of(each) for each in (pixels, *view.features(pixels, layers))]
            found = own if found is None else [mine + new for mine, new in zip(found, own, strict=True)]
            step()
        if found is None or found[0].count < 2:
            raise SampleError(f"a variance over the data needs at least 2 images, received {0 if found is None else found[0].count}")
        return cls(found[0], tuple(found[1:]))


@dataclass(frozen=True)
class Discarded:
    """What one layer discarded of some images."""

    layer: Layer
    """the layer"""
    index: Int[Tensor, "images"]
    """index of each image in its data set"""
    sigma: Float[Tensor, "images cells"]
    """noise in each cell, in pixels of 0 to 1; 0 in cells that are left out"""
    numbers: dict[str, Float[Tensor, "images"]]
    """CID and what says how sure it is: the fields of `Optimum`"""
    reached: Tensor
    """False where the constraint cannot be reached"""
    passes: int
    """passes per image"""
    freedom: int
    """degrees of freedom of the errors"""
    seconds: float
    """wall-clock time per image"""

    @property
    def entropy(self) -> Float[Tensor, "images cells"]:
        """H in nats per value; −inf in cells that are left out."""
        return entropy(self.sigma)


def discard(
    view: View,
    batches: Iterable,
    backdrop: Backdrop,
    layers: Sequence[Layer],
    rule: Rule,
    kept: Kept | None = None,
    seed: int = 0,
) -> Iterator[Discarded]:
    """For every batch of images (net/batches.py) and layer: the noise of most entropy that the layer's feature survives.

        CID = max mean_i H(σ_i)   subject to   E|f(x + σe) − f(x)|² = κ σ_f²  and  σ_i ≤ cap_i

    Parts that `kept` has are read, not computed. Random numbers belong to the images (their index and the seed): batch
    size and order change nothing.

    Returns  a `Discarded` per batch and layer, in that order.
    Raises   InputError at a layer whose feature does not vary; NumericError where gradients are not finite, or where a pixel
             is not seen and there are no caps; MismatchError if `kept` is of another run.
    Source   Ma et al. 2022 (arXiv 1906.04109), equations 2–4; checked by tests/discarding/test_discard.py
    """
    kept = kept or Kept(None, {})
    cells = Cells.of((view.shape[1], view.shape[2]), rule.side)
    cap, varies = rule.caps(backdrop.pixels, cells)
    constraints = []
    for layer, feature in zip(layers, backdrop.features, strict=True):
        with at(layer.name):
            constraints.append(rule.constraint(feature))
    for number, (images, _, index) in enumerate(numbered(batches, labels=False)):
        pixels, mark = view.pixels(images), digest(images, index)
        for layer, constraint in zip(layers, constraints, strict=True):
            part = f"{layer.name}/{number:04d}"
            found = kept.read(part, mark)
            if found is None:
                begun = time.monotonic()
                with at(layer.name):
                    scene = Scene(view.feature(layer), pixels, cells, varies, Dice(seed, index))
                    best = optimum(scene, constraint, cap, rule.mode)
                spent = torch.tensor([best.passes, best.freedom, (time.monotonic() - begun) / len(images)], dtype=torch.float64)
                values = {name: vars(best)[name] for name in NUMBERS}
                found = values | {"sigma": best.sigma, "reached": best.reached, "index": index, "spent": spent}
                kept.write(part, mark, found | {"entropy": entropy(best.sigma), "pixels": (pixels * 255).round().clamp(0, 255).byte()})
            passes, freedom, seconds = found["spent"].tolist()
            numbers = {name: found[name] for name in NUMBERS}
            yield Discarded(layer, found["index"], found["sigma"], numbers, found["reached"], int(passes), int(freedom), seconds)
