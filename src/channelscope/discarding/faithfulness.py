"""Faithfulness of CID maps: descriptive accuracy, and a comparison with the maps of other methods, from captum and zennit (an extra)."""

import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from channelscope import tables
from channelscope.data.splits import Split
from channelscope.data.torchvision_cpu import load_torchvision
from channelscope.discarding.analysis import BATCH, pixel_network
from channelscope.discarding.cid import COLUMNS, CalibrationStatistics, CIDOptions, CIDResult, describe_discarding, discard, image_table
from channelscope.discarding.concentration import center_prior, localization_table, smoothed
from channelscope.discarding.jacobian import LayerOutput, PixelNetwork
from channelscope.discarding.noise import Cells, gaussian_blur
from channelscope.display import Facts, Shown
from channelscope.errors import DataError, InputError, NumericError, SiteError
from channelscope.formulas.intervals import t_interval
from channelscope.network.module_state import out_of_place
from channelscope.network.operations import of_function
from channelscope.progress import progress_bar
from channelscope.types import Bool, Float, Int, Tensor

IN_PLACE = (Tensor.add_, Tensor.__iadd__)
"""functions that add to their first argument in place"""

STEPS = 16
"""number of points on the path of integrated gradients"""

Attribution = Callable[[Float[Tensor, "images C H W"], Int[Tensor, "images"]], Float[Tensor, "images H W"]]
"""normalized images and a class for each → relevance of each pixel for the class"""

REMOVED_FRACTIONS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
"""fractions of the pixels that are replaced"""

SIDE = 14
"""cells along a side of the image"""

BLUR = 8.0
"""standard deviation of the blur in pixels"""

Baseline = Literal["zero", "blur"]

MapFunction = Callable[[Tensor, Tensor, Tensor], Tensor]
"""normalized images, a class and an index for each → relevance of each pixel (images, H, W)"""


def require_extras() -> None:
    """Refuse if captum or zennit (the extra `attribution`) is not installed.

    Raises
    ------
    InputError
        With the command that installs them.

    Examples
    --------
    >>> require_extras()

    References
    ----------
    pyproject.toml, extra `attribution`.
    """
    missing = [name for name in ("captum", "zennit") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"comparisons need {' and '.join(missing)}: pip install 'channelscope[attribution]'")
    load_torchvision()  # zennit imports it


def attributions(model: nn.Module, layer: str) -> dict[str, Attribution]:
    """The methods gradient, integrated gradients, Grad-CAM and LRP for a network, by name.

    Parameters
    ----------
    model
        Network in evaluation mode; in-place activations are switched off during a call and restored.
    layer
        Module at which Grad-CAM is taken.

    Returns
    -------
    dict[str, Attribution]
        Functions from normalized images and a class for each to maps.

    Raises
    ------
    SiteError
        If the layer is no module.
    InputError
        Without captum or zennit.

    Examples
    --------
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> methods = attributions(model, "0")
    >>> list(methods), methods["gradcam"](torch.ones(2, 3, 8, 8), torch.tensor([0, 3])).shape
    (['gradient', 'integrated_gradients', 'gradcam', 'lrp'], torch.Size([2, 8, 8]))

    References
    ----------
    Simonyan et al. 2014; Sundararajan et al. 2017; Selvaraju et al. 2017; Montavon et al. 2019 (epsilon-plus-flat).
    """
    require_extras()
    if layer not in dict(model.named_modules()):
        raise SiteError(f"Grad-CAM needs a module, and '{layer}' is a step of the pass: name a module")
    methods = {
        "gradient": lambda images, target: gradient(model, images, target),
        "integrated_gradients": lambda images, target: integrated_gradients(model, images, target),
        "gradcam": lambda images, target: gradcam(model, layer, images, target),
        "lrp": lambda images, target: lrp(model, images, target),
    }
    return {name: _out_of_place(model, method) for name, method in methods.items()}


def gradient(model: nn.Module, images: Tensor, target: Tensor) -> Float[Tensor, "images H W"]:
    """Largest absolute gradient of the class's logit over the colors of each pixel.

    Parameters
    ----------
    model
        Network in evaluation mode.
    images
        Normalized images (images, C, H, W).
    target
        Class of each image.

    Returns
    -------
    Tensor
        One number per pixel.

    Examples
    --------
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(2, 1, bias=False))
    >>> weight = model[1].weight.data.copy_(torch.tensor([[2.0, -3.0]]))
    >>> gradient(model, torch.ones(1, 1, 1, 2), torch.tensor([0])).tolist()
    [[[2.0, 3.0]]]

    References
    ----------
    Simonyan et al. 2014, by captum's Saliency.
    """
    from captum.attr import Saliency

    return Saliency(model).attribute(images.clone().requires_grad_(), target=target, abs=True).amax(1).detach()


