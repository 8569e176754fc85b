"""Batches in every form that data loaders give them, and what is refused."""

import importlib
import re
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from channelscope.data import torchvision_cpu
from channelscope.data.batches import images_of, indexed_batches, labeled_batches, on_device_of, read_batch
from channelscope.errors import DataError
from channelscope.evaluation import evaluate

X = torch.arange(24.0).view(4, 1, 2, 3)
Y = torch.tensor([2, 0, 1, 1])

UNDERSTOOD = {
    "pair": (X, Y),
    "list": [X, Y],
    "int32": (X, Y.int()),
    "uint8": (X, Y.byte()),
    "whole floats": (X, Y.float()),
    "numbers": (X, Y.tolist()),
    "tuple of tensors": (X, tuple(Y)),
    "column": (X, Y[:, None]),
    "one-hot": (X, torch.nn.functional.one_hot(Y)),
    "one-hot floats": (X, torch.nn.functional.one_hot(Y, 5).float()),
    "arrays": (X.double().numpy(), Y.numpy().astype(np.int16)),
    "paths": (X, Y, [Path(name) for name in "abcd"]),
    "names": (X, Y, ("a", "b", "c", "d")),
    "array of names": (X, Y, np.array(list("abcd"))),
    "pixel_values": {"pixel_values": X, "labels": Y, "image_id": ["a", "b", "c", "d"]},
    "image": OrderedDict(image=X, label=Y.tolist()),
    "target": {"img": X, "target": Y},
}


@pytest.mark.parametrize("name", UNDERSTOOD)
def test_images_and_labels_are_read_from(name):
    batch = read_batch(UNDERSTOOD[name])
    assert batch.images.dtype == torch.float32
    assert torch.equal(batch.images, X)
    assert batch.labels is not None
    assert batch.labels.dtype == torch.int64
    assert batch.labels.tolist() == [2, 0, 1, 1]
    assert batch.index is None


@pytest.mark.parametrize("batch", [X, [X], (X,), (X, None), X.numpy(), {"image": X}, (X, [None] * 4), (X, torch.full((4,), -1))])
def test_no_labels(batch):
    found = read_batch(batch)
    assert torch.equal(found.images, X)
    assert found.labels is None


def test_an_index_is_whole_numbers():
    for index in (torch.tensor([7, 5, 3, 1]), [7, 5, 3, 1], np.array([7, 5, 3, 1], np.int32)):
        assert read_batch((X, Y, index)).index.tolist() == [7, 5, 3, 1]
    assert read_batch({"x": X, "idx": [7, 5, 3, 1]}).index.tolist() == [7, 5, 3, 1]


def test_some_labels_are_missing():
    assert read_batch((X, [2, None, 1, None])).labels.tolist() == [2, -1, 1, -1]


