"""Tables of pictures: local parquet folders, and the hub's data sets through a stand-in."""

import sys
import types

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import odd_files
from channelscope.data.decoding import ResizeCrop, decode
from channelscope.data.sources import parquet_or_hub
from channelscope.errors import DataError
from image_files import encoded, features, picture, write_parquet


def pixels(part, row):
    return decode(part.read(row), part.location(row), 3, ResizeCrop())


def test_parts_classes_and_pictures_come_back(tmp_path):
    write_parquet(tmp_path / "data" / "train-00000-of-00001.parquet", [0, 1, 2, 1], metadata=features("abc"))
    write_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", [2, 0], metadata=features("abc"))
    found = parquet_or_hub(str(tmp_path))
    assert [(part.role, part.labels.tolist()) for part in found.parts] == [("train", [0, 1, 2, 1]), ("test", [2, 0])]
    assert found.class_names == ("a", "b", "c")
    assert found.name == f"hf:{tmp_path}"
    for row in range(4):
        assert np.array_equal(pixels(found.parts[0], row), picture(row).transpose(2, 0, 1))
    assert found.parts[1].location(1) == f"{tmp_path}, test row 1, column image"


def test_files_of_one_part_are_joined_in_order(tmp_path):
    for number, labels in enumerate(([0, 0], [1, 1, 1], [0])):
        write_parquet(tmp_path / f"train-0000{number}-of-00003.parquet", labels)
    (part,) = parquet_or_hub(str(tmp_path)).parts
    assert part.labels.tolist() == [0, 0, 1, 1, 1, 0]
    assert np.array_equal(pixels(part, 3), picture(1).transpose(2, 0, 1)), "second row of the second file"


@pytest.mark.parametrize(
    ("file", "part"),
    [
        ("train-00000-of-00001.parquet", "train"),
        ("train/0000.parquet", "train"),
        ("validation-00000.parquet", "validation"),
        ("valid.parquet", "validation"),
        ("data/test-1.parquet", "test"),
        ("everything.parquet", "all"),
    ],
)
def test_the_part_is_in_the_name_of_the_file_or_its_folder(tmp_path, file, part):
    write_parquet(tmp_path / file, [0, 1])
    assert [found.role for found in parquet_or_hub(str(tmp_path)).parts] == [part]


def test_plain_bytes_are_pictures_too(tmp_path):
    write_parquet(tmp_path / "train.parquet", [0, 1], struct=False)
    assert np.array_equal(pixels(parquet_or_hub(str(tmp_path)).parts[0], 1), picture(1).transpose(2, 0, 1))


def test_a_picture_may_be_a_file_beside(tmp_path):
    beside = tmp_path / "beside.png"
    beside.write_bytes(encoded(picture(3)))
    table = pa.table({"image": [{"bytes": None, "path": str(beside)}, {"bytes": None, "path": None}], "label": [0, 0]})
    pq.write_table(table, tmp_path / "train.parquet")
    (part,) = parquet_or_hub(str(tmp_path)).parts
    assert np.array_equal(pixels(part, 0), picture(3).transpose(2, 0, 1))
    with pytest.raises(DataError, match="train row 1, column image: expected an encoded picture, received none"):
        part.read(1)


@pytest.mark.parametrize("image", ["image", "img", "picture", "only_binary_column"])
@pytest.mark.parametrize("label", ["label", "fine_label", "labels", "only_integer_column"])
def test_columns_are_found_by_type_and_name(tmp_path, image, label):
    write_parquet(tmp_path / "train.parquet", [0, 1], image=image, label=label, weight=[0.5, 0.1])
    found = parquet_or_hub(str(tmp_path))
    assert found.parts[0].labels.tolist() == [0, 1]
    assert list(found.parts[0].columns) == ["weight"]


def test_the_usual_name_comes_before_other_columns_of_its_type(tmp_path):
    write_parquet(tmp_path / "train.parquet", [0, 1], label="fine_label", coarse_label=[7, 7], id=[100, 200])
    found = parquet_or_hub(str(tmp_path))
    assert found.parts[0].labels.tolist() == [0, 1]
    assert found.parts[0].columns["coarse_label"](1) == 7


def test_columns_can_be_named(tmp_path):
    write_parquet(tmp_path / "train.parquet", [0, 1], label="fine_label", coarse_label=[0, 0])
    found = parquet_or_hub(str(tmp_path), "image", "coarse_label")
    assert found.parts[0].labels.tolist() == [0, 0]
    assert len(found.class_names) == 1


