"""Weights on disk: read without running anything, and loaded only where every tensor fits."""

import io
import json
import pickle
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from channelscope.errors import WeightsError, first_line, near_paths
from channelscope.storage import atomic_file

NESTED = ("state_dict", "model_state_dict", "model_state", "model", "network", "net", "weights", "params")

AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "model_ema_state_dict", "ema_model", "ema", "params_ema")

PREFIXES = ("module.", "model.", "network.", "net.")
"""what wrappers put before every name"""

COMPILED = "_orig_mod."

COUNTER = "n_averaged"
"""of torch.optim.swa_utils.AveragedModel"""

POINTER = b"version https://git-lfs.github.com/spec"

INDEX = ".index.json"

NAMED = 3

STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}

UNREADABLE = (
    *(pickle.UnpicklingError, struct.error, EOFError, OSError, MemoryError, ImportError),
    *(ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError),
)
"""errors of the readers of PyTorch files: they take any bytes for a program"""


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Named tensors of a weights file, read without running any code; 16-bit floats become float32.

    Averaged weights (EMA) take precedence over others, with a warning. The prefixes `module.`, where all names have it, and
    `_orig_mod.` of torch.compile are removed.

    Parameters
    ----------
    path
        A safetensors file; a PyTorch file, with the state dictionary itself or under a key such as `state_dict` or
        `model_state` (checkpoints of Lightning too); or the index of several files, any of them, or their folder.

    Returns
    -------
    dict
        Name → tensor.

    Raises
    ------
    WeightsError
        If the file is missing, corrupt, a Git LFS pointer, or holds something else than named tensors.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_weights({"weight": torch.ones(2)}, f"{folder}/a.safetensors")
    ...     read_weights(f"{folder}/a.safetensors")
    {'weight': tensor([1., 1.])}
    """
    return _renamed(_state(Path(path)), PREFIXES[:1])[-1]


def load_weights(model: nn.Module, path: str | Path) -> nn.Module:
    """The network with the weights of a file, all of them or none.

    What wrappers put before every name (`module.`, `model.`, `_orig_mod.`) is dropped where the network has no such names.
    Only BatchNorm's `num_batches_tracked`, which no forward pass reads, may be missing.

    Parameters
    ----------
    model
        The network; it is changed only if every tensor fits.
    path
        As for `read_weights`.

    Returns
    -------
    nn.Module
        The same network.

    Raises
    ------
    WeightsError
        If the file cannot be read (`read_weights`), or naming the first tensors that are missing, left over, or of another
        shape.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_weights({"weight": torch.ones(1, 2), "bias": torch.zeros(1)}, f"{folder}/a.safetensors")
    ...     load_weights(nn.Linear(2, 1), f"{folder}/a.safetensors").weight.tolist()
    [[1.0, 1.0]]
    """
    own = model.state_dict()
    state = max(_renamed(_state(Path(path)), PREFIXES), key=lambda form: len(own.keys() & form.keys()))  # the first of equals
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
    own.update(state)  # keeps the versions of modules, which some of them ask for
    model.load_state_dict(own)
    return model


def save_weights(state: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write named tensors to a safetensors file, which appears complete or not at all.

    Parameters
    ----------
    state
        Name → tensor, on any device.
    path
        The file to write or replace.
    metadata
        Text to store with them.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_weights({"weight": torch.ones(2)}, f"{folder}/a.safetensors")
    ...     sorted(load_file(f"{folder}/a.safetensors"))
    ['weight']
    """
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    with atomic_file(Path(path)) as half:
        save_file(plain, half, dict(metadata or {}))


def _state(path: Path) -> dict[str, Tensor]:
    """Named tensors of a file or of several, under the names that they have there."""
    state: dict[str, Tensor] = {}
    for part in _parts(path):
        found = _read(part)
        if not _holds_tensors(found):
            kind = f"a dictionary with keys {', '.join(map(str, list(found)[:NAMED]))}" if isinstance(found, dict) else type(found).__name__
            raise WeightsError(f"{part}: expected named tensors, received {kind}; store the network's state dict")
        state |= found
    half = (torch.float16, torch.bfloat16)
    return {name: value.float() if value.dtype in half else value for name, value in state.items()}


def _parts(path: Path) -> list[Path]:
    """The files that hold the weights: the file itself, or all that its index names."""
    if path.is_dir():
        there = sorted(path.glob(f"*{INDEX}")) or sorted(path.glob("*.safetensors"))
        if len(there) > 1:
            raise WeightsError(f"{path}: expected one network's weights, found {', '.join(each.name for each in there)}; name one of them")
        path = there[0] if there else path
    if not path.is_file():
        raise WeightsError(
            f"{path}: expected a weights file (safetensors, or a PyTorch state dictionary), found nothing there{near_paths(path)}"
        )
    indices = [path] if path.name.endswith(INDEX) else path.parent.glob(f"*{INDEX}") if "-of-" in path.name else []
    index = next((each for each in indices if each == path or path.name in _listed(each)), None)
    if index is None:
        return [path]
    parts = [path.parent / name for name in _listed(index)]
    lacking = [part.name for part in parts if not part.is_file()]
    if lacking or not parts:
        raise WeightsError(f"{index}: expected the files it names beside it, missing: {_some(lacking) or 'all, for it names none'}")
    return parts


