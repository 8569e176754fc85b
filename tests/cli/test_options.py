"""What every command is given and writes to: weights that no file gives are said, and a folder belongs to one network."""

import json
import math
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from safetensors import SafetensorError

from channelscope import cli, tables, zoo
from channelscope.cli.call import NetworkOptions, at_least, fitted
from channelscope.cli.circuits import few
from channelscope.cli.experiments import _image_source
from channelscope.cli.measure import chosen_epoch
from channelscope.cli.wording import PILOTS, _duration
from channelscope.data.images import read_images
from channelscope.data.sources import ImageSource
from channelscope.errors import DataError
from channelscope.network.module_state import weights_hash
from channelscope.zoo.training_run import Epoch, History
from cli.commands import refused, run

NET = """
from torch import nn


class Small(nn.Sequential):
    def __init__(self, num_classes=10):
        super().__init__(
            nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, num_classes)
        )
"""
OTHER = "resnet20(width=4)"


def test_where_weights_come_from(tmp_path):
    given, drawn, made = (
        NetworkOptions("resnet18", tmp_path / "w.safetensors"),
        NetworkOptions("timm:resnet18"),
        NetworkOptions("a/nets.py:Net"),
    )
    assert [each.stage for each in (given, drawn, made)] == ["trained", "weights random", "weights as its class makes them"]
    assert [each.origin for each in (given, drawn, made)] == [{}, {"untrained": "random"}, {"untrained": "as its class makes them"}]


@pytest.mark.parametrize(
    ("words", "first"),
    [
        (("sites", "resnet20(width=2)"), "resnet20(width=2): no --weights, so its weights are random"),
        (("sites", "--json", "--seed", "3", "resnet20(width=2)"), "resnet20(width=2): no --weights, so its weights are random"),
        (("sites", "torchvision:alexnet"), "torchvision:alexnet: no --weights or --pretrained, so its weights are random"),
        (("sites", "resnet20(width=2)", "--weights", "nowhere.safetensors"), "sites: list every layer"),
    ],
)
def test_the_first_line_of_a_process_says_that_weights_are_random(words, first):
    """Before PyTorch is loaded, and once."""
    done = subprocess.run([sys.executable, "-m", "channelscope", *words], capture_output=True, text=True, check=False)
    lines = done.stderr.splitlines()
    assert lines[0].startswith(first)
    assert sum("so its weights are" in line for line in lines) == ("no --weights" in first)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("-w", "x"), ""),
        (("-qwx",), ""),
        (("--pretrained",), ""),
        (("--config", "config.toml"), ""),
        (("--data", "hf:folder"), "net"),
        (("--data=x",), "net"),
        (("-h",), ""),
    ],
)
def test_what_the_words_of_a_call_say_of_weights(words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, network in {"axes": "net", "sites": "timm:resnet18(pretrained=True)", "evaluate": "hf:folder", "train": "net"}.items():
        for call in ((network, *words), (*words, "--json", network)):
            with typer.Context(typer.main.get_command(cli.app)) as context:
                cli._without_weights(context, name, list(call))
                assert cli.WITHOUT_WEIGHTS.get() == (said if name == "axes" else "")
            assert cli.WITHOUT_WEIGHTS.get() == ""
    (tmp_path / "net").mkdir()
    with typer.Context(typer.main.get_command(cli.app)) as context:
        cli._without_weights(context, "axes", ["net"])
        assert cli.WITHOUT_WEIGHTS.get() == ""


def test_weights_that_no_file_gives_are_said_first_and_in_the_report(capsys, tmp_path):
    (tmp_path / "net.py").write_text(NET)
    out = tmp_path / "axes"
    assert run("axes", f"{tmp_path / 'net.py'}:Small", "--images", "60", "--out", out) == 0
    assert capsys.readouterr().err.splitlines()[0] == "net.py:Small: no --weights, so its weights are as its class makes them"
    facts = json.loads((out / "run.json").read_text())
    assert (facts["stages"], facts["untrained"]) == (["weights as its class makes them"], "as its class makes them")
    assert set(tables.read(out / "channels.csv")["stage"]) == {"weights as its class makes them"}
    said = "No weights were given: they are as its class makes them, and nothing here is about a trained network."
    assert said in (out / "report.html").read_text()
    assert run("profile", OTHER, "--images", "60", "--out", tmp_path / "x.profile") == 0
    assert capsys.readouterr().err.splitlines()[0] == "resnet20(width=4): no --weights, so its weights are random"
    assert run("sites", "torchvision:squeezenet1_1", "--size", "32") == 0
    assert capsys.readouterr().err.splitlines()[0] == "torchvision:squeezenet1_1: no --weights or --pretrained, so its weights are random"


def test_the_first_lines_say_what_runs_where_on_how_many_images_and_for_how_long(capsys, tmp_path):
    assert run("evaluate", OTHER, "--part", "validation", "--test", "20") == 0
    lines = capsys.readouterr().err.splitlines()
    network = r"resnet20\(width=4\): [\d,]+ parameters, on cpu \(\d+ threads\)"
    images = r"digits: 1,294 calibration, 144 validation, 359 test images of 1×8×8"
    (said,) = (line for line in lines if "parameters" in line)
    assert re.fullmatch(rf"{network}; {images}; a pass over the calibration images takes about [\d.]+ .+", said)
    assert "evaluating on 20 validation images" in lines
    (tmp_path / "net.py").write_text(NET + "\n    def forward(self, images):\n        return {}['logits']\n")
    refused(capsys, "evaluate", f"{tmp_path / 'net.py'}:Small")
    model, images = zoo.load(OTHER, "digits")
    counted = model.register_forward_hook(lambda *_: counts.append(1))
    counts: list[int] = []
    before, state = weights_hash(model), torch.get_rng_state()
    assert "about" in _duration(model, images)
    counted.remove()
    assert len(counts) == PILOTS
    assert (weights_hash(model), torch.equal(torch.get_rng_state(), state)) == (before, True)


def test_published_weights_are_taken_on_request(capsys, tmp_path):
    asked = NetworkOptions("torchvision:squeezenet1_1(dropout=0.2)", pretrained=True)
    assert (asked.model, asked.untrained) == ("torchvision:squeezenet1_1(dropout=0.2, pretrained=True)", "")
    assert NetworkOptions("hf:microsoft/resnet-18", pretrained=True).model == "hf:microsoft/resnet-18"
    said = refused(capsys, "sites", OTHER, "--pretrained")
    assert f"no published weights for '{OTHER}': expected timm:NAME, torchvision:NAME or hf:NAME" in said
    said = refused(capsys, "sites", "timm:resnet18", "--pretrained", "--weights", tmp_path / "w.safetensors")
    assert said.endswith("the file of --weights would replace them: give one of the two")
    (tmp_path / "config.json").write_text("{}")
    assert "the folder holds none" in refused(capsys, "sites", f"hf:{tmp_path}", "--pretrained")


@pytest.fixture
def taken(tmp_path):
    """The run folder of another network."""
    folder = tmp_path / "taken"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"network": "resnet20", "weights": "ab" * 32}))
    return folder