def test_unclear_columns_say_which_there_are(tmp_path):
    write_parquet(tmp_path / "train.parquet", [0, 1], label="one", two=[0, 0])
    with pytest.raises(
        DataError,
        match=r"expected one column of labels, found 2 that could be \(one, two\) among image .*, one .*, two .*; pass label_column",
    ):
        parquet_or_hub(str(tmp_path))
    with pytest.raises(DataError, match=r"expected a column 'three' of labels, found columns image \(.*\), one \(int64\), two \(int64\);"):
        parquet_or_hub(str(tmp_path), label_column="three")
    with pytest.raises(DataError, match=r"expected a column 'one' of images"):
        parquet_or_hub(str(tmp_path), image_column="one", label_column="one")


def test_a_table_without_pictures_is_refused(tmp_path):
    pq.write_table(pa.table({"x": [1.0], "label": [0]}), tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"expected one column of images, found 0 that could be \(none\)"):
        parquet_or_hub(str(tmp_path))


def test_labels_can_be_words(tmp_path):
    write_parquet(tmp_path / "train.parquet", ["dog", "ant", "dog"])
    write_parquet(tmp_path / "test.parquet", ["cat"])
    found = parquet_or_hub(str(tmp_path))
    assert found.class_names == ("ant", "cat", "dog")
    assert [part.labels.tolist() for part in found.parts] == [[2, 0, 2], [1]]


def test_without_metadata_the_largest_label_tells_the_number_of_classes(tmp_path):
    write_parquet(tmp_path / "train.parquet", [0, 4])
    write_parquet(tmp_path / "test.parquet", [6])
    assert parquet_or_hub(str(tmp_path)).class_names == tuple("0123456")


def test_withheld_and_missing_labels_leave_a_part_out(tmp_path):
    write_parquet(tmp_path / "train.parquet", [0, 1], metadata=features("ab"))
    write_parquet(tmp_path / "test.parquet", [-1, -1], metadata=features("ab"))
    assert [part.role for part in parquet_or_hub(str(tmp_path)).parts] == ["train"]
    write_parquet(tmp_path / "test.parquet", pa.array([None, None], pa.int64()), metadata=features("ab"))
    assert [part.role for part in parquet_or_hub(str(tmp_path)).parts] == ["train"]


def test_a_part_without_the_column_of_labels_has_them_withheld(tmp_path):
    write_parquet(tmp_path / "train.parquet", ["b", "a", "b"])
    table = pq.read_table(write_parquet(tmp_path / "test.parquet", ["a", "b"])).drop_columns(["label"])
    pq.write_table(table, tmp_path / "test.parquet")
    found = parquet_or_hub(str(tmp_path))
    assert [(part.role, part.labels.tolist()) for part in found.parts] == [("train", [1, 0, 1])]
    pq.write_table(pa.table({"label": ["a"]}), tmp_path / "test.parquet")
    with pytest.raises(DataError, match="the test part has no column 'image' as the first part has; its columns are label"):
        parquet_or_hub(str(tmp_path))


def test_long_words_are_words_and_a_missing_one_is_refused_by_its_row(tmp_path):
    write_parquet(tmp_path / "train.parquet", pa.array(["b", "a", "b"], pa.large_string()))
    assert parquet_or_hub(str(tmp_path)).parts[0].labels.tolist() == [1, 0, 1]
    write_parquet(tmp_path / "train.parquet", ["b", None, "b"])
    with pytest.raises(DataError, match="train row 1, column image: expected a label"):
        parquet_or_hub(str(tmp_path))


def test_a_label_outside_the_named_classes_is_refused(tmp_path):
    write_parquet(tmp_path / "train.parquet", [0, 2], metadata=features("ab"))
    with pytest.raises(DataError, match="train row 1, column image: expected a label from 0 to 1, received 2"):
        parquet_or_hub(str(tmp_path))


def test_further_columns_are_kept(tmp_path):
    boxes = [[[0.0, 0.0, 4.0, 4.0]], [[1.0, 1.0, 2.0, 2.0], [0.0, 0.0, 8.0, 8.0]]]
    write_parquet(tmp_path / "train.parquet", [0, 1], boxes=boxes)
    (part,) = parquet_or_hub(str(tmp_path)).parts
    assert [part.columns["boxes"](row) for row in range(2)] == boxes


def test_a_folder_without_parquet_and_a_damaged_file_are_refused(tmp_path):
    with pytest.raises(DataError, match="expected parquet files"):
        parquet_or_hub(str(tmp_path))
    (tmp_path / "train-0.parquet").write_bytes(b"PAR1 this is none")
    with pytest.raises(DataError, match=r"cannot read the train files train-0\.parquet"):
        parquet_or_hub(str(tmp_path))


