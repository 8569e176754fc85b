"""The command `circuit` as a user meets it: what it leaves, and what it refuses without leaving anything."""

import json
import re

import numpy as np
import pytest
import torch

from channelscope import tables
from channelscope.circuits import folder
from channelscope.circuits.feature import locate_feature
from channelscope.cli.circuits import circuit_headline
from channelscope.network.edits import silence
from channelscope.report import page
from cli.commands import run

NETWORKS = '''
import torch
from torch import nn


class Small(nn.Module):
    """Two convolutions and a head."""

    def __init__(self, num_classes=10):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        return self.head(torch.relu(self.b(torch.relu(self.a(x)))).mean((2, 3)))


class Branching(Small):
    def forward(self, x):
        return super().forward(x) if x.mean() > 0 else super().forward(-x)


class Special(Small):
    def forward(self, x):
        return self.head(torch.lgamma(self.b(torch.relu(self.a(x))).abs() + 1).mean((2, 3)))


class Dead(Small):
    def forward(self, x):
        self.b.bias.data.fill_(-1e6)
        return super().forward(x)
'''


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("net") / "nets.py"
    path.write_text(NETWORKS)
    return path


def refused(capsys, out, *arguments) -> str:
    assert run(*arguments, "--out", out, "--images", "8", "--held-out", "8") == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert not out.exists()
    return " ".join(said.split())


@pytest.fixture(scope="module")
def found(file, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "circuit"
    arguments = ["circuit", f"{file}:Small", "--feature", "b:3", "--images", "24", "--held-out", "16", "--keep", "0.3", "--out", out]
    assert run(*arguments) == 0
    return out


def small(file) -> torch.nn.Module:
    space: dict = {}
    exec(file.read_text(), space)
    return space["Small"]().eval()


@torch.no_grad()
def test_the_module_it_leaves_is_the_masked_network(found, file):
    circuit, alone, about = folder.load_circuit(found)
    model, images = small(file), torch.randn(5, 1, 8, 8)
    with silence(model, ~circuit):
        expected = locate_feature(model, "b:3", images).feature_map(images)
    assert torch.allclose(alone(images).flatten(1), expected, atol=1e-6)
    assert about["criterion"] == "gate"
    assert len(about["weights"]) == 64


def test_the_tables_it_leaves(found):
    names = {path.stem for path in found.glob("*.csv")}
    assert names == {"circuit", "circuit_curve", "circuit_layers", "circuit_channels", "circuit_kernels"}
    row = tables.read(found / "circuit.csv").iloc[0]
    assert row["feature"] == "b:3"
    assert row["relevant"] == 6 + 6
    assert row["asked"] == 4
    assert (row["scored"], row["images"]) == (24, 16)
    for name in ("circuit.html", "circuit.svg", "circuit.png"):
        assert (found / name).stat().st_size > 2000
    facts = json.loads((found / "run.json").read_text())
    assert facts["held_out"] == "validation"
    assert facts["title"].startswith("Circuit of b:3 in ")
    assert facts["kernels"] == row["kernels"]


def test_it_says_how_well_the_circuit_does(file, capsys, tmp_path):
    arguments = ["--images", "8", "--held-out", "8", "--criterion", "iterated_gate", "--keep", "6", "--live", "--out", tmp_path / "x"]
    assert run("circuit", f"{file}:Small", "--feature", "logit:3@all", *arguments) == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(tmp_path / "x" / "circuit.html")
    assert "of 62 kernels" in said.err
    assert "as many random kernels" in said.err
    assert "the network without them" in said.err


def test_directions_and_units_are_features(file, tmp_path):
    np.save(tmp_path / "vector.npy", np.linspace(-1, 1, 8))
    for name, feature in (("direction", f"b:{tmp_path / 'vector.npy'}@max"), ("unit", "b:3@4,5"), ("center", "b:2@center")):
        out = tmp_path / name
        assert run("circuit", f"{file}:Small", "--feature", feature, "--images", "8", "--held-out", "8", "--keep", "0.5", "--out", out) == 0
        assert tables.read(out / "circuit.csv")["r"][0] > 0.2


def test_a_constant_circuit_is_said(file, capsys, tmp_path):
    arguments = ["--criterion", "random", "--seed", "2", "--keep", "2", "--images", "8", "--held-out", "8", "--out", tmp_path / "x"]
    assert run("circuit", f"{file}:Small", "--feature", "b:0", *arguments) == 0
    assert np.isnan(tables.read(tmp_path / "x" / "circuit.csv")["r"][0])
    assert tables.read(tmp_path / "x" / "circuit.csv")["kernels"][0] == 0  # dead ends were all there was
    assert (tmp_path / "x" / "circuit.html").is_file()
    assert "r does not exist: keep more, or pass --live" in " ".join(capsys.readouterr().err.split())


def test_a_circuit_no_better_than_the_mean_is_said():
    row = {"feature": "b:3", "kernels": 30, "asked": 30, "relevant": 1200, "r": 0.2, "r_low": 0.1, "r_high": 0.3, "images": 9}
    row |= {"random_r": 0.0, "random_error": 1.01, "rest_error": 1.0}
    for error, poor in ((0.98, False), (1.2, True)):
        said = circuit_headline(row | {"error": error, "error_low": error - 0.1, "error_high": error + 0.1})
        assert said.startswith("b:3: 30 of 1,200 kernels (2.5 %) reach r = 0.200 [0.100, 0.300]")
        assert (
            circuit_headline(row | {"asked": 60, "error": error, "error_low": error, "error_high": error})[:50].count(
                "(2.5 %; 60 asked for)"
            )
            == 1
        )
        assert ("no better than the feature's mean: keep more, or try --criterion learned" in said) == poor


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        ("bb:3", "no layer is called bb; near matches: b"),
        ("b:8", "b has channels 0 to 7"),
        ("b:3@9,9", "b has 8×8 positions, and 9,9 is none of them"),
        ("b", "feature: expected layer3.1.conv1:7"),
        ("b:nothing.npy", "there is no file nothing.npy"),
        ("b:3@top", "expected all, max, center or row,column"),
        ("logit:10", "logit has channels 0 to 9"),
    ],
)
def test_features_that_do_not_exist(feature, message, file, capsys, tmp_path):
    assert message in refused(capsys, tmp_path / "out", "circuit", f"{file}:Small", "--feature", feature)


