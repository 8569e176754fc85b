"""Progress: plain lines where there is no terminal, one display where there is, nothing where it is not wanted."""

import contextlib
import io
import json
import re
import struct
import sys
import time
from collections.abc import Callable

import pandas as pd
import pytest
import torch
from rich.console import Console
from torch import nn

from channelscope import progress, zoo
from channelscope.cli.benchmark import counted_trials, log_trials
from channelscope.errors import InputError
from channelscope.network.removal.groups import groups
from channelscope.progress import format_seconds, progress_bar, track, without_bars
from channelscope.pruning.budget import Budget
from channelscope.pruning.distillation import DistillationPlan, distill
from channelscope.pruning.optimal_brain_surgeon import optimal_brain_surgeons
from channelscope.pruning.prune import prune

prune_module, surgeon_module = (sys.modules[function.__module__] for function in (prune, optimal_brain_surgeons))


def test_short_work_is_not_reported(capsys):
    with progress_bar("images", 2) as advance:
        advance(2)
    assert capsys.readouterr().err == ""


def test_long_work_is_reported_in_plain_lines(monkeypatch, capsys):
    monkeypatch.setattr(progress, "FIRST_LINE", 0.02)
    with progress_bar("images", 40) as advance:
        advance(10)
        time.sleep(0.3)
        advance(30)
    *lines, last = capsys.readouterr().err.splitlines()
    assert any(re.fullmatch(r"images: 10 of 40, \d\.\d s, about \d\.\d s left", line) for line in lines)
    assert re.fullmatch(r"images: done after \d\.\d s", last)


def test_work_that_ends_early_is_not_called_done(monkeypatch, capsys):
    monkeypatch.setattr(progress, "FIRST_LINE", 0.02)
    with contextlib.suppress(ValueError), progress_bar("images", 3):
        time.sleep(0.1)
        raise ValueError
    lines = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"images: 0 of 3, \d\.\d s", lines[0])
    assert re.fullmatch(r"images: stopped after \d\.\d s", lines[-1])


def test_the_text_behind_a_bar_is_behind_its_lines_and_not_at_the_end(capsys):
    lines = progress._PlainLines("training", None)
    lines.describe("epoch 2", "loss 0.5")
    lines.speak()
    lines.line("epoch 2 is over")
    lines.ended("done")
    said = re.sub(r"\d\.\d s", "TIME", capsys.readouterr().err).splitlines()
    assert said == ["epoch 2: TIME so far  loss 0.5", "epoch 2 is over", "epoch 2: done after TIME"]


@pytest.mark.parametrize(
    ("total", "done", "said"),
    [(40, 10, "10 of 40, 5.0 s, about 15 s left"), (40, 0, "0 of 40, 5.0 s"), (None, 3, "3 done, 5.0 s"), (None, 0, "5.0 s so far")],
)
def test_a_line_says_how_far_and_how_long(total, done, said):
    lines = progress._PlainLines("work", total)
    lines(done)
    assert lines.state(5.0) == said


class Clock:
    """A clock that goes on by what is waited for, and at some seconds lets something happen."""

    events: dict[float, Callable[[], None]]
    """second → what happens then"""

    def __init__(self, monkeypatch, ends: float):
        self.now, self.ends, self.events = 0.0, ends, {}
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(progress, "console", progress._Console(stderr=True))

    def wait(self, pause: float) -> bool:
        due = min((second for second in self.events if second <= self.now + pause), default=None)
        self.now = self.now + pause if due is None else due
        if due is not None:
            self.events.pop(due)()
        return self.now > self.ends


def test_lines_come_at_doubling_distances_of_at_most_twenty_seconds(monkeypatch, capsys):
    clock, speaker = Clock(monkeypatch, 70), progress._Speaker()
    speaker.bars = [progress._PlainLines("work", None)]
    speaker._watch(clock)  # type: ignore[arg-type]
    times = ("2.0 s", "6.0 s", "14 s", "30 s", "50 s", "1 min 10 s")
    assert capsys.readouterr().err.splitlines() == [f"work: {time} so far" for time in times]


