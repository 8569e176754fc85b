"""Comparison: do a network and its steps give the same on an image that was not recorded, and how far apart are two outputs."""

from typing import Any

import torch
from torch import Tensor, nn

from channelscope.network import nest

EXPONENT = 0.6
"""The same sums in another order may differ by eps**EXPONENT of the largest output: 4e-10 in float64, 7e-5 in float32."""


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


def distance(received: Any, expected: Any, path: str = "output", floor: float = 0.0) -> tuple[float, str]:
    """Largest difference between two nested outputs and the path of the tensor that has it.

    Parameters
    ----------
    received, expected
        Outputs as `nest.leaves` takes them.
    path
        Name of the output itself.
    floor
        Size below which a tensor's largest value is taken for the rounding of larger ones; differences are then fractions of it.

    Returns
    -------
    float
        Largest absolute difference of a tensor as a fraction of its largest expected value; infinite where shapes, integers,
        or the places of nan and infinity differ.
    str
        Path of that tensor.

    Examples
    --------
    >>> distance({"a": torch.tensor([4.0, 1.0])}, {"a": torch.tensor([4.0, 2.0])})
    (0.25, "output['a']")
    >>> distance((torch.zeros(1), 3), (torch.zeros(1), 4))
    (inf, 'output[1]')
    """
    ours, theirs = list(nest.leaves(received, path)), list(nest.leaves(expected, path))
    strange = {path for path, _ in ours} ^ {path for path, _ in theirs}
    if strange:
        return float("inf"), min(strange)
    there = dict(theirs)
    return max(((_apart(value, there[path], floor), path) for path, value in ours), key=lambda pair: pair[0], default=(0.0, path))


def defined(output: Any) -> bool:
    """Whether some number of an output is finite, or nothing in it can be infinite.

    Examples
    --------
    >>> defined(torch.tensor([torch.nan, 1.0])), defined({"a": torch.tensor([torch.nan])})
    (True, False)
    """
    parts = [part for _, part in nest.leaves(output) if isinstance(part, Tensor) and part.is_floating_point() and part.numel()]
    return not parts or any(bool(part.isfinite().any()) for part in parts)


def _apart(received: Any, expected: Any, floor: float) -> float:
    different = float("inf")
    if not isinstance(expected, Tensor) or not isinstance(received, Tensor):
        return 0.0 if type(received) is type(expected) and received == expected else different
    if received.shape != expected.shape or received.dtype != expected.dtype:
        return different
    if not (expected.is_floating_point() or expected.is_complex()):
        return 0.0 if torch.equal(received, expected) else different
    finite = expected.isfinite()
    if not torch.equal(received[~finite].nan_to_num(nan=0.5), expected[~finite].nan_to_num(nan=0.5)):
        return different
    if not bool(finite.any()):
        return 0.0
    gap, scale = float((received - expected)[finite].abs().max()), max(float(expected[finite].abs().max()), floor)
    if gap != gap:
        return different
    return gap / scale if scale else (0.0 if gap == 0 else different)


def coarsest(model: nn.Module) -> float:
    """Rounding of the coarsest type among a network's parameters.

    Examples
    --------
    >>> from torch import nn
    >>> coarsest(nn.Linear(1, 1).double()) < coarsest(nn.Linear(1, 1)) < coarsest(nn.Linear(1, 1).bfloat16())
    True
    """
    kinds = {part.dtype for part in model.parameters() if part.is_floating_point()}
    return max((torch.finfo(kind).eps for kind in kinds), default=torch.finfo(torch.float32).eps)
