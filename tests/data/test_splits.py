"""Splits and the album below them: what is iterated, decoded, kept and refused."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pencil_zoo as pencil
from channelscope.data import splits as splitting
from channelscope.data.decoding import ResizeCrop
from channelscope.data.splits import ImageStore, Partition, PartitionedDataset, Split
from channelscope.errors import DataError
from image_files import encoded, made, picture

LABELS = [0, 1, 1, 0, 1, 0, 0, 1, 1, 0, 1]
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)


def split(batch_size=4, rows=None, **options):
    album = ImageStore(made(LABELS, **options), ResizeCrop(), 3)
    rows = torch.arange(len(LABELS)) if rows is None else torch.tensor(rows)
    return Split("train", album, rows, rows * 10 + 3, MEAN, STD, batch_size)


def counted(shelves):
    """The same shelves, and a list that grows with every file that is read."""
    read = []

    def watch(shelf):
        def fetch(row):
            read.append(row)
            return shelf.read(row)

        return dataclasses.replace(shelf, read=fetch)

    return PartitionedDataset(shelves.name, tuple(watch(shelf) for shelf in shelves.parts), shelves.class_names), read


def test_batches_are_normalized_images_labels_and_indices():
    found = list(split())
    assert [len(y) for _, y, _ in found] == [4, 4, 3]
    x, y, index = found[0]
    assert (x.dtype, y.dtype, index.dtype) == (torch.float32, torch.int64, torch.int64)
    assert x.shape == (4, 3, 8, 8)
    pixels = np.stack([picture(row).transpose(2, 0, 1) for row in range(4)])
    np.testing.assert_allclose(x.numpy(), pencil.normalized(pixels, MEAN, STD), atol=1e-5)
    assert torch.cat([y for _, y, _ in found]).tolist() == LABELS
    assert torch.cat([index for _, _, index in found]).tolist() == [10 * row + 3 for row in range(11)]


def test_a_split_can_be_iterated_again_with_the_same_result():
    train = split()
    for one, two in zip(train, train, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@given(st.integers(1, 20))
@settings(max_examples=12, deadline=None)
def test_the_batch_size_changes_nothing_but_the_batches(size):
    whole = [torch.cat(parts) for parts in zip(*split(size), strict=True)]
    usual = [torch.cat(parts) for parts in zip(*split(), strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(whole, usual, strict=True))
    assert len(list(split().with_batch_size(size))) == -(-11 // size)


@given(st.permutations(range(11)), st.integers(0, 11))
@settings(max_examples=20, deadline=None)
def test_rows_come_in_the_order_of_the_split(rows, n):
    taken = split(rows=rows).take(n)
    assert len(taken) == n
    assert taken.labels.tolist() == [LABELS[row] for row in rows[:n]]
    assert taken.indices.tolist() == [10 * row + 3 for row in rows[:n]]
    if n:
        assert torch.equal(taken.pixels(torch.tensor([n - 1]))[0], torch.from_numpy(picture(rows[n - 1]).transpose(2, 0, 1).copy()))


def test_what_is_left_after_the_first_images():
    whole = split()
    assert torch.equal(whole.drop(3).indices, whole.indices[3:])
    assert len(whole.drop(11)) == 0
    with pytest.raises(DataError, match="at most 11 images of the train split, asked to leave out 12"):
        whole.drop(12)


def test_more_than_there_are_cannot_be_taken():
    with pytest.raises(DataError, match="at most 11 images of the train split, asked for 12"):
        split().take(12)
    with pytest.raises(DataError, match="asked for -1"):
        split().take(-1)


def test_what_a_split_says_of_itself():
    train = split()
    assert (train.name, len(train), train.classes, train.image_shape) == ("train", 11, 2, (3, 8, 8))
    assert "album" not in repr(train)
    assert train.take(3).name == "train"


def test_an_empty_split_has_no_batches():
    assert list(split().take(0)) == []


def test_normalization_is_the_same_for_bytes_on_any_batch():
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    np.testing.assert_allclose(split().normalized(pixels).numpy(), pencil.normalized(pixels.numpy(), MEAN, STD), atol=1e-5)


def test_pictures_are_decoded_once_and_only_when_asked_for():
    shelves, read = counted(made(LABELS))
    album = ImageStore(shelves, ResizeCrop(), 3)
    assert album.shape == (3, 8, 8)
    read.clear()
    album.read(torch.tensor([4, 2, 4]))
    assert sorted(read) == [2, 4]
    album.read(torch.tensor([2, 5]))
    assert sorted(read) == [2, 4, 5]


def test_large_sets_are_decoded_on_every_pass(monkeypatch):
    monkeypatch.setattr(splitting, "KEPT_BYTES", 100)
    shelves, read = counted(made(LABELS))
    album = ImageStore(shelves, ResizeCrop((4, 4)), 3)
    once, twice = album.read(torch.tensor([3, 1])), album.read(torch.tensor([3, 1]))
    assert sorted(read) == [1, 1, 3, 3]
    assert torch.equal(once, twice)


def test_what_is_returned_is_not_what_is_kept():
    album = ImageStore(made(LABELS), ResizeCrop(), 3)
    album.read(torch.tensor([0])).zero_()
    assert album.read(torch.tensor([0])).any()


def test_many_pictures_are_decoded_in_order():
    labels = [row % 2 for row in range(150)]
    album = ImageStore(made(labels), ResizeCrop(), 3)
    order = torch.randperm(150, generator=torch.Generator().manual_seed(0))
    for row, pixels in zip(order.tolist(), album.read(order), strict=True):
        assert np.array_equal(pixels.numpy(), picture(row).transpose(2, 0, 1))


def test_rows_run_through_all_parts():
    parts = (made([0, 1, 0], part="train").parts[0], made([1, 1], part="test").parts[0])
    album = ImageStore(PartitionedDataset("two", parts, ("a", "b")), ResizeCrop(), 3)
    assert [(album.locate(row)[0].role, album.locate(row)[1]) for row in range(5)] == [
        ("train", 0),
        ("train", 1),
        ("train", 2),
        ("test", 0),
        ("test", 1),
    ]
    assert album.labels.tolist() == [0, 1, 0, 1, 1]
    assert torch.equal(album.read(torch.tensor([3])), album.read(torch.tensor([0])))


def test_the_fit_decides_the_shape():
    album = ImageStore(made(LABELS, size=(20, 12)), ResizeCrop((6, 10), 0.9), 3)
    assert album.shape == (3, 6, 10)
    assert album.read(torch.tensor([0])).shape == (1, 3, 6, 10)
    assert album.size(0) == (20, 12)


def mixed(bad=(), small=()):
    """Encoded pictures, some of them broken, some of another size."""

    def fetch(row):
        data = encoded(picture(row, (5, 5) if row in small else (8, 8)))
        return data[: len(data) // 2] if row in bad else data

    shelf = Partition("all", torch.tensor(LABELS), fetch, lambda row: f"folder/{row}.png")
    return ImageStore(PartitionedDataset("mixed", (shelf,), ("a", "b")), ResizeCrop(), 3)


def test_a_corrupt_picture_is_named_when_it_is_met():
    album = mixed(bad=(7,))
    assert album.read(torch.arange(7)).shape == (7, 3, 8, 8)
    with pytest.raises(DataError, match=r"folder/7\.png: the picture is corrupt"):
        album.read(torch.arange(11))


def test_corrupt_pictures_are_listed():
    assert mixed(bad=(0, 7)).corrupt_rows() == [0, 7]
    assert mixed().corrupt_rows() == []
    for ask in (lambda album: album.corrupt_rows(), lambda album: album.shape):
        with pytest.raises(DataError, match="mixed: none of the 11 images can be decoded"):
            ask(mixed(bad=range(11)))


def test_the_shape_is_that_of_the_first_readable_picture():
    assert mixed(bad=(0, 1)).shape == (3, 8, 8)


def test_a_picture_of_another_size_is_named_with_what_to_do():
    with pytest.raises(DataError, match=r"folder/4\.png: expected 8×8 pixels like the set's first picture, received 5×5; pass size"):
        mixed(small=(4,)).read(torch.arange(11))


def test_gray_pictures_have_one_channel():
    album = ImageStore(made(LABELS, gray=True), ResizeCrop(), 1)
    assert album.read(torch.tensor([1, 2])).shape == (2, 1, 8, 8)


def test_further_columns_follow_the_order_of_the_split():
    train = split(rows=[4, 0, 9], weight=[row / 10 for row in range(11)])
    assert train.column("weight") == [0.4, 0.0, 0.9]
    with pytest.raises(DataError, match=r"made: expected a column 'age', the further columns are: weight"):
        train.column("age")
    with pytest.raises(DataError, match="are: none"):
        split().column("age")


def test_boxes_move_with_their_pictures():
    boxes = [[(4.0, 2.0, 12.0, 8.0)], [(0.0, 0.0, 20.0, 12.0), (10.0, 6.0, 11.0, 7.0)]]
    album = ImageStore(made([0, 1], size=(20, 12), boxes=boxes), ResizeCrop((6, 6), 0.9), 3)
    found = Split("test", album, torch.tensor([1, 0]), torch.tensor([0, 1]), MEAN, STD)
    expected = [[pencil.box_through(box, 20, 12, 6, 0.9) for box in boxes[row]] for row in (1, 0)]
    for got, want in zip(found.column("boxes"), expected, strict=True):
        np.testing.assert_allclose(got, want)


def test_pictures_that_an_evaluation_read_first_can_be_read_by_training():
    """What is kept in memory belongs to no inference mode: a network with a normalization of its own is evaluated before it is trained."""
    store = ImageStore(made(LABELS), ResizeCrop(), 3)
    with torch.inference_mode():
        first = store.read(torch.tensor([3, 1]))
    again = store.read(torch.tensor([1, 2, 3]))
    assert not again.is_inference()
    assert torch.equal(again[[2, 0]], first)
    assert torch.equal(again, ImageStore(made(LABELS), ResizeCrop(), 3).read(torch.tensor([1, 2, 3])))