def test_a_command_is_never_silent_for_two_seconds_and_speaks_with_one_voice(monkeypatch, capsys):
    clock, speaker = Clock(monkeypatch, 12), progress._Speaker()
    speaker.bars = [progress._PlainLines("axes", None, steady=True)]
    images = progress._PlainLines("images", 8)
    clock.events = {
        1.0: lambda: progress.console.print("a remark"),
        4.2: lambda: speaker.bars.append(images),
        5.0: lambda: images(2),
        8.1: lambda: speaker.bars.remove(images),
        9.0: lambda: images.ended("done"),
    }
    speaker._watch(clock)  # type: ignore[arg-type]
    lines = capsys.readouterr().err.splitlines()
    assert lines[:3] == ["a remark", "axes: 2.5 s so far", "axes: 4.0 s so far"]
    assert lines[3:6] == ["images: 2 of 8, 5.5 s, about 16 s left", "images: 2 of 8, 7.0 s, about 21 s left", "axes: 8.5 s so far"]
    assert lines[6:] == ["images: done after 9.0 s", "axes: 10 s so far", "axes: 12 s so far"]


def test_the_log_of_hours_is_short_and_names_every_stage_at_once(monkeypatch, capsys):
    """Two seconds apart at most in the first half minute, then a twentieth of the time gone, then twenty seconds; a new stage is said."""
    clock, speaker = Clock(monkeypatch, 7200), progress._Speaker()
    speaker.bars = [progress._PlainLines("train", None, steady=True)]
    spoken, stage = [], progress._PlainLines("evaluation", 8)
    monkeypatch.setattr(progress._PlainLines, "_print", lambda bar, text: spoken.append((bar.note, clock.now)) or now())

    def now():
        progress.console.spoken = clock.now

    clock.events = {3600.0: lambda: speaker.bars.append(stage), 3660.0: lambda: speaker.bars.remove(stage)}
    speaker._watch(clock)  # type: ignore[arg-type]
    seconds = [second for _, second in spoken]
    apart = [(then, then - before) for before, then in zip([0.0, *seconds], seconds, strict=False)]
    assert all(distance <= max(1.5, min(then / 20, 20.0)) + 1e-6 for then, distance in apart)
    assert len(spoken) < 460
    said = [second for note, second in spoken if note == "evaluation"]
    assert 0 <= said[0] - 3600.0 <= 1.5
    assert len(said) <= 5


def test_a_call_without_bars_speaks_on_its_own_and_ends_without_a_word(monkeypatch, capsys):
    monkeypatch.setattr(progress, "SILENCE", 0.02)
    with progress.never_silent("axes"):
        time.sleep(0.1)
        with progress_bar("images", 1):
            pass
    lines = capsys.readouterr().err.splitlines()
    assert lines
    assert all(re.fullmatch(r"axes: \d\.\d s so far", line) for line in lines)
    assert progress._SPEAKER.bars == []
    with without_bars(), progress.never_silent("axes"):
        time.sleep(0.1)
    assert capsys.readouterr().err == ""


def test_a_terminal_has_one_display_for_bars_inside_bars(monkeypatch):
    stream = io.StringIO()
    stream.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr(progress, "console", Console(file=stream, force_terminal=True, width=100))
    displays = []
    with progress_bar("outer", 2) as advance:
        displays.append(progress._SHOWN.get())
        for _ in track([1, 2, 3], "inner"):
            displays.append(progress._SHOWN.get())
        advance()
        (task,) = displays[0].tasks
        assert (task.description, task.completed, task.total) == ("outer", 1, 2)
    assert len(set(map(id, displays))) == 1
    assert progress._SHOWN.get() is None
    assert "outer" in stream.getvalue()


