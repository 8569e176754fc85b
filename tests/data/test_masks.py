"""Masks of objects: from a column or a folder, moved along with their pictures, and what is refused."""

import numpy as np
import pytest
import torch

from channelscope import data
from channelscope.data.decoding import ResizeCrop
from channelscope.data.images import object_masks
from channelscope.data.splits import ImageStore, Split
from channelscope.errors import DataError
from image_files import encoded, made, picture, write_folder, write_parquet

SIZE = (20, 12)
FIT = ResizeCrop((6, 6), 0.9, "bicubic")


def outline(seed, size=SIZE):
    """A gray mask image: some pixels 0, the others any other value."""
    return picture(seed, size, gray=True) * (picture(seed + 100, size, gray=True) > 128)


def split(cells, fit=FIT):
    album = ImageStore(made([0, 1, 0], size=SIZE, mask=cells), fit, 3)
    return Split("test", album, torch.tensor([2, 0, 1]), torch.arange(3), (0.5,), (0.5,))


def nearest(plane):
    """The pencil twin: the pixel under the center of each pixel of the result."""
    wide, high, left, top = FIT.placement(*SIZE)
    rows, columns = ((np.arange(6) + shift + 0.5) * old / new for shift, old, new in ((top, SIZE[1], high), (left, SIZE[0], wide)))
    return plane[rows.astype(int)[:, None], columns.astype(int)[None]]


@pytest.mark.parametrize("wrapped", [False, True], ids=["bytes", "structs"])
def test_masks_move_with_their_pictures_and_stay_masks(wrapped):
    data = [encoded(outline(seed)) for seed in range(3)]
    found = object_masks(split([{"bytes": each, "path": None} for each in data] if wrapped else data), "mask")
    for got, seed in zip(found, (2, 0, 1), strict=True):
        assert got.dtype == torch.bool
        assert np.array_equal(got.numpy(), nearest(outline(seed) > 0))


def test_colors_count_where_any_is_above_zero():
    color = np.zeros((12, 20, 3), np.uint8)
    color[3:9, :10, 2] = 1
    found = object_masks(split([encoded(color)] * 3, ResizeCrop()), "mask")[0]
    assert found.sum() == 60
    assert bool(found[3:9, :10].all())


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        (None, "the mask of made row 2: expected an encoded picture, received NoneType"),
        ([[0.0, 0.0, 1.0, 1.0]], "received list; name a column of mask images"),
        (b"no picture", "cannot be read"),
        (encoded(picture(0, (8, 8), gray=True)), "expected 20×12 pixels like the picture, received 8×8"),
        (encoded(np.zeros((12, 20, 4), np.uint8)), "received mode RGBA"),
        (encoded(outline(0))[:-40], "the mask of made row 2 is corrupt"),
    ],
)
def test_masks_that_cannot_be_used(cell, said):
    good = encoded(outline(0))
    with pytest.raises(DataError, match=said):
        object_masks(split([good, good, cell]), "mask")


def test_a_column_that_is_not_there():
    with pytest.raises(DataError, match="expected a column 'outline', the further columns are: mask"):
        object_masks(split([encoded(outline(0))] * 3), "outline")


def test_a_column_of_a_parquet_set(tmp_path):
    cells = [{"bytes": encoded(outline(seed)), "path": None} for seed in range(8)]
    write_parquet(tmp_path / "validation.parquet", [0, 1] * 4, size=SIZE, mask=cells)
    images = data.read_images(f"hf:{tmp_path}")
    for row, found in zip(images.test.rows.tolist(), object_masks(images.test, "mask"), strict=True):
        assert np.array_equal(found.numpy(), outline(row) > 0)


def test_a_file_that_a_parquet_set_only_names(tmp_path):
    (tmp_path / "0.png").write_bytes(encoded(outline(5)))
    found = object_masks(split([{"bytes": None, "path": str(tmp_path / "0.png")}] * 3, ResizeCrop()), "mask")
    assert np.array_equal(found[0].numpy(), outline(5) > 0)


def test_a_folder_of_the_same_layout(tmp_path):
    pictures = write_folder(tmp_path / "pictures", {"a": 4, "b": 4}, size=SIZE)
    write_folder(tmp_path / "masks", {"a": 4, "b": 4}, gray=True, size=SIZE)
    images = data.read_images(f"folder:{pictures}")
    for row, found in zip(images.test.rows.tolist(), object_masks(images.test, f"folder:{tmp_path / 'masks'}"), strict=True):
        assert np.array_equal(found.numpy(), picture(row, SIZE, gray=True) > 0)
    (path,) = images.test.take(1).column("path")
    (tmp_path / "masks" / path).unlink()
    with pytest.raises(DataError, match=f"expected the mask of {path}"):
        object_masks(images.test, f"folder:{tmp_path / 'masks'}")
