"""Images: data sets by name or path, their decoding, and splits that are kept apart."""

from channelscope.data.images import ImageSplits, read_images
from channelscope.data.masks import object_masks
from channelscope.data.sources import ImageSource
from channelscope.data.splits import Split

__all__ = [
    "ImageSource",
    "ImageSplits",
    "Split",
    "object_masks",
    "read_images",
]
