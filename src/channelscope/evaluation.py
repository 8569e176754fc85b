"""Accuracy, loss and margin of networks on labeled images."""

from collections.abc import Iterable
from typing import Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from channelscope.data.batches import labeled_batches, on_device_of
from channelscope.data.splits import Split
from channelscope.errors import DataError
from channelscope.network.module_state import channels_last, device_of, eval_mode
from channelscope.network.nest import logits_of
from channelscope.stats.tally import Tally, check_logits

Precision: TypeAlias = Literal["float32", "bfloat16"]


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
        logits, y = logits_of(model(x.to(device))), y.to(device)
        check_logits(logits, len(y))
        loss += F.cross_entropy(logits, y, reduction="sum")
        correct += (logits.argmax(1) == y).sum()
    return float(loss) / len(split), int(correct) / len(split)


def logits_in(model: nn.Module, x: Tensor, precision: str) -> Tensor:
    """Logits of a batch, computed as it is, or in bfloat16 by autocast with the channels of the batch last in memory.

    Parameters
    ----------
    model
        A network that returns logits (images, classes).
    x
        Images on the network's device.
    precision
        float32, which leaves types as they are, or bfloat16.

    Returns
    -------
    Tensor
        In the precision of the network's last layer.

    Examples
    --------
    >>> layer, x = nn.Conv2d(1, 2, 1), torch.ones(3, 1, 1, 1)
    >>> logits_in(layer, x, "float32").dtype, logits_in(layer, x, "bfloat16").dtype
    (torch.float32, torch.bfloat16)
    """
    low = precision == "bfloat16"
    with torch.autocast(x.device.type, torch.bfloat16, enabled=low):
        return logits_of(model(x.contiguous(memory_format=torch.channels_last) if low else x))


@torch.no_grad()
def evaluate_each(model: nn.Module, batches: Iterable, precision: Precision = "float32") -> tuple[Tally, np.ndarray]:
    """Tally of a network over labeled images, and whether each image is classified correctly.

    Parameters
    ----------
    model
        A network that returns logits, images × classes; it is left as it was.
    batches
        Labeled images.
    precision
        float32, or bfloat16: the layers' products by autocast, with channels last in memory; loss and margin are float32.

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
    tally, correct, low = Tally(), [], precision == "bfloat16"
    with eval_mode(model), channels_last(model, low):
        for images, labels, _ in labeled_batches(batches):
            logits = logits_in(model, on_device_of(images, model), precision)
            logits = logits.float() if low else logits
            tally = tally + Tally.of(logits, labels.to(logits.device if isinstance(logits, torch.Tensor) else "cpu"))
            correct.append((logits.argmax(1).cpu() == labels.cpu()).numpy())
    if not tally.images:
        raise DataError("there are no images to evaluate on: the batches are empty")
    return tally, np.concatenate(correct)


def bfloat16_gap(model: nn.Module, split: Split, images: int = 2000) -> float:
    """Accuracy of a network in bfloat16 minus that in float32, on the first images of a split.

    Parameters
    ----------
    model
        A network that returns logits, images × classes; it is left as it was.
    split
        Labeled images.
    images
        Number of images, all of them where there are fewer.

    Returns
    -------
    float
        A fraction.

    Examples
    --------
    >>> from channelscope import zoo
    >>> model, images = zoo.load("resnet20(width=2)", "digits")
    >>> abs(bfloat16_gap(model, images.test, 100)) < 0.1
    True
    """
    first = split.take(min(images, len(split)))
    return evaluate_each(model, first, "bfloat16")[0].accuracy - evaluate_each(model, first)[0].accuracy