REFUSED = {
    "probabilities": ((X, torch.full((4, 3), 1 / 3)), "several labels or probabilities"),
    "two labels": ((X, torch.ones(4, 3)), "received 1, 1, 1"),
    "regression": ((X, Y + 0.5), "whole numbers, the class of each image, received 2.5, 0.5"),
    "too few": ((X, Y[:2]), "4 images need as many labels, one class for each, received int64 of shape"),
    "a map": ((X, torch.zeros(4, 2, 3, dtype=torch.long)), "4 images need as many labels"),
    "words": ((X, ["cat", "dog", "cat", "dog"]), "labels of a batch must be numbers.*a list of 4, the first a str"),
    "bytes": ((X.byte(), Y), "floating-point numbers, received uint8 of shape .*divide pixels by 255"),
    "a list of images": ((list(X), Y), "received a list of 4, the first a Tensor; put them together with torch.stack"),
    "weights as third": (
        (X, Y, torch.rand(4)),
        "third entry of a batch must be the index of each image in whole numbers, received float32",
    ),
    "short index": ((X, Y, torch.arange(3)), "4 images need as many index"),
    "unknown keys": ({"photo": X, "label": Y}, "needs its images as pixel_values, .* received the keys photo, label"),
    "misspelled": ({"image": X, "lable": Y}, "needs its labels as .*received the key lable"),
    "text": ("train", "received a str"),
    "nothing": ([], "received a list of nothing"),
    "a number": (3, "received a int"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    batch, said = REFUSED[name]
    with pytest.raises(DataError, match=said):
        read_batch(batch)


def test_images_are_read_whatever_else_is_there():
    assert torch.equal(images_of((X, ["cat"] * 4, torch.rand(4))), X)
    assert torch.equal(images_of({"image": X, "boxes": torch.rand(4, 4), "lable": Y}), X)
    with pytest.raises(DataError, match="received uint8"):
        images_of(X.byte())


def test_labels_that_are_not_needed_may_be_anything():
    assert read_batch((X, torch.full((4, 3), 1 / 3)), labels=False).labels is None
    assert [named for _, named, _ in indexed_batches([(X, ["cat"] * 4)], labels=False)] == [None]


def test_the_running_count_is_the_index_where_none_is_given():
    loader = DataLoader(TensorDataset(X, Y), batch_size=3)
    assert [index.tolist() for *_, index in indexed_batches(loader)] == [[0, 1, 2], [3]]
    assert [index.tolist() for *_, index in indexed_batches([(X[:0], Y[:0]), (X, Y)])] == [[0, 1, 2, 3]]


def test_an_index_now_and_then_is_refused():
    with pytest.raises(DataError, match="with every batch or with none"):
        list(indexed_batches([(X, Y, Y), (X, Y)]))


def test_a_data_set_in_the_place_of_a_loader():
    with pytest.raises(DataError, match=r"received shape \(1, 2, 3\); a data set is read through torch\.utils\.data\.DataLoader"):
        list(indexed_batches(TensorDataset(X, Y)))


def test_the_labeled_images_and_how_many_are_not():
    with pytest.warns(UserWarning, match="5 of 8 images have no label and were left out"):
        found = list(labeled_batches([(X, None), (X, [2, None, 1, 0])]))
    assert len(found) == 1
    images, labels, index = found[0]
    assert torch.equal(images, X[[0, 2, 3]])
    assert (labels.tolist(), index.tolist()) == ([2, 1, 0], [4, 6, 7])
    with pytest.raises(DataError, match="none of the 8 images has one"):
        list(labeled_batches([X, (X, None)]))


def test_placed_takes_the_type_of_the_parameters():
    assert on_device_of(X, torch.nn.Linear(3, 1).double()).dtype == torch.float64
    assert on_device_of(X, torch.nn.ReLU()) is X


def test_the_first_row_that_is_no_class_is_shown():
    ones, twice, half = [0.0, 1.0, 0.0], [1.0, 1.0, 0.0], [1.0, 0.5, 0.0]
    for rows, shown in (([ones, ones, twice, half], "1, 1, 0"), ([ones, half, twice, ones], "1, 0.5, 0")):
        with pytest.raises(DataError, match=rf"received {re.escape(shown)}:"):
            list(indexed_batches([(X, torch.tensor(rows))]))


def test_images_in_a_list_of_one_and_names_in_the_place_of_numbers():
    ((images, labels, index),) = indexed_batches([([X], Y, "street.png")])
    assert torch.equal(images, X)
    assert torch.equal(labels, Y)
    assert index.tolist() == [0, 1, 2, 3]


def test_what_has_no_numbers_is_refused():
    with pytest.raises(DataError, match="along the first axis, received one number"):
        list(indexed_batches([(torch.tensor(1.0), torch.tensor([0]))]))
    with pytest.raises(DataError, match="the labels of a batch must be numbers, one for each image"):
        list(indexed_batches([(X, [object()] * 4)]))


@pytest.fixture
def pictures(tmp_path):
    """A folder with a folder of pictures for each of three classes; every picture has one color, which is its own."""
    for label, name in enumerate(("ant", "bee", "cat")):
        (tmp_path / name).mkdir()
        for number in range(3):
            Image.new("RGB", (8, 6), (40 * label, 20 * number, 7)).save(tmp_path / name / f"{number}.png")
    return tmp_path


def test_a_loader_of_torchvisions_folders_is_read_as_it_comes(pictures):
    torchvision_cpu.load_torchvision()
    datasets, transforms = importlib.import_module("torchvision.datasets"), importlib.import_module("torchvision.transforms")
    loader = DataLoader(datasets.ImageFolder(str(pictures), transforms.ToTensor()), batch_size=4)
    images, labels, index = (torch.cat(parts) for parts in zip(*indexed_batches(loader), strict=True))
    assert labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert index.tolist() == list(range(9))
    assert torch.equal((images[:, :2, 5, 7] * 255).round().int(), torch.tensor([[40 * a, 20 * b] for a in range(3) for b in range(3)]))
    assert evaluate(nn.Sequential(nn.Flatten(), nn.Linear(8 * 6 * 3, 3)), loader).images == 9


@pytest.mark.parametrize("how", ["torch", "transform"])
def test_a_loader_of_a_hugging_face_data_set_is_read_as_it_comes(pictures, how):
    datasets = pytest.importorskip("datasets", reason="the extra hf")
    paths = sorted(pictures.rglob("*.png"))
    labels = [("ant", "bee", "cat").index(path.parent.name) for path in paths]
    pixels = [np.asarray(Image.open(path)).transpose(2, 0, 1) / np.float32(255) for path in paths]
    if how == "torch":
        found = datasets.Dataset.from_dict({"pixel_values": pixels, "label": labels}).with_format("torch")
    else:
        named = datasets.Dataset.from_dict({"path": list(map(str, paths)), "label": labels})
        found = named.with_transform(
            lambda rows: {
                "image": [torch.from_numpy(np.asarray(Image.open(path)).transpose(2, 0, 1) / np.float32(255)) for path in rows["path"]],
                "label": rows["label"],
            }
        )
    images, read, _ = (torch.cat(parts) for parts in zip(*indexed_batches(DataLoader(found, batch_size=4)), strict=True))
    assert read.tolist() == labels
    torch.testing.assert_close(images, torch.from_numpy(np.stack(pixels)))