def _listed(index: Path) -> list[str]:
    """Files that an index names."""
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise WeightsError(f"{index}: not an index of weights files ({first_line(error)}); get it again") from error


def _read(path: Path) -> Any:
    with path.open("rb") as file:
        if file.read(len(POINTER)) == POINTER:
            raise WeightsError(f"{path}: a Git LFS pointer, not the weights themselves; fetch them with `git lfs pull`")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return _unwrapped(torch.load(path, map_location="cpu", weights_only=True), path)
    except SafetensorError as error:
        raise WeightsError(f"{path}: corrupt safetensors file ({error}); get or write it again") from error
    except UNREADABLE as error:
        found = _unwrapped(_Tensors.of(path), path)
        if _holds_tensors(found):
            return found
        reason = first_line(error)
        raise WeightsError(f"{path}: not a state dictionary that can be read safely ({reason}); save it as safetensors") from error


def _unwrapped(found: Any, path: Path) -> Any:
    """The dictionary of tensors in a checkpoint; what was found where there is none."""
    if not isinstance(found, dict) or _holds_tensors(found):
        return found
    inner = {key: _unwrapped(found[key], path) for key in (*AVERAGED, *NESTED) if key in found}
    states = [key for key, state in inner.items() if _holds_tensors(state)]
    if not states:
        return found
    others = [key for key in states if key in NESTED]
    if states[0] in AVERAGED and others:
        warnings.warn(f"{path}: the averaged weights '{states[0]}' are read, not '{others[0]}'", UserWarning, stacklevel=2)
    return inner[states[0]]


def _holds_tensors(found: Any) -> bool:
    """Whether this is a state dictionary: a tensor for each name."""
    return isinstance(found, dict) and bool(found) and all(isinstance(key, str) and isinstance(each, Tensor) for key, each in found.items())


def _renamed(state: dict[str, Tensor], prefixes: Sequence[str]) -> list[dict[str, Tensor]]:
    """A state as it is, then without what wrappers put before its names, one wrapper after the other."""
    forms = [state, {name.replace(COMPILED, ""): value for name, value in state.items()}]
    while True:
        rest = {name: value for name, value in forms[-1].items() if name != COUNTER}
        prefix = next((word for word in prefixes if rest and all(name.startswith(word) for name in rest)), None)
        if prefix is None:
            return forms
        forms.append({name.removeprefix(prefix): value for name, value in rest.items()})


class _Inert:
    """Stands for every object in a file that is no tensor: it takes anything and does nothing."""

    def __init__(self, *_: Any, **__: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        """Take an item of a list."""

    def extend(self, values: Any) -> None:
        """Take items of a list."""


class _Tensors(pickle.Unpickler):
    """Tensors of a PyTorch file that also holds other objects; no code but this class's own is run."""

    def __init__(self, archive: zipfile.ZipFile, root: str):
        super().__init__(io.BytesIO(archive.read(f"{root}/data.pkl")))
        self.archive, self.root = archive, root

    @classmethod
    def of(cls, path: Path) -> Any:
        """What a file holds; None where it is no PyTorch archive."""
        try:
            with zipfile.ZipFile(path) as archive:
                (root,) = {name.rsplit("/", 1)[0] for name in archive.namelist() if name.endswith("/data.pkl")}
                return cls(archive, root).load()
        except (zipfile.BadZipFile, *UNREADABLE):
            return None

    def find_class(self, module: str, name: str) -> Any:
        """The few things that tensors are made of; everything else is inert."""
        if module in ("torch", "torch.storage") and name in STORAGES:
            return STORAGES[name]
        made = {
            ("torch._utils", "_rebuild_tensor_v2"): lambda storage, offset, size, stride, *_: storage.as_strided(
                size, stride, offset
            ).clone(),
            ("torch._utils", "_rebuild_parameter"): lambda value, *_: value,
            ("collections", "OrderedDict"): OrderedDict,
        }
        return made.get((module, name), _Inert)

    def persistent_load(self, pid: Any) -> Tensor:
        """The numbers of one storage."""
        _, dtype, key, _, count = pid
        data = bytearray(self.archive.read(f"{self.root}/data/{key}"))
        return torch.frombuffer(data, dtype=dtype, count=count) if count else torch.empty(0, dtype=dtype)


def _some(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (", …" if len(names) > NAMED else "")
