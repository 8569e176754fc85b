"""Patches: sums over what a layer's channels see, without ever forming the patches' covariance."""

import torch
from torch import nn
from torch.nn import functional as F

from channelscope.types import Float, Tensor


def followable(module: nn.Module) -> str:
    """Why the patches of a layer cannot be followed; empty when they can."""
    if isinstance(module, nn.Linear):
        return ""
    if not isinstance(module, nn.Conv2d):
        return f"{type(module).__name__} is not a linear layer or a two-dimensional convolution"
    if module.padding_mode != "zeros" and _padding(module) != (0, 0):
        return f"it pads with {module.padding_mode}"
    return "" if all(side == 0 for side in _uneven(module)) else "its padding is not the same on both sides"


def patch_products(
    module: nn.Conv2d | nn.Linear, inputs: Float[Tensor, "images ..."], outputs: Float[Tensor, "images ..."]
) -> Float[Tensor, "rows taps"]:
    """Σ over images and positions of output row × input patch: one row per channel of `outputs`, float64.

    For a convolution this is the backward pass of its weights, with `outputs` in the place of gradients: a row of taps is one
    filter, C_in/groups × kernel. Products are taken in the inputs' precision.
    """
    if isinstance(module, nn.Linear):
        return (outputs.flatten(0, -2).T @ inputs.flatten(0, -2)).double()
    shape = (outputs.shape[1], inputs.shape[1] // module.groups, *module.kernel_size)
    stride, dilation = module.stride, module.dilation
    product = nn.grad.conv2d_weight(inputs, shape, outputs, stride, _padding(module), dilation, module.groups)  # type: ignore[arg-type]
    return product.flatten(1).double()


def pooled_patches(
    module: nn.Conv2d | nn.Linear, inputs: Float[Tensor, "images ..."], size: tuple[int, ...]
) -> Float[Tensor, "images groups taps"]:
    """Average over the positions of each image of what the channels of each group see; `size` is the output's height and width."""
    if isinstance(module, nn.Linear):
        return inputs.flatten(1, -2).mean(1)[:, None] if inputs.dim() > 2 else inputs[:, None]
    padded = F.pad(inputs, (_padding(module)[1],) * 2 + (_padding(module)[0],) * 2)
    taps = []
    for row in range(module.kernel_size[0]):
        for column in range(module.kernel_size[1]):
            window = padded
            for axis, start, count in ((2, row, size[0]), (3, column, size[1])):
                first, stride = start * module.dilation[axis - 2], module.stride[axis - 2]
                window = window.narrow(axis, first, stride * (count - 1) + 1)
                window = window[:, :, ::stride] if axis == 2 else window[:, :, :, ::stride]
            taps.append(window.mean((2, 3)))
    return torch.stack(taps, 2).unflatten(1, (module.groups, -1)).flatten(2)


def _padding(module: nn.Conv2d) -> tuple[int, int]:
    if module.padding == "valid":
        return (0, 0)
    if module.padding == "same":
        return tuple(dilation * (kernel - 1) // 2 for dilation, kernel in zip(module.dilation, module.kernel_size, strict=True))  # type: ignore[return-value]
    return module.padding  # type: ignore[return-value]


def _uneven(module: nn.Conv2d) -> tuple[int, ...]:
    """Rows and columns that padding="same" adds on one side only."""
    if module.padding != "same":
        return (0, 0)
    return tuple(dilation * (kernel - 1) % 2 for dilation, kernel in zip(module.dilation, module.kernel_size, strict=True))
