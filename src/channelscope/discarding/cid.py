"""CID, the information of the input that each layer discards: options, calibration statistics, results, and their tables by layer."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from channelscope import tables
from channelscope.data.batches import indexed_batches
from channelscope.discarding.jacobian import LayerOutput, PerImageRandom, PixelNetwork, SensitivityEstimator
from channelscope.discarding.noise import GRID_SIDE, Cells, entropy
from channelscope.discarding.optimum import Constraint, optimal_noise
from channelscope.display import Facts, Shown
from channelscope.errors import FormatError, InputError, MismatchError, SampleError, at, check_choice
from channelscope.formulas.intervals import student_reach, t_interval
from channelscope.stats.moments import Variance
from channelscope.storage import atomic_file
from channelscope.tables.quantities import OURS, Column
from channelscope.types import Bool, Float, Int, Tensor

KAPPA = {"data": 0.1, "local": 1.5}
"""default κ of each normalizer"""

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

MA = "Ma et al. 2022"

MAX_RATIO_ERROR, MAX_NATS = 0.02, 0.02
"""a CID has converged if its constraint is met within 2 % and its level and distance from the optimum are below 0.02 nats"""


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
            check_choice(what, value, known)
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


@dataclass(frozen=True, repr=False)
class CalibrationStatistics(Shown):
    """Variances of the pixels and of some layers' features over the calibration images."""

    pixels: Variance
    """variance of every pixel value (C, H, W)"""
    features: tuple[Variance, ...]
    """variance of every number of each layer's feature"""

    def facts(self) -> Facts:
        """Number of images, and the total variance of the pixels and of each feature."""
        rows = ((f"feature {place}", f"total variance {each.total:.4g}") for place, each in enumerate(self.features))
        return f"CalibrationStatistics({self.pixels.count:,} images)", [("pixels", f"total variance {self.pixels.total:.4g}"), *rows]

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


@dataclass(frozen=True, repr=False)
class CIDResult(Shown):
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

    def facts(self) -> Facts:
        """Layer, images and their CID."""
        each = (
            (f"image {image}", f"{value:.3f} nats") for image, value in zip(self.index.tolist(), self.numbers["cid"].tolist(), strict=True)
        )
        return f"CIDResult({self.layer.name}: {len(self.index):,} images, mean CID {float(self.numbers['cid'].mean()):.3f} nats)", each

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


def _text(meaning: str) -> Column:
    return Column(meaning=meaning, source=OURS)


def _nats(meaning: str, source: str = OURS, low: float | None = None) -> Column:
    return Column("nats/value", 3, meaning, source, low)


def _part(meaning: str) -> Column:
    return Column("fraction", 3, meaning, OURS, 0.0, 1.0)


