"""RunFolder: every call leaves what made its tables, a folder belongs to one network; two runs are matched by what their rows are about."""

import json
import math
import tomllib
from pathlib import Path

import pandas as pd
import pytest

from channelscope import tables
from channelscope.errors import FormatError, InputError, MismatchError
from channelscope.tables.run_folder import RunFolder, compare_runs, config_text, difference_interval

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
    with pytest.raises(FormatError, match=r"expected a run folder with run\.json"):
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


def run(frames, folder="a", **facts):
    return RunFolder(Path(folder), facts, {name: tables.describe(frame, {"name": name}) for name, frame in frames.items()})


def alignment(*rows):
    return pd.DataFrame(rows, columns=["local", "target", "rho", "low", "high", "n", "pooled"])


def test_rows_are_matched_and_differences_have_intervals():
    first = run(
        {"alignment_mean": alignment(("capture", "relevance", 0.2, 0.1, 0.4, 9, 0.3), ("overlap", "excess", 0.5, 0.4, 0.6, 9, 0.1))}
    )
    second = run({"alignment_mean": alignment(("overlap", "excess", 0.8, 0.6, 0.9, 7, 0.2), ("capture", "excess", 0.1, 0.0, 0.2, 7, 0.4))})
    frame = compare_runs(first, second)["compared_values"]
    assert frame[["table", "row", "quantity"]].to_numpy().tolist() == [
        ["alignment_mean", "local overlap, target excess", "rho"],
        ["alignment_mean", "local overlap, target excess", "pooled"],
    ]
    row = frame.iloc[0]
    assert (row["first"], row["first_low"], row["second"], row["second_high"], row["n_first"], row["n_second"]) == (
        0.5,
        0.4,
        0.8,
        0.9,
        9,
        7,
    )
    assert row["difference"] == pytest.approx(0.3)
    assert row["difference_low"] == pytest.approx(0.3 - math.hypot(0.1, 0.2))
    assert row["difference_high"] == pytest.approx(0.3 + math.hypot(0.1, 0.1))
    assert row["apart"]
    assert math.isnan(frame.iloc[1]["difference_low"])
    assert not frame.iloc[1]["apart"]
    assert frame.attrs["columns"]["difference_low"]["meaning"].startswith("lower end of the 95 % interval of second less first")


def test_an_interval_that_touches_zero_is_not_apart():
    assert difference_interval((0.0, -3.0, 3.0), (5.0, 1.0, 9.0)) == (5.0, 0.0, 10.0)
    assert all(math.isnan(end) for end in difference_interval((0.0, math.nan, math.nan), (1.0, 0.0, 2.0))[1:])


def test_the_only_stages_of_two_runs_belong_together():
    def one(stage, value):
        rows = pd.DataFrame({"stage": [stage] * 2, "site": ["a", "b"], "depth": [0, 1], "rho": [value, value + 0.1], "n": [5, 5]})
        return run({"alignment": rows})

    frame = compare_runs(one("trained", 0.1), one("weights random", 0.3))["compared_values"]
    assert frame["row"].tolist() == ["site a", "site b"]
    assert frame["difference"].tolist() == pytest.approx([0.2, 0.2])


def test_numbers_say_which_row_it_is_where_text_does_not():
    def one(first, second):
        rows = pd.DataFrame({"score": ["l1", "l1"], "budget": [0.5, 0.7], "kept": [0.49, 0.69], "accuracy": [first, second]})
        units = {"budget": "fraction", "kept": "fraction"}
        return RunFolder(Path("x"), {}, {"benchmark": tables.describe(rows, {"name": "benchmark", "units": units})})

    frame = compare_runs(one(0.6, 0.8), one(0.5, 0.9))["compared_values"]
    assert frame["row"].unique().tolist() == ["score l1, budget 0.5", "score l1, budget 0.7"]
    assert frame.query("quantity == 'accuracy'")["difference"].tolist() == pytest.approx([-0.1, 0.1])
    assert frame.query("quantity == 'accuracy'")["unit"].tolist() == ["fraction", "fraction"]


def test_a_table_of_one_row_needs_no_key():
    def one(accuracy):
        return run({"pruning": pd.DataFrame({"accuracy": [accuracy], "accuracy_low": [accuracy - 0.1], "accuracy_high": [accuracy + 0.1]})})

    (row,) = compare_runs(one(0.5), one(0.9))["compared_values"].to_dict("records")
    assert (row["row"], row["quantity"], row["apart"]) == ("", "accuracy", True)
    assert row["difference_low"] == pytest.approx(0.4 - math.hypot(0.1, 0.1))


def test_channels_are_compared_layer_by_layer():
    def one(values, site="conv1"):
        frame = pd.DataFrame({"stage": "trained", "site": site, "channel": range(len(values)), "capture": values})
        return run({"channels": frame})

    (row,) = compare_runs(one([1.0, 2.0, 3.0, math.inf]), one([2.0, 9.0, 4.0, 1.0]))["compared_channels"].to_dict("records")
    assert (row["stage"], row["site"], row["score"], row["n"]) == ("trained", "conv1", "capture", 3)
    assert row["rho"] == pytest.approx(0.5)
    assert (row["first"], row["second"], row["difference"]) == (2.0, 5.0, 3.0)
    assert math.isnan(compare_runs(one([1.0, 2.0]), one([2.0, 1.0]))["compared_channels"]["rho"].iloc[0])
    for other in (one([1.0]), one([1.0, 2.0], "conv2")):
        assert "compared_channels" not in compare_runs(one([1.0, 2.0]), other)


def test_facts_are_side_by_side():
    frames = {"groups": pd.DataFrame({"site": ["a"], "n": [1]})}
    first = run(frames, network="resnet20", stages=["initialization", "trained"], calls=[1], seconds=3.0)
    frame = compare_runs(first, run(frames, network="resnet20", seed=1))["compared_facts"]
    assert frame.to_numpy().tolist() == [
        ["network", "resnet20", "resnet20", True],
        ["stages", "initialization, trained", "", False],
        ["seed", "", "1", False],
    ]


def test_runs_without_a_common_table_are_refused():
    frame = pd.DataFrame({"site": ["a"], "n": [1]})
    with pytest.raises(MismatchError, match="no table in common: a has groups, b has hulls: compare runs of the same command"):
        compare_runs(run({"groups": frame}), run({"hulls": frame}, "b"))
