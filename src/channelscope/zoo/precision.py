"""The precision in which steps of training are taken: float32, or bfloat16 where a trial shows that it is faster.

On a processor three gradients in bfloat16 take oneDNN 3 to 40 times as long as another way to the same sums (benchmarks/training.py):

- of the weights where output maps are small: it adds them up image by image, so that a layer of 512 × 512 kernels on 2×2 positions
  writes its 9 MB of sums once an image. One product of the output's gradients with the patches of all images gives them.
- of the input of a depthwise convolution with a stride. That of the same convolution without a stride, whose output's gradient is 0
  at the positions in between, is the same.
- of the weights of a depthwise convolution whose kernels are above 3×3 or wider than the image: float32 is the faster precision.
"""

import copy
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from channelscope.evaluation import logits_in
from channelscope.network.graph import memory_format
from channelscope.network.module_state import channels_last, device_of, gradient_overruns
from channelscope.stats.tally import check_logits

TrainingPrecision: TypeAlias = Literal["auto", "float32", "bfloat16"]

PRECISIONS = get_args(TrainingPrecision)

SMALL_RUN = 10_000_000
"""Pixels shown in a run, one number per position, below which no time is spent on choosing the precision: it is float32."""

TRIAL_IMAGES = 32

TRIAL_SECONDS = 2.0

GAIN = 1.1
"""How many times faster than float32 steps in bfloat16 have to be."""

SMALL = 16
"""Positions of an output map up to which the product is the faster way, whatever the kernel, the stride and the channels are."""

FEW_TAPS = 9
"""Positions of a depthwise kernel above which float32 is the faster precision for the gradient of the weights."""


def faster_precision(model: nn.Module, shape: Sequence[int], shown: int) -> Literal["float32", "bfloat16"]:
    """The precision in which steps of a copy of the network on random images take less time; float32 for a short run.

    The time is that of the processor on a CPU, so that other work does not count. An operation without bfloat16 decides for float32.

    Parameters
    ----------
    model
        A network that returns logits, images × classes; it stays as it is.
    shape
        Images of a step, channels, height, width.
    shown
        Images of the whole run, each as often as it is shown.

    Examples
    --------
    >>> faster_precision(nn.Flatten(), (8, 1, 2, 2), shown=1000)
    'float32'
    """
    if shown * math.prod(shape[2:]) < SMALL_RUN:
        return "float32"
    device = device_of(model)
    tried = copy.deepcopy(model).requires_grad_(True).train()
    x = torch.rand(min(TRIAL_IMAGES, shape[0]), *shape[1:], generator=torch.Generator().manual_seed(0)).to(device)
    x = x.contiguous(memory_format=memory_format(tried, x))
    y = torch.zeros(len(x), dtype=torch.int64, device=device)
    clock = time.perf_counter if device.type == "cuda" else time.process_time

    def seconds(precision: str) -> float:
        started = clock()
        with channels_last(tried, precision == "bfloat16"):
            loss, _ = loss_and_logits(tried, x, y, precision)
            loss.backward()
        tried.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return clock() - started

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            times = {precision: [seconds(precision), seconds(precision)][1:] for precision in ("float32", "bfloat16")}
        except RuntimeError:  # an operation that has no bfloat16 here
            return "float32"
        ends = time.perf_counter() + TRIAL_SECONDS
        while time.perf_counter() < ends:
            for precision, taken in times.items():
                taken.append(seconds(precision))
    return "bfloat16" if min(times["float32"]) > GAIN * min(times["bfloat16"]) else "float32"