def integrated_gradients(model: nn.Module, images: Tensor, target: Tensor) -> Float[Tensor, "images H W"]:
    """Absolute integrated gradients from the mean color, summed over the colors of each pixel.

    Parameters
    ----------
    model
        Network in evaluation mode.
    images
        Normalized images (images, C, H, W).
    target
        Class of each image.

    Returns
    -------
    Tensor
        One number per pixel.

    Examples
    --------
    For a linear network they are |weight · pixel|.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(2, 1, bias=False))
    >>> weight = model[1].weight.data.copy_(torch.tensor([[2.0, -3.0]]))
    >>> integrated_gradients(model, torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([0])).round(decimals=3).tolist()
    [[[2.0, 6.0]]]

    References
    ----------
    Sundararajan et al. 2017, by captum's IntegratedGradients.
    """
    from captum.attr import IntegratedGradients

    start = images.clone().requires_grad_()
    found = IntegratedGradients(model).attribute(start, target=target, n_steps=STEPS, internal_batch_size=len(images))
    assert isinstance(found, Tensor)
    return found.abs().sum(1).detach()


def gradcam(model: nn.Module, layer: str, images: Tensor, target: Tensor) -> Float[Tensor, "images H W"]:
    """Grad-CAM at a module, interpolated to the size of the image.

    Parameters
    ----------
    model
        Network in evaluation mode.
    layer
        Module whose output is a map.
    images
        Normalized images (images, C, H, W).
    target
        Class of each image.

    Returns
    -------
    Tensor
        One number per pixel.

    Examples
    --------
    >>> model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> weight = model[0].weight.data.fill_(1.0)
    >>> gradcam(model, "0", torch.tensor([[[[4.0, -4.0]]]]), torch.tensor([0])).tolist()  # gradient ½ · map, above zero
    [[[2.0, 0.0]]]

    References
    ----------
    Selvaraju et al. 2017, by captum's LayerGradCam.
    """
    from captum.attr import LayerGradCam

    found = LayerGradCam(model, model.get_submodule(layer)).attribute(images, target=target, relu_attributions=True)
    assert isinstance(found, Tensor)
    return F.interpolate(found, images.shape[2:], mode="bilinear", align_corners=False)[:, 0].detach()


def lrp(model: nn.Module, images: Tensor, target: Tensor) -> Float[Tensor, "images H W"]:
    """Layer-wise relevance propagation, epsilon-plus-flat, batch normalizations merged into their convolutions.

    The relevance of a sum is divided among its two terms in proportion to them, so that residual blocks conserve it.

    Parameters
    ----------
    model
        Network in evaluation mode.
    images
        Normalized images (images, C, H, W).
    target
        Class of each image.

    Returns
    -------
    Tensor
        One number per pixel.

    Examples
    --------
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(2, 1, bias=False))
    >>> weight = model[1].weight.data.copy_(torch.tensor([[2.0, 3.0]]))
    >>> relevance = lrp(model, torch.tensor([[[[1.0, 1.0]]]]), torch.tensor([0]))
    >>> round(float(relevance.sum()), 3)  # all of the output's relevance of 1
    1.0

    References
    ----------
    Montavon et al. 2019, by zennit's EpsilonPlusFlat.
    """
    from zennit.attribution import Gradient
    from zennit.canonizers import SequentialMergeBatchNorm
    from zennit.composites import EpsilonPlusFlat

    with Gradient(_Summed(model), EpsilonPlusFlat(canonizers=[SequentialMergeBatchNorm()])) as attributor:
        logits, relevance = attributor(images.clone().requires_grad_(), lambda out: F.one_hot(target, out.shape[1]).to(out))
    del logits
    return relevance.sum(1).detach()


class _Share(torch.autograd.Function):
    """a + b, whose backward pass divides the relevance in the ratio a : b."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return a + b

    @staticmethod
    def backward(ctx: Any, *relevance: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        total = a + b
        least = torch.finfo(total.dtype).eps
        whole = relevance[0] / (total + torch.where(total < 0, -least, least))  # finite where a + b is 0
        return a * whole, b * whole


class _Sharing(TorchFunctionMode):
    """In this context, sums of two values of one shape divide their relevance."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        if _adds(func) and not kwargs and len(args) == 2 and all(isinstance(each, Tensor) and each.requires_grad for each in args):
            a, b = args
            if a.shape == b.shape:
                return a.copy_(_Share.apply(a.clone(), b)) if func in IN_PLACE else _Share.apply(a, b)
        return func(*args, **(kwargs or {}))