COLUMNS: Mapping[str, Column] = {
    "network": _text("the network"),
    "other": _text("the network it is compared with"),
    "layer": _text("layer, by module path or step of the traced pass"),
    "other_layer": _text("layer of the other network"),
    "depth": Column("", 0, "position of the layer in execution order", OURS, 0.0),
    "image": Column("", 0, "index of the image in its data set", OURS, 0.0),
    "cid": _nats("information discarding: largest mean entropy of pixel noise (pixels of 0 to 1) that keeps the feature", MA),
    "cid_other": _nats("CID of the other network", MA),
    "difference": _nats("CID of the other network less CID of this one"),
    "gain": _nats("CID less the entropy of uniform noise under the same constraint and caps: how uneven the sensitivity is"),
    "gap": _nats("estimated distance from the largest entropy; up to 0.1 nat of it is included in the CID", low=0.0),
    "error": _nats("standard error of the CID, from the draws that set the noise level", low=0.0),
    "ratio": Column("ε", 3, "E|Δf|² on fresh noise over what is allowed", OURS, 0.0),
    "ratio_se": Column("ε", 3, "standard error of that ratio", OURS, 0.0),
    "capped": _part("cells whose noise is held by the data's standard deviation"),
    "unseen": _part("cells that do not reach the feature: outside its receptive field, or dead"),
    "reached": _text("whether the constraint can be reached at all"),
    "converged": _part("whether, or in what share of images, constraint, level and optimum are known within 2 % and 0.02 nats"),
    "unreached": Column("images", 0, "images whose constraint cannot be reached; left out of the means", OURS, 0.0),
    "note": _text("what keeps the CID from having converged"),
    "passes": Column("passes", 0, "passes forward and backward per image, the check included", OURS, 0.0),
    "seconds": Column("s", 3, "wall-clock time per image", OURS, 0.0),
    "concentration": _nats("mean H over the background less mean H over the object: positive where the object is kept better", MA),
    "rho": Column(
        "fraction", 3, "ρ = C₁ + (C₂ · concentration − C₃) / (2 (C₄ − H̄)), H̄ the mean of the map: not a measured mutual information", MA
    ),
    "c1": _part("C₁: share of the foreground"),
    "c2": _part("C₂: 2 n_f n_b / n²"),
    "c3": _nats("C₃: 2 (n_f / n) (C₄ − entropy of a foreground value)"),
    "c4": _nats("C₄: entropy of an input value, taken as normal with the data's standard deviation"),
    "points_on": Column("cells", 0, "cells on the object kept better than the background's mean by the margin", OURS, 0.0),
    "points_beside": Column("cells", 0, "cells beside the object kept as well", OURS, 0.0),
    "of": _text("edges (brightness gradient) or color (distance from gray)"),
    "method": _text("whose map: cid of a layer, another method, random, or center (a map that only knows that objects are in the middle)"),
    "baseline": _text("what replaces a cell: zero (the mean color) or its blurred self"),
    "area": Column(
        "probability", 3, "area under the class's probability over the share of pixels taken away; low is better", OURS, 0.0, 1.0
    ),
    "less_cid": Column("", 3, "the method's value less that of the first CID, paired over images", OURS),
    "iou": _part("mean intersection over union of the map's box with the object's"),
    "found": _part("images with an IoU of at least 0.5"),
    "level": _part("quantile at which maps are cut, chosen on the tuning images"),
    "tuned": Column("images", 0, "tuning images", OURS, 0.0),
    "decoder": _text("ridge, or trained: a residual network on top of it"),
    "ru": _nats("reconstruction uncertainty: mean over cells of ½ ln(2πe E(x̂ − x)²) under the noise the feature survives", MA),
    "ru_clean": _nats("the same without noise"),
    "variance": Column("pixel²", 4, "variance of the reconstruction over the noise", OURS, 0.0),
    "bias": Column("pixel²", 4, "squared distance of the expected reconstruction from the image; unbiased, so it can be below zero", OURS),
    "n": Column("images", 0, "images behind the row", OURS, 0.0),
}


def image_table(results: Iterable[CIDResult], options: CIDOptions, network: str) -> pd.DataFrame:
    """One row per image and layer: CID with its interval, the constraint on fresh noise, the cost, and why it has not converged.

    Parameters
    ----------
    results
        Results of `discard`.
    options
        Their options, which the table names.
    network
        Name of the network.

    Returns
    -------
    DataFrame
        The table `discarded`, by depth and image.

    Examples
    --------
    >>> import torch
    >>> from channelscope.discarding.jacobian import LayerOutput
    >>> numbers = {name: torch.zeros(1) for name in ("error", "gap", "uniform", "ratio_error", "capped", "unseen")}
    >>> numbers |= {"cid": torch.tensor([-2.0]), "ratio": torch.tensor([1.5])}
    >>> index, reached = torch.tensor([7]), torch.tensor([True])
    >>> result = CIDResult(LayerOutput("conv", "conv", 1), index, torch.ones(1, 4), numbers, reached, 20, 6, 0.1)
    >>> image_table([result], CIDOptions(), "net")[["image", "cid", "converged", "note"]].to_dict("records")
    [{'image': 7, 'cid': -2.0, 'converged': False, 'note': 'constraint at 1.500 ± 0.000'}]

    References
    ----------
    Ma et al. 2022 (convergence report); checked by tests/discarding/test_tables.py.
    """
    rows = [row for each in results for row in _rows(each, options, network)]
    rows.sort(key=lambda row: (row["depth"], row["image"]))
    return describe_discarding("discarded", rows, options)


