"""CID, the information of the input that each layer discards: options, calibration statistics, and the results by image."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from channelscope.data.batches import indexed_batches
from channelscope.discarding.jacobian import PerImageRandom, SensitivityEstimator
from channelscope.discarding.noise import GRID_SIDE, Cells, entropy
from channelscope.discarding.optimum import Constraint, optimal_noise
from channelscope.discarding.pixel_network import LayerOutput, PixelNetwork
from channelscope.errors import FormatError, InputError, MismatchError, SampleError, at, no_such
from channelscope.stats.moments import Variance
from channelscope.storage import atomic_file
from channelscope.types import Bool, Float, Int, Tensor


class MapCache:
    """Finished maps by key, in a folder or in memory.

    Parameters
    ----------
    path
        Folder of the files; None keeps the maps in memory.
    facts
        Facts of the run that must be equal for a file to be used again.

    Examples
    --------
    >>> cache = MapCache(None, {"seed": 0})
    >>> cache.read("layer1/0000", "digest") is None
    True
    >>> cache.write("layer1/0000", "digest", {"sigma": torch.ones(2)})
    >>> cache.read("layer1/0000", "digest")["sigma"].tolist()
    [1.0, 1.0]
    """

    def __init__(self, path: Path | None, facts: Mapping[str, Any]):
        self.path = path
        self.facts = dict(facts)
        self.memory: dict[str, dict[str, Tensor]] = {}

    def read(self, part: str, digest: str) -> dict[str, Tensor] | None:
        """The tensors of a finished part by name; None where there is no such part.

        Parameters
        ----------
        part
            Key of the part: layer and number of the batch.
        digest
            Fingerprint of the batch's images.

        Raises
        ------
        MismatchError
            If the file is of another run or of other images.
        FormatError
            If the file is damaged.
        """
        if self.path is None:
            return self.memory.get(part)
        file = self._file(part)
        if not file.is_file():
            return None
        try:
            with safe_open(file, "pt") as opened:
                there = json.loads(opened.metadata()["facts"])
                found = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise FormatError(f"{file} is damaged or not a map ({error}): delete it and run again") from error
        own = json.loads(json.dumps(self.facts | {"images": digest}))
        if there != own:
            differ = sorted(key for key in {**own, **there} if own.get(key) != there.get(key))
            raise MismatchError(f"{self.path} holds another run: they differ in {', '.join(differ)}; give another --out, or delete it")
        return found

    def write(self, part: str, digest: str, values: Mapping[str, Tensor]) -> None:
        """Store the tensors of a finished part; an interruption leaves no partial file."""
        if self.path is None:
            self.memory[part] = dict(values)
            return
        plain = {name: value.cpu().contiguous() for name, value in values.items()}
        with atomic_file(self._file(part)) as file:
            save_file(plain, file, {"facts": json.dumps(self.facts | {"images": digest})})

    def _file(self, part: str) -> Path:
        assert self.path is not None
        return self.path / f"{part}.safetensors"


def fingerprint(*tensors: Tensor) -> str:
    """The first 16 hexadecimal digits of a hash of tensors.

    Parameters
    ----------
    *tensors
        Tensors of any shape and type.

    Returns
    -------
    str
        Sixteen digits; equal for equal bytes, whatever the device.

    Examples
    --------
    >>> fingerprint(torch.arange(3)) == fingerprint(torch.tensor([0, 1, 2])), fingerprint(torch.arange(3)) == fingerprint(torch.arange(4))
    (True, False)

    References
    ----------
    SHA-256 over the tensors' bytes.
    """
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return total.hexdigest()[:16]


KAPPA = {"data": 0.1, "local": 1.5}
"""default κ of each normalizer"""


@dataclass(frozen=True)
class CIDOptions:
    """Options of a CID: the constraint on the feature, and the cells and caps of the noise.

    Examples
    --------
    >>> CIDOptions().fraction, CIDOptions(normalizer="local").fraction
    (0.1, 1.5)
    """

    mode: Literal["fast", "exact"] = "fast"
    """fast: at most 20 passes an image; exact: up to 600, with the distance from the optimum measured"""
    normalizer: Literal["data", "local"] = "data"
    """σ_f², the unit of the allowed change: the feature's variance over the data, or its response to faint noise at the same image"""
    kappa: float | None = None
    """allowed change as a fraction κ of σ_f²; by default 0.1 under data, 1.5 under local"""
    noise: float = 0.01
    """standard deviation of the faint noise, in pixels of 0 to 1"""
    side: int = GRID_SIDE
    """at most this many cells along a side of the image; pixels of a cell share one noise level"""
    cap: bool = True
    """limit the noise to the data's standard deviation; without caps, pixels outside of a layer's receptive field are refused"""

    def __post_init__(self) -> None:
        """Refuse values that do not exist or leave the constraint undefined."""
        for what, value, known in (("mode", self.mode, ("fast", "exact")), ("normalizer", self.normalizer, tuple(KAPPA))):
            if value not in known:
                raise InputError(no_such(what, value, known))
        if self.kappa is not None and not (math.isfinite(self.kappa) and self.kappa > 0):
            raise InputError(f"expected κ above zero, received {self.kappa}")
        if not (math.isfinite(self.noise) and self.noise > 0):
            raise InputError(f"expected a noise level above zero, received {self.noise}")
        if self.side < 1:
            raise InputError(f"expected at least one cell along a side, received {self.side}")

    @property
    def fraction(self) -> float:
        """κ, the default included."""
        return KAPPA[self.normalizer] if self.kappa is None else self.kappa

    def constraint(self, feature: Variance) -> Constraint:
        """The constraint on a feature.

        Parameters
        ----------
        feature
            Variance of the feature over the calibration images.

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
        """Largest noise of each cell, and the values that vary over the data.

        Parameters
        ----------
        pixels
            Variance of the pixels over the calibration images.
        cells
            Cells that share one noise level.

        Returns
        -------
        tuple[Tensor, Tensor]
            Root mean variance of each cell's varying values, in pixels of 0 to 1, infinite without caps; and True where a
            value varies.
        """
        varies = pixels.each > 0
        counts = cells.sum_by_cell(varies.double().sum(0))
        cap = (cells.sum_by_cell(pixels.each.sum(0)) / counts.clamp(min=1)).sqrt().float()
        return (cap if self.cap else cap.new_full(cap.shape, math.inf)), varies

    def convention(self) -> dict[str, Any]:
        """The choices that must be equal for two CIDs to be compared; the mode is left out, for both modes approximate the same optimum."""
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
    """Variances of the pixels and of some layers' features over the calibration images."""

    pixels: Variance
    """variance of every pixel value (C, H, W)"""
    features: tuple[Variance, ...]
    """variance of every number of each layer's feature"""

    @classmethod
    def over(
        cls, network: PixelNetwork, batches: Iterable, layers: Sequence[LayerOutput], step: Callable[[], None] | None = None
    ) -> "CalibrationStatistics":
        """Variances from one pass over batches of calibration images.

        Parameters
        ----------
        network
            Network from pixels on.
        batches
            Normalized images, with or without labels.
        layers
            Layers whose features are measured.
        step
            Called after each batch.

        Raises
        ------
        SampleError
            For fewer than two images.
        """
        found: list[Variance] | None = None
        for images, _, _ in indexed_batches(batches, labels=False):
            pixels = network.denormalize(images)
            own = [Variance.of(each) for each in (pixels, *network.layer_values(pixels, layers))]
            found = own if found is None else [mine + new for mine, new in zip(found, own, strict=True)]
            if step is not None:
                step()
        if found is None or found[0].count < 2:
            raise SampleError(f"a variance over the data needs at least 2 images, received {0 if found is None else found[0].count}")
        return cls(found[0], tuple(found[1:]))


