"""Weights on disk: read without running anything, and loaded only where every tensor fits."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from channelscope.errors import WeightsError, first_line
from channelscope.tables import whole

NESTED = ("state_dict", "model", "model_state_dict", "net")
NAMED = 3


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """State dictionary of a safetensors file, or of a PyTorch file read with weights_only=True; 16-bit floats become float32.

    Entries nested under `state_dict` or `model`, and names that all start with `module.`, are unwrapped.

    Raises   WeightsError if the file is missing, corrupt, or holds something else than named tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: expected a weights file (safetensors, or a PyTorch state dictionary), found nothing there")
    try:
        found = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise WeightsError(f"{path}: corrupt safetensors file ({error}); get or write it again") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = first_line(error)
        raise WeightsError(f"{path}: not a state dictionary that can be read safely ({reason}); save it as safetensors") from error
    state = _unwrapped(found)
    named = isinstance(state, dict) and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items())
    if not named or not state:
        kind = f"a dictionary with keys {', '.join(map(str, list(state)[:NAMED]))}" if isinstance(state, dict) else type(found).__name__
        raise WeightsError(f"{path}: expected named tensors, received {kind}; save model.state_dict()")
    half = (torch.float16, torch.bfloat16)
    return {name: value.float() if value.dtype in half else value for name, value in state.items()}


def load_weights(model: nn.Module, path: str | Path) -> nn.Module:
    """Put the weights of a file into a network, all of them or none, and return the network.

    Only BatchNorm's `num_batches_tracked`, which no forward pass reads, may be missing.

    Raises   WeightsError naming the first tensors that are missing, left over, or of another shape.
    """
    state = read_weights(path)
    own = model.state_dict()
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    extra = sorted(name for name in state if name not in own)
    reshaped = [
        f"{name} (network {tuple(own[name].shape)}, file {tuple(state[name].shape)})"
        for name in own
        if name in state and own[name].shape != state[name].shape
    ]
    if missing or extra or reshaped:
        troubles = (("missing in the file", missing), ("not in the network", extra), ("of another shape", reshaped))
        said = "; ".join(f"{len(some)} {what}: {_some(some)}" for what, some in troubles if some)
        raise WeightsError(f"{path} does not fit {type(model).__name__} ({len(own)} tensors): {said}")
    model.load_state_dict({**own, **state})
    return model


def save_weights(state: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write named tensors as safetensors; the file appears whole or not at all."""
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    with whole(Path(path)) as half:
        save_file(plain, half, dict(metadata or {}))


def _unwrapped(found: Any) -> Any:
    while isinstance(found, dict):
        inner = next((found[key] for key in NESTED if isinstance(found.get(key), dict)), None)
        if inner is None:
            break
        found = inner
    if isinstance(found, dict) and found and all(isinstance(name, str) and name.startswith("module.") for name in found):
        return {name.removeprefix("module."): value for name, value in found.items()}
    return found


def _some(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (", …" if len(names) > NAMED else "")