COMMANDS = (
    ("axes", OTHER, "--images", "60"),
    ("ablate", OTHER, "--images", "60", "--test", "8"),
    ("propagation", OTHER, "--images", "60"),
    ("gradients", OTHER, "--images", "60"),
    ("prune", OTHER, "--images", "60"),
    ("benchmark", OTHER, "--images", "60"),
    ("circuit", OTHER, "--feature", "conv1:0"),
    ("subcircuits", OTHER, "--feature", "conv1:0"),
    ("discard", OTHER, "--images", "60", "--test", "2"),
    ("faithfulness", OTHER, "--images", "60", "--test", "2", "--tuning", "2"),
    ("train", OTHER, "--epochs", "1"),
)


@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda arguments: arguments[0])
def test_a_run_folder_belongs_to_one_network(taken, capsys, arguments):
    said = refused(capsys, *arguments, "--out", taken)
    assert "taken holds a run of resnet20" in said
    assert "give another --out" in said
    assert [path.name for path in taken.iterdir()] == ["run.json"]


@pytest.mark.parametrize("command", ["hulls", "communities"])
def test_also_where_a_profile_is_all_that_is_given(taken, capsys, tmp_path, command):
    assert run("profile", OTHER, "--images", "60", "--out", tmp_path / "x.profile") == 0
    assert "taken holds a run of resnet20" in refused(capsys, command, tmp_path / "x.profile", "--out", taken)


def test_demo_writes_into_no_other_networks_folder(capsys, tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"network": "resnet18", "weights": "ab" * 32}))
    assert "holds a run of resnet18, this one is of resnet20" in refused(capsys, "demo", "--out", tmp_path)


def test_a_training_folder_belongs_to_its_network(capsys, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "training.json").write_text(json.dumps({"network": OTHER}))
    said = refused(capsys, "axes", "resnet20", "--images", "60", "--out", tmp_path / "run")
    assert f"run holds a run of {OTHER}, this one is of resnet20: give another --out" in said
    (tmp_path / "run" / "training.json").write_text("{")
    assert "training.json is damaged" in refused(capsys, "axes", "resnet20", "--images", "60", "--out", tmp_path / "run")


@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda arguments: arguments[0])
def test_a_file_in_the_place_of_a_folder(capsys, tmp_path, arguments):
    (tmp_path / "file").write_text("mine")
    for out in ("file", "file/below"):
        assert "expected a folder, found a file" in refused(capsys, *arguments, "--out", tmp_path / out)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_in_the_place_of_a_file(capsys, tmp_path):
    assert run("profile", OTHER, "--images", "60", "--out", tmp_path / "x.profile") == 0
    assert "expected a file, found a folder" in refused(capsys, "profile", OTHER, "--images", "60", "--out", tmp_path)
    assert "expected a file, found a folder" in refused(capsys, "merge", tmp_path / "x.profile", "--out", tmp_path)
    assert "expected a file, found a folder" in refused(capsys, "scores", tmp_path / "x.profile", "--out", tmp_path)


