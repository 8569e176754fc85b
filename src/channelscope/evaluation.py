"""Accuracy, loss, margin and divergence of networks on labeled images."""

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from channelscope.data.batches import labeled_batches, on_device_of
from channelscope.data.splits import Split
from channelscope.errors import DataError
from channelscope.network.module_state import device_of, eval_mode
from channelscope.stats.tally import Tally


def evaluate(model: nn.Module, batches: Iterable) -> Tally:
    """Tally of a network over labeled images, in evaluation mode; the network is left as it was.

    Images without a label (None or −1) are left out, and a warning says how many.

    Parameters
    ----------
    model
        A network that returns logits, images × classes.
    batches
        Any iterable of batches: (images, labels, …) or dictionaries (data/batches.py).

    Returns
    -------
    Tally
        Accuracy, loss and margin with their intervals.

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
    with eval_mode(model), torch.no_grad():
        for images, labels, _ in labeled_batches(batches):
            logits = model(on_device_of(images, model))
            tally = tally + Tally.of(logits, labels.to(logits.device if isinstance(logits, torch.Tensor) else "cpu"))
    if not tally.images:
        raise DataError("there are no images to evaluate on: the batches are empty")
    return tally


@torch.inference_mode()
def loss_and_accuracy(model: nn.Module, split: Split) -> tuple[float, float]:
    """Mean cross-entropy [nats] and accuracy of a network on a split, in eval mode and float32, on the network's device.

    Parameters
    ----------
    model
        A network that returns logits, images × classes; it is left in eval mode.
    split
        Labeled images.

    Returns
    -------
    tuple[float, float]
        Loss [nats] and the fraction of images classified correctly.

    Examples
    --------
    >>> batch = (torch.eye(2).view(2, 2, 1, 1)[:1], torch.tensor([0]), torch.tensor([0]))
    >>> loss, accuracy = loss_and_accuracy(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(2, eps=0)), [batch])
    >>> round(loss, 3), accuracy
    (0.313, 1.0)
    """
    model.eval()
    device = device_of(model)
    loss, right = torch.zeros((), device=device, dtype=torch.float64), torch.zeros((), device=device, dtype=torch.int64)
    for x, y, _ in split:
        logits, y = model(x.to(device)), y.to(device)
        loss += F.cross_entropy(logits, y, reduction="sum")
        right += (logits.argmax(1) == y).sum()
    return float(loss) / len(split), int(right) / len(split)


@torch.no_grad()
def tally_and_hits(model: nn.Module, batches: Iterable) -> tuple[Tally, np.ndarray]:
    """Tally of a network over labeled images, and whether each image is classified correctly.

    Parameters
    ----------
    model
        A network that returns logits, images × classes.
    batches
        Any iterable of labeled batches, as for `evaluate`.

    Returns
    -------
    tuple[Tally, ndarray]
        The tally, and bool (images,) in the order of the batches.

    Examples
    --------
    >>> tally, hits = tally_and_hits(nn.Flatten(), [(torch.eye(2).view(2, 2, 1, 1), torch.tensor([0, 0]))])
    >>> tally.accuracy, hits.tolist()
    (0.5, [True, False])
    """
    tally, hits = Tally(), []
    with eval_mode(model):
        for images, labels, _ in labeled_batches(batches):
            logits = model(on_device_of(images, model))
            tally = tally + Tally.of(logits, labels.to(logits.device))
            hits.append((logits.argmax(1).cpu() == labels.cpu()).numpy())
    return tally, np.concatenate(hits)