def layer_table(images: pd.DataFrame) -> pd.DataFrame:
    """One row per network and layer: mean CID over the images with a t interval, and the fraction that converged.

    Parameters
    ----------
    images
        The table of `image_table`; images whose constraint cannot be reached are left out of the means.

    Returns
    -------
    DataFrame
        The table `discarded_layers`.

    Examples
    --------
    >>> row = dict.fromkeys(COLUMNS, 0.0) | {"network": "net", "layer": "conv", "depth": 1, "reached": True}
    >>> images = describe_discarding("discarded", [row | {"cid": -1.0}, row | {"cid": -3.0}], CIDOptions())
    >>> layer_table(images)[["layer", "n", "cid"]].to_dict("records")
    [{'layer': 'conv', 'n': 2, 'cid': -2.0}]

    References
    ----------
    Student 1908 (t intervals over images).
    """
    rows = []
    for (network, layer), own in images.groupby(["network", "layer"], sort=False):
        known = own[own.reached]
        cid, ratio = t_interval(known.cid), t_interval(known.ratio)
        rows.append(
            {"network": network, "layer": layer, "depth": own.depth.iloc[0], "n": len(known)}
            | dict(zip(("cid", "cid_low", "cid_high"), cid, strict=True))
            | {"gain": known.gain.mean()}
            | dict(zip(("ratio", "ratio_low", "ratio_high"), ratio, strict=True))
            | {"gap": known.gap.mean(), "error": np.sqrt((known.error**2).mean()), "capped": own.capped.mean(), "unseen": own.unseen.mean()}
            | {"converged": own.converged.mean(), "unreached": int((~own.reached).sum())}
            | {"passes": own.passes.mean(), "seconds": own.seconds.mean()}
        )
    return tables.describe(pd.DataFrame(rows), {**images.attrs, "name": "discarded_layers", "columns": COLUMNS})


