"""The smaller dense network that computes the same as the silenced one."""

from collections.abc import Iterable
from dataclasses import replace
from itertools import islice

from torch import Tensor, nn

from channelscope.errors import InputError, MismatchError
from channelscope.network.edits import known_groups
from channelscope.network.module_state import zero_batch
from channelscope.network.removal.comparison import check_same, kept_ids
from channelscope.network.removal.groups import Groups, groups
from channelscope.network.removal.narrowing import narrow_pair
from channelscope.network.tracing.recording import unwrapped
from channelscope.pruning.recovery.calibration import rechunked
from channelscope.subset import Subset

CUTS = "_channelscope_cuts"
"""Attribute of a smaller network that holds the subsets it was cut to."""


def shrink(model: nn.Module | Groups, kept: Subset, calibration: Iterable | None = None) -> nn.Module:
    """A new, smaller network that has only the kept channels; `model` is not changed.

    Weights keep their type, device and requires_grad, modules their training mode. Before it is returned, every tensor of its
    (nested) output is compared with that of the silenced network, in float64, on noise and on calibration images if there are any.

    Parameters
    ----------
    model
        The network, or its `groups`. A subset that `cut` made of a network's groups carries them, so that the network is not traced
        again.
    kept
        The channels to keep, as `cut` gives them.
    calibration
        Batches of (images, …); images of the first batch are compared on too, labels are not used.

    Returns
    -------
    nn.Module
        The smaller network.

    Raises
    ------
    InputError
        If a group is split or a channel cannot be removed, with the reason, or without the shape of its images.
    MismatchError
        If the subset is of another network, or the smaller network computes something else.

    Examples
    --------
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.Flatten()).eval()
    >>> found = groups(model, zero_batch(model, (3, 8, 8)))
    >>> small = shrink(found, found.to_subset([True, False, True, True]))
    >>> small[0].out_channels, small[2].in_channels, model[0].out_channels
    (3, 3, 4)
    """
    if isinstance(calibration, Groups):
        raise InputError(
            "shrink: expected batches of images after the subset, received groups: they take the network's place, shrink(found, kept)"
        )
    found = model if isinstance(model, Groups) else _groups_of(unwrapped(model), kept)
    original = found.graph.model
    keep = kept_ids(found, kept)
    for layer in found.layers:
        if not bool(keep[layer.outputs].any()):
            raise InputError(f"shrink: the subset removes all {len(layer.outputs)} channels of {layer.name}: keep at least one")
    first = list(islice(calibration or (), 1))
    images = rechunked(first, found)[0] if first else None
    small, exact = _narrowed(original, found, keep, checked=False)
    try:
        check_same(exact or small, kept, found, images)
    except MismatchError:  # its own code may count channels where its steps do not
        small, exact = _narrowed(original, found, keep, checked=True)
        check_same(exact or small, kept, found, images)
    vars(small)[CUTS] = (*cuts(original), replace(kept, groups=None))
    return small


def _groups_of(model: nn.Module, kept: Subset) -> Groups:
    """The groups that the subset was made of, or else those of the network traced on a blank image."""
    found = known_groups(model, kept)
    if found is not None:
        return found
    if not kept.input_shape:
        raise InputError("shrink: the subset needs the input shape, as cut() and Subset.everything() give it")
    return groups(model, zero_batch(model, kept.input_shape))


def cuts(model: nn.Module) -> tuple[Subset, ...]:
    """The subsets that `shrink` cut a network to, one for each time, the first one of the original; empty for an original.

    Parameters
    ----------
    model
        Any network.

    Returns
    -------
    tuple of Subset
        The channels that were kept each time.

    Examples
    --------
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.Flatten()).eval()
    >>> found = groups(model, zero_batch(model, (3, 8, 8)))
    >>> small = shrink(found, found.to_subset([True, False, True, True]))
    >>> len(cuts(model)), [each["0"].tolist() for each in cuts(small)]
    (0, [[True, False, True, True]])
    """
    return vars(model).get(CUTS, ())


def _narrowed(model: nn.Module, found: Groups, keep: Tensor, checked: bool) -> tuple[nn.Module, nn.Module | None]:
    """A copy with cut parameters in the modes of the original, and the same before rounding where parameters had to be computed."""
    small, exact = narrow_pair(found.labeled, ~keep[:-1], checked)
    for name, value in vars(model).items():
        vars(small).setdefault(name, value)
    modes = {name: module.training for name, module in model.named_modules()}
    for name, module in small.named_modules():
        module.training = modes.get(name, model.training)
    return small, exact