def test_a_direction_of_another_layer(file, capsys, tmp_path):
    np.save(tmp_path / "short.npy", np.ones(3))
    said = refused(capsys, tmp_path / "out", "circuit", f"{file}:Small", "--feature", f"b:{tmp_path / 'short.npy'}")
    assert "expected a direction of 8 numbers, received 3" in said


def test_a_feature_that_never_activates(file, capsys, tmp_path):
    said = refused(capsys, tmp_path / "out", "circuit", f"{file}:Dead", "--feature", "b:3", "--keep", "0.5")
    assert "never activates on these images: it is 0 everywhere" in said


def test_sizes_that_cannot_be(file, capsys, tmp_path):
    for keep, message in (
        ("1", "the smallest circuit has 2 kernels"),
        ("0.01", "the smallest circuit has 2 kernels"),
        ("13", "expected 1 to 12 kernels"),
        ("2.0", "above 0 and up to 1.0"),
        ("most", "a fraction such as 0.1"),
    ):
        assert message in refused(capsys, tmp_path / "out", "circuit", f"{file}:Small", "--feature", "b:3", "--keep", keep)


def test_control_flow_is_located(file, capsys, tmp_path):
    said = refused(capsys, tmp_path / "out", "circuit", f"{file}:Branching", "--feature", "b:3")
    assert "nets.py:21" in said
    assert "values of a tensor" in said


