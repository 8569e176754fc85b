"""Example: the further inputs of a network whose forward pass needs more than images, the same for every image."""

import inspect
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from channelscope.errors import InputError
from channelscope.zoo.weights import read_weights


def fix_inputs(model: nn.Module, example: Mapping[str, Tensor]) -> nn.Module:
    """Make the network's forward pass one of images alone: its other parameters get the values of the example.

    The network itself is changed and returned; names of modules, weights and their fingerprint stay as they were, and the
    values move with it from device to device.

    example  a tensor for each further parameter of the forward pass, by name; one of shape (1, …) is repeated for every
             image, any other is given as it is

    Returns  the same network; unchanged where there is nothing to give.
    Raises   InputError if the forward pass has no such parameter, or still needs one that is not there.
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
            + (f"has {', '.join(strange)}" if strange else f"lacks {', '.join(lacking)}: pass a file of named tensors (--example)")
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


def fixed_inputs(model: nn.Module) -> dict[str, Tensor]:
    """The values that `fix_inputs` gave; empty for a network of images alone."""
    return {name: model.get_buffer(f"example_{name}").detach().cpu() for name in vars(type(model)).get("fixed", ())}


def read_example(path: str | Path) -> dict[str, Tensor]:
    """Named tensors of a safetensors file, or of a dictionary saved by torch.

    Raises   WeightsError if the file is missing, corrupt, or holds something else than named tensors.
    """
    return read_weights(path)


def _repeated(value: Tensor, images: Tensor) -> Tensor:
    if value.dim() == 0 or value.shape[0] != 1:
        return value
    first = torch.zeros_like(images.flatten(1)[:, 0], dtype=torch.long)  # an index can be traced, where expand() takes plain numbers
    return torch.index_select(value, 0, first)
