"""From an encoded image to the pixels a network takes: decoding, resizing, cropping, and boxes that move along."""

import io
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from channelscope.errors import DataError, first_line

BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, OverflowError, struct.error, zlib.error, Image.DecompressionBombError)
"""what Pillow raises for a file that it cannot decode"""

GRAY = {"1", "L", "LA"}

COLOR = {"RGB", "RGBA", "RGBX", "P", "PA", "CMYK", "YCbCr"}

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class ResizeCrop:
    """How a picture of any size becomes the network's input: the shorter side is resized, the center cropped."""

    size: tuple[int, int] | None = None
    """height and width of the result; None leaves pictures as they are"""
    crop: float = 1.0
    """share of the resized picture's side that the crop keeps"""
    interpolation: str = "bilinear"
    """filter of the resizing: nearest, bilinear, bicubic or lanczos"""

    def placement(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Width and height after resizing, then left and top of the crop, all in pixels."""
        if self.size is None:
            return width, height, 0, 0
        rows, columns = self.size
        scale = max(math.floor(rows / self.crop) / height, math.floor(columns / self.crop) / width)
        wide, high = max(columns, round(width * scale)), max(rows, round(height * scale))
        return wide, high, round((wide - columns) / 2), round((high - rows) / 2)

    def apply(self, picture: Image.Image) -> Image.Image:
        """The resized and cropped picture."""
        if self.size is None:
            return picture
        wide, high, left, top = self.placement(*picture.size)
        rows, columns = self.size
        if (wide, high) != picture.size:
            picture = picture.resize((wide, high), FILTERS[self.interpolation])
        return picture.crop((left, top, left + columns, top + rows))

    def boxes(self, boxes: Sequence[Sequence[float]], width: int, height: int) -> list[Box]:
        """Boxes (x0, y0, x1, y1) in pixels of a picture of that size, in pixels of the result, cut at its border."""
        wide, high, left, top = self.placement(width, height)
        rows, columns = self.size or (height, width)
        sx, sy = wide / width, high / height

        def moved(value: float, scale: float, shift: int, end: int) -> float:
            return float(min(max(value * scale - shift, 0.0), end))

        return [
            (moved(x0, sx, left, columns), moved(y0, sy, top, rows), moved(x1, sx, left, columns), moved(y1, sy, top, rows))
            for x0, y0, x1, y1 in boxes
        ]


def contents(path: Path) -> bytes:
    """The bytes of a picture's file.

    Raises
    ------
    DataError
        If it cannot be read, such as a link to nothing.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        reason = "a link to nothing" if path.is_symlink() and not path.exists() else error.strerror or first_line(error)
        raise DataError(f"{path}: cannot be read ({reason}); remove it, or pass skip_corrupt to leave such files out") from error


def is_gray(data: bytes | np.ndarray, where: str) -> bool:
    """Whether a picture has one gray channel; DataError if it is no picture."""
    return data.ndim == 2 if isinstance(data, np.ndarray) else open_image(data, where).mode in GRAY


def open_image(data: bytes | np.ndarray, where: str) -> Image.Image:
    """A picture from its encoded bytes, or from a uint8 array (H, W) or (H, W, 3); pixels are decoded on first use.

    Raises
    ------
    DataError
        Naming the place if it is no picture or has more than 8 bits per channel.
    """
    if isinstance(data, np.ndarray):
        return Image.fromarray(data)
    try:
        picture = Image.open(io.BytesIO(data))
    except BROKEN as error:
        raise DataError(
            f"{where}: expected a picture, received {len(data)} bytes that cannot be read as one ({first_line(error)}); remove it, or pass "
            "skip_corrupt to leave such files out"
        ) from error
    if picture.mode not in GRAY | COLOR:
        raise DataError(f"{where}: expected 8 bits per channel, received a picture of mode {picture.mode}; convert it to 8 bits first")
    return picture


def decode(data: bytes | np.ndarray, where: str, channels: int, fit: ResizeCrop) -> np.ndarray:
    """Pixels of one picture, resized and cropped.

    Gray pictures among color ones are repeated over the channels; color among gray is refused.

    Returns
    -------
    np.ndarray
        Uint8 (channels, H, W).

    Raises
    ------
    DataError
        Naming the place if the picture is corrupt or has too many channels.
    """
    picture = open_image(data, where)
    if channels == 1 and picture.mode not in GRAY:
        raise DataError(f"{where}: expected one gray channel like the set's first picture, received mode {picture.mode}")
    try:
        pixels = np.asarray(fit.apply(picture.convert("L" if channels == 1 else "RGB")))
    except BROKEN as error:
        raise DataError(
            f"{where}: the picture is corrupt ({first_line(error)}); remove it, or pass skip_corrupt to leave such files out"
        ) from error
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)
