"""A progress bar with the time left, and how many batches there are to come."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.data import DataLoader


@contextmanager
def bar(note: str, total: int | None, shown: bool = True) -> Iterator[Callable[..., None]]:
    """A bar on standard error where that is a terminal; yields the function that moves it, by one step where none are named."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not (shown and sys.stderr.isatty())) as progress:
        task = progress.add_task(note, total=total)
        yield lambda steps=1: progress.advance(task, steps)


def how_many(batches: Iterable) -> int | None:
    """Number of batches, where that can be known without reading them."""
    if isinstance(batches, list | tuple | DataLoader):
        return len(batches)
    size = vars(batches).get("batch_size") if isinstance(batches, Sized) else None
    return -(-len(batches) // size) if size else None  # type: ignore[arg-type]