def _adds(function: Callable) -> bool:
    entry = of_function(function.__name__.strip("_"))
    return entry is not None and entry.arithmetic == "sum"


class _Summed(nn.Module):
    """A network whose sums divide their relevance."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        with _Sharing():
            return self.model(images)


def _out_of_place(model: nn.Module, method: Attribution) -> Attribution:
    """The method with in-place activations switched off during the call."""

    def run(images: Tensor, target: Tensor) -> Tensor:
        with out_of_place(model), torch.enable_grad():
            return method(images, target)

    return run


def descriptive_accuracy(
    logits: Callable[[Tensor], Tensor],
    images: Float[Tensor, "images C H W"],
    target: Int[Tensor, "images"],
    relevance: Float[Tensor, "images H W"],
    baseline: Baseline,
) -> Float[Tensor, "images shares"]:
    """Probability of a class after the most relevant cells are replaced, for each of REMOVED_FRACTIONS; low is good.

    Cells are ranked by their mean relevance. At each fraction the number of cells is replaced whose pixels come closest to it.

    Parameters
    ----------
    logits
        Network: normalized images → logits (images, classes).
    images
        Normalized images, so that zero is the mean color.
    target
        Class of each image.
    relevance
        Map of each image; only the order matters.
    baseline
        What replaces a cell: "zero", or the same cell of the blurred image (mean of the pixels inside the image, with Gaussian weights).

    Returns
    -------
    Tensor
        Probabilities.

    Examples
    --------
    The evidence is the left half of the image, and the map says so: half of the pixels removed leave nothing.

    >>> left = (torch.arange(4) < 2).float().expand(1, 4, 4)
    >>> logits = lambda images: torch.stack([(images[:, 0] * left).sum((1, 2)), torch.zeros(len(images))], 1)
    >>> curve = descriptive_accuracy(logits, torch.ones(1, 1, 4, 4), torch.tensor([0]), left, "zero")
    >>> [round(float(curve[0, REMOVED_FRACTIONS.index(fraction)]), 3) for fraction in (0.0, 0.5, 1.0)]
    [1.0, 0.5, 0.5]

    References
    ----------
    Samek et al. 2017 (region perturbation); checked by tests/pencil_discarding.py::descriptive_accuracy.
    """
    cells = Cells.of((images.shape[2], images.shape[3]), SIDE)
    order = torch.argsort(cells.mean_by_cell(relevance), dim=1, descending=True, stable=True)
    covered = cells.pixels.to(order.device)[order].cumsum(1)
    other = torch.zeros_like(images)
    if baseline == "blur":
        other = gaussian_blur(images, BLUR) / gaussian_blur(torch.ones_like(images[:1, :1]), BLUR)
    curves = []
    for share in REMOVED_FRACTIONS:
        taken = _closest(covered, share * relevance[0].numel())
        where = cells.expand_to_pixels(torch.zeros_like(covered).scatter_(1, order, taken.to(covered)))[:, None] > 0
        with torch.no_grad():
            chosen = logits(torch.where(where, other, images)).softmax(1).gather(1, target[:, None])[:, 0]
        curves.append(chosen)
    return torch.stack(curves, 1)


def _closest(covered: Float[Tensor, "images cells"], wanted: float) -> Bool[Tensor, "images cells"]:
    """The first cells of each row whose pixels come closest to a number; of two that are as close, the fewer."""
    off = (torch.cat([torch.zeros_like(covered[:, :1]), covered], 1) - wanted).abs()
    return torch.arange(covered.shape[1], device=covered.device) < off.argmin(1, keepdim=True)


def area_under_curve(curves: Float[Tensor, "images shares"]) -> Float[Tensor, "images"]:
    """Area under each curve over the fraction removed, by the trapezoid rule.

    Parameters
    ----------
    curves
        Probability at each of REMOVED_FRACTIONS.

    Returns
    -------
    Tensor
        Areas, from 0 to 1.

    Examples
    --------
    >>> area_under_curve(1 - torch.tensor([REMOVED_FRACTIONS])).tolist()
    [0.5]

    References
    ----------
    Trapezoid rule.
    """
    return torch.trapezoid(curves, torch.tensor(REMOVED_FRACTIONS, device=curves.device), dim=1)


def descriptive_accuracy_table(curves: Mapping[tuple[str, str], Float[Tensor, "images shares"]], options: CIDOptions) -> pd.DataFrame:
    """One row per method and baseline: mean area with a t interval, and its paired difference from the first method's.

    Parameters
    ----------
    curves
        Method and baseline → curves of `descriptive_accuracy`, the method to compare with first.
    options
        Options of the CID maps, which the table names.

    Returns
    -------
    DataFrame
        The table `descriptive_accuracy`.

    Examples
    --------
    >>> flat, falling = torch.ones(2, 10), (1 - torch.tensor(REMOVED_FRACTIONS)).expand(2, -1)
    >>> frame = descriptive_accuracy_table({("cid", "zero"): falling, ("random", "zero"): flat}, CIDOptions())
    >>> frame[["method", "area", "less_cid"]].values.tolist()
    [['cid', 0.5, nan], ['random', 1.0, 0.5]]

    References
    ----------
    Ma et al. 2022 (descriptive accuracy).
    """
    rows = []
    first = next(method for method, _ in curves)
    for (method, baseline), curve in curves.items():
        own, cid = area_under_curve(curve), area_under_curve(curves[first, baseline])
        row = {"method": method, "baseline": baseline, "n": len(own)}
        row |= dict(zip(("area", "area_low", "area_high"), t_interval(own.tolist()), strict=True))
        apart = t_interval((own - cid).tolist()) if method != first else (math.nan,) * 3
        rows.append(row | dict(zip(("less_cid", "less_cid_low", "less_cid_high"), apart, strict=True)))
    return describe_discarding("descriptive_accuracy", rows, options)


@dataclass(frozen=True, repr=False)
class MapComparison(Shown):
    """Tables that compare CID maps with gradient, integrated gradients, Grad-CAM and LRP."""

    layers: tuple[str, ...]
    """layers whose CID is compared"""
    tables: dict[str, pd.DataFrame] = field(repr=False)
    """`descriptive_accuracy` and `localization`, by name"""

    def facts(self) -> Facts:
        """The layers, and how many rows each table has."""
        rows = ((name, f"{len(frame):,} rows") for name, frame in self.tables.items())
        return f"MapComparison(CID of {', '.join(self.layers)} beside other maps)", rows


@dataclass(frozen=True)
class CIDMap:
    """What a layer keeps (−H) as a map of the image, with the results from which convergence is read."""

    network: PixelNetwork
    """network from pixels on"""
    layer: LayerOutput
    """layer whose CID it is"""
    statistics: CalibrationStatistics
    """of the pixels and of this layer alone"""
    options: CIDOptions
    """options of the CID"""
    results: list[CIDResult] = field(default_factory=list)
    """results of the calls so far"""

    def __call__(
        self, images: Float[Tensor, "images C H W"], classes: Int[Tensor, "images"], index: Int[Tensor, "images"]
    ) -> Float[Tensor, "images H W"]:
        """−H in nats per value at each pixel; values that never vary take the smallest H of the batch."""
        (result,) = discard(self.network, [(images, classes, index)], self.statistics, [self.layer], self.options)
        self.results.append(result)
        cells = Cells.of((self.network.shape[1], self.network.shape[2]), self.options.side)
        return -cells.expand_to_pixels(result.entropy.clamp(min=result.entropy[result.entropy.isfinite()].min()))

    def converged(self, index: Int[Tensor, "images"]) -> float:
        """Fraction of some images whose CID has converged."""
        frame = image_table(self.results, self.options, "")
        return float(frame[frame.image.isin(index.tolist())].converged.mean())


def compare_maps(
    model: nn.Module,
    images: Split,
    tuning: Split,
    calibration: Split,
    layers: Sequence[str] = (),
    options: CIDOptions | None = None,
) -> MapComparison:
    """Descriptive accuracy and localization of CID maps, other attribution methods, a random map and a center prior.

    Parameters
    ----------
    model
        Network in evaluation mode; its own predictions are the classes.
    images
        Images on which the maps are compared, each with a box (column `boxes`).
    tuning
        Other images with boxes, on which each method's threshold is chosen.
    calibration
        Images over which pixels' and features' variances are taken.
    layers
        Modules whose CID is compared, Grad-CAM being taken at the last; by default the third of four evenly spaced ones.
    options
        Options of the CID; by default those of `CIDOptions`.

    Returns
    -------
    MapComparison
        The layers and the two tables.

    Raises
    ------
    InputError
        Without captum or zennit.
    SiteError
        If the last layer is no module.
    DataError
        If an image has no box.
    NumericError
        If a map is not finite.

    Examples
    --------
    >>> from channelscope import data, zoo
    >>> model, images = zoo.load("resnet20", data="digits")
    >>> compare_maps(model, images.test.take(4), images.calibration.take(4), images.calibration, ["layer3"])
    Traceback (most recent call last):
    ...
    channelscope.errors.DataError: digits: expected a column 'boxes', the further columns are: none

    References
    ----------
    Ma et al. 2022 (descriptive accuracy, localization); checked by tests/discarding/test_faithfulness_maps.py.
    """
    options = options or CIDOptions()
    boxes = [_boxes(split) for split in (tuning, images)]
    calibration = calibration.with_batch_size(2 * BATCH)
    network = pixel_network(model, calibration)
    chosen = network.layers(layers) if layers else [network.layers()[2]]
    methods = _methods(model, network, calibration, chosen, options)
    splits = [split.with_batch_size(min(split.batch_size, BATCH)) for split in (tuning, images)]
    with progress_bar("maps", sum(-(-len(split) // split.batch_size) for split in splits)) as step:
        tuning_maps, _ = _maps_and_curves(model, methods, splits[0], step, curves=False)
        maps, curves = _maps_and_curves(model, methods, splits[1], step, curves=True)
    found = localization_table(tuning_maps, boxes[0], maps, boxes[1], options)
    converged = [method.converged(images.indices) if isinstance(method, CIDMap) else math.nan for method in methods.values()]
    found = tables.describe(found.assign(converged=converged), found.attrs | {"columns": COLUMNS})
    accuracy = descriptive_accuracy_table(curves, options)
    return MapComparison(tuple(layer.name for layer in chosen), {frame.attrs["name"]: frame for frame in (accuracy, found)})


def _boxes(split: Split) -> list[Any]:
    """The boxes of a split's images; every image must have one that is not empty."""
    boxes = split.column("boxes")
    without = [index for index, own in zip(split.indices.tolist(), boxes, strict=True) if not any(b[2] > b[0] and b[3] > b[1] for b in own)]
    if without:
        few = ", ".join(map(str, without[:5]))
        raise DataError(f"{len(without)} of {len(boxes)} {split.name} images have no box inside the image ({few}, …): leave them out")
    return boxes


