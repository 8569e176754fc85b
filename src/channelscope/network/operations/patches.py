"""Patches: the inputs of a layer laid out for a re-fit, as sums over what its channels see; no covariance of patches is formed."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from channelscope.network.operations.operation import Layout


def _fits_linear(module: nn.Module) -> str:
    return ""


def _linear_products(module: nn.Module, inputs: Tensor, outputs: Tensor) -> Tensor:
    return (outputs.flatten(0, -2).T @ inputs.flatten(0, -2)).double()


def _linear_pooled(module: nn.Module, inputs: Tensor, size: tuple[int, ...]) -> Tensor:
    return inputs.flatten(1, -2).mean(1)[:, None] if inputs.dim() > 2 else inputs[:, None]


def _fits_convolution(module: nn.Module) -> str:
    assert isinstance(module, nn.modules.conv._ConvNd)
    if module.weight.dim() != 4:
        return f"{type(module).__name__} is not a linear layer or a two-dimensional convolution"
    if module.padding_mode != "zeros" and _padding(module) != (0, 0):
        return f"it pads with {module.padding_mode}"
    uneven = [step * (size - 1) % 2 for step, size in zip(module.dilation, module.kernel_size, strict=True)]
    return "its padding is not the same on both sides" if module.padding == "same" and any(uneven) else ""


def _convolution_products(module: nn.Module, inputs: Tensor, outputs: Tensor) -> Tensor:
    """The backward pass of the weights, with `outputs` in the place of gradients."""
    assert isinstance(module, nn.Conv2d)
    shape = (outputs.shape[1], inputs.shape[1] // module.groups, *module.kernel_size)
    stride, dilation = module.stride, module.dilation
    product = nn.grad.conv2d_weight(inputs, shape, outputs, stride, _padding(module), dilation, module.groups)  # type: ignore[arg-type]
    return product.flatten(1).double()


def _convolution_pooled(module: nn.Module, inputs: Tensor, size: tuple[int, ...]) -> Tensor:
    assert isinstance(module, nn.Conv2d)
    rows, columns = _padding(module)
    padded = F.pad(inputs, (columns, columns, rows, rows))
    taps = []
    for row in range(module.kernel_size[0]):
        for column in range(module.kernel_size[1]):
            first = row * module.dilation[0], column * module.dilation[1]
            last = [start + step * (count - 1) + 1 for start, step, count in zip(first, module.stride, size, strict=True)]
            window = padded[:, :, first[0] : last[0] : module.stride[0], first[1] : last[1] : module.stride[1]]
            taps.append(window.mean((2, 3)))
    return torch.stack(taps, 2).unflatten(1, (module.groups, -1)).flatten(2)


def _padding(module: nn.modules.conv._ConvNd) -> tuple[int, ...]:
    if module.padding == "valid":
        return (0,) * len(module.kernel_size)
    if module.padding == "same":
        return tuple(step * (size - 1) // 2 for step, size in zip(module.dilation, module.kernel_size, strict=True))
    return tuple(int(amount) for amount in module.padding)


LINEAR = Layout(_fits_linear, _linear_products, _linear_pooled)
CONVOLUTION = Layout(_fits_convolution, _convolution_products, _convolution_pooled)