@pytest.mark.parametrize(
    ("items", "total", "counted"), [([1, 2], None, 2), ([1, 2], 5, 5), (iter([1, 2]), None, None), (iter([1, 2]), 2, 2)]
)
def test_the_number_of_tracked_items_is_the_one_given_or_their_length(monkeypatch, items, total, counted):
    seen = []
    monkeypatch.setattr(
        progress, "progress_bar", lambda note, count, shown: seen.append((note, count, shown)) or contextlib.nullcontext(int)
    )
    assert list(track(items, "squares", total)) == [1, 2]
    assert seen == [("squares", counted, True)]


def test_tracked_items_come_through_and_are_counted():
    assert list(track((n * n for n in range(4)), "squares", total=4)) == [0, 1, 4, 9]
    with without_bars():
        assert list(track([5], "none")) == [5]


@pytest.mark.parametrize(
    ("seconds", "said"), [(9.94, "9.9 s"), (10, "10 s"), (59.4, "59 s"), (60, "1 min 0 s"), (3599, "59 min 59 s"), (3600, "1 h 0 min")]
)
def test_durations(seconds, said):
    assert format_seconds(seconds) == said


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def drawn(monkeypatch):
    """What a function draws on standard error, without the codes that move and color it."""

    def drawn(work, screen=Terminal):
        with monkeypatch.context() as patch:
            patch.setenv("TERM", "xterm")
            patch.setattr(sys, "stderr", screen())
            patch.setattr(progress, "console", Console(stderr=True))
            work()
            return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", sys.stderr.getvalue())

    return drawn


def bar(*steps: int, total: int = 5, shown: bool = True):
    with progress_bar("images", total, shown) as advance:
        advance()
        for step in steps:
            advance(step)


def test_results_are_printed_below_no_bar_and_on_standard_output(drawn, capsys):
    def work():
        with progress.never_silent("axes"), progress_bar("images", 3) as advance:
            advance()
            with progress.paused():
                before = sys.stderr.getvalue()  # type: ignore[attr-defined]
                print("the result")
                time.sleep(0.2)
                assert sys.stderr.getvalue() == before, "the display is still drawn"  # type: ignore[attr-defined]
            advance()

    screen = drawn(work)
    assert capsys.readouterr().out == "the result\n"
    assert "the result" not in screen
    assert "axes" in screen
    assert last_count(screen) == "2/3"


def test_the_text_behind_a_bar_is_cut_off_where_the_terminal_ends(drawn):
    def work():
        with progress_bar("training", 9) as bar:
            bar.describe("epoch 1/2", "loss 0.5 " * 50)

    last = [line for line in re.split(r"[\r\n]+", drawn(work)) if "epoch 1/2" in line][-1]
    assert "0/9" in last
    assert "loss 0.5" in last
    assert last.rstrip().endswith("…")


