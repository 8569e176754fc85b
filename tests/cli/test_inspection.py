"""What a network, a file or a folder is: sites with their costs, lists of names, contents of whatever commands write, and exports."""

import json

import pytest
import torch

from channelscope import tables, zoo
from channelscope.circuits.criteria import CRITERIA
from channelscope.cli.inspection import _short
from channelscope.network.cost import cost
from channelscope.scores.score import REGISTRY
from cli.commands import refused, run

NET = """
from torch import nn


class Two(nn.Sequential):
    def __init__(self, num_classes=10):
        super().__init__(
            nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes)
        )
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a small network, its profile and a pruned network."""
    folder = tmp_path_factory.mktemp("inspection")
    (folder / "net.py").write_text(NET)
    name = f"{folder / 'net.py'}:Two"
    model, _ = zoo.load(name, "digits")
    zoo.save_weights(model.state_dict(), folder / "net.safetensors")
    few = (name, "-w", folder / "net.safetensors", "--images", "60", "-q")
    assert run("profile", *few, "--out", folder / "net.profile") == 0
    assert run("prune", *few, "--score", "l2", "--macs", "0.7", "--test", "50", "--out", folder / "small") == 0
    return folder


@pytest.fixture
def printed(capsys):
    """The object that a command prints with --json."""

    def read(*arguments):
        capsys.readouterr()
        assert run(*arguments, "--json") == 0
        return json.loads(capsys.readouterr().out)

    return read


def test_sites_are_listed_with_what_they_cost(place, printed):
    found = printed("sites", f"{place / 'net.py'}:Two")
    spent = cost(zoo.load(f"{place / 'net.py'}:Two", "digits")[0], torch.zeros(1, 1, 8, 8))
    assert found["macs"] == spent.total_macs
    rows = {row["layer"]: row for row in found["layers"]}
    assert [(name, row["channels"], row["shape"], row["removable"], row["macs"]) for name, row in rows.items()] == [
        ("0", 6, "6×6×6", 6, 6 * 9 * 36),
        ("2", 4, "4×4×4", 4, 4 * 6 * 9 * 16),
        ("6", 0, "", 0, 40),
    ]
    assert rows["6"]["kind"] == "not measured"
    assert "output" in rows["6"]["note"]
    assert sum(row["share"] for row in rows.values()) == pytest.approx(1)
    assert found["groups"] == 10


def test_sites_are_a_table_in_text(place, capsys):
    assert run("sites", f"{place / 'net.py'}:Two") == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0].split() == ["layer", "kind", "channels", "shape", "removable", "macs", "share", "note"]
    assert out.splitlines()[1].split()[:6] == ["0", "conv", "6", "6×6×6", "6", "1,944"]
    assert "2 sites with 10 channels, in 10 groups that can be removed; 5,440 multiply-adds an image" in err


def test_what_can_be_named_is_listed(printed, capsys):
    assert [row["name"] for row in printed("list", "scores")["scores"]] == list(REGISTRY)
    assert [row["name"] for row in printed("list", "criteria")["criteria"]] == list(CRITERIA)
    assert [row["name"] for row in printed("list", "data")["data"]] == ["digits", "cifar10", "cifar100", "folder:PATH", "hf:ID_OR_PATH"]
    names = [row["name"] for row in printed("list", "models")["models"]]
    assert names[:2] == ["resnet20", "resnet32"]
    assert names[-4:] == ["timm:NAME", "torchvision:NAME", "FILE.py:CLASS", "FOLDER"]
    assert run("list", "scores") == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("capture "))
    assert "nats" in line.split()
    assert "criteria" in refused(capsys, "list", "networks").replace("'", "")


def test_info_of_a_profile_and_of_weights(place, printed):
    found = printed("info", place / "net.profile")["profile"]
    assert (found["images"], found["sites"], found["channels"], found["input_shape"]) == (60, 2, 10, [1, 8, 8])
    assert found["skipped"].keys() == {"6"}
    weights = printed("info", place / "net.safetensors")["weights"]
    assert (weights["tensors"], weights["parameters"]) == (6, 6 * 9 + 6 + 4 * 54 + 4 + 50)
    assert weights["shapes"]["0.weight"] == [6, 1, 3, 3]


def test_info_of_a_pruned_network_and_of_a_table(place, printed, capsys):
    found = printed("info", place / "small")
    assert found["pruned network"]["network"] == f"{place / 'net.py'}:Two"
    kept = [text.split(" of ") for text in found["pruned network"]["channels kept"].values()]
    assert [int(whole) for _, whole in kept] == [6, 4]
    assert sum(int(left) for left, _ in kept) < 10
    assert found["run"]["tables"] == {"pruned_layers": "2 rows", "pruning": "3 rows"}
    assert found["run"]["calls"][0]["command"].startswith(f"channelscope prune {place / 'net.py'}:Two ")
    columns = printed("info", place / "small" / "pruning.csv")["table"]["columns"]
    assert columns["macs"].endswith("]")
    assert run("info", place / "small") == 0
    assert "\npruned network\n  network: " in capsys.readouterr().out


def test_info_of_a_training(tmp_path, printed):
    assert run("train", "resnet20(width=2)", "--epochs", "1", "-q", "--out", tmp_path / "run") == 0
    found = printed("info", tmp_path / "run")
    assert (found["training"]["network"], found["training"]["epochs"]) == ("resnet20(width=2)", 1)
    assert list(found["training"]["checkpoints"]) == ["0", "1"]
    assert found["run"]["calls"][0]["command"] == f"channelscope train 'resnet20(width=2)' --epochs 1 --out {tmp_path / 'run'}"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("nothing", None, "expected a file or folder, found nothing there"),
        ("empty", "", "expected a folder that a command of channelscope wrote, found none of run.json, recipe.json, circuit.json"),
        ("a.profile", b"not a profile", "a.profile"),
        ("a.csv", b"a,b\n", "a.columns.json"),
        ("a.txt", b"words", "a.txt"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path, capsys, name, content, said):
    if content == "":
        (tmp_path / name).mkdir()
    elif content is not None:
        (tmp_path / name).write_bytes(content)
    assert said in refused(capsys, "info", tmp_path / name)


