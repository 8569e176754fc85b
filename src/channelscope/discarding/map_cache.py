"""MapCache: the maps of a run on disk, one file per batch and layer, each whole or absent."""

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
    """A folder of finished parts; without a path they stay in memory."""

    def __init__(self, path: Path | None, facts: Mapping[str, Any]):
        """Facts are what must agree for a part to be used again."""
        self.path = path
        self.facts = dict(facts)
        self.memory: dict[str, dict[str, Tensor]] = {}

    def read(self, part: str, digest: str) -> dict[str, Tensor] | None:
        """A finished part, or None.

        Raises
        ------
        MismatchError
            If it is of another run or of other images.
        FormatError
            If it is damaged.
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
        """Keep a finished part, all or nothing."""
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
    """Fingerprint of some tensors.

    References
    ----------
    SHA-256 over their bytes.
    """
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return total.hexdigest()[:16]
