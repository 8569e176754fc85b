"""A progress bar with the time left."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def progress_bar(note: str, total: int | None, shown: bool = True) -> Iterator[Callable[..., None]]:
    """A bar on standard error where that is a terminal; yields the function that moves it, by one step where none are named."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not (shown and sys.stderr.isatty())) as progress:
        task = progress.add_task(note, total=total)
        yield lambda steps=1: progress.advance(task, steps)
