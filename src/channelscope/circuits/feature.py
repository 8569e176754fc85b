"""Feature: a channel, a unit, a direction over the channels of a layer, or a logit."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file

from channelscope.errors import InputError, ShapeError
from channelscope.types import Float, Int, Tensor

PositionRule = Literal["all", "max", "center"]

LOGIT = "logit"
"""the layer name that stands for the network's own output"""

EXAMPLES = "layer3.1.conv1:7, layer3.1.conv1:7@max, layer3.1.conv1:7@4,5, layer3.1.conv1:direction.npy or logit:3"


@dataclass(frozen=True)
class Feature:
    """One number per position of a layer's output: a channel of it, or its projection on a vector.

    Written as text it is `layer:channel`, `layer:file` (a vector in .npy or .safetensors) or `logit:class`, followed by
    `@max`, `@center` or `@row,column` where not all positions count; `layer3.1.conv1:7@4,5` is one unit.
    """

    layer: str
    """module path of a convolution or linear layer (or any other module that is a step of the pass), or 'logit'"""
    weights: tuple[tuple[int, float], ...]
    """the vector over the layer's channels as (channel, weight) pairs, zeros left out"""
    length: int | None = None
    """length of the vector; None for a single channel"""
    positions: PositionRule | tuple[tuple[int, ...], ...] = "all"
    """which positions count: all, that of the maximum in each image, the center, or the given ones"""

    def __post_init__(self) -> None:
        """Refuse a vector of zeros."""
        if not self.weights:
            raise InputError(f"feature at {self.layer}: expected a direction with a nonzero entry, received zeros only")

    @classmethod
    def channel(cls, layer: str, channel: int, positions: "PositionRule | Sequence[Sequence[int]]" = "all") -> "Feature":
        """One channel; at given positions, one unit or several."""
        return cls(layer, ((int(channel), 1.0),), None, _rule(positions))

    @classmethod
    def direction(
        cls, layer: str, vector: Float[Tensor, "channels"], positions: "PositionRule | Sequence[Sequence[int]]" = "all"
    ) -> "Feature":
        """The projection of a layer's channels on `vector`; a one-hot vector is the channel."""
        values = torch.as_tensor(vector).detach().double().flatten().tolist()
        if not all(np.isfinite(values)):
            raise InputError(f"feature at {layer}: expected a direction of finite numbers")
        return cls(layer, tuple((place, value) for place, value in enumerate(values) if value), len(values), _rule(positions))

    @classmethod
    def parse(cls, text: "str | Feature") -> "Feature":
        """Read the text form; a vector's file is read as well.

        Raises
        ------
        InputError
            If the text is not a feature or the file is not one vector.
        """
        if isinstance(text, Feature):
            return text
        match = re.fullmatch(r"([^:@]+):(.+?)(?:@([\w,;]*))?", text)
        if not match:
            raise InputError(f"feature: expected {EXAMPLES}; received '{text}'")
        layer, what, place = match.groups()
        positions = _places(place)
        if re.fullmatch(r"\d+", what):
            return cls.channel(layer, int(what), positions)
        return cls.direction(layer, _vector(Path(what).expanduser(), text), positions)

    def __str__(self) -> str:
        """The text form; a direction shows its length in place of its file."""
        what = str(self.weights[0][0]) if self.length is None else f"direction[{self.length}]"
        if self.positions == "all":
            return f"{self.layer}:{what}"
        spots = self.positions if isinstance(self.positions, str) else ";".join(",".join(map(str, spot)) for spot in self.positions)
        return f"{self.layer}:{what}@{spots}"

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels that take part."""
        return tuple(channel for channel, _ in self.weights)

    def map(self, maps: Tensor, axis: int) -> Float[Tensor, "images positions"]:
        """The feature at every position, row by row; `axis` holds the channels, counted without the batch axis."""
        size = maps.shape[axis + 1]
        if self.length not in (None, size):
            raise ShapeError(f"feature at {self.layer}: expected a direction of {size} numbers, received {self.length}")
        if max(self.channels) >= size:
            raise InputError(f"feature {self}: {self.layer} has channels 0 to {size - 1}")
        picked = maps.movedim(axis + 1, -1)[..., list(self.channels)]
        if self.length is None:
            return picked[..., 0].reshape(len(maps), -1)
        return (picked @ picked.new_tensor([weight for _, weight in self.weights])).reshape(len(maps), -1)

    def select_positions(self, values: Float[Tensor, "images positions"], spatial: tuple[int, ...]) -> Int[Tensor, "images chosen"]:
        """Flat index of the positions that count, for each image; ties of the maximum go to the first.

        Parameters
        ----------
        spatial
            Sizes of the position axes; () for a layer without any.
        """
        count = values.shape[1]
        if self.positions == "max":
            return values.argmax(1, keepdim=True)
        if self.positions == "all":
            chosen = torch.arange(count)
        elif self.positions == "center":
            chosen = torch.tensor([int(np.ravel_multi_index([size // 2 for size in spatial], spatial))] if spatial else [0])
        else:
            chosen = torch.tensor([self._flat(spot, spatial) for spot in self.positions])
        return chosen.to(values.device).expand(len(values), -1)

    def _flat(self, spot: tuple[int, ...], spatial: tuple[int, ...]) -> int:
        if len(spot) != len(spatial) or not all(0 <= at < size for at, size in zip(spot, spatial, strict=True)):
            shown = "×".join(map(str, spatial)) or "no"
            raise InputError(f"feature {self}: {self.layer} has {shown} positions, and {','.join(map(str, spot))} is none of them")
        return int(np.ravel_multi_index(spot, spatial))

    def as_dict(self) -> dict[str, Any]:
        """Plain dictionary for JSON."""
        spots = self.positions if isinstance(self.positions, str) else [list(spot) for spot in self.positions]
        return {"layer": self.layer, "weights": [list(pair) for pair in self.weights], "length": self.length, "positions": spots}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Feature":
        """Inverse of `as_dict`."""
        weights = tuple((int(channel), float(weight)) for channel, weight in data["weights"])
        return cls(data["layer"], weights, data["length"], _rule(data["positions"]))


def _rule(positions: "PositionRule | Sequence[Sequence[int]]") -> "PositionRule | tuple[tuple[int, ...], ...]":
    if isinstance(positions, str):
        rules: dict[str, PositionRule] = {"all": "all", "max": "max", "center": "center", "centre": "center"}
        if positions not in rules:
            raise InputError(f"positions: expected all, max, center or row,column; received '{positions}'")
        return rules[positions]
    spots = tuple(tuple(int(at) for at in spot) for spot in positions)
    if not spots or len(set(spots)) < len(spots):
        raise InputError("positions: expected at least one position, and each only once")
    return spots


def _places(text: str | None) -> "PositionRule | tuple[tuple[int, ...], ...]":
    if text is None:
        return "all"
    if re.fullmatch(r"\d+(,\d+)*(;\d+(,\d+)*)*", text):
        return _rule([[int(at) for at in spot.split(",")] for spot in text.split(";")])
    return _rule(text)  # type: ignore[arg-type]


def _vector(path: Path, text: str) -> Tensor:
    if path.suffix not in (".npy", ".safetensors"):
        raise InputError(f"feature: expected {EXAMPLES}; received '{text}'")
    if not path.is_file():
        raise InputError(f"feature '{text}': there is no file {path}")
    if path.suffix == ".npy":
        found = torch.from_numpy(np.load(path, allow_pickle=False).astype(np.float64))
    else:
        tensors = load_file(path)
        if len(tensors) != 1:
            raise InputError(f"feature '{text}': expected one tensor in {path.name}, found {len(tensors)}")
        found = next(iter(tensors.values()))
    if found.dim() != 1:
        raise ShapeError(f"feature '{text}': expected a vector in {path.name}, found shape {tuple(found.shape)}")
    return found
