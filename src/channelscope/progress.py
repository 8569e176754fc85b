"""A progress bar with the time left."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def progress_bar(note: str, total: int | None, shown: bool = True) -> Iterator[Callable[..., None]]:
    """Progress bar on standard error, shown only in a terminal.

    Parameters
    ----------
    note
        Text before the bar.
    total
        Number of steps; None where it is not known.
    shown
        False for no bar.

    Yields
    ------
    Callable
        Moves the bar by a number of steps, one by default.

    Examples
    --------
    >>> with progress_bar("reading", total=3, shown=False) as step:
    ...     step()
    ...     step(2)
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not (shown and sys.stderr.isatty())) as progress:
        task = progress.add_task(note, total=total)
        yield lambda steps=1: progress.advance(task, steps)
