"""MapCache: the maps of a run on disk, one file per batch and layer, written atomically."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from channelscope.errors import FormatError, MismatchError
from channelscope.storage import atomic_file
from channelscope.types import Tensor


class MapCache:
    """Finished maps by key, in a folder or in memory.

    Parameters
    ----------
    path
        Folder of the files; None keeps the maps in memory.
    facts
        Facts of the run that must be equal for a file to be used again.

    Examples
    --------
    >>> cache = MapCache(None, {"seed": 0})
    >>> cache.read("layer1/0000", "digest") is None
    True
    >>> cache.write("layer1/0000", "digest", {"sigma": torch.ones(2)})
    >>> cache.read("layer1/0000", "digest")["sigma"].tolist()
    [1.0, 1.0]
    """

    def __init__(self, path: Path | None, facts: Mapping[str, Any]):
        self.path = path
        self.facts = dict(facts)
        self.memory: dict[str, dict[str, Tensor]] = {}

    def read(self, part: str, digest: str) -> dict[str, Tensor] | None:
        """The tensors of a finished part by name; None where there is no such part.

        Parameters
        ----------
        part
            Key of the part: layer and number of the batch.
        digest
            Fingerprint of the batch's images.

        Raises
        ------
        MismatchError
            If the file is of another run or of other images.
        FormatError
            If the file is damaged.
        """
        if self.path is None:
            return self.memory.get(part)
        file = self._file(part)
        if not file.is_file():
            return None
        try:
            with safe_open(file, "pt") as opened:
                there = json.loads(opened.metadata()["facts"])
                found = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise FormatError(f"{file} is damaged or not a map ({error}): delete it and run again") from error
        own = json.loads(json.dumps(self.facts | {"images": digest}))
        if there != own:
            differ = sorted(key for key in {**own, **there} if own.get(key) != there.get(key))
            raise MismatchError(f"{self.path} holds another run: they differ in {', '.join(differ)}; give another --out, or delete it")
        return found

    def write(self, part: str, digest: str, values: Mapping[str, Tensor]) -> None:
        """Store the tensors of a finished part; an interruption leaves no partial file."""
        if self.path is None:
            self.memory[part] = dict(values)
            return
        plain = {name: value.cpu().contiguous() for name, value in values.items()}
        with atomic_file(self._file(part)) as file:
            save_file(plain, file, {"facts": json.dumps(self.facts | {"images": digest})})

    def _file(self, part: str) -> Path:
        assert self.path is not None
        return self.path / f"{part}.safetensors"


def fingerprint(*tensors: Tensor) -> str:
    """The first 16 hexadecimal digits of a hash of tensors.

    Parameters
    ----------
    *tensors
        Tensors of any shape and type.

    Returns
    -------
    str
        Sixteen digits; equal for equal bytes, whatever the device.

    Examples
    --------
    >>> fingerprint(torch.arange(3)) == fingerprint(torch.tensor([0, 1, 2])), fingerprint(torch.arange(3)) == fingerprint(torch.arange(4))
    (True, False)

    References
    ----------
    SHA-256 over the tensors' bytes.
    """
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return total.hexdigest()[:16]
