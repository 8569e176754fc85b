"""load: a network and its images, brought together."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from channelscope.errors import DataError, InputError, WeightsError, first_line
from channelscope.zoo.data import Images, ImageSource, native_shape, read_images, shelves
from channelscope.zoo.example import fix_inputs, read_example
from channelscope.zoo.models import card, network
from channelscope.zoo.shelf import Shelves
from channelscope.zoo.weights import load_weights


def load(
    model: str,
    data: str | ImageSource = "digits",
    weights: str | Path | None = None,
    device: str | torch.device = "cpu",
    seed: int = 0,
    example: str | Path | None = None,
) -> tuple[nn.Module, Images]:
    """A network in eval mode, on the device, and the divided images, in the size and normalization it wants.

    The network gets the data's number of classes and channels, and a stem for small images where they are (zoo/stems.py).
    Gray pictures are repeated over three channels for a network, or weights, that take color alone. Images larger than the network's own
    input size are resized and cropped to it. Without weights it is initialized from `seed`.

    Parameters
    ----------
    model
        Name, or path/to/file.py:Class (zoo/models.py).
    data
        Name of the data set, or an `ImageSource`.
    weights
        File of named tensors (zoo/weights.py).
    device
        Where the network runs.
    seed
        Of the initialization.
    example
        File of named tensors (safetensors): the further inputs of a network whose forward pass needs more than images
        (zoo/example.py); the same for every image.

    Raises
    ------
    InputError
        For a network or a device that does not exist.
    WeightsError
        For weights that cannot be read or do not fit.
    DataError
        For data that cannot be used, or that the network does not fit.
    """
    place = available(device)
    source = ImageSource(data) if isinstance(data, str) else data
    found = shelves(source)
    fixed = read_example(example) if example is not None else {}
    shape = native_shape(found)
    try:
        made, images = _matched(model, source, found, shape, weights, fixed, seed)
    except (DataError, WeightsError) as error:
        try:
            color = (3, *shape[1:])  # gray pictures for a network, or weights, that take color alone
            made, images = _matched(model, source, found, color, weights, fixed, seed) if shape[0] == 1 else (None, None)
        except (DataError, WeightsError, InputError):
            made, images = None, None
        if made is None or images is None:
            raise error from error.__cause__
    return made.to(place), images


def _matched(
    model: str,
    source: ImageSource,
    found: Shelves,
    shape: tuple[int, int, int],
    weights: str | Path | None,
    fixed: Mapping[str, torch.Tensor],
    seed: int,
) -> tuple[nn.Module, Images]:
    """The network made for pictures of that shape, with its weights, and the images as it wants them."""
    channels, height, width = shape
    size = source.size or min(height, width)
    made = network(model, len(found.class_names), channels, size, seed)
    if weights is not None:
        load_weights(made, weights)
    fix_inputs(made, fixed)
    intake = card(made).intake
    fits = intake.fit is not None and intake.fit.size is not None and (intake.enlarge or size >= min(intake.fit.size))
    own = intake.normalization if intake.normalization and len(intake.normalization[0]) == channels else None
    images = read_images(source, intake.fit if fits else None, own, found, channels)
    _agree(made, images, model)
    return made, images


def available(device: str | torch.device) -> torch.device:
    """A device of that name.

    Raises
    ------
    InputError
        If there is no such device on this machine.
    """
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError, ValueError, TypeError) as error:
        there = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
        raise InputError(f"device: expected one of {', '.join(there)}, received '{device}' ({first_line(error)})") from error
    if found.type == "meta":
        raise InputError("device: expected a device that holds numbers, received 'meta'")
    return found


def _agree(model: nn.Module, images: Images, name: str) -> None:
    """Refuse a network that cannot take these images or has too few logits for their labels."""
    shape = images.image_shape
    try:
        with torch.inference_mode():
            logits = model(torch.zeros(2, *shape))
    except (RuntimeError, AssertionError, ValueError, TypeError, IndexError) as error:
        raise DataError(
            f"network '{name}' cannot take images of shape {shape} ({first_line(error)}); pass size, or choose another network"
        ) from error
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
        got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise DataError(f"network '{name}': expected logits of shape (images, classes), received {got}")
    if logits.shape[1] < images.classes:
        raise DataError(f"network '{name}' has {logits.shape[1]} classes, the labels of {images.source.data} reach {images.classes - 1}")
