"""Images: every kind of source becomes the same four splits."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

import pencil_zoo as pencil
from channelscope.data import sources
from channelscope.data.decoding import ResizeCrop
from channelscope.data.images import IMAGENET, ImageSplits, read_images
from channelscope.data.sources import ImageSource, native_shape, open_dataset
from channelscope.errors import DataError
from image_files import encoded, features, made, picture, write_folder, write_parquet


@pytest.fixture(scope="module")
def digits():
    return read_images("digits")


def indices(images):
    return {name: set(getattr(images, name).indices.tolist()) for name in ("train", "calibration", "validation", "test")}


def test_the_digits_divide_into_disjoint_splits(digits):
    found = indices(digits)
    assert {name: len(some) for name, some in found.items()} == {"train": 1294, "calibration": 1294, "validation": 144, "test": 359}
    assert found["calibration"] == found["train"]
    assert not found["train"] & found["validation"]
    assert not found["train"] & found["test"]
    assert not found["validation"] & found["test"]
    assert set().union(*found.values()) == set(range(1797))


def test_what_is_known_of_the_digits(digits):
    assert digits.classes == 10
    assert digits.class_names == tuple("0123456789")
    assert digits.image_shape == (1, 8, 8)
    assert digits.skipped == 0
    assert digits.source == ImageSource("digits")


def test_classes_that_nothing_is_learned_of_are_named(tmp_path):
    """An empty folder, and one that only the test images have."""
    write_folder(tmp_path / "train", {"cat": 8, "dog": 8, "empty": 0})
    (tmp_path / "train" / "empty").mkdir(exist_ok=True)
    write_folder(tmp_path / "test", {"cat": 2, "dog": 2, "fox": 2})
    images = read_images(f"folder:{tmp_path}")
    with pytest.warns(UserWarning, match="2 of 4 classes cannot be learned, for they have no training image: empty, fox$"):
        images.require_training()


def test_the_digits_have_every_class_in_every_shard(digits):
    labels, index = digits.calibration.labels, digits.calibration.indices
    for shard in range(10):
        assert len(labels[index % 10 == shard].unique()) == 10


def test_normalized_training_images_have_mean_zero_and_variance_one(digits):
    x = torch.cat([x for x, _, _ in digits.train])
    assert float(x.mean()) == pytest.approx(0, abs=1e-3)
    assert float(x.std()) == pytest.approx(1, abs=1e-3)


def test_the_normalization_is_measured_on_training_images_only(digits):
    pixels = digits.train.pixels(torch.arange(len(digits.train))).numpy()
    mean, std = pencil.channel_statistics(pixels)
    assert digits.normalization == (tuple(round(m, 4) for m in mean), tuple(round(s, 4) for s in std))
    assert all(split.mean == digits.normalization[0] for split in (digits.train, digits.validation, digits.test))


def test_the_seed_draws_calibration_images_and_nothing_else():
    one, two = (read_images(ImageSource("digits", seed=seed, images=100)) for seed in (0, 1))
    for name in ("train", "validation", "test"):
        assert indices(one)[name] == indices(two)[name]
    assert one.normalization == two.normalization
    assert indices(one)["calibration"] != indices(two)["calibration"]
    assert indices(one)["calibration"] == indices(read_images(ImageSource("digits", images=100)))["calibration"]


def test_an_image_has_the_same_index_whatever_is_asked_for(digits):
    other = read_images(ImageSource("digits", seed=5, images=40, batch_size=7))
    where = {int(index): place for place, index in enumerate(digits.train.indices)}
    for x, y, index in other.calibration:
        for image, label, number in zip(x, y, index, strict=True):
            same, truth, _ = digits.train.batch(torch.tensor([where[int(number)]]))
            assert torch.equal(same[0], image)
            assert truth[0] == label


def test_sizes_and_batches_can_be_chosen():
    images = read_images(ImageSource("digits", images=50, batch_size=20))
    assert [len(y) for _, y, _ in images.calibration] == [20, 20, 10]
    with pytest.raises(DataError, match="at most 1294 calibration images"):
        read_images(ImageSource("digits", images=5000))


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"images": 0}, {"size": 0}, {"std": (0.0,)}, {"std": (1.0, -1.0, 1.0)}])
def test_numbers_that_make_no_sense_are_refused(wrong):
    with pytest.raises(DataError, match="expected"):
        ImageSource("digits", **wrong)


@pytest.mark.parametrize("name", ["", "cifar", "digit", "folder:", "hf:", "https://x", "folder"])
def test_an_unknown_source_says_what_is_known(name):
    with pytest.raises(DataError, match="expected digits, cifar10, cifar100, folder:PATH or hf:ID_OR_PATH"):
        open_dataset(ImageSource(name))


def test_every_option_is_explained_in_one_sentence_and_simple():
    lines = Path(sources.__file__).read_text().splitlines()
    for field in dataclasses.fields(ImageSource):
        (at,) = [number for number, line in enumerate(lines) if line.startswith(f"    {field.name}: ")][:1]
        assert lines[at + 1].strip().startswith('"""'), field.name
        assert lines[at + 1].strip().endswith('"""'), field.name
        assert field.default is not dataclasses.MISSING


