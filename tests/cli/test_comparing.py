"""benchmark as a user meets it."""

import json

import pytest

from channelscope import tables
from cli.commands import refused, run, small_network


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    path = tmp_path_factory.mktemp("comparing")
    given, _ = small_network(path)
    return path, (*given, "--images", "60", "--test", "100")


def test_tables_a_report_and_nothing_measured_twice(place, capsys):
    path, given = place
    grid = ("--scores", "l1,l2,random,reconstruction", "--budgets", "0.8,0.6", "--repairs", "none,batchnorm", "--seeds", "0")
    assert run("benchmark", *given, *grid, "--out", path / "out") == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "is best with a FLOPs-AUC of" in said
    assert "n = 1 seeds, 100 images" in said
    names = {each.name for each in (path / "out").glob("*.csv")}
    assert names == {f"benchmark{end}.csv" for end in ("", "_auc", "_paired", "_factorial", "_agreement", "_left_out")}
    frame = tables.read(path / "out" / "benchmark.csv")
    assert len(frame) == 1 + 4 * 2 * 2
    assert frame["score"][0] == "unpruned"
    assert len(tables.read(path / "out" / "benchmark_paired.csv")) == 2 * 6
    assert json.loads((path / "out" / "run.json").read_text())["tests"] == "100 test images"
    page = (path / "out" / "report.html").read_text()
    assert "Which score keeps most accuracy" in page
    before = (path / "out" / "results.sqlite").read_bytes()
    assert run("benchmark", *given, *grid, "--out", path / "out") == 0
    assert (path / "out" / "results.sqlite").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--scores", "beauty"), "no score is called beauty"),
        (("--budgets", "0"), "expected fractions between 0 and 1"),
        (("--scores", "hrank,l1", "--budgets", "0.8", "--engine", "magic"), "magic"),
    ],
)
def test_bad_input(place, capsys, options, message):
    path, given = place
    assert message in refused(capsys, "benchmark", *given, *options, "--out", path / "bad")
    assert not (path / "bad").exists()


def test_results_of_another_network_stay(place, capsys):
    path, given = place
    grid = ("--scores", "l1", "--budgets", "0.8", "--repairs", "none")
    assert run("benchmark", *given, *grid, "--out", path / "mine") == 0
    before = (path / "mine" / "results.sqlite").read_bytes()
    other = ("resnet20(width=2)", "--data", "digits", "--images", "60")
    assert "holds a run of" in refused(capsys, "benchmark", *other, *grid, "--out", path / "mine")
    assert (path / "mine" / "results.sqlite").read_bytes() == before
