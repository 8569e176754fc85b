"""evaluate: accuracy, loss and margin of a network on labeled images."""

from collections.abc import Iterable

import torch
from torch import nn

from channelscope.errors import DataError
from channelscope.net.batches import labeled, placed
from channelscope.net.graph import evaluating
from channelscope.stats.tally import Tally


def evaluate(model: nn.Module, batches: Iterable) -> Tally:
    """Tally of a network over labeled images, in evaluation mode; the network is left as it was.

    Images without a label (None or −1) are left out, and a warning says how many.

    Parameters
    ----------
    model
        A network that returns logits, images × classes.
    batches
        Any iterable of batches: (images, labels, …) or dictionaries (net/batches.py).

    Raises
    ------
    DataError
        Without labeled images, for labels outside the network's classes, or for batches that cannot be read.
    InputError
        For an output that is not images × classes, such as a map.

    Examples
    --------
    >>> evaluate(nn.Flatten(), [(torch.eye(2).view(2, 2, 1, 1), [0, 0])]).accuracy
    0.5
    """
    tally = Tally()
    with evaluating(model), torch.no_grad():
        for images, labels, _ in labeled(batches):
            logits = model(placed(images, model))
            tally = tally + Tally.of(logits, labels.to(logits.device if isinstance(logits, torch.Tensor) else "cpu"))
    if not tally.images:
        raise DataError("there are no images to evaluate on: the batches are empty")
    return tally
