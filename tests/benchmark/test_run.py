"""A benchmark measures every cell once, whatever interrupts it, and refuses to mix two runs."""

import dataclasses
import os
import signal
import sqlite3
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from channelscope import scores, zoo
from channelscope.benchmark import run as run_room
from channelscope.benchmark import trial as trial_room
from channelscope.benchmark.run import TrialStore, benchmark
from channelscope.benchmark.trial import FROM_SCRATCH, ORIGINAL, Grid, Setup, Trial, allocated_as, measure
from channelscope.data.sources import ImageSource
from channelscope.errors import ChannelscopeError, FormatError, InputError, MismatchError, TracingError
from channelscope.evaluation import evaluate_each
from channelscope.profiling.collect import collect
from channelscope.scores.score import Score

NET = "resnet20(width=2)"
GRID = Grid(("l2", "random"), (0.8, 0.5), ("global",), ("none", "batchnorm"), (0,))


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "net.safetensors"
    model, _ = zoo.load(NET, "digits", seed=3)
    zoo.save_weights(model.state_dict(), path)
    return Setup(NET, path, ImageSource("digits", 50, images=60), tests=90)


@pytest.fixture(scope="module")
def whole(bench, tmp_path_factory):
    return benchmark(bench, GRID, tmp_path_factory.mktemp("whole")).done()


def test_every_cell_is_measured_within_its_budget(bench, whole):
    assert set(whole) == {ORIGINAL, *GRID.cells(("l2", "random"))}
    assert len(whole) == 9
    for cell, row in whole.items():
        assert row["images"] == len(row["hits"]) == 90
        assert row["accuracy"] == pytest.approx(row["hits"].mean())
        assert row["kept"] <= cell.budget
        assert row["kept"] >= 0.95 * cell.budget
        assert row["reason"] == ""
    found, images = bench.open(0)
    tally, hits = evaluate_each(found.graph.model, bench.test(images))
    assert np.array_equal(hits, whole[ORIGINAL]["hits"])
    assert tally.accuracy == whole[ORIGINAL]["accuracy"]


@pytest.mark.parametrize(("gap", "precision"), [(0.0005, "bfloat16"), (-0.0005, "bfloat16"), (0.001, "float32"), (-0.002, "float32")])
def test_evaluation_is_in_bfloat16_only_where_the_accuracy_hardly_changes(bench, whole, tmp_path, monkeypatch, gap, precision):
    monkeypatch.setattr(run_room, "bfloat16_gap", lambda model, split, images: gap)
    asked = []

    def noting(model, batches, precision):
        asked.append(precision)
        return evaluate_each(model, batches, precision)

    monkeypatch.setattr(trial_room, "evaluate_each", noting)
    results = benchmark(dataclasses.replace(bench, precision="bfloat16"), Grid(("l2",), (0.8,), repairs=("none",)), tmp_path)
    said = f"{precision}; the unpruned network's accuracy in bfloat16 differs by {100 * gap:.2f} points on 90 images"
    assert results.facts["evaluation"] == said
    assert set(asked) == {precision}
    assert set(results.done()) == {ORIGINAL, Trial(0, "l2", 0.8, "global", "none")}
    if precision == "float32":
        assert np.array_equal(results.done()[ORIGINAL]["hits"], whole[ORIGINAL]["hits"])
    with pytest.raises(MismatchError, match="evaluation"):
        benchmark(bench, Grid(("l2",), (0.8,), repairs=("none",)), tmp_path)


def test_it_goes_on_where_it_was_interrupted(bench, whole, tmp_path, monkeypatch):
    measured = []
    measure = trial_room.measure

    def once(bench, cell, rankings):
        measured.append(cell)
        if len(measured) in (3, 6):
            raise KeyboardInterrupt
        return measure(bench, cell, rankings)

    monkeypatch.setattr(run_room, "measure", once)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            benchmark(bench, GRID, tmp_path)
    steps = []
    done = benchmark(bench, GRID, tmp_path, step=lambda *each: steps.append(each)).done()
    assert len(measured) == len(whole) + 2
    assert steps[-1] == (9, 9)
    assert steps[0] == (4, 9)  # when the trials begin
    for cell, row in whole.items():
        assert np.array_equal(done[cell]["hits"], row["hits"])
        assert done[cell]["loss"] == row["loss"]
    benchmark(bench, GRID, tmp_path)
    assert len(measured) == len(whole) + 2


def test_a_larger_grid_adds_to_the_same_results(bench, tmp_path):
    benchmark(bench, Grid(("l2",), (0.8,), ("global",), ("none",)), tmp_path)
    wide = Grid(("l2", "l1"), (0.8,), ("uniform", "as(l2)"), ("none",), (0, 1))
    done = benchmark(bench, wide, tmp_path).done()
    assert len(done) == 1 + 1 + 8
    as_itself = Trial(0, "l2", 0.8, "as(l2)", "none")
    assert np.array_equal(done[as_itself]["hits"], done[Trial(0, "l2", 0.8, "global", "none")]["hits"])