def _methods(
    model: nn.Module, network: PixelNetwork, calibration: Split, layers: Sequence[LayerOutput], options: CIDOptions
) -> dict[str, MapFunction]:
    """Maps by the method's name, CID first."""
    methods = attributions(model, layers[-1].name)
    with progress_bar("data", -(-len(calibration) // calibration.batch_size)) as step:
        statistics = CalibrationStatistics.over(network, calibration, layers, step)
    cid = {
        f"cid {layer.name}": CIDMap(network, layer, CalibrationStatistics(statistics.pixels, (feature,)), options)
        for layer, feature in zip(layers, statistics.features, strict=True)
    }
    others = {name: lambda images, classes, index, method=method: method(images, classes) for name, method in methods.items()}
    return {**cid, **others, "random": _random_map, "center": lambda images, classes, index: center_prior(images)}


def _random_map(images: Tensor, classes: Tensor, index: Tensor) -> Tensor:
    """Uniform random numbers that belong to each image's index."""
    return torch.stack([torch.rand(images.shape[2:], generator=torch.Generator().manual_seed(int(one))) for one in index])


def _maps_and_curves(
    model: nn.Module, methods: dict[str, MapFunction], split: Split, step: Callable[[], None], curves: bool
) -> tuple[dict[str, Tensor], dict[tuple[str, str], Tensor]]:
    """Smoothed maps of every method, and with `curves` also the curves of descriptive accuracy."""
    maps: dict[str, list[Tensor]] = {name: [] for name in methods}
    found: dict[tuple[str, str], list[Tensor]] = {}
    for images, _, index in split:
        with torch.no_grad():
            classes = model(images).argmax(1)
        for name, method in methods.items():
            relevance = method(images, classes, index)
            if not bool(relevance.isfinite().all()):
                raise NumericError(f"the map of {name} is not finite: check the network, or name another layer")
            maps[name].append(smoothed(relevance.float()))
            for baseline in ("zero", "blur") if curves else ():
                curve = descriptive_accuracy(model, images, classes, relevance, baseline)
                found.setdefault((name, baseline), []).append(curve)
        step()
    return {name: torch.cat(parts) for name, parts in maps.items()}, {key: torch.cat(parts) for key, parts in found.items()}
