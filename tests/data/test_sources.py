"""Folders of pictures: one folder per class, with or without parts."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from channelscope.data.images import read_images
from channelscope.data.sources import ImageSource, digits, image_folder
from channelscope.errors import DataError
from image_files import encoded, picture, write_folder


def test_one_folder_per_class(tmp_path):
    write_folder(tmp_path, {"cat": 3, "ant": 2})
    found = image_folder(tmp_path)
    (part,) = found.parts
    assert found.class_names == ("ant", "cat")
    assert part.role == "all"
    assert part.labels.tolist() == [0, 0, 1, 1, 1]
    assert part.location(4) == str(tmp_path / "cat" / "002.png")
    assert part.read(2) == encoded(picture(0))


@pytest.mark.parametrize("names", [("train", "val", "test"), ("training", "valid", "testing"), ("Train", "Validation", "TEST")])
def test_folders_named_like_parts_are_parts(tmp_path, names):
    for name, count in zip(names, (4, 2, 1), strict=True):
        write_folder(tmp_path / name, {"a": count, "b": count})
    found = image_folder(tmp_path)
    assert [(part.role, len(part)) for part in found.parts] == [("train", 8), ("validation", 4), ("test", 2)]


def test_classes_are_numbered_over_all_parts_together(tmp_path):
    write_folder(tmp_path / "train", {"a": 1, "c": 1})
    write_folder(tmp_path / "test", {"b": 1, "c": 1})
    found = image_folder(tmp_path)
    assert found.class_names == ("a", "b", "c")
    assert found.parts[0].labels.tolist() == [0, 2]
    assert found.parts[1].labels.tolist() == [1, 2]


def test_a_class_may_be_called_test(tmp_path):
    write_folder(tmp_path, {"test": 2, "real": 2})
    assert image_folder(tmp_path).class_names == ("real", "test")


def test_pictures_in_nested_folders_belong_to_the_class_above(tmp_path):
    write_folder(tmp_path / "a", {"first": 1, "second": 2})
    write_folder(tmp_path, {"b": 1})
    found = image_folder(tmp_path)
    assert found.class_names == ("a", "b")
    assert found.parts[0].labels.tolist() == [0, 0, 0, 1]


def test_other_files_and_hidden_folders_are_ignored(tmp_path):
    write_folder(tmp_path, {"a": 1, ".cache": 2})
    (tmp_path / "a" / "notes.txt").write_text("no picture")
    (tmp_path / "readme.md").write_text("no class")
    found = image_folder(tmp_path)
    assert found.class_names == ("a",)
    assert len(found.parts[0]) == 1


@pytest.mark.parametrize("ending", ["png", "PNG", "jpeg", "webp", "bmp"])
def test_endings_are_read_in_any_case(tmp_path, ending):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / f"x.{ending}").write_bytes(encoded(picture(0)))
    assert len(image_folder(tmp_path).parts[0]) == 1


def test_a_missing_folder_and_a_file_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: expected a folder with one folder per class, found nothing"):
        image_folder(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="found a file"):
        image_folder(tmp_path / "file")


def test_a_folder_without_pictures_is_refused(tmp_path):
    with pytest.raises(DataError, match="found none in 0 folders"):
        image_folder(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "loose.png").write_bytes(encoded(picture(0)))
    with pytest.raises(DataError, match="found none in 1 folders"):
        image_folder(tmp_path)


def test_a_stray_folder_beside_the_parts_is_named_and_passed_over(tmp_path):
    write_folder(tmp_path / "train", {"a": 2, "b": 2})
    write_folder(tmp_path / "val", {"a": 1, "b": 1})
    write_folder(tmp_path, {"samples": 3})
    with pytest.warns(UserWarning, match="the parts are train, val; passed over, for they are none: samples"):
        found = image_folder(tmp_path)
    assert found.class_names == ("a", "b")
    assert [(part.role, len(part)) for part in found.parts] == [("train", 4), ("validation", 2)]


def test_a_test_folder_without_classes_is_no_part(tmp_path):
    write_folder(tmp_path / "train", {"a": 2, "b": 2})
    write_folder(tmp_path, {"test": 3})
    with pytest.warns(UserWarning, match="passed over, for they are none: test"):
        assert [part.role for part in image_folder(tmp_path).parts] == ["train"]


def test_two_folders_for_one_part_are_refused(tmp_path):
    for name in ("train", "val", "dev"):
        write_folder(tmp_path / name, {"a": 2})
    with pytest.raises(DataError, match="expected one folder of validation images, found dev, val"):
        image_folder(tmp_path)


def test_a_folder_called_like_a_picture_is_none_and_what_cannot_be_read_is_said(tmp_path):
    write_folder(tmp_path, {"a": 2, "b": 2})
    (tmp_path / "b" / "z.png").mkdir()
    (part,) = image_folder(tmp_path).parts
    assert len(part) == 4
    (tmp_path / "b" / "y.png").symlink_to(tmp_path / "nothing.png")
    (part,) = image_folder(tmp_path).parts
    assert len(part) == 5
    with pytest.raises(DataError, match=r"y\.png: cannot be read \(a link to nothing\); remove it, or pass skip_corrupt"):
        part.read(4)
    images = read_images(ImageSource(f"folder:{tmp_path}", skip_corrupt=True))
    assert images.skipped == 1
    assert sum(len(x) for split in (images.calibration, images.test) for x, _, _ in split) == 4


@pytest.mark.parametrize("values", [("taylor", 1.0), (float("nan"),), (float("inf"), 1.0), ()])
def test_means_and_deviations_are_finite_numbers(values):
    for name in ("mean", "std"):
        with pytest.raises(DataError, match=f"{name}: expected finite numbers, one per channel or one for all"):
            ImageSource("digits", **{name: values})


def test_digits_of_sixteen_grays_fill_the_range_of_bytes():
    found, given = digits().parts[0], load_digits()["images"]
    for row in range(20):
        assert np.asarray(found.read(row)).tolist() == (given[row] * 255 / 16).round().tolist()