def test_a_folder_with_parts(tmp_path):
    write_folder(tmp_path / "train", {"a": 20, "b": 20})
    write_folder(tmp_path / "test", {"a": 3, "b": 4})
    images = read_images(f"folder:{tmp_path}")
    assert images.class_names == ("a", "b")
    assert [len(split) for split in (images.train, images.calibration, images.validation, images.test)] == [36, 36, 4, 7]
    assert images.image_shape == (3, 8, 8)
    assert sorted(images.test.labels.tolist()) == [0, 0, 0, 1, 1, 1, 1]


def test_a_small_folder_without_parts_is_halved(tmp_path):
    write_folder(tmp_path, {"a": 11, "b": 10})
    images = read_images(f"folder:{tmp_path}")
    assert [len(split) for split in (images.train, images.calibration, images.validation, images.test)] == [0, 10, 0, 11]
    assert images.normalization == IMAGENET, "nothing to measure it on"
    other = read_images(ImageSource(f"folder:{tmp_path}", images=16))
    assert [len(other.calibration), len(other.test)] == [16, 5]


def test_the_same_pictures_in_a_folder_and_in_parquet_give_the_same_batches(tmp_path):
    labels = [row % 2 for row in range(24)]
    write_parquet(tmp_path / "parquet" / "train.parquet", sorted(labels), metadata=features("ab"))
    write_folder(tmp_path / "folder" / "train", {"a": 12, "b": 12})
    one, two = read_images(f"hf:{tmp_path / 'parquet'}"), read_images(f"folder:{tmp_path / 'folder'}")
    assert one.normalization == two.normalization
    for (x, y, index), (x2, y2, index2) in zip(one.calibration, two.calibration, strict=True):
        assert torch.equal(x, x2)
        assert torch.equal(y, y2)
        assert torch.equal(index, index2)


def test_corrupt_pictures_stop_or_are_counted(tmp_path):
    write_folder(tmp_path / "train", {"a": 20, "b": 20})
    write_folder(tmp_path / "test", {"a": 5, "b": 5})
    for bad in ("train/a/003.png", "train/b/000.png", "test/a/001.png"):
        (tmp_path / bad).write_bytes((tmp_path / bad).read_bytes()[:60])
    with pytest.raises(DataError, match=r"\d\d\d\.png: .*(corrupt|cannot be read).*"):
        read_images(f"folder:{tmp_path}")
    images = read_images(ImageSource(f"folder:{tmp_path}", skip_corrupt=True))
    assert images.skipped == 3
    assert len(images.train) + len(images.validation) == 38
    assert len(images.test) == 9
    assert sum(len(y) for split in (images.train, images.validation, images.test) for _, y, _ in split) == 47


def test_the_first_picture_may_be_the_corrupt_one(tmp_path):
    write_folder(tmp_path, {"a": 6, "b": 6})
    (tmp_path / "a" / "000.png").write_bytes(b"")
    assert native_shape(open_dataset(ImageSource(f"folder:{tmp_path}"))) == (3, 8, 8)
    assert read_images(ImageSource(f"folder:{tmp_path}", skip_corrupt=True)).skipped == 1
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"no image can be read; the last one: .*005\.png"):
        read_images(f"folder:{tmp_path}")


def test_indices_do_not_move_when_a_corrupt_picture_is_skipped(tmp_path):
    write_folder(tmp_path, {"a": 10, "b": 10})
    before = {tuple(x.flatten().tolist()): int(i) for x, _, i in read_images(ImageSource(f"folder:{tmp_path}", batch_size=1)).test}
    (tmp_path / "a" / "004.png").write_bytes(b"")
    after = {
        tuple(x.flatten().tolist()): int(i)
        for x, _, i in read_images(ImageSource(f"folder:{tmp_path}", batch_size=1, skip_corrupt=True)).test
    }
    assert after.items() <= before.items()


