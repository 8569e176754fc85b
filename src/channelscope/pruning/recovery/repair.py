"""Repair without training and without labels."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from channelscope.display import Facts, Shown
from channelscope.errors import InputError, MismatchError
from channelscope.network.edits import known_groups
from channelscope.network.graph import ActivationCache, trace
from channelscope.network.module_state import eval_mode
from channelscope.network.removal.comparison import kept_ids
from channelscope.network.removal.groups import Groups, groups
from channelscope.pruning.recovery.calibration import DrawnPositions, rechunked, zero_input
from channelscope.pruning.recovery.least_squares import LayerwiseLeastSquares
from channelscope.pruning.recovery.normalization import reestimate_batchnorms
from channelscope.pruning.recovery.peers import PEER_RIDGE, compensate_with_peers
from channelscope.stats.profile import Profile
from channelscope.subset import Subset

Method = Literal["least_squares", "peers", "batchnorm", "none"]

FROM_PROFILE = "; or, for peers, the original's profile"


@dataclass(frozen=True, repr=False)
class RepairReport(Shown):
    """What a repair did to each layer.

    Examples
    --------
    >>> RepairReport("least_squares", 100, {"conv1": (0.5, 0.25), "conv2": (0.7, 0.35)}, {"conv3": "grouped"})
    RepairReport(least_squares, 100 images, 2 layers re-fitted, median relative error 0.6 → 0.3, 1 skipped)
    """

    method: str
    """the method, and whether normalizations were re-estimated after it"""
    images: int
    """calibration images used"""
    relative_errors: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """layer → mean squared error of its (normalized) output before the fit, and cross-validated after it, as fractions of the
    target's variance; nan where that is zero"""
    skipped: Mapping[str, str] = field(default_factory=dict)
    """layer → why it was not changed"""
    notes: Mapping[str, str] = field(default_factory=dict)
    """layer → what of the method did not apply to it, though it was changed"""

    def facts(self) -> Facts:
        """The method and how many layers it changed; each layer's error before and after."""
        parts = [self.method]
        if self.images:
            parts.append(f"{self.images:,} images")
        if self.relative_errors:
            before, after = (median(column) for column in zip(*self.relative_errors.values(), strict=True))
            parts.append(f"{len(self.relative_errors)} layers re-fitted, median relative error {before:.2g} → {after:.2g}")
        parts += [f"{len(each)} {name}" for name, each in (("skipped", self.skipped), ("with notes", self.notes)) if each]
        layers = ((name, f"{before:.2g} → {after:.2g}") for name, (before, after) in self.relative_errors.items())
        return f"RepairReport({', '.join(parts)})", [*layers, *self.skipped.items()]

    def __repr__(self) -> str:
        """The method and how many layers it changed."""
        return self.facts()[0]