def test_a_network_is_evaluated_on_a_part_of_the_images(place, printed, capsys):
    given = (f"{place / 'net.py'}:Two", "-w", place / "net.safetensors")
    model, images = zoo.load(given[0], "digits", given[2])
    logits = model(torch.cat([batch[0] for batch in images.test]))
    right = int((logits.argmax(1) == images.test.labels).sum())
    found = printed("evaluate", *given)
    assert found["accuracy"] == right / len(images.test)
    assert found["accuracy_low"] < found["accuracy"] < found["accuracy_high"]
    loss = torch.nn.functional.cross_entropy(logits.double(), images.test.labels).item()
    assert found["loss"] == pytest.approx(loss, rel=1e-6)
    assert printed("evaluate", *given, "--part", "validation", "--test", "20")["accuracy_images"] == 20
    assert run("evaluate", *given, "-q") == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"net.py:Two: accuracy {found['accuracy']:.1%} [")
    assert err == ""
    assert "expected at least 1 of 144 validation images, asked for 145" in refused(
        capsys, "evaluate", *given, "--part", "validation", "--test", "145"
    )


@pytest.mark.parametrize("command", [("evaluate",), ("axes",), ("profile",), ("prune", "--score", "l2"), ("ablate", "--channels", "4")])
def test_a_network_that_is_no_better_than_chance_is_said(place, tmp_path, capsys, command):
    """With weights alone: without, the first line says that they are random."""
    network = f"{place / 'net.py'}:Two"
    out = () if command == ("evaluate",) else ("--out", tmp_path / "out")
    few = ("--images", "60", *(() if command[0] in ("axes", "profile") else ("--test", "50")))
    note = "accuracy is not beyond chance, 1 of 10 classes: are the weights those of these classes, in this order"
    assert run(*command, network, "-w", place / "net.safetensors", *few, *out) == 0
    assert note in " ".join(capsys.readouterr().err.split())
    if command == ("evaluate",):
        assert run(*command, network, *few) == 0
        assert note not in " ".join(capsys.readouterr().err.split())
    if command[0] in ("axes", "prune"):
        assert "not beyond chance (10.0 %)" in (tmp_path / "out" / "report.html").read_text()


def test_nothing_is_said_of_a_network_that_has_learned(tmp_path, capsys):
    assert run("train", "resnet20(width=8)", "--epochs", "3", "--out", tmp_path / "run", "-q") == 0
    capsys.readouterr()
    assert run("evaluate", "resnet20(width=8)", "-w", tmp_path / "run" / "trained.safetensors") == 0
    assert "chance" not in capsys.readouterr().err


def test_a_pruned_folder_is_a_network(place, printed, capsys):
    last = tables.read(place / "small" / "pruning.csv").iloc[-1]
    found = printed("evaluate", place / "small", "--test", "50")
    assert found["accuracy"] == pytest.approx(last["accuracy"])
    assert printed("sites", place / "small")["macs"] == last["macs"]
    said = refused(capsys, "evaluate", place / "small", "-w", place / "net.safetensors")
    assert "holds a pruned network with weights of its own; --weights cannot be given with it" in said


def test_a_pruned_network_is_exported_and_compared(place, tmp_path, printed, capsys):
    found = printed("export", place / "small", "--format", "pt2", "--out", tmp_path / "small.pt2")
    assert found["difference"] < 1e-5
    assert found["input_shape"] == [1, 8, 8]
    program = torch.export.load(tmp_path / "small.pt2").module()
    assert program(torch.zeros(3, 1, 8, 8)).shape == (3, 10)
    assert "expected a name that ends in .onnx, for --format onnx" in refused(
        capsys, "export", place / "small", "--out", tmp_path / "small.pt2"
    )
    assert "expected the recipe of a pruned network" in refused(capsys, "export", tmp_path)


def test_lists_and_mappings_of_twelve_entries_are_printed_whole():
    twelve = ", ".join(map(str, range(12)))
    assert (_short(list(range(12))), _short(list(range(13)))) == (twelve, f"{twelve}, … (13 in all)")
    named = ", ".join(f"k{n} {n}" for n in range(12))
    assert _short({f"k{n}": n for n in range(12)}) == named
    assert _short({f"k{n}": n for n in range(13)}) == f"{named}, … (13 in all)"


def test_one_channel_is_summed_up_on_a_page(place, tmp_path, capsys):
    given = (f"{place / 'net.py'}:Two", "-w", place / "net.safetensors", "--images", "60", "-q")
    assert run("axes", *given, "--out", tmp_path / "axes") == 0
    assert run("explain", "0:1", tmp_path / "axes", "--out", tmp_path / "why") == 0
    assert "<title>Why 0:1?" in (tmp_path / "why" / "report.html").read_text(encoding="utf-8")
    assert "0:1" in tables.read(tmp_path / "why" / "explanation.csv")["sentence"].iloc[0]


def test_incomplete_variables_of_torchrun_are_refused(place, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    given = (f"{place / 'net.py'}:Two", "-w", place / "net.safetensors", "--images", "60", "-q")
    assert run("profile", *given, "--out", tmp_path / "net.profile") == 2
    assert "the variables of torchrun are incomplete (WORLD_SIZE is set): " in capsys.readouterr().err