def loss_and_logits(model: nn.Module, x: Tensor, y: Tensor, precision: str, smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """Mean loss of a batch, and its logits.

    Parameters
    ----------
    model
        A network that returns logits, images × classes.
    x, y
        Normalized images and their labels.
    precision
        float32, or bfloat16 by autocast with channels last.
    smoothing
        Probability that the target gives to all classes alike.

    Returns
    -------
    tuple
        Loss in nats, float32, and logits (images, classes), in the precision of the network's last layer.

    Raises
    ------
    InputError
        For an output without logits, images × classes.

    Examples
    --------
    >>> loss, _ = loss_and_logits(nn.Flatten(), torch.zeros(1, 2, 1, 1), torch.tensor([0]), "float32")
    >>> round(float(loss), 3)
    0.693
    """
    logits = logits_to_learn(model, x, precision)
    check_logits(logits, len(y))
    return F.cross_entropy(logits.float(), y, label_smoothing=smoothing), logits


def logits_to_learn(model: nn.Module, x: Tensor, precision: str) -> Tensor:
    """Logits of a batch, as `evaluation.logits_in` gives them, whose gradients are taken the faster way.

    Parameters
    ----------
    model
        A network that returns logits, images × classes.
    x
        Normalized images, on the network's device.
    precision
        float32, or bfloat16 by autocast with channels last.

    Returns
    -------
    Tensor
        Logits (images, classes), in the precision of the network's last layer.

    Examples
    --------
    >>> logits_to_learn(nn.Flatten(), torch.zeros(1, 2, 1, 1), "float32")
    tensor([[0., 0.]])
    """
    with FasterGradients():
        return logits_in(model, x, precision)


class FasterGradients(TorchFunctionMode):
    """While inside, `conv2d` on a CPU takes its gradients another way where that is faster (bfloat16), or where its own damage memory.

    Outputs are those of `conv2d` itself but for rounding, and so are gradients.

    Examples
    --------
    >>> x, weight = torch.ones(2, 3, 2, 2), torch.ones(4, 3, 3, 3, requires_grad=True)
    >>> with torch.autocast("cpu", torch.bfloat16), FasterGradients():
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
    if input.dim() == 4 and not isinstance(padding, str) and _in_bfloat16(input):
        how = _How(_pair(stride), _pair(padding), _pair(dilation), groups)
        if how.small(input, weight) or (how.depthwise(input) and (how.strided or _wide(input, weight))):
            return _Convolution.apply(input.bfloat16(), weight.bfloat16(), None if bias is None else bias.bfloat16(), how)
    elif input.is_cpu and gradient_overruns(weight.shape[2:], _pair(stride), weight.shape[1]):
        input = input.contiguous()
    return F.conv2d(input, weight, bias, stride, padding, dilation, groups)  # pyright: ignore[reportCallIssue, reportArgumentType]


class _How(NamedTuple):
    """What a convolution does besides its weights, as `conv2d` takes it."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int

    @property
    def strided(self) -> bool:
        return max(self.stride) > 1

    def depthwise(self, x: Tensor) -> bool:
        return self.groups == x.shape[1] > 1

    def sizes(self, x: Tensor, weight: Tensor) -> list[int]:
        """Height and width of the output."""
        each = zip(x.shape[2:], weight.shape[2:], self.stride, self.padding, self.dilation, strict=True)
        return [(size + 2 * pad - gap * (taps - 1) - 1) // step + 1 for size, taps, step, pad, gap in each]

    def small(self, x: Tensor, weight: Tensor) -> bool:
        """Whether one product of the output's gradients with the patches is the faster way to the gradient of the weights."""
        return self.groups == 1 and math.prod(self.sizes(x, weight)) <= SMALL


def _wide(x: Tensor, weight: Tensor) -> bool:
    """Whether the gradient of the weights of a depthwise convolution is faster in float32."""
    kernel = weight.shape[2:]
    return math.prod(kernel) > FEW_TAPS or any(taps > size for taps, size in zip(kernel, x.shape[2:], strict=True))


def _in_bfloat16(x: Tensor) -> bool:
    return x.is_cpu and torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16


def _pair(value: int | Sequence[int]) -> list[int]:
    numbers = [value] if isinstance(value, int) else list(value)
    return numbers * (2 // len(numbers))


class _Convolution(torch.autograd.Function):
    """`conv2d` with its gradients taken the faster way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, how: _How) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.how = how
        return F.conv2d(x, weight, bias, *how)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_x = _input_gradient(x, weight, gradient, ctx.how)
        if ctx.needs_input_grad[1]:
            of_weight = _weight_gradient(x, weight, gradient, ctx.how)
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum((0, 2, 3))
        return of_x, of_weight, of_bias, None


def _input_gradient(x: Tensor, weight: Tensor, gradient: Tensor, how: _How) -> Tensor:
    if how.depthwise(x) and how.strided:
        dense = how._replace(stride=[1, 1])
        apart = gradient.new_zeros(*gradient.shape[:2], *dense.sizes(x, weight)).contiguous(memory_format=torch.channels_last)
        apart[:, :, :: how.stride[0], :: how.stride[1]] = gradient
        gradient, how = apart, dense
    return _gradients(gradient, x, weight, how, [True, False, False])[0]


def _weight_gradient(x: Tensor, weight: Tensor, gradient: Tensor, how: _How) -> Tensor:
    if how.small(x, weight):
        product = gradient.transpose(0, 1).flatten(1) @ _patches(x, weight.shape[2:], how)
        return product.unflatten(1, (*weight.shape[2:], -1)).permute(0, 3, 1, 2)
    if how.depthwise(x) and _wide(x, weight):
        gradient, x, weight = (value.float().contiguous() for value in (gradient, x, weight))
    return _gradients(gradient, x, weight, how, [False, True, False])[1].bfloat16()


def _gradients(gradient: Tensor, x: Tensor, weight: Tensor, how: _How, asked: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    """PyTorch's own gradients, of the input, weights and bias; `nn.grad.conv2d_input` is slower, for it does not keep channels last."""
    stride, padding, dilation, groups = how
    return torch.ops.aten.convolution_backward(gradient, x, weight, None, stride, padding, dilation, False, [0, 0], groups, asked)


def _patches(x: Tensor, kernel: Sequence[int], how: _How) -> Tensor:
    """What each output position sees, images and positions × taps and channels; `F.unfold` takes three times as long."""
    views = F.pad(x.permute(0, 2, 3, 1), (0, 0, how.padding[1], how.padding[1], how.padding[0], how.padding[0]))
    for axis in (0, 1):
        views = views.unfold(axis + 1, how.dilation[axis] * (kernel[axis] - 1) + 1, how.stride[axis])[..., :: how.dilation[axis]]
    return views.permute(0, 1, 2, 4, 5, 3).flatten(3).flatten(0, 2)
