"""Every command, run once on a small network: --json prints one object, and its folder says what was run and repeats it."""

import json
import math
import re
import tomllib
from pathlib import Path

import pytest

from channelscope import zoo
from channelscope.cli.call import Call
from channelscope.report import page
from channelscope.tables.run_folder import RunFolder
from cli.commands import boxed, refused, run

NET = """
from torch import nn


class Two(nn.Sequential):
    def __init__(self, num_classes=10):
        super().__init__(
            nn.Conv2d(1, 9, 3), nn.ReLU(), nn.Conv2d(9, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes)
        )
"""


def plain(text):
    """A JSON object that has no number beyond those of JSON."""

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("call")
    (folder / "net.py").write_text(NET)
    model, _ = zoo.load(f"{folder / 'net.py'}:Two", "digits")
    zoo.save_weights(model.state_dict(), folder / "net.safetensors")
    return folder


@pytest.fixture
def printed(capsys, monkeypatch):
    """The object that a command prints with --json; pages are left out, for they take most of the time."""
    monkeypatch.setattr(page, "write_report", lambda folder: Path(folder) / "report.html")

    def call(*arguments):
        capsys.readouterr()
        assert run(*arguments, "--json") == 0
        found = plain(capsys.readouterr().out)
        assert found["command"] == arguments[0]
        return found

    return call


def repeated(folder, name, capsys):
    """The call of a command in a run folder, after a check that its options give the same call again."""
    (call,) = (each for each in RunFolder.open(folder).calls if each["name"] == name)
    assert set(call["versions"]) == {"channelscope", "torch", "python"}
    assert (call["device"], call["threads"] >= 1, call["seconds"] >= 0) == ("cpu", True, True)
    options = tomllib.loads((folder / "config.toml").read_text())[name]
    assert options == {key: value for key, value in call["options"].items() if value is not None}
    capsys.readouterr()
    assert run(name, "--config", folder / "config.toml", "--dry-run") == 0
    assert tomllib.loads(capsys.readouterr().out) == {name: options}
    return call


def test_what_is_measured_in_one_folder(place, printed, capsys):
    given = (f"{place / 'net.py'}:Two", "-w", place / "net.safetensors", "--images", "60")
    out = place / "run"
    tables = printed("axes", *given, "--sensitivity", "--out", out)["tables"]
    assert len(tables["channels"]) == 17
    assert {row["stage"] for row in tables["channels"]} == {"trained"}
    few = ("--test", "20", "--channels", "4", "--controls", "2", "--draws", "10", "--groups", "2")
    tables = printed("ablate", *given, *few, "--out", out)["tables"]
    assert len(tables["ablated_channels"]) == 4
    assert len(printed("hulls", out, "--hull-size", "2", "--out", out)["tables"]["hulls"]) == 17
    assert printed("communities", out, "--no-intervals", "--out", out)["tables"].keys() >= {"communities"}
    assert printed("propagation", *given, "--permutations", "10", "--out", out)["tables"].keys() >= {"propagation"}
    assert printed("gradients", *given, "--layers", "0", "--out", out)["tables"].keys() >= {"gradients", "gradient_layers"}
    calls = {name: repeated(out, name, capsys) for name in ("axes", "ablate", "hulls", "communities", "propagation", "gradients")}
    assert [call["name"] for call in RunFolder.open(out).calls] == list(calls)
    assert calls["axes"]["options"]["sensitivity"] is True
    assert calls["axes"]["options"]["device"] == "auto"
    assert calls["hulls"]["command"] == f"channelscope hulls {out} --hull-size 2 --out {out}"
    weights = {call["facts"]["weights"] for call in calls.values()}
    assert len(weights) == 1
    said = printed("explain", "0:1", out, "--out", place / "why")
    assert said["tables"]["explanation"]
    repeated(place / "why", "explain", capsys)


def test_what_is_made_smaller(place, printed, capsys):
    given = (f"{place / 'net.py'}:Two", "-w", place / "net.safetensors", "--images", "60")
    out = place / "small"
    found = printed("prune", *given, "--macs", "0.7", "--score", "l2", "--test", "20", "--out", out)
    states = {row["state"]: row for row in found["tables"]["pruning"]}
    assert list(states) == ["original", "pruned", "repaired"]
    assert states["repaired"]["macs"] <= 0.7 * states["original"]["macs"]
    assert repeated(out, "prune", capsys)["options"]["macs"] == 0.7
    few = ("--budgets", "0.8", "--repairs", "none", "--scores", "l2", "--test", "20", "--out", place / "benchmark")
    assert printed("benchmark", *given, *few)["tables"]["benchmark_auc"]
    repeated(place / "benchmark", "benchmark", capsys)
    found = printed("compare", out, out, "--out", place / "same")
    assert {row["difference"] for row in found["tables"]["compared_values"] if row["quantity"] == "accuracy"} == {0.0}
    assert not any(row["apart"] for row in found["tables"]["compared_values"])
    title = repeated(place / "same", "compare", capsys)["facts"]["title"]
    assert re.fullmatch(r"small against small: \S*net\.py:Two at \d+% of its multiply-adds", title)


