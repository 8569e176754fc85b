"""A progress bar with the time left."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_QUIET: ContextVar[bool] = ContextVar("quiet", default=False)


@contextmanager
def progress_bar(note: str, total: int | None, shown: bool = True) -> Iterator[Callable[..., None]]:
    """Function that advances a bar on standard error, by one step or by the number given.

    Nothing is drawn where standard error is no terminal, or inside `without_bars`.

    Parameters
    ----------
    note
        Text before the bar.
    total
        Number of steps; None where it is not known.
    shown
        Whether the bar is drawn at all.

    Examples
    --------
    >>> with progress_bar("images", 3) as advance:
    ...     advance()
    ...     advance(2)
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn())
    hidden = not shown or is_quiet() or not sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), disable=hidden) as progress:
        task = progress.add_task(note, total=total)
        yield lambda steps=1: progress.advance(task, steps)


@contextmanager
def without_bars() -> Iterator[None]:
    """Context in which no progress bar is drawn.

    Examples
    --------
    >>> with without_bars(), progress_bar("images", 1) as advance:
    ...     advance()
    """
    token = _QUIET.set(True)
    try:
        yield
    finally:
        _QUIET.reset(token)


def is_quiet() -> bool:
    """Whether progress is not shown: inside `without_bars`.

    Examples
    --------
    >>> with without_bars():
    ...     is_quiet()
    True
    """
    return _QUIET.get()
