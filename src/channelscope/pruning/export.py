"""A network in a format that runs without this library, compared after it is written."""

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from channelscope.errors import InputError, MismatchError
from channelscope.network import nest
from channelscope.network.module_state import eval_mode
from channelscope.storage import atomic_file

EXPORT_TOLERANCE = 0.001
"""Largest difference of the outputs as a fraction of the largest of them: other runtimes sum in another order."""

NEEDED_EXTRAS = ("onnx", "onnxruntime", "onnxscript")


def export(model: nn.Module, path: str | Path, image_shape: tuple[int, ...]) -> float:
    """Relative difference of the outputs, after writing `model` as ONNX (.onnx) or as a PyTorch export (.pt2), atomically.

    The exported network takes batches of any size. The file is read back and run on two and on three random images.

    Parameters
    ----------
    model
        The network, written in evaluation mode.
    path
        File to write; its ending, .onnx or .pt2, is the format.
    image_shape
        Shape of one image (C, H, W).

    Returns
    -------
    float
        Largest difference from the model's own outputs, as a fraction of the largest of them.

    Raises
    ------
    InputError
        For another ending or a missing extra.
    MismatchError
        If the outputs differ, and nothing is written.

    Examples
    --------
    >>> import tempfile
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.Flatten()).eval()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     difference = export(model, Path(folder) / "network.pt2", (3, 8, 8))
    >>> difference < 1e-5
    True
    """
    path = Path(path)
    if path.suffix not in (".onnx", ".pt2"):
        raise InputError(f"an export ends in .onnx or .pt2, not '{path.suffix}': {path}")
    missing = [name for name in NEEDED_EXTRAS if importlib.util.find_spec(name) is None] if path.suffix == ".onnx" else []
    if missing:
        raise InputError(f"{path.name} needs {', '.join(missing)}: pip install 'channelscope[onnx]', or export as .pt2")
    like = next(model.parameters())
    images = torch.randn(3, *image_shape, generator=torch.Generator().manual_seed(0)).to(like)
    with atomic_file(path) as partial:
        with eval_mode(model), torch.no_grad():
            run = _onnx(model, partial, images[:2]) if path.suffix == ".onnx" else _pt2(model, partial, images[:2])
            difference = max(_relative_difference(run(part), model(part)) for part in (images[:2], images))
        if not difference <= EXPORT_TOLERANCE:
            raise MismatchError(f"{path.name}: the exported network's outputs are {difference:.2g} (relative) away from the model's")
    return difference


def _relative_difference(received: Any, expected: Any) -> float:
    """Largest relative difference of any tensor of the outputs."""
    pairs = zip(nest.tensors(received), nest.tensors(expected), strict=True)
    return max(float((one.cpu() - other.cpu()).abs().max() / other.abs().max()) for one, other in pairs)


def _pt2(model: nn.Module, path: Path, images: Tensor) -> Any:
    program = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("images")},))
    torch.export.save(program, path)
    return torch.export.load(path).module()


def _onnx(model: nn.Module, path: Path, images: Tensor) -> Any:
    import onnxruntime

    torch.onnx.export(
        model, (images,), str(path), dynamic_shapes=({0: torch.export.Dim("images")},), external_data=False, verbose=False, dynamo=True
    )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda part: [torch.from_numpy(output) for output in session.run(None, {name: part.cpu().numpy()})]
