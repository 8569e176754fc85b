"""A bar on a terminal counts its steps, and there is none where nobody would see it."""

import io
import re
import sys

import pytest

from channelscope.progress import progress_bar, without_bars


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