@dataclass(frozen=True)
class CIDResult:
    """CID of one layer on one batch of images, with the noise behind it."""

    layer: LayerOutput
    """layer whose CID it is"""
    index: Int[Tensor, "images"]
    """index of each image in its data set"""
    noise_std: Float[Tensor, "images cells"]
    """standard deviation of the noise in each cell, in pixels of 0 to 1; 0 in cells that are left out"""
    numbers: dict[str, Float[Tensor, "images"]]
    """numbers of each image by the names of NUMBERS, with the meanings of the fields of `OptimalNoise`"""
    constraint_reached: Tensor
    """False where the constraint cannot be reached"""
    passes: int
    """passes per image"""
    degrees_of_freedom: int
    """degrees of freedom of the errors"""
    seconds: float
    """wall-clock time per image"""

    def __repr__(self) -> str:
        """Layer, images and their mean CID."""
        return f"CIDResult({self.layer.name}, images={len(self.index)}, mean cid={float(self.numbers['cid'].mean()):.3f} nats)"

    @property
    def entropy(self) -> Float[Tensor, "images cells"]:
        """H of each cell in nats per value; −inf in cells that are left out."""
        return entropy(self.noise_std)


def discard(
    network: PixelNetwork,
    batches: Iterable,
    statistics: CalibrationStatistics,
    layers: Sequence[LayerOutput],
    options: CIDOptions,
    cache: MapCache | None = None,
    seed: int = 0,
) -> Iterator[CIDResult]:
    """CID of every batch of images and layer: the largest mean entropy of noise under which the feature changes by at most ε.

        CID = max mean_i H(σ_i)   subject to   E|f(x + σe) − f(x)|² = κ σ_f²  and  σ_i ≤ cap_i

    Random numbers depend on the images' index and the seed alone, so that batch size and order change nothing.

    Parameters
    ----------
    network
        Network from pixels on.
    batches
        Batches of normalized images, with or without labels and indices.
    statistics
        Variances over the calibration images, of these layers.
    layers
        Layers of the network.
    options
        Constraint, cells and caps.
    cache
        Finished maps, which are read instead of computed; by default none.
    seed
        Seed of the random numbers.

    Returns
    -------
    Iterator[CIDResult]
        One per batch and layer, layers within a batch.

    Raises
    ------
    InputError
        At a layer whose feature does not vary.
    NumericError
        If gradients are not finite, or a pixel does not change the feature and there are no caps.
    MismatchError
        If `cache` holds another run.

    Examples
    --------
    A layer that doubles its input: ε = κ · 4 Σ var, so that σ² = κ · var where all pixels have one variance.

    >>> double = torch.nn.Conv2d(1, 1, 1, bias=False)
    >>> double.weight.data.fill_(2.0).shape
    torch.Size([1, 1, 1, 1])
    >>> network = PixelNetwork(double, (1, 2, 2), [0.0], [1.0])
    >>> layers, calibration = network.layers(["conv2d"]), [torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 1, 2, 2)]
    >>> statistics = CalibrationStatistics.over(network, calibration, layers)
    >>> (result,) = discard(network, calibration, statistics, layers, CIDOptions())
    >>> [round(float(each), 4) for each in result.noise_std[0].square()]
    [0.025, 0.025, 0.025, 0.025]

    References
    ----------
    Ma et al. 2022 (arXiv 1906.04109), equations 2–4; checked by tests/discarding/test_cid.py.
    """
    cache = cache or MapCache(None, {})
    cells = Cells.of((network.shape[1], network.shape[2]), options.side)
    cap, varies = options.caps(statistics.pixels, cells)
    constraints = []
    for layer, feature in zip(layers, statistics.features, strict=True):
        with at(layer.name):
            constraints.append(options.constraint(feature))
    for number, (images, _, index) in enumerate(indexed_batches(batches, labels=False)):
        pixels, digest = network.denormalize(images), fingerprint(images, index)
        for layer, constraint in zip(layers, constraints, strict=True):
            part = f"{layer.name}/{number:04d}"
            found = cache.read(part, digest)
            if found is None:
                begun = time.monotonic()
                with at(layer.name):
                    estimator = SensitivityEstimator(network.layer_value(layer), pixels, cells, varies, PerImageRandom(seed, index))
                    best = optimal_noise(estimator, constraint, cap, options.mode)
                spent = torch.tensor([best.passes, best.degrees_of_freedom, (time.monotonic() - begun) / len(images)], dtype=torch.float64)
                values = {name: vars(best)[field] for name, field in NUMBERS.items()}
                found = values | {"sigma": best.noise_std, "reached": best.constraint_reached, "index": index, "spent": spent}
                cache.write(
                    part, digest, found | {"entropy": entropy(best.noise_std), "pixels": (pixels * 255).round().clamp(0, 255).byte()}
                )
            passes, freedom, seconds = found["spent"].tolist()
            numbers = {name: found[name] for name in NUMBERS}
            yield CIDResult(layer, found["index"], found["sigma"], numbers, found["reached"], int(passes), int(freedom), seconds)
