"""Comparison: do a network and its steps give the same on an image that was not recorded."""

from typing import Any

import torch
from torch import Tensor

from channelscope.network import nest


def other_image(part: Tensor) -> Tensor:
    """One image that is another than the first of a batch; an input without batch axis comes back as it is.

    Examples
    --------
    >>> other_image(torch.tensor([[1, 2, 3], [4, 5, 6]]))
    tensor([[3, 1, 2]])
    """
    if part.dim() < 2:
        return part
    image = part[:1].roll(1, -1)
    if not image.is_floating_point():
        return image
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0)).to(image)
    return image + noise * (image.std(correction=0) + (image == image.flatten()[0]).all())


def same(a: Any, b: Any) -> bool:
    """Whether two outputs are of the same form and their tensors differ by rounding alone.

    Examples
    --------
    >>> same({"a": torch.tensor([1.0])}, {"a": torch.tensor([1.0000001])}), same(torch.zeros(1), torch.ones(1))
    (True, False)
    """
    a, b = nest.opened(a), nest.opened(b)
    if isinstance(a, Tensor):
        if not isinstance(b, Tensor) or a.shape != b.shape or a.dtype != b.dtype:
            return False
        scale = float(a.abs().nan_to_num(posinf=0).max()) if a.numel() else 0.0
        return torch.allclose(a, b, rtol=1e-3, atol=1e-3 * scale, equal_nan=True)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, tuple | list):
        return type(a) is type(b) and len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and a == b
