"""Loading of a network with its images and the further inputs of its forward pass."""

import inspect
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from channelscope.data.images import ImageSplits, read_images
from channelscope.data.sources import ImageSource, native_shape, open_dataset
from channelscope.data.splits import PartitionedDataset
from channelscope.errors import DataError, InputError, UserCode, WeightsError, first_line
from channelscope.network.nest import logits_of
from channelscope.zoo.models import build, model_info
from channelscope.zoo.weight_files import load_weights, read_weights


def bind_extra_inputs(model: nn.Module, example: Mapping[str, Tensor]) -> nn.Module:
    """Network whose forward pass takes images only: its further inputs are bound to the values of an example.

    The network itself is changed and returned. Names of modules, weights and their hash stay as they were, and the bound values
    move with the network from device to device.

    Parameters
    ----------
    model
        The network.
    example
        A tensor for each further parameter of the forward pass, by name; one of shape (1, …) is repeated for every image,
        any other is given as it is.

    Returns
    -------
    nn.Module
        The same network; unchanged if the example is empty.

    Raises
    ------
    InputError
        If the forward pass has no such parameter, or needs one that the example lacks.

    Examples
    --------
    >>> class Scaled(nn.Module):
    ...     def forward(self, images, scale):
    ...         return images * scale
    >>> bind_extra_inputs(Scaled(), {"scale": torch.tensor([[3.0]])})(torch.ones(2, 1)).tolist()
    [[3.0], [3.0]]
    """
    kind = type(model)
    parameters = list(inspect.signature(model.forward).parameters.values())[1:]
    known = [each.name for each in parameters]
    strange = [name for name in example if name not in known]
    needed = [each.name for each in parameters if each.default is each.empty and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
    lacking = [name for name in needed if name not in example]
    if strange or lacking:
        raise InputError(
            f"the forward pass of {kind.__name__} takes images and {', '.join(known) or 'nothing else'}; the example "
            + (f"has {', '.join(strange)}" if strange else f"lacks {', '.join(lacking)}: pass example='FILE', with tensors of these names")
        )
    if not example:
        return model
    stored = {name: f"example_{name}" for name in example}
    for name, buffer in stored.items():
        model.register_buffer(buffer, example[name], persistent=False)

    def forward(self: nn.Module, images: Tensor) -> Tensor:
        given = {name: _repeated(self.get_buffer(buffer), images) for name, buffer in stored.items()}
        return kind.forward(self, images, **given)

    model.__class__ = type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__, "fixed": tuple(example)})
    return model


def extra_inputs(model: nn.Module) -> dict[str, Tensor]:
    """Values that `bind_extra_inputs` bound, by name.

    Parameters
    ----------
    model
        The network.

    Returns
    -------
    dict
        Name → tensor on the CPU; empty for a network whose forward pass takes images only.

    Examples
    --------
    >>> extra_inputs(nn.Identity())
    {}
    """
    return {name: model.get_buffer(f"example_{name}").detach().cpu() for name in vars(type(model)).get("fixed", ())}


def _repeated(value: Tensor, images: Tensor) -> Tensor:
    if value.dim() == 0 or value.shape[0] != 1:
        return value
    first = torch.zeros_like(images.flatten(1)[:, 0], dtype=torch.long)  # an index can be traced, where expand() takes plain numbers
    return torch.index_select(value, 0, first)


def load(
    model: str,
    data: str | ImageSource = "digits",
    weights: str | Path | None = None,
    device: str | torch.device = "cpu",
    seed: int = 0,
    example: str | Path | None = None,
) -> tuple[nn.Module, ImageSplits]:
    """Network in evaluation mode, and the splits of a data set in the size and normalization that the network expects.

    The network gets the data's number of classes and channels, and a stem for small images where they are (zoo/models.py).
    Gray pictures are repeated over three channels for networks or weights that take color only. Images larger than the network's own
    input size are resized and cropped to it. Without weights it is initialized from `seed`.

    Parameters
    ----------
    model
        Name, or path/to/file.py:Class (zoo/models.py).
    data
        Name of the data set, or an `ImageSource`.
    weights
        File of named tensors (zoo/weight_files.py).
    device
        Device of the network.
    seed
        Seed of the initialization.
    example
        File of named tensors (safetensors): the further inputs of a network whose forward pass needs more than images;
        the same for every image.

    Returns
    -------
    tuple
        The network and its `ImageSplits`.

    Raises
    ------
    InputError
        For a network or a device that does not exist.
    WeightsError
        For weights that cannot be read or do not fit.
    DataError
        For data that cannot be used, or that the network does not fit.

    Examples
    --------
    >>> model, images = load("resnet20(width=4)", data="digits")
    >>> model(next(iter(images.test))[0]).shape
    torch.Size([128, 10])
    """
    place = available(device)
    source = ImageSource(data) if isinstance(data, str) else data
    found = open_dataset(source)
    fixed = read_weights(example) if example is not None else {}
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
    found: PartitionedDataset,
    shape: tuple[int, int, int],
    weights: str | Path | None,
    fixed: Mapping[str, torch.Tensor],
    seed: int,
) -> tuple[nn.Module, ImageSplits]:
    """Network for pictures of one shape, with its weights, and the images as the network expects them."""
    channels, height, width = shape
    size = source.size or min(height, width)
    made = build(model, len(found.class_names), channels, size, seed)
    if weights is not None:
        load_weights(made, weights)
    bind_extra_inputs(made, fixed)
    intake = model_info(made).intake
    fits = intake.fit is not None and intake.fit.size is not None and (intake.enlarge or size >= min(intake.fit.size))
    own = intake.normalization if intake.normalization and len(intake.normalization[0]) == channels else None
    images = read_images(source, intake.fit if fits else None, own, found, channels)
    _agree(made, images, model)
    return made, images


def available(device: str | torch.device) -> torch.device:
    """Device of a name, if the machine has it.

    Parameters
    ----------
    device
        Such as cpu or cuda:0.

    Returns
    -------
    torch.device
        The device.

    Raises
    ------
    InputError
        If there is no such device on this machine.

    Examples
    --------
    >>> available("cpu")
    device(type='cpu')
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


def _agree(model: nn.Module, images: ImageSplits, name: str) -> None:
    """Raise DataError if the network cannot take these images or has too few logits for their labels."""
    shape = images.image_shape
    said = f"network '{name}' cannot take images of shape {shape}"
    with UserCode(DataError, said, "; pass size, or choose another network"), torch.inference_mode():
        logits = logits_of(model(torch.zeros(2, *shape)))
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
        got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise DataError(f"network '{name}': expected logits of shape (images, classes), received {got}")
    if logits.shape[1] < images.classes:
        raise DataError(f"network '{name}' has {logits.shape[1]} classes, the labels of {images.source.data} reach {images.classes - 1}")