def test_one_readable_picture_leaves_nothing_to_calibrate_on(tmp_path):
    write_folder(tmp_path, {"a": 1})
    with pytest.raises(DataError, match="expected at least one calibration image"):
        read_images(f"folder:{tmp_path}")


def test_pictures_of_different_sizes_need_a_size(tmp_path):
    write_folder(tmp_path / "a", {"x": 6}, size=(20, 12))
    write_folder(tmp_path / "b", {"y": 6}, size=(12, 16))
    images = read_images(f"folder:{tmp_path}")
    with pytest.raises(DataError, match="pass size"):
        list(images.calibration)
    images = read_images(ImageSource(f"folder:{tmp_path}", size=10))
    assert images.image_shape == (3, 10, 10)
    assert sum(len(y) for _, y, _ in images.calibration) == 6


def test_gray_and_color_are_told_apart_by_the_first_picture(tmp_path):
    write_folder(tmp_path, {"a": 4, "b": 4}, gray=True)
    images = read_images(f"folder:{tmp_path}")
    assert images.image_shape == (1, 8, 8)
    assert len(images.normalization[0]) == len(images.normalization[1]) == 1
    (tmp_path / "b" / "000.png").write_bytes(encoded(picture(0)))
    with pytest.raises(DataError, match=r"b/000\.png: expected one gray channel"):
        [list(split) for split in (images.calibration, images.test)]


def test_mean_and_std_can_be_given_for_each_channel_or_for_all(tmp_path):
    found = made([row % 2 for row in range(1200)])
    each = read_images(ImageSource(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7)), found=found)
    assert each.normalization == ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    whole = read_images(ImageSource(mean=(0.5,), std=(0.25,)), found=found)
    assert whole.normalization == ((0.5,) * 3, (0.25,) * 3)
    with pytest.raises(DataError, match=r"expected one mean per channel \(3\) or one for all, received 2"):
        read_images(ImageSource(mean=(0.5, 0.5)), found=found)


def test_given_numbers_come_before_the_networks_and_these_before_the_datas():
    found, own = made([row % 2 for row in range(1200)]), ((0.3,) * 3, (0.4,) * 3)
    assert read_images(ImageSource(), normalization=own, found=found).normalization == own
    assert read_images(ImageSource(mean=(0.1,)), normalization=own, found=found).normalization == ((0.1,) * 3, (0.4,) * 3)
    measured = read_images(ImageSource(), found=found).normalization
    assert measured[0] == pytest.approx((0.5,) * 3, abs=0.02)
    assert measured[1] == pytest.approx((0.29,) * 3, abs=0.02)


def test_large_images_take_imagenets_numbers():
    found = made([row % 2 for row in range(1200)], size=(70, 70))
    assert read_images(ImageSource(), found=found).normalization == IMAGENET
    gray = made([row % 2 for row in range(1200)], size=(70, 70), gray=True)
    mean, std = read_images(ImageSource(), found=gray).normalization
    assert mean[0] == pytest.approx(np.mean(IMAGENET[0]))
    assert std[0] == pytest.approx(np.mean(IMAGENET[1]))


def test_a_constant_channel_has_no_std():
    found = made([row % 2 for row in range(1200)])
    shelf = dataclasses.replace(found.parts[0], read=lambda row: np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(DataError, match="a channel is the same in all images"):
        read_images(ImageSource(), found=dataclasses.replace(found, parts=(shelf,)))


def test_a_size_of_the_users_comes_before_the_networks():
    found = made([row % 2 for row in range(1200)], size=(20, 20))
    assert read_images(ImageSource(), ResizeCrop((12, 12)), found=found).image_shape == (3, 12, 12)
    assert read_images(ImageSource(size=16), ResizeCrop((12, 12)), found=found).image_shape == (3, 16, 16)
    assert read_images(ImageSource(), found=found).image_shape == (3, 20, 20)


def test_the_description_is_plain_data(digits):
    said = digits.describe()
    assert said["data"] == "digits"
    assert said["splits"] == {"train": 1294, "calibration": 1294, "validation": 144, "test": 359}
    assert said["image_shape"] == [1, 8, 8]
    assert said["mean"] == list(digits.normalization[0])
    assert isinstance(digits, ImageSplits)