def test_a_device_that_is_not_there(capsys, tmp_path):
    said = refused(capsys, "profile", OTHER, "--images", "60", "--device", "cuda:77", "--out", tmp_path / "x.profile")
    assert "device: expected one of cpu" in said
    assert "received 'cuda:77'" in said


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device", "x.profile"), "error: x.profile: No space left on device"),
        (
            SafetensorError("I/O error: No space left"),
            "error: a file cannot be read or written: I/O error: No space left",
        ),
        (sqlite3.OperationalError("database or disk is full"), "error: a file cannot be read or written: database or disk is full"),
    ],
)
def test_a_disk_that_is_full_is_one_sentence(capsys, tmp_path, monkeypatch, error, said):
    def full(*_, **__):
        raise error

    monkeypatch.setattr("channelscope.profiling.collect.save_file", full)
    assert refused(capsys, "profile", OTHER, "--images", "60", "--out", tmp_path / "x.profile").endswith(said)


def test_few_validation_images_are_said_and_the_last_epoch_is_kept(capsys, tmp_path):
    rng = np.random.default_rng(0)
    for part, count in (("train", 12), ("val", 2), ("test", 2)):
        for label in ("a", "b"):
            (tmp_path / "set" / part / label).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "set" / part / label / f"{number}.png")
    assert run("train", OTHER, "--data", f"folder:{tmp_path / 'set'}", "--epochs", "2", "--out", tmp_path / "run") == 0
    assert "4 validation images are too few to choose an epoch by" in capsys.readouterr().err
    assert (tmp_path / "run" / "trained.safetensors").read_bytes() == (tmp_path / "run" / "epoch_002.safetensors").read_bytes()
    assert json.loads((tmp_path / "run" / "training.json").read_text())["kept"] == 2


def test_default_numbers_fit_a_small_set_and_say_what_they_took(capsys):
    split = read_images(ImageSource("digits")).test
    assert len(fitted(split, None, 359, "--test")) == 359
    assert capsys.readouterr().err == ""
    assert len(fitted(split, None, 1000, "--test")) == 359
    assert capsys.readouterr().err == "--test: 359 test images, for that is all there are; 1,000 where there are so many\n"
    assert fitted(split, 20, 1000, "--test").indices.tolist() == split.indices[:20].tolist()
    with pytest.raises(DataError, match=r"--test: expected at least 1 and at most 359 images of the test split, asked for 360"):
        fitted(split, 360, 1000, "--test")
    with pytest.raises(DataError, match="asked for 0"):
        fitted(split, 0, 1000, "--test")


def test_a_number_below_the_least_is_refused_by_its_flag():
    at_least(2, test=None, tuning=2)
    with pytest.raises(DataError, match=r"^expected --tuning-images of at least 2, received 1$"):
        at_least(2, test=2, tuning_images=1)


def test_few_images_are_the_first_of_those_drawn():
    model, images = zoo.load(OTHER, "digits")
    _, found = few(model, images, 64)
    assert found.calibration.indices.tolist() == zoo.load(OTHER, ImageSource("digits", images=64))[1].calibration.indices.tolist()
    _, asked = zoo.load(OTHER, ImageSource("digits", images=70))
    assert len(few(model, asked, 64)[1].calibration) == 70


def test_a_trajectory_takes_all_images_of_a_small_training_set(capsys):
    images = {"data": "digits", "splits": {"train": 1294}, "mean": [0.3], "std": [0.4]}
    history = History(Path("run"), "resnet20", "", {"images": images}, ())
    assert _image_source([history], None, 0).images == 1294
    assert capsys.readouterr().err == "--images: 1,294 training images, for that is all there are; 2,000 where there are so many\n"
    assert _image_source([history], 60, 0).images == 60


@pytest.mark.parametrize(
    ("accuracies", "said"), [((0.13, 0.07, 0.07), "and these are kept: try --lr 0.01, or more --epochs"), ((0.1, 0.2), "best epoch 1: ")]
)
def test_a_training_that_does_not_learn_says_so(accuracies, said):
    epochs = [Epoch(number, 0.1, math.nan, math.nan, 2.3, accuracy, 1.0) for number, accuracy in enumerate(accuracies)]
    images = {"splits": {"validation": 160}}
    lines = chosen_epoch(History(Path("run"), "resnet20", "", {"images": images}, tuple(epochs)), 160, 0.1)
    assert said in lines[-1]
    assert (len(lines) == 2) == (accuracies[0] == max(accuracies))
