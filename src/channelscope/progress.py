"""Progress of long work: a bar on a terminal, plain lines elsewhere; and its numbers for TensorBoard or Weights & Biases."""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from threading import Event, Thread
from typing import Any, Literal, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from channelscope.errors import InputError

T = TypeVar("T")

console = Console(stderr=True, markup=False, emoji=False, highlight=False, soft_wrap=True)
"""Standard error; messages printed here appear above the bar."""

FIRST_LINE = 2.0
"""Seconds of work before the first plain line."""

LINES_APART = 20.0
"""Most seconds between two plain lines."""

_QUIET: ContextVar[bool] = ContextVar("quiet", default=False)
_LOG: ContextVar[Callable[[str, int, Mapping[str, float]], None] | None] = ContextVar("log", default=None)
_SHOWN: ContextVar[Progress | None] = ContextVar("shown", default=None)


@contextmanager
def progress_bar(note: str, total: int | None, shown: bool = True) -> Iterator[Callable[..., None]]:
    """Function that advances a bar on standard error, by one step or by the number given.

    Where standard error is no terminal, work of more than two seconds is reported in plain lines instead. Inside `without_bars`
    nothing is shown. A bar inside another bar is drawn below it.

    Parameters
    ----------
    note
        What is done: the text before the bar.
    total
        Number of steps; None where it is not known.
    shown
        Whether anything is shown at all.

    Examples
    --------
    >>> with progress_bar("images", 3) as advance:
    ...     advance()
    ...     advance(2)
    """
    if not shown or is_quiet():
        yield lambda steps=1: None
    elif sys.stderr.isatty():
        with _display() as progress:
            task = progress.add_task(note, total=total)
            try:
                yield lambda steps=1: progress.advance(task, steps)
            finally:
                progress.refresh()
                progress.remove_task(task)
    else:
        lines = _PlainLines(note, total)
        try:
            yield lines.advance
        finally:
            lines.stop()


def track(items: Iterable[T], note: str, total: int | None = None, shown: bool = True) -> Iterator[T]:
    """The items, with a bar that advances after each.

    Parameters
    ----------
    items
        What is worked on.
    note
        What is done: the text before the bar.
    total
        Number of items; by default their length, if they have one.
    shown
        Whether anything is shown at all.

    Examples
    --------
    >>> list(track([1, 2], "sites"))
    [1, 2]
    """
    count = len(items) if total is None and isinstance(items, Sized) else total
    with progress_bar(note, count, shown) as advance:
        for item in items:
            yield item
            advance()


@contextmanager
def without_bars() -> Iterator[None]:
    """Context in which no progress is shown.

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


@contextmanager
def _display() -> Iterator[Progress]:
    """The display of the terminal: the one that is there, or a new one."""
    active = _SHOWN.get()
    if active is not None:
        yield active
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"))
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
        token = _SHOWN.set(progress)
        try:
            yield progress
        finally:
            _SHOWN.reset(token)


class _PlainLines:
    """Lines on standard error while work goes on: the first after two seconds, then at growing distances."""

    def __init__(self, note: str, total: int | None):
        self.note, self.total, self.done, self.begun, self.printed = note, total, 0, time.monotonic(), False
        self.over = Event()
        self.thread = Thread(target=self._report, daemon=True)
        self.thread.start()

    def advance(self, steps: int = 1) -> None:
        """Count steps."""
        self.done += steps

    def stop(self) -> None:
        """Print the last line, if there was another."""
        self.over.set()
        self.thread.join()
        if self.printed:
            finished = self.total is None or self.done >= self.total
            self._print(f"{'done' if finished else 'stopped'} after {format_seconds(time.monotonic() - self.begun)}")

    def _report(self) -> None:
        pause = FIRST_LINE
        while not self.over.wait(pause):
            pause = min(2 * pause, LINES_APART)
            self.printed = True
            self._print(self.state(time.monotonic() - self.begun))

    def state(self, seconds: float) -> str:
        """Steps done, time gone, and time left after some seconds."""
        gone = format_seconds(seconds)
        if self.total is None:
            return f"{self.done:,} done, {gone}" if self.done else gone
        left = f", about {format_seconds(seconds * (self.total - self.done) / self.done)} left" if self.done else ""
        return f"{self.done:,} of {self.total:,}, {gone}{left}"

    def _print(self, text: str) -> None:
        print(f"{self.note}: {text}", file=sys.stderr, flush=True)  # noqa: T201


def format_seconds(seconds: float) -> str:
    """A duration in the largest units that fit, rounded to what matters.

    Examples
    --------
    >>> format_seconds(0.4), format_seconds(75), format_seconds(7300)
    ('0.4 s', '1 min 15 s', '2 h 1 min')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {whole % 60} s"