def test_files_whose_columns_differ_are_refused(tmp_path):
    write_parquet(tmp_path / "train-0.parquet", [0])
    write_parquet(tmp_path / "train-1.parquet", [0], label="other")
    with pytest.raises(DataError, match=r"cannot read the train files train-0\.parquet, train-1\.parquet"):
        parquet_or_hub(str(tmp_path))


class Remote:
    """Stands in for one part of a downloaded data set."""

    def __init__(self, table):
        self.data = types.SimpleNamespace(table=table)

    def with_format(self, kind):
        assert kind == "arrow"
        return self


def test_the_hub_is_asked_when_there_is_no_such_folder(monkeypatch):
    table = pa.table({"image": [{"bytes": encoded(picture(0)), "path": None}], "label": [1]}).replace_schema_metadata(features("ab"))
    asked = []

    def load_dataset(name):
        asked.append(name)
        return {"train": Remote(table), "valid": Remote(table), "train.extra": Remote(table)}

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    found = parquet_or_hub("someone/something")
    assert asked == ["someone/something"]
    assert [(part.role, len(part)) for part in found.parts] == [("train", 2), ("validation", 1)]
    assert np.array_equal(pixels(found.parts[0], 0), picture(0).transpose(2, 0, 1))


def test_a_set_that_cannot_be_downloaded_says_so(monkeypatch):
    def load_dataset(name):
        raise ConnectionError("offline")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(DataError, match=r"hf:no/where: neither a local folder nor a data set that can be downloaded \(offline\)"):
        parquet_or_hub("no/where")


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"datasets is not installed; pip install 'channelscope\[hf\]'"):
        parquet_or_hub("no/where")


@pytest.mark.parametrize(
    ("labels", "classes", "received"),
    [
        ("dictionary", ("kind 0", "kind 1", "kind 2"), [0, 1, 2, 0]),
        ("dictionary of numbers", ("0", "1", "2"), [0, 1, 2, 0]),
        ("text view", ("kind 0", "kind 1", "kind 2"), [0, 1, 2, 0]),
        ("bool", ("0", "1"), [1, 0, 1, 0]),
        ("uint64", ("0", "1", "2"), [0, 1, 2, 0]),
    ],
)
def test_labels_are_read_from_columns_of_every_type_that_numbers_or_names_classes(tmp_path, labels, classes, received):
    found = parquet_or_hub(str(odd_files.parquet(tmp_path / "set", labels)))
    assert found.class_names == classes
    assert found.parts[0].labels[:4].tolist() == received


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ("sparse", r"expected classes numbered from 0, received the number 2,000,000,000,000"),
        ("largest", r"expected classes numbered from 0, received the number 18,446,744,073,709,551,615"),
        ("float", r"found 0 that could be \(none\) among image \(struct.*\), label \(double\); .* whole numbers from 0 or as text"),
        ("one-hot", r"label \(list<.*>\); pass label_column"),
        ("all missing", r"expected labeled images, received none"),
        ("some missing", r"row 0, column image: expected a label from 0 to 2, received -1"),
    ],
)
def test_columns_that_hold_no_classes_are_refused_with_their_types(tmp_path, labels, said):
    with pytest.raises(DataError, match=said):
        parquet_or_hub(str(odd_files.parquet(tmp_path / "set", labels)))


@pytest.mark.parametrize("metadata", odd_files.METADATA)
def test_metadata_of_another_form_is_passed_over(tmp_path, metadata):
    folder = odd_files.parquet(tmp_path / "set", metadata=metadata)
    if metadata == "few names":
        with pytest.raises(DataError, match="expected a label from 0 to 0, received 1"):
            parquet_or_hub(str(folder))
    else:
        assert parquet_or_hub(str(folder)).class_names == ("0", "1", "2")


def test_a_cell_that_holds_no_bytes_is_named(tmp_path):
    part = parquet_or_hub(str(odd_files.parquet(tmp_path / "set", images="struct of text"))).parts[0]
    with pytest.raises(DataError, match=r"train row 3, column image: expected the bytes of an encoded picture, received a str"):
        part.read(3)


def test_a_picture_without_bytes_is_read_from_its_path(tmp_path):
    (tmp_path / "one.png").write_bytes(encoded(picture(1)))
    cells = pa.StructArray.from_arrays([pa.array([str(tmp_path / "one.png")]), pa.array([None], pa.binary())], ["path", "bytes"])
    pq.write_table(pa.table({"image": cells, "label": [0]}), tmp_path / "train.parquet")
    (part,) = parquet_or_hub(str(tmp_path)).parts
    assert np.array_equal(pixels(part, 0), picture(1).transpose(2, 0, 1))
