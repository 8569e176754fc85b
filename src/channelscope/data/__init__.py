"""Images: data sets by name or path, their decoding, and splits that are kept apart."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from channelscope.data.images import ImageSplits, object_masks, read_images
    from channelscope.data.sources import ImageSource
    from channelscope.data.splits import Split

_HOMES = {
    "images": (
        "ImageSplits",
        "object_masks",
        "read_images",
    ),
    "sources": ("ImageSource",),
    "splits": ("Split",),
}

__all__ = [
    "ImageSource",
    "ImageSplits",
    "Split",
    "object_masks",
    "read_images",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return vars(import_module(f"channelscope.data.{home}"))[name]
    raise AttributeError(f"module 'channelscope.data' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
