"""RunFolder: every call leaves what made its tables, a folder belongs to one network, and its options can be read back."""

import json
import tomllib
from pathlib import Path

import pytest

from channelscope import tables
from channelscope.errors import FormatError, InputError, MismatchError
from channelscope.tables.run_folder import RunFolder, config_text

WEIGHTS = "ab" * 32


def sizes(name, channels=16):
    return {name: tables.table([{"site": "conv1", "channels": channels}], name)}


def call(name, options=None, **facts):
    return {"name": name, "command": f"channelscope {name}", "options": options or {"images": 60}, "facts": {"weights": WEIGHTS, **facts}}


def test_each_table_knows_the_call_that_made_it(tmp_path):
    run = RunFolder.open(tmp_path / "run", WEIGHTS)
    run = run.add(sizes("channels") | sizes("groups"), call("axes", title="Axes", target="margin", seed=0))
    run.add(sizes("hulls"), call("hulls", title="Hulls", target="label"))
    again = RunFolder.read(tmp_path / "run")
    assert [(each["name"], each["tables"]) for each in again.calls] == [("axes", ["channels", "groups"]), ("hulls", ["hulls"])]
    assert (again.call_of("hulls")["facts"]["target"], again.call_of("groups")["facts"]["target"]) == ("label", "margin")
    assert again.call_of("nothing") == {}
    assert (again.facts["title"], again.facts["target"], again.facts["seed"]) == ("Axes", "margin", 0)
    assert again.facts["command"] == "channelscope axes\nchannelscope hulls"


def test_a_call_that_writes_the_same_tables_takes_the_place_of_the_earlier_one(tmp_path):
    run = RunFolder.open(tmp_path).add(sizes("channels"), call("axes", title="Old"))
    run = run.add(sizes("hulls"), call("hulls", title="Hulls"))
    run = run.add(sizes("channels", 8), call("axes", {"images": 70}, title="New"))
    assert [(each["name"], each["options"]["images"]) for each in run.calls] == [("axes", 70), ("hulls", 60)]
    assert run.facts["title"] == "New"
    assert int(RunFolder.read(tmp_path).tables["channels"].channels[0]) == 8


def test_a_call_keeps_the_tables_that_were_not_written_again(tmp_path):
    run = RunFolder.open(tmp_path).add(sizes("a") | sizes("b"), call("axes"))
    run = run.add(sizes("b"), call("other"))
    assert [(each["name"], each["tables"]) for each in run.calls] == [("axes", ["a"]), ("other", ["b"])]


def test_a_call_without_tables_is_replaced_by_its_repetition(tmp_path):
    run = RunFolder.open(tmp_path).add({}, call("train", {"epochs": 1})).add(sizes("a"), call("axes"))
    run = run.add({}, call("train", {"epochs": 2}))
    assert [(each["name"], each["options"]) for each in run.calls] == [("train", {"epochs": 2}), ("axes", {"images": 60})]


def test_a_folder_of_an_earlier_version_has_one_call_without_a_name(tmp_path):
    tables.write(sizes("lesions")["lesions"], tmp_path / "lesions.csv")
    (tmp_path / "run.json").write_text(json.dumps({"title": "Old", "weights": WEIGHTS}))
    run = RunFolder.read(tmp_path)
    assert [(each["name"], each["tables"]) for each in run.calls] == [("", ["ablations"])]
    run = RunFolder.open(tmp_path, WEIGHTS).add(sizes("hulls"), call("hulls", title="Hulls"))
    assert [(each["name"], each["tables"]) for each in run.calls] == [("", ["ablations"]), ("hulls", ["hulls"])]
    assert run.facts["title"] == "Old"
    assert tomllib.loads((tmp_path / "config.toml").read_text()) == {"hulls": {"images": 60}}


def test_a_folder_belongs_to_one_network(tmp_path):
    RunFolder.open(tmp_path / "run", WEIGHTS, "resnet20").add({}, call("axes", network="resnet20"))
    RunFolder.open(tmp_path / "run", WEIGHTS, "a name that another version gave it")
    with pytest.raises(MismatchError, match=r"run holds a run of resnet20 with weights abababababab, this one has weights cdcdcdcdcdcd"):
        RunFolder.open(tmp_path / "run", "cd" * 32, "resnet20")
    with pytest.raises(MismatchError, match="holds a run of resnet20, this one is of resnet18: give another --out"):
        RunFolder.open(tmp_path / "run", network="resnet18")


def test_what_is_no_run_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="expected a folder, found a file"):
            RunFolder.open(path)
    with pytest.raises(FormatError, match=r"expected a folder with run\.json"):
        RunFolder.read(tmp_path)
    for damaged in ("{", "[1]", b"\xff\xfe"):
        (tmp_path / "run.json").write_bytes(damaged if isinstance(damaged, bytes) else damaged.encode())
        for read in (RunFolder.read, RunFolder.open):
            with pytest.raises(FormatError, match=r"run\.json is damaged"):
                read(tmp_path)


def test_numbers_without_a_value_are_stored_as_null(tmp_path):
    run = RunFolder.open(tmp_path).add({}, call("axes", accuracy=float("nan"), bounds=[float("inf"), 0.5]))
    assert json.loads((tmp_path / "run.json").read_text())["calls"][0]["facts"]["bounds"] == [None, 0.5]
    assert run.facts["accuracy"] != run.facts["accuracy"]


@pytest.mark.parametrize(
    "value", ["plain", 'quoted "word" and \\ slash', "tab\tand\nline", "κ = ½", "\x7f\x01", True, False, 3, -0.25, 1e-05, ["a", "b"], []]
)
def test_options_are_read_back_as_they_were(value):
    assert tomllib.loads(config_text({"axes": {"option": value}})) == {"axes": {"option": value}}


def test_options_without_a_value_are_left_out():
    assert tomllib.loads(config_text({"axes": {"a": None, "b": Path("x")}, "prune": {}})) == {"axes": {"b": "x"}, "prune": {}}
