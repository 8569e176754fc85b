"""Trajectories as a user follows them, and what is refused."""

import importlib
import json
import shutil

import pandas as pd
import pytest

from channelscope import tables
from cli.commands import refused, run, small_network

FOLLOW = importlib.import_module("channelscope.cli.experiments")
SMALL = ("--images", "80", "--layer-count", "3")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two short trainings of a small network on digits."""
    folder = tmp_path_factory.mktemp("runs")
    given, _ = small_network(folder)
    for seed in (0, 1):
        assert run("train", given[0], "--epochs", "1", "--seed", seed, "--images", "80", "--out", folder / f"seed{seed}") == 0
    return [folder / f"seed{seed}" for seed in (0, 1)]


def test_curves_of_two_runs(trained, tmp_path, capsys):
    assert run("trajectory", *trained, *SMALL, "--out", tmp_path) == 0
    said = capsys.readouterr()
    assert "over 2 runs, the published direction" in " ".join(said.err.split())
    assert "report.html" in said.out
    assert {path.stem for path in tmp_path.glob("*.csv")} == {"trajectory", "trajectory_layers", "trajectory_change"}
    layers = tables.read(tmp_path / "trajectory_layers.csv")
    assert set(layers.run) == {"seed0", "seed1"}
    assert set(layers.epoch) == {0, 1}
    assert layers.groupby(["run", "epoch"]).size().tolist() == [3] * 4


def test_runs_of_the_same_name_are_told_apart_by_their_paths(trained, tmp_path, capsys):
    for place, folder in zip(("a", "b"), trained, strict=True):
        shutil.copytree(folder, tmp_path / place / "seed0")
    runs = [tmp_path / place / "seed0" for place in ("a", "b")]
    assert run("trajectory", *runs, *SMALL, "--out", tmp_path / "out") == 0
    assert set(tables.read(tmp_path / "out" / "trajectory_layers.csv").run) == {"a/seed0", "b/seed0"}
    assert "expected different runs" in refused(capsys, "trajectory", runs[0], runs[0], *SMALL, "--out", tmp_path / "twice")


def test_an_interrupted_call_goes_on_from_its_profiles(trained, tmp_path, monkeypatch):
    assert run("trajectory", *trained, *SMALL, "--out", tmp_path / "whole") == 0
    done, collect = [], FOLLOW.collect

    def failing(*arguments, **options):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(1)
        return collect(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(FOLLOW, "collect", failing)
        assert run("trajectory", *trained, *SMALL, "--out", tmp_path / "parts") == 130
    assert not list((tmp_path / "parts").glob("*.csv"))
    done.clear()
    monkeypatch.setattr(FOLLOW, "collect", lambda *arguments, **options: (done.append(1), collect(*arguments, **options))[1])
    assert run("trajectory", *trained, *SMALL, "--out", tmp_path / "parts") == 0
    assert len(done) == 2
    for name in ("trajectory", "trajectory_layers", "trajectory_change"):
        one, other = (tables.read(tmp_path / each / f"{name}.csv") for each in ("whole", "parts"))
        pd.testing.assert_frame_equal(one, other)


class TestRefused:
    def test_a_folder_without_a_training(self, capsys, tmp_path):
        assert "expected the log of a training run" in refused(capsys, "trajectory", tmp_path, "--out", tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_no_run_at_all(self, tmp_path):
        assert run("trajectory", "--out", tmp_path / "out") == 2

    def test_runs_of_different_networks(self, trained, capsys, tmp_path):
        shutil.copytree(trained[1], tmp_path / "other")
        log = json.loads((tmp_path / "other" / "training.json").read_text())
        (tmp_path / "other" / "training.json").write_text(json.dumps({**log, "network": "resnet20"}))
        said = refused(capsys, "trajectory", trained[0], tmp_path / "other", "--out", tmp_path / "out")
        assert "the runs are of different things" in said
        assert "resnet20 on digits" in said

    def test_a_run_without_checkpoints(self, trained, capsys, tmp_path):
        shutil.copy(trained[0] / "training.json", tmp_path / "training.json")
        assert "no checkpoint in" in refused(capsys, "trajectory", tmp_path, "--out", tmp_path / "out")

    def test_profiles_of_other_images(self, trained, capsys, tmp_path):
        assert run("trajectory", trained[0], *SMALL, "--out", tmp_path) == 0
        said = refused(capsys, "trajectory", trained[0], "--images", "90", "--layer-count", "3", "--out", tmp_path)
        assert "is of other weights or images" in said

    def test_too_few_images(self, trained, capsys, tmp_path):
        said = refused(capsys, "trajectory", trained[0], "--images", "12", "--out", tmp_path / "out")
        assert "12 images are too few" in said
        assert "at epoch 0 of seed0" in said


def test_fewer_than_one_layer_is_refused_before_anything_is_read(capsys, tmp_path):
    assert run("trajectory", tmp_path / "nothing", "--layer-count", "0", "--out", tmp_path / "t") == 2
    assert "expected --layer-count of at least 1, received 0" in capsys.readouterr().err
