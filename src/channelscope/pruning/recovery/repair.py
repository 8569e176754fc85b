"""Repair without training and without labels."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from channelscope.errors import InputError, MismatchError
from channelscope.network.edits import known_groups
from channelscope.network.graph import trace
from channelscope.network.module_state import eval_mode
from channelscope.network.partial_forward import ActivationCache
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


@dataclass(frozen=True)
class RepairReport:
    """What a repair did."""

    method: str
    """the method, and whether normalizations were re-estimated after it"""
    images: int
    """calibration images used"""
    relative_errors: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """layer → squared error of its (normalized) output before its re-fit, and after it on images it was not fitted to, as fractions
    of the target's variance; nan where that is zero"""
    skipped: Mapping[str, str] = field(default_factory=dict)
    """layer → why it was left as it was"""
    notes: Mapping[str, str] = field(default_factory=dict)
    """layer → what of the method did not apply to it, though it was changed"""


def repair(
    small: nn.Module,
    model: nn.Module | Groups,
    kept: Subset,
    calibration: Iterable | Profile | None = None,
    method: Method = "least_squares",
    ridge: float | None = None,
    positions: int = 64,
) -> RepairReport:
    """Change the weights of `small`, in place, so that it comes closer to the network it was cut from.

    least_squares   every layer is re-fitted in forward order, so that what it gives out from the already repaired layers
                    before it is what the original gives out there; a layer that is added to a sum also makes up for the
                    error of the other terms. The ridge regression is shrunk toward the weights that peers would give, each
                    output at the spread of its target
    peers           kept channels supply what removed ones supplied, by linear prediction; with images, batch normalizations
                    are re-estimated afterwards
    batchnorm       batch normalizations are re-estimated only
    none            nothing

    source      batches of (images, …), labels are not looked at; or, for peers, the original's profile alone

    All images' activations at the current layer are held in memory, of both networks.

    Parameters
    ----------
    model
        The original network, or its `groups`.
    kept
        The channels `small` was made of: small = shrink(model, kept).
    ridge
        Λ as a share of the mean variance of what a layer reads; None: the one of .005, .05, .5 and 5 that predicts each
        layer best on images not fitted to, for peers 0.01.
    positions
        Positions an image gives to the regressions, drawn by its index.

    Raises
    ------
    MismatchError
        If small, model, kept and profile do not belong together.
    InputError
        For an unknown method, or one that lacks its source.

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
        skipped = compensate_with_peers(small, found, keep, calibration, PEER_RIDGE if ridge is None else ridge)
        return RepairReport("peers", calibration.images, skipped=skipped)
    if calibration is None or isinstance(calibration, Profile):
        raise InputError(f"repair: {method} needs calibration images, batches of (images, …){FROM_PROFILE if method == 'peers' else ''}")
    batches = rechunked(calibration, found)
    with torch.no_grad(), eval_mode(small), eval_mode(found.graph.model):
        original = ActivationCache(found.graph, batches)
        draws = DrawnPositions(original.images, positions, device=batches[0][0].device)
        skipped = (
            compensate_with_peers(small, found, keep, original, PEER_RIDGE if ridge is None else ridge, draws) if method == "peers" else {}
        )
        carried = ActivationCache(trace(small, tuple(part[:1] for part in batches[0])), batches)
        if method == "least_squares":
            fit = LayerwiseLeastSquares(found, keep, carried, original, draws, ridge)
            errors = {name: (before, after) for name, before, after in fit.run()}
            return RepairReport("least_squares", carried.images, errors, fit.skipped, fit.notes)
        skipped |= reestimate_batchnorms(carried)
    return RepairReport("peers + batchnorm" if method == "peers" else "batchnorm", carried.images, skipped=skipped)


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