def difference_table(images: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """CID of another network less CID of this one by layer, paired over images, with t intervals.

    Parameters
    ----------
    images
        The table of `image_table` of this network.
    other
        That of the other network; layers are paired in order of depth.

    Returns
    -------
    DataFrame
        The table `discarded_difference`.

    Raises
    ------
    MismatchError
        If the tables differ in normalizer, κ, caps, cells, images or number of layers.

    Examples
    --------
    >>> row = {"network": "net", "layer": "conv", "depth": 1, "reached": True}
    >>> images, other = (
    ...     describe_discarding("discarded", [row | {"image": image, "cid": cid - image} for image in (1, 2)], CIDOptions())
    ...     for cid in (-1.0, -0.5)
    ... )
    >>> difference_table(images, other)[["layer", "n", "difference"]].to_dict("records")
    [{'layer': 'conv', 'n': 2, 'difference': 0.5}]

    References
    ----------
    Ma et al. 2022 (comparability).
    """
    convention, other_convention = (frame.attrs["provenance"]["convention"] for frame in (images, other))
    differ = [
        f"{key} ({convention[key]} and {other_convention.get(key)})" for key in convention if convention[key] != other_convention.get(key)
    ]
    if differ:
        raise MismatchError(f"these CIDs are not on one scale: they differ in {', '.join(differ)}; run both with the same options")
    layers, other_layers = (list(dict.fromkeys(frame.layer)) for frame in (images, other))
    if len(layers) != len(other_layers):
        raise MismatchError(f"expected as many layers of both networks, received {len(layers)} and {len(other_layers)}: name them")
    rows = []
    for layer, other_layer in zip(layers, other_layers, strict=True):
        pair = images[images.layer == layer].merge(other[other.layer == other_layer], on="image", suffixes=("", "_other"))
        if not len(pair) == (images.layer == layer).sum() == (other.layer == other_layer).sum():
            raise MismatchError(f"at {layer}: the two tables are of different images; run both on the same ones")
        pair = pair[pair.reached & pair.reached_other]
        value, low, high = t_interval(pair.cid_other - pair.cid)
        rows.append(
            {"network": images.network.iloc[0], "other": other.network.iloc[0], "layer": layer, "other_layer": other_layer}
            | {"depth": pair.depth.iloc[0] if len(pair) else 0, "n": len(pair), "cid": pair.cid.mean(), "cid_other": pair.cid_other.mean()}
            | {"difference": value, "difference_low": low, "difference_high": high}
        )
    return tables.describe(pd.DataFrame(rows), {**images.attrs, "name": "discarded_difference", "columns": COLUMNS})


def describe_discarding(
    name: str,
    rows: Sequence[Mapping[str, Any]] | pd.DataFrame,
    options: CIDOptions,
    columns: Mapping[str, Column] | None = None,
    **facts: Any,
) -> pd.DataFrame:
    """A table with descriptions of its columns and the options of its CIDs.

    Parameters
    ----------
    name
        Name of the table.
    rows
        Rows of the table, or a frame.
    options
        Options of the CIDs: normalizer, κ, caps and cells become `convention` in the table's provenance.
    columns
        Descriptions of further columns.
    **facts
        Further entries of the provenance.

    Returns
    -------
    DataFrame
        The table, described.

    Examples
    --------
    >>> frame = describe_discarding("discarded", [{"layer": "conv", "cid": -2.0}], CIDOptions(side=8))
    >>> frame.attrs["provenance"]["convention"]["side"]
    8

    References
    ----------
    Ma et al. 2022 (comparability).
    """
    frame = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows))
    known = {"name": name, "columns": {**COLUMNS, **(columns or {})}, "convention": options.convention(), "mode": options.mode}
    return tables.describe(frame, known | facts)


def _rows(result: CIDResult, options: CIDOptions, network: str) -> Iterable[dict[str, Any]]:
    numbers = {name: values.double().tolist() for name, values in result.numbers.items()}
    reach = student_reach(1.0, result.degrees_of_freedom)
    for place, image in enumerate(result.index.tolist()):
        own = {name: values[place] for name, values in numbers.items()}
        reached = bool(result.constraint_reached[place])
        note = _convergence_note(own, reached, options)
        if not reached:
            own |= {"gap": float("nan"), "error": float("nan")}
        yield (
            {"network": network, "layer": result.layer.name, "depth": result.layer.depth, "image": image, "cid": own["cid"]}
            | {"cid_low": own["cid"] - reach * own["error"], "cid_high": own["cid"] + reach * own["error"]}
            | {"gain": own["cid"] - own["uniform"], "ratio": own["ratio"], "ratio_se": own["ratio_error"], "error": own["error"]}
            | {name: own[name] for name in ("gap", "capped", "unseen")}
            | {"reached": reached, "converged": not note, "note": note, "passes": result.passes, "seconds": result.seconds}
        )


def _convergence_note(own: Mapping[str, float], reached: bool, options: CIDOptions) -> str:
    """The reasons why a CID has not converged; empty where it has."""
    if not reached:
        return f"the feature changes by less than ε with all noise at its cap ({own['ratio']:.2f} of it): the CID is a bound"
    reasons = []
    if abs(own["ratio"] - 1) > MAX_RATIO_ERROR + 2 * own["ratio_error"]:
        reasons.append(f"constraint at {own['ratio']:.3f} ± {own['ratio_error']:.3f}")
    if own["error"] > MAX_NATS:
        reasons.append(f"level known to ± {own['error']:.3f} nats")
    if options.mode == "exact" and own["gap"] > MAX_NATS:
        reasons.append(f"{own['gap']:.3f} nats from the optimum")
    return "; ".join(reasons)