def test_fine_tuning_comes_with_what_it_was_before_and_with_the_shape_from_scratch(bench, tmp_path):
    done = benchmark(bench, Grid(("l2",), (0.6,), ("global",), ("batchnorm",), (0,), finetune=1), tmp_path).done()
    before, after = Trial(0, "l2", 0.6, "global", "batchnorm"), Trial(0, "l2", 0.6, "global", "batchnorm", 1)
    scratch = Trial(0, "l2", 0.6, "global", FROM_SCRATCH, 1)
    assert set(done) == {ORIGINAL, before, after, scratch}
    assert done[after]["loss"] < done[before]["loss"]
    assert {done[cell]["kept"] for cell in (before, after, scratch)} == {done[before]["kept"]}
    assert done[scratch]["loss"] != done[after]["loss"]


@pytest.mark.parametrize(("norm", "optimizer", "lr"), [("LayerNorm", "adamw", 0.001), ("BatchNorm1d", "sgd", 0.1)])
def test_networks_are_trained_by_their_usual_optimizer(tmp_path, monkeypatch, norm, optimizer, lr):
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Sequential):\n    def __init__(self):\n        super().__init__(nn.Flatten(), "
        f"nn.Linear(64, 6), nn.{norm}(6), nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 10))\n"
    )
    plans, real = [], zoo.finetune
    monkeypatch.setattr(zoo, "finetune", lambda *given, **how: (plans.append(given[3]), real(*given, **how))[1])
    own = Setup(f"{tmp_path / 'net.py'}:Net", None, ImageSource("digits", 50, images=60), tests=90)
    benchmark(own, Grid(("l2",), (0.8,), ("global",), ("none",), (0,), finetune=1), tmp_path / "run")
    assert {plan.optimizer for plan in plans} == {optimizer}
    assert sorted(plan.lr for plan in plans) == pytest.approx([lr / 10, lr])


def test_a_budget_that_cannot_be_met_is_a_row_with_its_reason(bench, tmp_path):
    done = benchmark(bench, Grid(("l2",), (0.001,), ("global",), ("none",)), tmp_path).done()
    row = done[Trial(0, "l2", 0.001, "global", "none")]
    assert np.isnan(row["accuracy"])
    assert "cannot be met" in row["reason"]


def test_rankings_come_back_as_they_were(bench, tmp_path):
    results = benchmark(bench, Grid(("overlap", "reconstruction"), (0.8,), repairs=("none",)), tmp_path)
    again = TrialStore(results.path, results.facts).rankings(0)
    assert again["reconstruction"].comparable_across_layers
    assert again["overlap"].keeps == "low"
    assert again["overlap"].sites == again["reconstruction"].sites
    results.add_ranking(0, "chip", None, "too slow")
    assert results.rankings(0)["chip"] == "too slow"


def test_other_results_are_refused(bench, tmp_path):
    results = TrialStore(tmp_path / "results.sqlite", {"model": "other", "weights": "?"})
    results.close()
    with pytest.raises(MismatchError, match=r"another run of a benchmark: they differ in model \(other there, "):
        benchmark(bench, GRID, tmp_path)
    (tmp_path / "results.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(FormatError, match="damaged"):
        benchmark(bench, GRID, tmp_path)


def test_a_score_that_cannot_be_computed_says_so_or_is_left_out(bench, tmp_path, monkeypatch):
    def refused(*_, **__):
        raise InputError("nothing to see")

    monkeypatch.setattr(Score, "__call__", refused)
    with pytest.raises(InputError, match="l2 cannot be computed here: nothing to see"):
        benchmark(bench, Grid(("l2",), (0.8,), repairs=("none",)), tmp_path)
    done = benchmark(bench, Grid(("all",), (0.8,), repairs=("none",)), tmp_path).done()
    assert {cell.score for cell in done} == {"", "reconstruction"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scores": ("beauty",)}, "no score is called beauty"),
        ({"scores": ("relevnce",)}, "no score is called relevnce; near matches: relevance"),
        ({"repairs": ("least_square",)}, "no repair is called least_square; near matches: least_squares"),
        ({"scores": ("l2", "l2")}, "different names"),
        ({"repairs": ("glue",)}, "no repair is called glue"),
        ({"allocations": ("as(beauty)",)}, r"no allocation is called as\(beauty\)"),
        ({"budgets": (1.5,)}, "received 1.5"),
        ({"budgets": ()}, "received none"),
        ({"seeds": (0.5,)}, "whole numbers"),
    ],
)
def test_grids_that_make_no_sense(options, message):
    with pytest.raises(InputError, match=message):
        Grid(**options)


def test_an_engine_that_does_not_exist_is_refused(bench, tmp_path):
    with pytest.raises(InputError, match="no engine is called proces; near matches: process; there are: process, workers, ray"):
        benchmark(bench, GRID, tmp_path, engine="proces")
    assert not list(tmp_path.iterdir())


def test_allocations_are_read():
    assert allocated_as("as(l2)") == "l2"
    assert allocated_as("global") == ""
    assert Trial(0, "l1", 0.5, "as(l2)", "none").rankings == ("l1", "l2")


