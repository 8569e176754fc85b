"""Fused kernels: operations of those that torch.utils.flop_counter does not know; a multiply-add is two."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

Shape = Sequence[int]


def fused_kernels() -> dict[Any, Callable[..., int]]:
    """A count for each kernel, as `FlopCounterMode(custom_mapping=…)` takes them: from the shapes of a call to its operations.

    Returns
    -------
    dict
        Operator → function of its arguments, with shapes in the place of tensors.

    Examples
    --------
    >>> fused_kernels()[torch.ops.aten.mv]((3, 5), (5,))
    30
    """
    aten = torch.ops.aten
    known: dict[Any, Callable[..., int]] = {
        aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        aten._scaled_dot_product_fused_attention_overrideable: _attention,
        aten.mkldnn_rnn_layer: _recurrent_layer,
        aten._cudnn_rnn: _recurrent,
        aten.miopen_rnn: _recurrent,
        aten._trilinear: _trilinear,
        aten.mv: lambda matrix, _vector, **_: 2 * math.prod(matrix),
        aten.addmv: lambda _bias, matrix, _vector, **_: 2 * math.prod(matrix),
        aten.dot: lambda first, _second, **_: 2 * math.prod(first),
        aten.vdot: lambda first, _second, **_: 2 * math.prod(first),
        aten.addbmm: lambda _bias, first, second, **_: 2 * math.prod(first) * second[-1],
    }
    if hasattr(torch.ops.torchvision, "deform_conv2d"):
        known[torch.ops.torchvision.deform_conv2d] = _deformable
    return known


def _attention(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _recurrent_layer(steps: Shape, first: Shape, second: Shape, *_: Any, **__: Any) -> int:
    return 2 * math.prod(steps[:-1]) * (math.prod(first) + math.prod(second))


def _recurrent(steps: Shape, weights: Sequence[Shape], *_: Any, **__: Any) -> int:
    return 2 * math.prod(steps[:-1]) * sum(math.prod(weight) for weight in weights if len(weight) == 2)


def _trilinear(first: Shape, second: Shape, third: Shape, *expansions: Any, **_: Any) -> int:
    grown = []
    for shape, added in zip((first, second, third), expansions, strict=False):
        sizes = list(shape)
        for axis in sorted(added):
            sizes.insert(axis, 1)
        grown.append(sizes)
    return 2 * math.prod(max(sizes) for sizes in zip(*grown, strict=True))


def _deformable(_images: Shape, weight: Shape, *_: Any, out_shape: Shape, **__: Any) -> int:
    return 2 * math.prod(out_shape) * math.prod(weight[1:])