def test_what_looks_into_features(place, printed, capsys):
    given = (f"{place / 'net.py'}:Two", "-w", place / "net.safetensors", "--images", "30")
    kept = ("--keep", "0.5", "--pictures", "none", "--held-out", "10")
    found = printed("circuit", *given, "--feature", "2:1", *kept, "--out", place / "circuit")
    assert found["path"].endswith("circuit.html")
    assert found["tables"]["circuit"][0]["relevant"] == 18
    repeated(place / "circuit", "circuit", capsys)
    groups = ("--strongest", "24", "--clusters", "2", "--keep", "0.5")
    found = printed("subcircuits", *given, "--feature", "2:1", *groups, "--out", place / "groups")
    assert found["tables"]["subcircuit_overlap"]
    repeated(place / "groups", "subcircuits", capsys)
    maps = ("--layers", "0", "--test", "2", "--grid-side", "2")
    found = printed("discard", *given, *maps, "--out", place / "maps")
    assert len(found["tables"]["discarded"]) == 2
    repeated(place / "maps", "discard", capsys)


def test_files_and_trainings(place, printed, capsys):
    given = (f"{place / 'net.py'}:Two", "-w", place / "net.safetensors")
    found = printed("profile", *given, "--images", "60", "--out", place / "a.profile")
    assert (found["images"], found["channels"], found["path"]) == (60, 17, str(place / "a.profile"))
    found = printed("scores", place / "a.profile", "--scores", "l2", "--out", place / "a.csv")
    assert len(found["tables"]["channels"]) == 17
    assert printed("merge", place / "a.profile", "--out", place / "b.profile")["images"] == 60
    found = printed("train", "resnet20(width=2)", "--epochs", "1", "--out", place / "train")
    assert [epoch["epoch"] for epoch in found["epochs"]] == [0, 1]
    assert found["epochs"][0]["train_loss"] is None
    assert repeated(place / "train", "train", capsys)["options"]["epochs"] == 1
    found = printed("trajectory", place / "train", "--images", "60", "--layer-count", "2", "--out", place / "trajectory")
    assert found["tables"]["trajectory_change"]
    repeated(place / "trajectory", "trajectory", capsys)
    assert printed("report", place / "train")["path"] == str(place / "train" / "report.html")


def test_maps_beside_those_of_other_methods(printed, capsys, tmp_path):
    square, weights = boxed(tmp_path, empty=False)
    few = ("--images", "12", "--test", "4", "--tuning", "4", "--layers", "layer1", "--grid-side", "4")
    given = (square, "--weights", weights, "--data", f"hf:{tmp_path / 'set'}")
    tables = printed("faithfulness", *given, *few, "--out", tmp_path / "maps")["tables"]
    methods = {row["method"] for row in tables["localization"]}
    assert {"gradient", "random", "center"} < methods
    assert {row["method"] for row in tables["descriptive_accuracy"]} == methods
    assert all(row["n"] == 4 for rows in tables.values() for row in rows)
    repeated(tmp_path / "maps", "faithfulness", capsys)


def test_the_demo(printed, capsys, tmp_path):
    tables = printed("demo", "--epochs", "1", "--out", tmp_path / "demo")["tables"]
    assert {row["stage"] for row in tables["channels"]} == {"initialization", "trained"}
    assert len(tables["channels"]) == 2 * 784
    assert repeated(tmp_path / "demo", "demo", capsys)["options"]["epochs"] == 1


def test_what_doctor_finds(printed):
    found = printed("doctor")
    assert found["problems"] == 0
    assert {"python", "torch", "devices"} <= {each["topic"] for each in found["findings"]}
    assert not any(each["problem"] for each in found["findings"])


def test_what_explain_and_compare_refuse(place, capsys, tmp_path):
    assert "expected a run folder with run.json" in refused(capsys, "compare", tmp_path, tmp_path, "--out", tmp_path / "out")


def test_the_result_of_an_unfinished_number_is_null(capsys):
    Call("axes", as_json=True).result(Path("x"), loss=math.inf)
    assert plain(capsys.readouterr().out) == {"command": "axes", "path": "x", "loss": None}
