"""From an encoded image to the pixels a network takes: decoding, resizing, cropping, with the same transform for boxes."""

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
"""errors that Pillow raises for a file it cannot decode"""

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
    """Preprocessing of a picture of any size: the shorter side is resized, the center cropped.

    Examples
    --------
    >>> ResizeCrop((8, 8)).apply(Image.new("L", (20, 10))).size
    (8, 8)
    """

    size: tuple[int, int] | None = None
    """height and width of the result; None leaves pictures as they are"""
    crop: float = 1.0
    """fraction of the resized picture's shorter side that the crop keeps"""
    interpolation: str = "bilinear"
    """filter of the resizing: nearest, bilinear, bicubic or lanczos"""

    def placement(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Geometry of the resizing and the crop of one picture.

        Parameters
        ----------
        width, height
            Size of the picture in pixels.

        Returns
        -------
        tuple
            Width and height after resizing, left and top of the crop, all in pixels.

        Examples
        --------
        >>> ResizeCrop((8, 8)).placement(20, 10)
        (16, 8, 4, 0)
        """
        if self.size is None:
            return width, height, 0, 0
        rows, columns = self.size
        scale = max(math.floor(rows / self.crop) / height, math.floor(columns / self.crop) / width)
        wide, high = max(columns, round(width * scale)), max(rows, round(height * scale))
        return wide, high, round((wide - columns) / 2), round((high - rows) / 2)

    def apply(self, picture: Image.Image) -> Image.Image:
        """The resized and cropped picture.

        Parameters
        ----------
        picture
            A picture of any size.

        Returns
        -------
        Image
            Of `size`; the same picture if `size` is None.
        """
        if self.size is None:
            return picture
        wide, high, left, top = self.placement(*picture.size)
        rows, columns = self.size
        if (wide, high) != picture.size:
            picture = picture.resize((wide, high), FILTERS[self.interpolation])
        return picture.crop((left, top, left + columns, top + rows))

    def boxes(self, boxes: Sequence[Sequence[float]], width: int, height: int) -> list[Box]:
        """Boxes after resizing and cropping, clipped to the result.

        Parameters
        ----------
        boxes
            x0, y0, x1, y1 of each box, in pixels of the picture.
        width, height
            Size of the picture in pixels.

        Returns
        -------
        list
            x0, y0, x1, y1 of each box, in pixels of the result.

        Examples
        --------
        >>> ResizeCrop((8, 8)).boxes([(0, 0, 10, 10)], 20, 10)
        [(0.0, 0.0, 4.0, 8.0)]
        """
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
    """Bytes of a file.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    bytes
        Its contents.

    Raises
    ------
    DataError
        If it cannot be read, such as a broken link.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "a.png").write_bytes(b"pixels")
    ...     contents(Path(folder, "a.png"))
    b'pixels'
    """
    try:
        return path.read_bytes()
    except OSError as error:
        reason = "a link to nothing" if path.is_symlink() and not path.exists() else error.strerror or first_line(error)
        raise DataError(f"{path}: cannot be read ({reason}); remove it, or pass skip_corrupt to leave such files out") from error


def is_gray(data: bytes | np.ndarray, where: str) -> bool:
    """Whether a picture has one gray channel.

    Parameters
    ----------
    data
        Encoded bytes, or a uint8 array (height, width) or (height, width, 3).
    where
        Location of the picture, for messages.

    Returns
    -------
    bool
        True for gray pictures, with or without transparency.

    Raises
    ------
    DataError
        If it is no picture.

    Examples
    --------
    >>> is_gray(np.zeros((2, 2), np.uint8), "here")
    True
    """
    return data.ndim == 2 if isinstance(data, np.ndarray) else open_image(data, where).mode in GRAY


def open_image(data: bytes | np.ndarray, where: str) -> Image.Image:
    """Picture of encoded bytes or of an array; its pixels are decoded on first use.

    Parameters
    ----------
    data
        Encoded bytes, or a uint8 array (height, width) or (height, width, 3).
    where
        Location of the picture, for messages.

    Returns
    -------
    Image
        Pillow's image.

    Raises
    ------
    DataError
        If it is no picture or has more than 8 bits per channel; the location is named.

    Examples
    --------
    >>> open_image(np.zeros((2, 3), np.uint8), "here").size
    (3, 2)
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

    Parameters
    ----------
    data
        Encoded bytes, or a uint8 array (height, width) or (height, width, 3).
    where
        Location of the picture, for messages.
    channels
        1 or 3: a gray picture is repeated over three channels; a color picture is refused where one channel is asked for.
    fit
        Resizing and cropping.

    Returns
    -------
    np.ndarray
        Uint8 (channels, height, width).

    Raises
    ------
    DataError
        If the picture is corrupt or has too many channels; the location is named.

    Examples
    --------
    >>> decode(np.full((2, 3), 7, np.uint8), "here", 3, ResizeCrop()).shape
    (3, 2, 3)
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