def repair(
    small: nn.Module,
    model: nn.Module | Groups,
    kept: Subset,
    calibration: Iterable | Profile | None = None,
    *,
    method: Method = "least_squares",
    ridge: float | None = None,
    positions: int = 64,
) -> RepairReport:
    """Report of a repair that changes the weights of `small`, in place, so that it computes nearly what the original computes.

    ==============  ================================================================================================
    method          what it does
    ==============  ================================================================================================
    least_squares   re-fits every layer, in forward order, to the output of the original layer, from the inputs that the
                    repaired network gives it. A layer that is added to a residual sum also corrects the error of the other
                    term. Ridge regression toward the weights that `peers` gives, rescaled to the target's variance
    peers           predicts removed channels linearly from kept ones and folds the prediction into the weights; with images,
                    BatchNorm statistics are re-estimated afterwards
    batchnorm       re-estimates BatchNorm statistics only
    none            changes nothing
    ==============  ================================================================================================

    The activations of all images at the current layer, of both networks, are held in memory.

    Parameters
    ----------
    small
        The smaller network: `shrink(model, kept)`.
    model
        The original network, or its `groups`.
    kept
        The channels that `small` was made of.
    calibration
        Batches of (images, …), labels are not used; or, for peers, the original's profile alone.
    method
        least_squares, peers, batchnorm or none.
    ridge
        Penalty λ as a fraction of the mean variance of what a layer reads. None: for least_squares the one of 0.005, 0.05, 0.5
        and 5 with the smallest cross-validated error of each layer, for peers 0.01.
    positions
        Positions that an image contributes to each regression, drawn by its index.

    Returns
    -------
    RepairReport
        The relative error of each layer, and the layers that were skipped, with the reason.

    Raises
    ------
    MismatchError
        If `small`, `model`, `kept` and the profile do not belong together.
    InputError
        For an unknown method, one that lacks its calibration images, or a penalty that is not positive.
    SampleError
        For batches without images, or a single image for least squares.

    Examples
    --------
    >>> from channelscope.pruning.shrink import shrink
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1), nn.Flatten()).eval()
    >>> images = torch.randn(20, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    >>> found = groups(model, images[:1])
    >>> kept = found.to_subset([True, True, False, True])
    >>> small = shrink(model, kept)
    >>> before = float((small(images) - model(images)).detach().abs().max())
    >>> repair(small, model, kept, [images], ridge=1e-6).images  # a linear network of three inputs needs three channels
    20
    >>> float((small(images) - model(images)).detach().abs().max()) < before / 100
    True

    References
    ----------
    He, Zhang, Sun 2017 (least squares).
    """
    if method not in get_args(Method):
        raise InputError(f"method: expected least_squares, peers, batchnorm or none, received '{method}'")
    if ridge is not None and not ridge > 0:
        raise InputError(f"ridge: expected a share above 0, received {ridge:g}")
    if method == "none":
        return RepairReport("none", 0)
    found = model if isinstance(model, Groups) else known_groups(model, kept) or groups(model, zero_input(model, kept))
    keep = _check_same_network(small, found, kept)
    if isinstance(calibration, Profile) and method == "peers":
        skipped = compensate_with_peers(small, found, keep, calibration, ridge=PEER_RIDGE if ridge is None else ridge)
        return RepairReport("peers", calibration.images, skipped=skipped)
    if calibration is None or isinstance(calibration, Profile):
        raise InputError(f"repair: {method} needs calibration images, batches of (images, …){FROM_PROFILE if method == 'peers' else ''}")
    batches = rechunked(calibration, found)
    with torch.no_grad(), eval_mode(small), eval_mode(found.graph.model):
        original = ActivationCache(found.graph, batches)
        draws = DrawnPositions(original.images, positions, device=batches[0][0].device)
        skipped = (
            compensate_with_peers(small, found, keep, original, ridge=PEER_RIDGE if ridge is None else ridge, draws=draws)
            if method == "peers"
            else {}
        )
        activations = ActivationCache(trace(small, tuple(part[:1] for part in batches[0])), batches)
        if method == "least_squares":
            fit = LayerwiseLeastSquares(activations, found, keep, original, draws=draws, ridge=ridge)
            errors = {name: (before, after) for name, before, after in fit.run()}
            return RepairReport("least_squares", activations.images, errors, fit.skipped, fit.notes)
        skipped |= reestimate_batchnorms(activations)
    return RepairReport("peers + batchnorm" if method == "peers" else "batchnorm", activations.images, skipped=skipped)


def _check_same_network(small: nn.Module, found: Groups, kept: Subset) -> Tensor:
    """`kept_ids`, after refusing a smaller network that was not made of these channels."""
    keep = kept_ids(found, kept)
    modules = dict(small.named_modules())
    for layer in found.layers:
        weight: Any = modules[layer.name].weight if layer.name in modules else None
        expected = int(keep[layer.outputs].sum())
        if weight is not None and layer.taps and weight.shape[0] != expected and layer.name in found.first_id:
            raise MismatchError(
                f"repair: {layer.name} has {weight.shape[0]} outputs, the subset keeps {expected}: small = shrink(model, kept)"
            )
        if layer.name not in modules:
            raise MismatchError(f"repair: the smaller network has no layer {layer.name}: it was not cut from this one")
    return keep
