"""Shelves: what a data set has, before anything is decoded."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from channelscope.data import torchvision_cpu
from channelscope.data.sources import cifar, digits
from channelscope.data.splits import ROLES, Partition, PartitionedDataset, from_arrays
from channelscope.errors import DataError


def shelf(part="train", labels=(0, 1)):
    return Partition(part, torch.tensor(labels), lambda row: b"", lambda row: f"{part} row {row}")


def test_the_digits_are_those_of_scikit_learn():
    found = digits()
    (part,) = found.parts
    bunch = load_digits()
    assert len(part) == 1797
    assert part.role == "all"
    assert torch.equal(part.labels, torch.as_tensor(bunch["target"], dtype=torch.int64))
    assert found.class_names == tuple("0123456789")
    for row in (0, 1000, 1796):
        np.testing.assert_allclose(part.read(row) / 255, bunch["images"][row] / 16, atol=0.5 / 255)


def test_all_seventeen_levels_of_the_digits_survive():
    part = digits().parts[0]
    levels = np.unique(np.stack([part.read(row) for row in range(200)]))
    assert len(levels) == 17
    assert levels[0] == 0
    assert levels[-1] == 255


def test_parts_are_put_in_order():
    found = PartitionedDataset("set", (shelf("test"), shelf("validation"), shelf("train")), ("a", "b"))
    assert [part.role for part in found.parts] == ["train", "validation", "test"]


def test_an_empty_set_is_refused():
    with pytest.raises(DataError, match="nothing: expected labeled images, received none"):
        PartitionedDataset("nothing", (shelf(labels=()),), ("a",))
    with pytest.raises(DataError, match="received none"):
        PartitionedDataset("nothing", (), ("a",))


def test_a_part_whose_labels_are_withheld_is_left_out():
    found = PartitionedDataset("set", (shelf("train"), shelf("test", (-1, -1))), ("a", "b"))
    assert [part.role for part in found.parts] == ["train"]
    with pytest.raises(DataError, match="received none"):
        PartitionedDataset("set", (shelf("test", (-1, -1)),), ("a",))


@pytest.mark.parametrize("labels", [(0, 1, 2), (0, -1, 1), (0, 1, 100)])
def test_a_label_that_is_no_class_is_refused_where_it_is(labels):
    with pytest.raises(DataError, match=r"train row [12]: expected a label from 0 to 1, received (2|-1|100)"):
        PartitionedDataset("set", (shelf(labels=labels),), ("a", "b"))


def test_pictures_in_memory():
    pixels = np.arange(2 * 4 * 4).reshape(2, 4, 4).astype(np.uint8)
    found = from_arrays("train", pixels, np.array([1, 0]), "made")
    assert found.labels.dtype == torch.int64
    assert np.array_equal(found.read(1), pixels[1])
    assert found.location(1) == "made, train image 1"


def test_the_roles_cover_what_data_sets_call_their_parts():
    assert set(ROLES.values()) == {"train", "validation", "test"}
    assert ROLES["val"] == ROLES["valid"] == ROLES["validation"]


class Archive:
    """Stands in for torchvision's downloaded archive."""

    def __init__(self, root, train, download):
        self.root, self.download = root, download
        self.data = np.full((6 if train else 2, 32, 32, 3), 5 if train else 9, np.uint8)
        self.targets = [0, 1, 0, 1, 0, 1] if train else [1, 0]
        self.classes = ["plane", "car"]


@pytest.mark.parametrize(("name", "attribute"), [("cifar10", "CIFAR10"), ("cifar100", "CIFAR100")])
def test_cifar_is_what_the_archive_holds(monkeypatch, tmp_path, name, attribute):
    monkeypatch.setattr(torchvision_cpu.datasets, attribute, Archive)
    found = cifar(name, tmp_path)
    assert [(part.role, len(part)) for part in found.parts] == [("train", 6), ("test", 2)]
    assert found.class_names == ("plane", "car")
    assert found.parts[1].read(0).max() == 9
    assert found.parts[1].labels.tolist() == [1, 0]


@pytest.mark.parametrize("trouble", [OSError("no route to host"), RuntimeError("File not found or corrupted.")])
def test_cifar_without_a_network_says_what_to_do(monkeypatch, tmp_path, trouble):
    def refuse(*args, **options):
        raise trouble

    monkeypatch.setattr(torchvision_cpu.datasets, "CIFAR10", refuse)
    with pytest.raises(DataError, match=r"cifar10: not found in .* download failed .*data='hf:FOLDER'"):
        cifar("cifar10", tmp_path)
