"""evaluate: accuracy, loss and margin of a network on labeled images."""

from collections.abc import Iterable

import torch
from torch import nn

from channelscope.errors import DataError
from channelscope.net.graph import evaluating
from channelscope.stats.tally import Tally


def evaluate(model: nn.Module, batches: Iterable) -> Tally:
    """Tally of `model` over `batches` of (images, labels, …), in evaluation mode; the model is left as it was.

    Raises   DataError without images, or for labels outside the network's classes.
    """
    tally = Tally()
    with evaluating(model), torch.no_grad():
        for images, labels, *_ in batches:
            if labels is None:
                raise DataError("evaluate needs a label for every image, and these have none")
            device = next(model.parameters(), images).device
            tally = tally + Tally.of(model(images.to(device)), labels.to(device))
    if not tally.images:
        raise DataError("there are no images to evaluate on: the batches are empty")
    return tally