def test_workers_that_keep_dying_are_said(bench, monkeypatch):
    class Pool:
        def __init__(self, *_):
            pass

        def submit(self, *_):
            raise run_room.BrokenProcessPool("gone")

        def shutdown(self, **_):
            pass

    monkeypatch.setattr(run_room, "ProcessPoolExecutor", Pool)
    with pytest.raises(ChannelscopeError, match="died 3 times without a result"):
        list(run_room.run_trials(bench, [(ORIGINAL, {})], "workers"))


def test_a_missing_ray_is_named(bench, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    with pytest.raises(InputError, match=r"channelscope\[ray\]"):
        list(run_room.run_trials(bench, [(ORIGINAL, {})], "ray"))


@pytest.mark.slow
def test_a_killed_worker_costs_nothing(bench, whole, tmp_path):
    """One of two workers is killed as soon as there is a first result: every cell is there, each as before."""
    killed = []

    def step(done, total):
        if not killed:
            children = subprocess.run(["pgrep", "-P", str(os.getpid()), "-f", "multiprocessing.spawn"], capture_output=True, text=True)
            killed.append(int(children.stdout.split()[-1]))
            os.kill(killed[0], signal.SIGKILL)

    done = benchmark(bench, GRID, tmp_path, "workers", 2, step=step).done()
    assert killed
    assert set(done) == set(whole)
    assert all(np.array_equal(done[cell]["hits"], row["hits"]) for cell, row in whole.items())


@pytest.mark.slow
def test_a_killed_run_loses_and_repeats_nothing(bench, whole, tmp_path):
    arguments = ("--data", "digits", "--batch-size", "50", "--images", "60", "--test", "90", "--weights", bench.weights, "--out", tmp_path)
    grid = ("--scores", "l2,random", "--budgets", "0.8,0.5", "--repairs", "none,batchnorm")
    command = [sys.executable, "-m", "channelscope", "benchmark", NET, *map(str, arguments), *grid]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 200
    while time.monotonic() < until and _count(tmp_path / "results.sqlite") < 3:
        time.sleep(0.02)
    process.kill()
    process.wait()
    before = _count(tmp_path / "results.sqlite")
    assert 3 <= before < 9
    first = dict(sqlite3.connect(tmp_path / "results.sqlite").execute("SELECT cell, row FROM cells"))
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    second = dict(sqlite3.connect(tmp_path / "results.sqlite").execute("SELECT cell, row FROM cells"))
    assert len(second) == 9
    assert all(second[key] == row for key, row in first.items())
    assert (tmp_path / "report.html").exists()


def _count(path) -> int:
    if not path.exists():
        return 0
    try:
        return sqlite3.connect(path).execute("SELECT COUNT(*) FROM cells").fetchone()[0]
    except sqlite3.OperationalError:
        return 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_ray_cluster_of_two_with_a_killed_worker(bench, whole, tmp_path, monkeypatch):
    """The first worker that is given a cell dies at once, as by a kill; the cell is given to another."""
    ray = pytest.importorskip("ray")
    measure, note = trial_room.measure, tmp_path / "died"

    def dying(bench, cell, rankings):
        if not note.exists():
            note.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return measure(bench, cell, rankings)

    monkeypatch.setattr(run_room, "measure", dying)
    done = benchmark(bench, GRID, tmp_path, "ray", 2).done()
    assert note.exists()
    assert not ray.is_initialized()
    assert set(done) == set(whole)
    assert all(np.array_equal(done[cell]["hits"], row["hits"]) for cell, row in whole.items())


def test_without_gradients_of_its_own_a_network_has_every_other_score(bench, tmp_path, monkeypatch):
    def refusing(*given, sensitivity=False, **options):
        if sensitivity:
            raise TracingError("tracing changes the gradients")
        return collect(*given, **options)

    monkeypatch.setattr(run_room, "collect", refusing)
    results = TrialStore(tmp_path / "results.sqlite", {})
    assert set(run_room.make_rankings(bench, 0, ("all",), (), results)) >= {"l2", "capture"}
    assert results.rankings(0)["fisher"] == "tracing changes the gradients"
    with pytest.raises(InputError, match="fisher cannot be computed here: tracing changes the gradients"):
        run_room.make_rankings(bench, 0, ("fisher",), (), results)


@pytest.mark.parametrize(("repair", "most"), [("none", 1.5), ("least_squares", 8.0)])
def test_a_trial_costs_few_forward_passes_over_its_images(repair, most):
    """Counted in multiply-adds, those of the regressions included: cut, shrink, repair on 100 images and evaluation on 200."""
    bench = Setup(NET, None, ImageSource("digits", images=100), tests=200)
    found, images = bench.open(0)
    with FlopCounterMode(display=False) as image, torch.no_grad():
        found.graph.model.eval()(torch.zeros(1, *images.image_shape))
    ranking = scores.l2(collect(found.graph.model, images.calibration, shards=0))
    with FlopCounterMode(display=False) as trial:
        row = measure(bench, Trial(0, "l2", 0.5, "global", repair), {"l2": ranking})
    assert row["images"] == 200
    passes = trial.get_total_flops() / image.get_total_flops() / 300
    assert 200 * row["kept"] / 300 < passes <= most  # the evaluation is part of it
