"""Object masks: the pixels of the object in each image, from a column or a folder of mask images."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch

from channelscope.data.decoding import BROKEN, ResizeCrop, contents, open_image
from channelscope.data.sources import IMAGE_SUFFIXES
from channelscope.data.splits import Split
from channelscope.errors import DataError, first_line
from channelscope.types import Bool, Tensor

FOLDER = "folder:"


def object_masks(split: Split, where: str) -> list[Bool[Tensor, "height width"]]:
    """Object masks of the images of a split, resized and cropped as the images are (nearest pixel).

    Parameters
    ----------
    split
        Images of a data set.
    where
        A column of the data set with a mask image for every picture; or, for a data set of folders, folder:PATH with a mask
        at the relative path and name of every picture (any ending).

    Returns
    -------
    list
        For each image bool (height, width), true where the mask image is above zero.

    Raises
    ------
    DataError
        For a mask that is missing, no picture, or not as large as its picture.

    Examples
    --------
    >>> import tempfile
    >>> from PIL import Image
    >>> from channelscope.data.images import ImageSource, read_images
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name, color in (("photos/cat/1.png", 90), ("masks/cat/1.png", 255), ("photos/cat/2.png", 9), ("masks/cat/2.png", 0)):
    ...         Path(folder, name).parent.mkdir(parents=True, exist_ok=True)
    ...         Image.new("L", (4, 3), color).save(Path(folder, name))
    ...     split = read_images(ImageSource(f"folder:{folder}/photos", mean=(0.0,), std=(1.0,))).calibration
    ...     masks = object_masks(split, f"folder:{folder}/masks")
    >>> masks[0].shape
    torch.Size([3, 4])
    """
    return [_mask(split, row, data) for row, data in zip(split.rows.tolist(), _files(split, where), strict=True)]


def _files(split: Split, where: str) -> list[Any]:
    """The encoded mask of each image, None where the column has none."""
    if not where.startswith(FOLDER):
        cells = [cell if isinstance(cell, dict) else {"bytes": cell} for cell in split.column(where)]
        return [contents(Path(cell["path"])) if cell.get("bytes") is None and cell.get("path") else cell.get("bytes") for cell in cells]
    root = Path(where.removeprefix(FOLDER)).expanduser()
    return [contents(_mask_file(root, path)) for path in split.column("path")]


def _mask_file(root: Path, path: Path) -> Path:
    """The mask of the picture at a path within its data set."""
    found = [each for each in sorted((root / path.parent).glob("*")) if each.stem == path.stem and each.suffix.lower() in IMAGE_SUFFIXES]
    if not found:
        raise DataError(
            f"{root / path.with_suffix('')}: expected the mask of {path} (any of {' '.join(sorted(IMAGE_SUFFIXES))}), found none"
        )
    return found[0]


def _mask(split: Split, row: int, data: Any) -> Tensor:
    partition, place = split.store.locate(row)
    where = f"the mask of {partition.location(place)}"
    if not isinstance(data, bytes):
        raise DataError(f"{where}: expected an encoded picture, received {type(data).__name__}; name a column of mask images")
    picture, size = open_image(data, where), split.store.size(row)
    if picture.size != size:
        raise DataError(f"{where}: expected {size[0]}×{size[1]} pixels like the picture, received {picture.size[0]}×{picture.size[1]}")
    if picture.mode not in ("1", "L", "P", "RGB"):
        raise DataError(f"{where}: expected gray, palette or RGB pixels, zero where there is no object, received mode {picture.mode}")
    fit: ResizeCrop = dataclasses.replace(split.store.fit, interpolation="nearest")
    try:
        values = np.asarray(fit.apply(picture))
    except BROKEN as error:
        raise DataError(f"{where} is corrupt: {first_line(error)}") from error
    return torch.from_numpy(values.reshape(*values.shape[:2], -1).any(-1))
