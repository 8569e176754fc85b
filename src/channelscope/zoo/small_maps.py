"""Weight gradients of convolutions with small output maps, in bfloat16 on a processor: one matrix product over all images.

oneDNN adds the weights' gradient up image by image, so that a layer of 512 × 512 kernels on 2×2 positions writes its 9 MB of sums once an
image. One product of the output's gradients with the patches of all images gives the same sums (benchmarks/training.py).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

SMALL = 16
"""Positions of an output map up to which the product is the faster way, whatever the kernel, the stride and the channels are."""


class SmallMapGradients(TorchFunctionMode):
    """While inside, `conv2d` in bfloat16 on a CPU takes the gradient of its weights as one product where its output maps are small.

    Outputs, and gradients of inputs and biases, are those of `conv2d` itself.

    Examples
    --------
    >>> x, weight = torch.ones(2, 3, 2, 2), torch.ones(4, 3, 3, 3, requires_grad=True)
    >>> with torch.autocast("cpu", torch.bfloat16), SmallMapGradients():
    ...     F.conv2d(x, weight, padding=1).sum().backward()
    >>> weight.grad[0, 0].tolist()
    [[2.0, 4.0, 2.0], [4.0, 8.0, 4.0], [2.0, 4.0, 2.0]]
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the function, or what stands for `conv2d`."""
        return (_conv2d if func is F.conv2d else func)(*args, **(kwargs or {}))


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    if input.dim() == 4 and groups == 1 and not isinstance(padding, str) and _in_bfloat16(input):
        how = _pair(stride), _pair(padding), _pair(dilation)
        if math.prod(_output_sizes(input.shape[2:], weight.shape[2:], *how)) <= SMALL:
            return _Convolution.apply(input.bfloat16(), weight.bfloat16(), None if bias is None else bias.bfloat16(), *how)
    return F.conv2d(input, weight, bias, stride, padding, dilation, groups)  # pyright: ignore[reportCallIssue, reportArgumentType]


def _in_bfloat16(x: Tensor) -> bool:
    return x.is_cpu and torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16


def _pair(value: int | Sequence[int]) -> list[int]:
    numbers = [value] if isinstance(value, int) else list(value)
    return numbers * (2 // len(numbers))


def _output_sizes(sizes: Sequence[int], kernel: Sequence[int], stride: list[int], padding: list[int], dilation: list[int]) -> list[int]:
    each = zip(sizes, kernel, stride, padding, dilation, strict=True)
    return [(size + 2 * pad - gap * (taps - 1) - 1) // step + 1 for size, taps, step, pad, gap in each]


class _Convolution(torch.autograd.Function):
    """`conv2d` without groups, whose weights' gradient is output gradients (channels × images and positions) times patches."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int], dilation: list[int]
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.how = stride, padding, dilation
        return F.conv2d(x, weight, bias, stride, padding, dilation)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            rest = None, *ctx.how, False, [0, 0], 1, [True, False, False]
            of_x = torch.ops.aten.convolution_backward(gradient, x, weight, *rest)[0]
        if ctx.needs_input_grad[1]:
            product = gradient.transpose(0, 1).flatten(1) @ _patches(x, weight.shape[2:], *ctx.how)
            of_weight = product.unflatten(1, (*weight.shape[2:], -1)).permute(0, 3, 1, 2)
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum((0, 2, 3))
        return of_x, of_weight, of_bias, None, None, None


def _patches(x: Tensor, kernel: Sequence[int], stride: list[int], padding: list[int], dilation: list[int]) -> Tensor:
    """What each output position sees: images and positions × taps and channels."""
    views = F.pad(x.permute(0, 2, 3, 1), (0, 0, padding[1], padding[1], padding[0], padding[0]))
    for axis in (0, 1):
        views = views.unfold(axis + 1, dilation[axis] * (kernel[axis] - 1) + 1, stride[axis])[..., :: dilation[axis]]
    return views.permute(0, 1, 2, 4, 5, 3).flatten(3).flatten(0, 2)
