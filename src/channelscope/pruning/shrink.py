"""The smaller dense network that computes the same as the silenced one."""

import copy
from dataclasses import replace

from torch import Tensor, nn

from channelscope.errors import InputError
from channelscope.network.edits import known_groups
from channelscope.network.labeling.narrowing import narrow
from channelscope.network.module_state import zero_batch
from channelscope.network.removal.comparison import check_same, kept_ids
from channelscope.network.removal.groups import Groups, groups
from channelscope.network.removal.slicing import slice_layer
from channelscope.network.tracing.wrapper import unwrapped
from channelscope.subset import Subset

CUTS = "_channelscope_cuts"
"""Attribute of a smaller network: what it was made of."""


def shrink(model: nn.Module, kept: Subset, found: Groups | None = None, images: tuple[Tensor, ...] | None = None) -> nn.Module:
    """A new network with only the kept channels; `model` itself stays as it is, to the bit.

    Weights keep their type, device and requires_grad, modules their training mode. Before the result is handed out, every tensor
    of its (nested) output is compared with that of the silenced network, in float64, on noise and on real images if there are any.

    Parameters
    ----------
    model
        The network.
    kept
        The channels to keep, as `cut` gives them.
    found
        The network's `groups`, when they are already known; a subset from `cut` knows them.
    images
        All inputs of the network for a few real images, each (images, …), to compare on too.

    Returns
    -------
    nn.Module
        The smaller network.

    Raises
    ------
    InputError
        If a group is split or a channel cannot be removed, with the reason, or `found` is of another network object.
    MismatchError
        If the subset is of another network, or the smaller network computes something else.

    Examples
    --------
    >>> import torch
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.Flatten()).eval()
    >>> found = groups(model, torch.zeros(1, 3, 8, 8))
    >>> shrink(model, found.to_subset([True, False, True, True]), found)[0].out_channels
    3
    """
    model = unwrapped(model)
    found = known_groups(model, kept) if found is None else found
    if found is None:
        if not kept.input_shape:
            raise InputError("shrink: the subset needs the input shape, as cut() and Subset.everything() give it")
        found = groups(model, zero_batch(model, kept.input_shape))
    keep = kept_ids(found, kept)
    for layer in found.layers:
        if not bool(keep[layer.outputs].any()):
            raise InputError(f"shrink: the subset removes all {len(layer.outputs)} channels of {layer.name}: keep at least one")
    if found.graph.model is not model:
        raise InputError("shrink: the groups are of another network object: found = groups(model, example)")
    small = _narrowed(model, found, keep)
    check_same(small, kept, found, images)
    vars(small)[CUTS] = (*cuts(model), replace(kept, groups=None))
    return small


def cuts(model: nn.Module) -> tuple[Subset, ...]:
    """What a network was made of by `shrink`, one subset for each time, the first one of the original; empty for an original.

    Parameters
    ----------
    model
        Any network.

    Returns
    -------
    tuple of Subset
        The channels that were kept each time.
    """
    return vars(model).get(CUTS, ())


def _narrowed(model: nn.Module, found: Groups, keep: Tensor) -> nn.Module:
    """A copy with cut parameters."""
    if found.labeled is not None:
        small = narrow(found.labeled, ~keep[:-1])
        for name, value in vars(model).items():
            vars(small).setdefault(name, value)
        modes = {name: module.training for name, module in model.named_modules()}
        for name, module in small.named_modules():
            module.training = modes.get(name, model.training)
        return small
    small = copy.deepcopy(model)
    for layer in found.layers:
        slice_layer(small.get_submodule(layer.name), layer, keep)
    return small