def test_a_terminal_that_cannot_draw_gets_lines(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(progress, "console", progress._Console(stderr=True))
    monkeypatch.setenv("TERM", "dumb")
    assert not progress.on_terminal()
    monkeypatch.setenv("TERM", "xterm")
    assert progress.on_terminal()


def last_count(screen: str) -> str:
    return re.findall(r"\d+/\d+", screen)[-1]


def test_it_advances_by_one_or_by_the_number_given(drawn):
    assert last_count(drawn(bar)) == "1/5"
    assert last_count(drawn(lambda: bar(3, 2, total=7))) == "6/7"


def test_nothing_is_drawn_where_it_is_not_wanted(drawn):
    def quiet():
        with without_bars():
            bar()

    assert drawn(lambda: bar(shown=False)) == ""
    assert drawn(quiet) == ""
    assert last_count(drawn(bar)) == "1/5", "bars come back after the context"


def test_nothing_is_drawn_where_standard_error_is_no_terminal(drawn):
    assert drawn(bar, io.StringIO) == ""


def test_without_a_logger_numbers_go_nowhere(tmp_path):
    with progress.logging_to("none", tmp_path / "log"):
        progress.log_numbers("train", 1, loss=0.5)
    assert not (tmp_path / "log").exists()


def test_tensorboard_reads_what_was_logged(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="the extra tensorboard")
    with progress.logging_to("tensorboard", tmp_path):
        for epoch, loss in ((1, 0.5), (2, 0.25)):
            progress.log_numbers("train", epoch, loss=loss, accuracy=1 - loss)
    progress.log_numbers("train", 3, loss=9.0)
    found = accumulator.EventAccumulator(str(tmp_path)).Reload()
    assert found.Tags()["scalars"] == ["train/loss", "train/accuracy"]
    assert [(each.step, each.value) for each in found.Scalars("train/loss")] == [(1, 0.5), (2, 0.25)]


def records_of_wandb(file):
    """Records of a file of Weights & Biases: a head of 7 bytes, then LevelDB's log, whose records may go on in the next block."""
    block, head = 32768, 7
    data, place, begun = file.read_bytes(), head, b""
    messages = pytest.importorskip("wandb.proto.wandb_internal_pb2", reason="the extra wandb")
    while place + head <= len(data):
        if (left := block - place % block) < head:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + head])
        begun += data[place + head : place + head + length]
        place += head + length
        if kind in (1, 4):
            yield messages.Record.FromString(begun)
            begun = b""


