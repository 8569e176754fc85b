"""Progress: plain lines where there is no terminal, one display where there is, nothing where it is not wanted."""

import contextlib
import io
import re
import sys
import time

import pytest
from rich.console import Console

from channelscope import progress
from channelscope.progress import format_seconds, progress_bar, track, without_bars


def test_short_work_is_not_reported(capsys):
    with progress_bar("images", 2) as advance:
        advance(2)
    assert capsys.readouterr().err == ""


def test_long_work_is_reported_in_plain_lines(monkeypatch, capsys):
    monkeypatch.setattr(progress, "FIRST_LINE", 0.02)
    with progress_bar("images", 40) as advance:
        advance(10)
        time.sleep(0.1)
        advance(30)
    first, *_, last = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"images: 10 of 40, \d\.\d s, about \d\.\d s left", first)
    assert re.fullmatch(r"images: done after \d\.\d s", last)


def test_work_that_ends_early_is_not_called_done(monkeypatch, capsys):
    monkeypatch.setattr(progress, "FIRST_LINE", 0.02)
    with contextlib.suppress(ValueError), progress_bar("images", 3):
        time.sleep(0.1)
        raise ValueError
    lines = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"images: 0 of 3, \d\.\d s", lines[0])
    assert re.fullmatch(r"images: stopped after \d\.\d s", lines[-1])


@pytest.mark.parametrize(
    ("total", "done", "said"),
    [(40, 10, "10 of 40, 5.0 s, about 15 s left"), (40, 0, "0 of 40, 5.0 s"), (None, 3, "3 done, 5.0 s"), (None, 0, "5.0 s")],
)
def test_a_line_says_how_far_and_how_long(total, done, said):
    lines = progress._PlainLines("work", total)
    lines.advance(done)
    assert lines.state(5.0) == said
    lines.stop()


def test_lines_come_at_doubling_distances_of_at_most_twenty_seconds(capsys):
    pauses = []

    class Clock:
        def wait(self, pause: float) -> bool:
            pauses.append(pause)
            return len(pauses) == 6

    lines = progress._PlainLines("work", None)
    lines.stop()
    lines.over = Clock()  # type: ignore[assignment]
    lines._report()
    assert pauses == [2, 4, 8, 16, 20, 20]
    assert len(capsys.readouterr().err.splitlines()) == 5


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
