"""load: a network and its images, brought together."""

from pathlib import Path

import torch
from torch import nn

from channelscope.errors import DataError
from channelscope.zoo.data import Images, ImageSource, native_shape, read_images, shelves
from channelscope.zoo.example import fix_inputs, read_example
from channelscope.zoo.models import card, network
from channelscope.zoo.weights import load_weights


def load(
    model: str,
    data: str | ImageSource = "digits",
    weights: str | Path | None = None,
    device: str | torch.device = "cpu",
    seed: int = 0,
    example: str | Path | None = None,
) -> tuple[nn.Module, Images]:
    """A network in eval mode and the divided images, in the size and normalization it wants.

    The network gets the data's number of classes and channels, and a stem for small images where they are (zoo/stems.py).
    Images larger than the network's own input size are resized and cropped to it. Without weights it is initialized from
    `seed`.

    example  file of named tensors (safetensors): the further inputs of a network whose forward pass needs more than images
             (zoo/example.py); the same for every image

    Returns  the network, on the device, and its `Images`.
    Raises   InputError, WeightsError or DataError; DataError also where network and images do not fit each other.
    """
    source = ImageSource(data) if isinstance(data, str) else data
    found = shelves(source)
    channels, height, width = native_shape(found)
    size = source.size or min(height, width)
    made = network(model, len(found.class_names), channels, size, seed)
    if weights is not None:
        load_weights(made, weights)
    fix_inputs(made, read_example(example) if example is not None else {})
    intake = card(made).intake
    fits = intake.fit is not None and intake.fit.size is not None and (intake.enlarge or size >= min(intake.fit.size))
    own = intake.normalization
    images = read_images(source, intake.fit if fits else None, own if own and len(own[0]) == channels else None, found)
    _agree(made, images, model)
    return made.to(device), images


def _agree(model: nn.Module, images: Images, name: str) -> None:
    """Refuse a network that cannot take these images or has too few logits for their labels."""
    shape = images.image_shape
    try:
        with torch.inference_mode():
            logits = model(torch.zeros(2, *shape))
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(f"network '{name}' cannot take images of shape {shape} ({reason}); pass size, or choose another network") from error
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
        got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise DataError(f"network '{name}': expected logits of shape (images, classes), received {got}")
    if logits.shape[1] < images.classes:
        raise DataError(f"network '{name}' has {logits.shape[1]} classes, the labels of {images.source.data} reach {images.classes - 1}")
