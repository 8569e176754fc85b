"""Patches: what a convolution or linear layer multiplies with its weights at some positions of some images."""

from typing import Any

import torch
from torch import nn

from channelscope.types import Float, Int, Tensor


def patches(
    module: nn.Module, inputs: Tensor, output_shape: tuple[int, ...], where: Int[Tensor, "images positions"] | None
) -> Float[Tensor, "groups samples taps"]:
    """Rows of inputs, one per image and position, such that rows · weights' is the layer's output there (without bias).

    output_shape   shape of one image's output
    where          flat output positions of each image; None for all
    Returns        (groups, images × positions, inputs per group × kernel), in the order of `weight.flatten(1)`

    Padding the module does in its own forward (timm's `Conv2dSame`) is read off the output shape.
    """
    if isinstance(module, nn.Linear):
        rows = inputs.reshape(len(inputs), -1, inputs.shape[-1])
        if where is not None:
            rows = rows.gather(1, where[:, :, None].expand(-1, -1, rows.shape[2]))
        return rows.reshape(1, -1, rows.shape[2])
    padded = _padded(module, inputs, output_shape)
    grid = _grid(module, padded.shape[2:], output_shape[1:]).to(inputs.device)  # (positions, taps)
    index = grid.flatten().expand(len(inputs), -1) if where is None else grid[where].flatten(1)
    taken = padded.flatten(2).gather(2, index[:, None, :].expand(-1, padded.shape[1], -1))
    groups: int = module.groups  # type: ignore[assignment]
    taken = taken.view(len(inputs), groups, padded.shape[1] // groups, -1, grid.shape[1])
    return taken.permute(1, 0, 3, 2, 4).reshape(groups, -1, taken.shape[2] * taken.shape[4])


def rows(
    values: Tensor, groups: int, linear: bool, where: Int[Tensor, "images positions"] | None
) -> Float[Tensor, "groups samples outputs"]:
    """Samples of a layer's output (or of what should be its output) at the same positions as `patches`."""
    flat = values.reshape(len(values), -1, values.shape[-1]) if linear else values.flatten(2).transpose(1, 2)
    if where is not None:
        flat = flat.gather(1, where[:, :, None].expand(-1, -1, flat.shape[2]))
    return flat.reshape(-1, groups, flat.shape[2] // groups).transpose(0, 1)


def _padded(module: Any, inputs: Tensor, output_shape: tuple[int, ...]) -> Tensor:
    dims = inputs.dim() - 2
    amounts: list[int] = []
    for axis in reversed(range(dims)):
        reach = module.dilation[axis] * (module.kernel_size[axis] - 1) + 1
        total = max((output_shape[1 + axis] - 1) * module.stride[axis] + reach - inputs.shape[2 + axis], 0)
        first = module.padding[axis] if isinstance(module.padding, tuple) and any(module.padding) else total // 2
        amounts += [first, max(total - first, 0)]
    mode = str(module.padding_mode)
    return nn.functional.pad(inputs, amounts, mode="constant" if mode == "zeros" else mode)


def _grid(module: Any, size: tuple[int, ...], outputs: tuple[int, ...]) -> Int[Tensor, "positions taps"]:
    """Flat index into the padded input for each output position and tap."""
    index = torch.zeros(1, 1, dtype=torch.long)
    for axis, length in enumerate(size):
        starts = torch.arange(outputs[axis]) * module.stride[axis]
        steps = torch.arange(module.kernel_size[axis]) * module.dilation[axis]
        here = starts[:, None] + steps[None, :]
        index = (index[:, None, :, None] * length + here[None, :, None, :]).reshape(len(index) * len(starts), -1)
    return index


def width(module: Any) -> int:
    """Values that one output of a layer is a sum over."""
    return module.weight[0].numel()


def exact(module: Any, image: Tensor) -> bool:
    """Whether weights · patches is what the module computes, on one image."""
    linear = isinstance(module, nn.Linear)
    output = module(image)
    expected = rows(output, 1 if linear else module.groups, linear, None)
    taken = patches(module, image, tuple(output.shape[1:]), None)
    received = taken @ module.weight.flatten(1).view(len(taken), -1, taken.shape[2]).transpose(1, 2)
    if module.bias is not None:
        received = received + module.bias.view(len(taken), 1, -1)
    return torch.allclose(received, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
