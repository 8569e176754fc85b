"""Recipe: everything needed to make a pruned network again, in plain JSON."""

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from channelscope.errors import ChannelscopeError, FormatError
from channelscope.net.subset import Subset

FORMAT = 1


@dataclass(frozen=True)
class Factory:
    """How the unpruned network is made: the arguments of `zoo.network`."""

    name: str
    """resnet18, timm:NAME, torchvision:NAME or path/to/file.py:Class"""
    classes: int
    """number of classes"""
    channels: int
    """channels of its images"""
    image_size: int
    """shorter side of its images in pixels"""
    inputs: tuple[str, ...] = ()
    """further inputs of its forward pass, whose values lie beside the recipe"""


@dataclass(frozen=True)
class Recipe:
    """What a pruned network was made of and how."""

    kept: Subset
    """the channels of the original that are left"""
    original: str
    """fingerprint of the original's weights (net/identity.py)"""
    pruned: str
    """fingerprint of the pruned network's weights"""
    factory: Factory | None = None
    """how the original is made; None if it was not made by the zoo"""
    made: Mapping[str, Any] = field(default_factory=dict)
    """score, budget, allocation, repair, images and whatever else is worth knowing; plain values"""
    earlier: tuple[Subset, ...] = ()
    """what the network that the factory makes was cut to before, one subset for each time"""
    versions: Mapping[str, str] = field(default_factory=lambda: {"torch": torch.__version__, "python": platform.python_version()})
    """what it was made with"""

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        factory = asdict(self.factory) if self.factory else None
        plain = {"format": FORMAT, **vars(self), "kept": self.kept.as_dict(), "factory": factory}
        plain["earlier"] = [each.as_dict() for each in self.earlier]
        path.write_text(json.dumps(plain, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "Recipe":
        """Read it back.

        Raises   FormatError, naming the file, if it is missing, damaged, or of another version.
        """
        try:
            plain = json.loads(path.read_text(encoding="utf-8"))
            version = plain.pop("format")
            if version != FORMAT:
                raise FormatError(f"{path} has format {version}, this version reads {FORMAT}: prune again")
            factory = plain.pop("factory")
            earlier = tuple(Subset.from_dict(each) for each in plain.pop("earlier", ()))
            return cls(Subset.from_dict(plain.pop("kept")), earlier=earlier, factory=_factory(factory) if factory else None, **plain)
        except FileNotFoundError as error:
            raise FormatError(f"{path}: expected the recipe of a pruned network, found nothing there") from error
        except FormatError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError, ChannelscopeError) as error:
            raise FormatError(f"{path} is damaged ({type(error).__name__}: {error}): prune again") from error


def _factory(plain: Mapping[str, Any]) -> Factory:
    return Factory(**{**plain, "inputs": tuple(plain.get("inputs", ()))})