def test_a_run_of_wandb_is_offline_and_has_a_step_for_each_group(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="the extra wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with progress.logging_to("wandb", tmp_path / "log", {"lr": 0.1}):
        progress.log_numbers("train", 1, loss=0.5)
        progress.log_numbers("distill", 1, loss=0.25)
        progress.log_numbers("train", 2, loss=0.125)
    (file,) = (tmp_path / "log").glob("wandb/offline-run-*/*.wandb")
    end = time.monotonic() + 30
    while not (records := list(records_of_wandb(file))) or not records[-1].HasField("exit"):
        assert time.monotonic() < end, "the run is not over"  # its process writes the file after `finish` has returned
        time.sleep(0.1)
    (run,) = (each.run for each in records if each.HasField("run"))
    assert run.project == "channelscope"
    assert {each.key: json.loads(each.value_json) for each in run.config.update}["lr"] == 0.1
    steps = {(each.metric.glob_name, each.metric.step_metric) for each in records if each.HasField("metric") and each.metric.glob_name}
    assert steps == {("train/*", "train/step"), ("distill/*", "distill/step")}
    rows = [{item.nested_key[0]: json.loads(item.value_json) for item in each.history.item} for each in records if each.HasField("history")]
    assert [{key: value for key, value in row.items() if not key.startswith("_")} for row in rows] == [
        {"train/step": 1, "train/loss": 0.5},
        {"distill/step": 1, "distill/loss": 0.25},
        {"train/step": 2, "train/loss": 0.125},
    ]


@pytest.mark.parametrize("logger", ["tensorboard", "wandb"])
def test_a_logger_that_is_not_installed_is_refused(logger, tmp_path, monkeypatch):
    for name in (logger, "tensorboard.compat.proto.event_pb2"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=rf"logging to {logger} needs its package: pip install 'channelscope\[{logger}\]'"):
        with progress.logging_to(logger, tmp_path):
            raise AssertionError("entered")


@pytest.fixture
def seen():
    """What is logged: group, step and numbers."""
    found = []
    token = progress._LOG.set(lambda *each: found.append(each))
    yield found
    progress._LOG.reset(token)


def test_training_logs_every_epoch(seen, tmp_path):
    model, images = zoo.load("resnet20(width=2)", data="digits")
    history = zoo.train(model, images, tmp_path, zoo.Schedule(epochs=2, batch_size=512), progress=False)
    assert [each[:2] for each in seen] == [("train", 1), ("train", 2)]
    assert [each[2]["train_loss"] for each in seen] == [epoch.train_loss for epoch in history.epochs[1:]]
    assert set(seen[0][2]) == {"lr", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "seconds"}


def test_distillation_logs_its_mean_loss(seen):
    student, teacher = (nn.Sequential(nn.Flatten(), nn.Linear(4, 2)) for _ in range(2))
    images = [torch.ones(3, 1, 2, 2), torch.ones(1, 1, 2, 2)]
    distill(student, teacher, images, images, DistillationPlan(epochs=2, lr=1e-9, temperature=1.0), progress=False)
    x = images[0].flatten(1)
    p, q = (each[1](x).log_softmax(1)[0].detach() for each in (teacher, student))
    assert [each[:2] for each in seen] == [("distill", 1), ("distill", 2)]
    assert seen[0][2]["loss"] == pytest.approx(float((p.exp() * (p - q)).sum()), rel=1e-4, abs=1e-7)


def test_a_benchmark_logs_the_accuracy_of_every_network_at_its_budget(seen):
    common = {"allocation": "global", "repair": "peers", "seed": 3}
    rows = [{"score": "l2", "budget": 0.5, "accuracy": 0.75, **common}, {"score": "l2", "budget": 0.3, "accuracy": 0.5, **common}]
    log_trials(pd.DataFrame(rows))
    assert seen == [
        ("benchmark/l2/global/peers/seed 3", 30, {"accuracy": 0.5}),
        ("benchmark/l2/global/peers/seed 3", 50, {"accuracy": 0.75}),
    ]


def test_a_bar_that_begins_again_counts_from_there(capsys):
    lines = progress._PlainLines("rankings", None)
    lines.speak()
    lines.begin("networks", 4)
    lines()
    lines.speak()
    said = re.sub(r"\d\.\d s", "TIME", capsys.readouterr().err).splitlines()
    assert said == ["rankings: TIME so far", "rankings: done after TIME", "networks: 1 of 4, TIME, about TIME left"]


def test_a_drawn_bar_begins_again(monkeypatch):
    monkeypatch.setattr(progress, "on_terminal", lambda: True)
    with progress_bar("rankings", None) as bar:
        bar(3)
        bar.begin("networks", 4)
        bar()
        (task,) = bar.progress.tasks
        assert (task.description, task.completed, task.total) == ("networks", 1, 4)


def test_the_bar_of_a_benchmark_counts_the_trials_that_are_left():
    told = []
    bar = type("Bar", (), {"begin": lambda _, note, total: told.append(total), "__call__": lambda _: told.append("step")})()
    step = counted_trials(bar)
    for done in (3, 4, 5):
        step(done, 5)
    assert told == [2, "step", "step"]


def test_pruning_reaches_the_end_of_its_bars(monkeypatch):
    """Rankings, two trials and the repair; with residual blocks three more trials, of which one is not run again."""
    bars = []

    @contextlib.contextmanager
    def counted(note, total, shown=True):
        steps = []
        bars.append((note, total, steps))
        yield lambda count=1: steps.append(count)

    for module in (prune_module, surgeon_module):
        monkeypatch.setattr(module, "progress_bar", counted)
    torch.manual_seed(0)
    model = zoo.build("resnet20(width=4)", classes=4, channels=1, image_size=8).eval()
    found, images = groups(model, torch.zeros(1, 1, 8, 8)), [torch.rand(24, 1, 8, 8)]
    rankings = optimal_brain_surgeons(found, images)
    for budget in (Budget(0.6), Budget(0.6, blocks=True)):
        prune(rankings, found, images, budget=budget)
    assert [note for note, _, _ in bars] == [
        "reconstruction ranking, images",
        "reconstruction ranking, order of removal",
        *2 * ["removal and repair, layers"],
    ]
    layers = sum(bool(layer.taps) for layer in found.layers)
    assert [total for _, total, _ in bars] == [24, 2 * len(found), 3 * layers, 5 * layers]
    assert [sum(steps) for _, _, steps in bars] == [total for _, total, _ in bars]