@pytest.mark.parametrize("command", ["circuit", "subcircuits"])
def test_what_cannot_be_stored_is_said_before_the_work(command, file, capsys, tmp_path):
    more = ("--held-out", "8") if command == "circuit" else ("--strongest", "8")
    assert run(command, f"{file}:Special", "--feature", "head:3", "--images", "8", *more, "--out", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "lgamma" in said
    assert "which a recipe cannot hold" in " ".join(said.split())
    assert "on 8 calibration images" not in said  # the line before the work
    assert not (tmp_path / "out").exists()


def test_unknown_criteria_list_what_there_is(file, capsys, tmp_path):
    said = refused(capsys, tmp_path / "out", "circuit", f"{file}:Small", "--feature", "b:3", "--criterion", "shapley")
    assert "there are: gate, actgrad, snip" in said


def test_a_command_without_a_feature(file, capsys, tmp_path):
    assert "pass --feature, such as layer3" in refused(capsys, tmp_path / "out", "circuit", f"{file}:Small")


@pytest.mark.parametrize("pictures", ["visualized", "none"])
def test_pictures_of_either_kind(pictures, file, tmp_path, monkeypatch):
    monkeypatch.setattr("channelscope.circuits.pictures.STEPS", 2)
    arguments = ["--images", "8", "--held-out", "8", "--keep", "0.5", "--criterion", "actgrad", "--pictures", pictures, "--out", tmp_path]
    assert run("circuit", f"{file}:Small", "--feature", "b:3", *arguments) == 0
    page = (tmp_path / "circuit.html").read_text()
    assert ('class="picture"' in page) == (pictures == "visualized")
    assert tables.read(tmp_path / "circuit_kernels.csv")["effect"].notna().all()  # signs, though ActGrad has none


# ---- --compare --------------------------------------------------------------------------------------------------------------


def test_criteria_are_compared_on_drawn_features(file, capsys, tmp_path):
    arguments = ["--compare", "--features", "3", "--criteria", "gate,magnitude", "--sizes", "0.5,0.2", "--images", "8", "--held-out", "8"]
    assert run("circuit", f"{file}:Small", *arguments, "--out", tmp_path) == 0
    medians = tables.read(tmp_path / "circuit_medians.csv")
    assert list(zip(medians["criterion"], medians["kept"], strict=True)) == [
        ("gate", 0.5),
        ("magnitude", 0.5),
        ("gate", 0.2),
        ("magnitude", 0.2),
    ]
    assert (medians["n"] == 3).all()
    assert tables.read(tmp_path / "circuit_compare.csv")["feature"].nunique() == 3
    assert not (tmp_path / "compare.unfinished").exists()
    assert "gate" in capsys.readouterr().err


def test_comparisons_that_cannot_be(file, capsys, tmp_path):
    for more, message in (
        (["--features", "3", "--criteria", "gate,shapley"], "no criterion is called shapley; there are: gate"),
        (["--features", "3", "--sizes", "half"], "above 0 and up to 1.0; received half"),
        (["--features", "3", "--sizes", "2,0.5"], "above 0 and up to 1.0; received 2.0"),
        (["--features", "b:1 b:1"], "features, each once; received b:1, b:1"),
        (["--features", "0"], "one or more features, each once; received none"),
        (["--feature", "b:1"], "--compare takes --features, --criteria and --sizes; leave out --feature"),
        (["--keep", "0.3"], "leave out --feature and what one circuit is chosen by"),
        (["--features", "90"], "expected 90 channels that activate on these images, found 8"),
        (["--features", "b:1 b:99"], "b has channels 0 to 7"),
    ):
        assert message in refused(capsys, tmp_path / "out", "circuit", f"{file}:Small", "--compare", *more)


# ---- subcircuits ------------------------------------------------------------------------------------------------------------


def test_subcircuits_of_one_feature(file, capsys, tmp_path):
    arguments = ["--feature", "b:3", "--strongest", "24", "--clusters", "2", "--keep", "0.5", "--out", tmp_path]
    assert run("subcircuits", f"{file}:Small", *arguments) == 0
    assert "groups of" in capsys.readouterr().err
    for name in ("0", "1", "mixed", "union"):
        circuit, _, _ = folder.load_circuit(tmp_path / f"circuit_{name}")
        assert 0 < circuit.count <= circuit.total
    assert len(tables.read(tmp_path / "subcircuits.csv")) == 24
    assert set(tables.read(tmp_path / "subcircuit_curves.csv")["judged_on"]) == {0, 1}
    assert "The groups of images" in page.write_report(tmp_path).read_text()


def test_subcircuits_that_cannot_be(file, capsys, tmp_path):
    for more, message in (
        (["--clusters", "80"], "a cluster would be empty"),
        (["--strongest", "900"], "expected at least 900 images"),
        (["--strongest", "-5"], "expected at least 2 images to tell groups apart in, received -5"),
        (["--feature", "b:3@center"], "leave out @ and what follows"),
    ):
        feature = [] if "--feature" in more else ["--feature", "b:3"]
        arguments = [*feature, "--keep", "0.5", "--images", "70", "--out", tmp_path / "out", *more]
        assert run("subcircuits", f"{file}:Small", *arguments) == 2
        assert message in " ".join(capsys.readouterr().err.split())
        assert not (tmp_path / "out").exists()


def test_sub_features_are_looked_for_inside_the_general_circuit(file, capsys, tmp_path):
    given = ("subcircuits", f"{file}:Small", "--feature", "b:3", "--strongest", "20", "--clusters", "2", "--keep", "0.3")
    assert run(*given, "--images", "60", "--general", "0.6", "--out", tmp_path / "inside") == 0
    general = folder.load_mask(tmp_path / "inside" / "circuit_general")
    for name in ("0", "1", "mixed", "union"):
        assert folder.load_mask(tmp_path / "inside" / f"circuit_{name}") & general == folder.load_mask(
            tmp_path / "inside" / f"circuit_{name}"
        )
    curves = tables.read(tmp_path / "inside" / "subcircuit_curves.csv")
    assert set(curves["scored_on"]) == {"0", "1", "mixed", "general"}
    capsys.readouterr()
    assert run(*given, "--images", "60", "--general", "0.01", "--out", tmp_path / "none") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "general: expected a share from --keep 0.3 of the relevant kernels to 1, received 0.01" in said
    assert not (tmp_path / "none").exists()


def test_every_run_says_which_weights_it_is_of(file, tmp_path):
    given = ("circuit", f"{file}:Small", "--images", "20", "--held-out", "20", "--pictures", "none")
    assert run(*given, "--keep", "0.3", "--feature", "b:3", "--out", tmp_path / "one") == 0
    facts = json.loads((tmp_path / "one" / "run.json").read_text())
    assert facts["weights"] == json.loads((tmp_path / "one" / "circuit.json").read_text())["about"]["weights"]
    few = ("--compare", "--criteria", "gate,random", "--sizes", "0.5,0.2", "--features", "b:3")
    assert run(*given, *few, "--out", tmp_path / "two") == 0
    assert json.loads((tmp_path / "two" / "run.json").read_text())["weights"] == facts["weights"]


def test_without_a_size_the_smallest_that_is_better_than_random_is_taken(file, capsys, tmp_path):
    arguments = ["circuit", f"{file}:Small", "--feature", "b:3", "--images", "24", "--held-out", "16", "--pictures", "none"]
    assert run(*arguments, "--out", tmp_path / "a", "--json") == 0
    printed = capsys.readouterr()
    said = re.search(r"--keep ([\d.]+): the smallest size at which the circuit is better than random ones", printed.err)
    assert said
    (row,) = json.loads(printed.out)["tables"]["circuit"]
    assert row["asked"] == max(1, round(float(said[1]) * row["relevant"]))
    assert run(*arguments, "--out", tmp_path / "b", "--criterion", "iterated_gate") == 0
    assert "--keep 2: kernels, for which iterated_gate scored them" in capsys.readouterr().err, "no path is shorter than 2"
