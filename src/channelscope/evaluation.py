"""Accuracy, loss and margin of networks on labeled images."""

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from channelscope.data.batches import labeled_batches, on_device_of
from channelscope.data.splits import Split
from channelscope.errors import DataError
from channelscope.network.module_state import device_of, eval_mode
from channelscope.stats.tally import Tally, check_logits


def evaluate(model: nn.Module, batches: Iterable) -> Tally:
    """Tally of a network over labeled images, in evaluation mode; the network is left as it was.

    Images without a label (None or −1) are left out, with a warning.

    Parameters
    ----------
    model
        A network that returns logits, images × classes.
    batches
        Any iterable of batches: (images, labels, …) or dictionaries (data/batches.py).

    Returns
    -------
    Tally
        Sums of loss, accuracy and margin over the images.

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
    return evaluate_each(model, batches)[0]


@torch.inference_mode()
def loss_and_accuracy(model: nn.Module, split: Split) -> tuple[float, float]:
    """Mean cross-entropy and accuracy of a network on a split; the network is left in evaluation mode.

    Parameters
    ----------
    model
        A network that returns logits, images × classes.
    split
        Labeled images.

    Returns
    -------
    tuple
        Mean cross-entropy in nats, and fraction of the images that are classified correctly.

    Raises
    ------
    InputError
        For an output that is not images × classes, such as a map.

    Examples
    --------
    >>> from channelscope.data.images import read_images
    >>> split = read_images("digits").test
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    >>> _ = nn.init.zeros_(model[1].weight), nn.init.zeros_(model[1].bias)
    >>> loss, accuracy = loss_and_accuracy(model, split)
    >>> round(loss, 3), round(accuracy * len(split)) == int((split.labels == 0).sum())
    (2.303, True)
    """
    model.eval()
    device = device_of(model)
    loss, correct = torch.zeros((), device=device, dtype=torch.float64), torch.zeros((), device=device, dtype=torch.int64)
    for x, y, _ in split:
        logits, y = model(x.to(device)), y.to(device)
        check_logits(logits, len(y))
        loss += F.cross_entropy(logits, y, reduction="sum")
        correct += (logits.argmax(1) == y).sum()
    return float(loss) / len(split), int(correct) / len(split)


@torch.no_grad()
def evaluate_each(model: nn.Module, batches: Iterable) -> tuple[Tally, np.ndarray]:
    """Tally of a network over labeled images, and whether each image is classified correctly.

    Parameters
    ----------
    model
        A network that returns logits, images × classes; it is left as it was.
    batches
        Labeled images.

    Returns
    -------
    tuple
        Tally, and bool (images,).

    Raises
    ------
    DataError
        Without labeled images.

    Examples
    --------
    >>> from channelscope.zoo.toys import label_channel
    >>> toy = label_channel()
    >>> tally, correct = evaluate_each(toy.model, toy.batches)
    >>> correct.mean() == tally.accuracy == toy.truth["accuracy"]
    True
    """
    tally, correct = Tally(), []
    with eval_mode(model):
        for images, labels, _ in labeled_batches(batches):
            logits = model(on_device_of(images, model))
            tally = tally + Tally.of(logits, labels.to(logits.device if isinstance(logits, torch.Tensor) else "cpu"))
            correct.append((logits.argmax(1).cpu() == labels.cpu()).numpy())
    if not tally.images:
        raise DataError("there are no images to evaluate on: the batches are empty")
    return tally, np.concatenate(correct)
