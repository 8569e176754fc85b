"""The tensors of a nested output, and the distance between two outputs."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from channelscope.errors import MismatchError

EXPONENT = 0.6
"""The same sums in another order may differ by eps**EXPONENT of the largest output: 4e-10 in float64, 7e-5 in float32."""

FAILURES = (RuntimeError, TypeError, ValueError, AttributeError, AssertionError, IndexError, KeyError, ArithmeticError)

LEAVES = (Tensor, str, bytes, bool, int, float, complex, type(None), torch.dtype, torch.device)


def tensors(output: Any, path: str = "output") -> Iterator[tuple[str, Any]]:
    """Every tensor of a nested output, and every other plain value, with the path that leads to it.

    Parameters
    ----------
    output
        A tensor, or mappings, sequences, dataclasses and plain objects that hold tensors, nested as they may be.
    path
        Name of the output itself.

    Returns
    -------
    Iterator of (str, Any)
        Path, and tensor or number or string or None, in a fixed order.

    Raises
    ------
    MismatchError
        If the output holds something whose parts cannot be listed.

    Examples
    --------
    >>> [path for path, _ in tensors({"out": torch.zeros(1), "aux": (torch.zeros(1), 3)})]
    ["output['out']", "output['aux'][0]", "output['aux'][1]"]
    """
    if isinstance(output, LEAVES):
        parts = None
    elif isinstance(output, Mapping):
        parts = [(f"[{key!r}]", value) for key, value in output.items()]
    elif isinstance(output, tuple | list):
        parts = [(f"[{index}]", value) for index, value in enumerate(output)]
    elif dataclasses.is_dataclass(output):
        parts = [(f".{field.name}", vars(output)[field.name]) for field in dataclasses.fields(output) if field.name in vars(output)]
    elif hasattr(output, "__dict__"):
        parts = [(f".{name}", value) for name, value in vars(output).items()]
    else:
        raise MismatchError(
            f"{path} is of type {type(output).__name__}, whose tensors cannot be listed for the comparison: "
            "return tensors, or tuples, dictionaries or dataclasses of them"
        )
    if parts is None:
        yield path, output
        return
    for name, value in parts:
        yield from tensors(value, path + name)


def distance(received: Any, expected: Any, path: str = "output", floor: float = 0.0) -> tuple[float, str]:
    """Largest difference between two nested outputs and the path of the tensor that has it.

    Parameters
    ----------
    received, expected
        Outputs as `tensors` takes them.
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
    ours, theirs = list(tensors(received, path)), list(tensors(expected, path))
    strange = {path for path, _ in ours} ^ {path for path, _ in theirs}
    if strange:
        return float("inf"), min(strange)
    there = dict(theirs)
    return max(((_apart(value, there[path], floor), path) for path, value in ours), key=lambda pair: pair[0], default=(0.0, path))


def defined(output: Any) -> bool:
    """Whether some number of an output is finite, or nothing in it can be infinite."""
    parts = [part for _, part in tensors(output) if isinstance(part, Tensor) and part.is_floating_point() and part.numel()]
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
    """Rounding of the coarsest type among a network's parameters."""
    kinds = {part.dtype for part in model.parameters() if part.is_floating_point()}
    return max((torch.finfo(kind).eps for kind in kinds), default=torch.finfo(torch.float32).eps)