def is_quiet() -> bool:
    """Whether progress is not shown: inside `without_bars`.

    Examples
    --------
    >>> with without_bars():
    ...     is_quiet()
    True
    """
    return _QUIET.get()


Logger = Literal["none", "tensorboard", "wandb"]
"""where numbers of long work are logged: nowhere, in event files of TensorBoard, or in a run of Weights & Biases"""


def log_numbers(group: str, step: int, **numbers: float) -> None:
    """Hand numbers of a step of long work to the logger of `logging_to`; without one, nothing happens.

    Parameters
    ----------
    group
        What is done, such as `train`.
    step
        Number of the step, which rises within the group.
    **numbers
        Values by name.

    Examples
    --------
    >>> log_numbers("train", 1, loss=0.5)
    """
    write = _LOG.get()
    if write is not None:
        write(group, step, numbers)


@contextmanager
def logging_to(logger: Logger, folder: str | Path, settings: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Context in which training, distillation and benchmarks log their numbers.

    TensorBoard reads the folder (`tensorboard --logdir FOLDER`). Weights & Biases work offline, unless the environment variable
    WANDB_MODE says otherwise: nothing leaves the machine before `wandb sync FOLDER/wandb/…`.

    Parameters
    ----------
    logger
        tensorboard, wandb, or none.
    folder
        Folder of the log.
    settings
        What a run of Weights & Biases is described by.

    Raises
    ------
    InputError
        If the package of the logger is not installed.

    Examples
    --------
    >>> with logging_to("none", "runs/log"):
    ...     log_numbers("train", 1, loss=0.5)
    """
    if logger == "none":
        yield
        return
    write, close = _LOGGERS[logger](Path(folder), dict(settings or {}))
    token = _LOG.set(write)
    try:
        yield
    finally:
        _LOG.reset(token)
        close()


def _tensorboard(folder: Path, settings: dict[str, Any]) -> tuple[Callable[[str, int, Mapping[str, float]], None], Callable[[], None]]:
    """Functions that write numbers into an event file, and close it."""
    try:
        from tensorboard.compat.proto.event_pb2 import Event as Record
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
    except ImportError as error:
        raise InputError("logging to tensorboard needs its package: pip install 'channelscope[tensorboard]'") from error
    writer = EventFileWriter(str(folder))

    def write(group: str, step: int, numbers: Mapping[str, float]) -> None:
        values = [Summary.Value(tag=f"{group}/{name}", simple_value=value) for name, value in numbers.items()]
        writer.add_event(Record(wall_time=time.time(), step=step, summary=Summary(value=values)))

    return write, writer.close


def _wandb(folder: Path, settings: dict[str, Any]) -> tuple[Callable[[str, int, Mapping[str, float]], None], Callable[[], None]]:
    """Functions that add numbers to a run of Weights & Biases, and end it."""
    try:
        import wandb
    except ImportError as error:
        raise InputError("logging to wandb needs its package: pip install 'channelscope[wandb]'") from error
    folder.mkdir(parents=True, exist_ok=True)
    run = wandb.init(project="channelscope", dir=str(folder), config=settings, mode=os.environ.get("WANDB_MODE", "offline"))
    groups: set[str] = set()

    def write(group: str, step: int, numbers: Mapping[str, float]) -> None:
        if group not in groups:
            groups.add(group)
            run.define_metric(f"{group}/*", step_metric=f"{group}/step")
        run.log({f"{group}/step": step, **{f"{group}/{name}": value for name, value in numbers.items()}})

    return write, run.finish


_LOGGERS = {"tensorboard": _tensorboard, "wandb": _wandb}
