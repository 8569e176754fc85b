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
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from channelscope.errors import InputError

T = TypeVar("T")


class _Console(Console):
    """A console that notes when it was last written to."""

    spoken = 0.0
    """as `time.monotonic` counts"""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print the objects."""
        self.spoken = time.monotonic()
        super().print(*objects, **options)


console = _Console(stderr=True, markup=False, emoji=False, highlight=False, soft_wrap=True)
"""Standard error; messages printed here appear above the bar."""

FIRST_LINE = 2.0
"""Seconds of work before the first plain line."""

LINES_APART = 20.0
"""Most seconds between two plain lines."""

SILENCE = 1.5
"""Seconds without a line after which a command says what it is doing: less than two, for a busy machine wakes its threads late."""

RARE = 1 / 20
"""Share of the time gone that may pass between two lines of a bar, so that the log of a day is read like that of a minute."""

_QUIET: ContextVar[bool] = ContextVar("quiet", default=False)
_LOG: ContextVar[Callable[[str, int, Mapping[str, float]], None] | None] = ContextVar("log", default=None)
_SHOWN: ContextVar[Progress | None] = ContextVar("shown", default=None)


class Bar:
    """What advances a bar, and changes its text; this one is not shown."""

    def __call__(self, steps: float = 1) -> None:
        """Count steps."""

    def describe(self, note: str, more: str = "") -> None:
        """Change the text before the bar, and that behind it."""

    def begin(self, note: str, total: float) -> None:
        """Go on with other work, of so many steps; time is counted from here."""

    def line(self, text: str) -> None:
        """Print a line where bars are written as lines."""


@contextmanager
def progress_bar(note: str, total: float | None, shown: bool = True) -> Iterator[Bar]:
    """Function that advances a bar on standard error, by one step or by the number given.

    Where standard error is no terminal, work of more than two seconds is reported in plain lines instead. Inside `without_bars`
    nothing is shown. A bar inside another bar is drawn below it; of plain lines the innermost bar writes its own.

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
        yield Bar()
    elif on_terminal():
        with _display() as progress:
            bar = _DrawnBar(progress, note, total)
            try:
                yield bar
            finally:
                progress.refresh()
                progress.remove_task(bar.task)
    else:
        lines = _PlainLines(note, total)
        _SPEAKER.begin(lines)
        how = "stopped"
        try:
            yield lines
            how = "done"
        finally:
            _SPEAKER.end(lines)
            lines.ended(how)


def on_terminal() -> bool:
    """Whether standard error is a terminal on which bars can be drawn.

    Examples
    --------
    >>> on_terminal() in (True, False)
    True
    """
    return sys.stderr.isatty() and not console.is_dumb_terminal


@contextmanager
def never_silent(note: str) -> Iterator[None]:
    """Context in which not more than two seconds go by without a sign of what is being done, unless bars are not shown.

    On a terminal a bar moves all the time. Elsewhere a line says how far the innermost `progress_bar` is whenever nothing was said
    for a while, and where there is none, how long the work has taken.

    Parameters
    ----------
    note
        What is done where no bar says so.

    Examples
    --------
    >>> with never_silent("axes"), progress_bar("images", 1) as advance:
    ...     advance()
    """
    if is_quiet():
        yield
    elif on_terminal():
        with progress_bar(note, None):
            yield
    else:
        lines = _PlainLines(note, None, steady=True)
        _SPEAKER.begin(lines)
        try:
            yield
        finally:
            _SPEAKER.end(lines)


@contextmanager
def paused() -> Iterator[None]:
    """Context in which no bar is on the terminal, for what is printed on standard output.

    Examples
    --------
    >>> with never_silent("axes"), paused():
    ...     print("result")
    result
    """
    progress = _SHOWN.get()
    if progress is None:
        yield
        return
    progress.stop()
    try:
        yield
    finally:
        progress.start()


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
        yield from advancing(items, advance)


def advancing(items: Iterable[T], advance: Callable[[], None]) -> Iterator[T]:
    """The items; after each a function is called, such as a bar.

    Examples
    --------
    >>> list(advancing("ab", lambda: print("done")))
    done
    done
    ['a', 'b']
    """
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


class _Count(MofNCompleteColumn):
    """Steps done, of how many; empty where neither is known."""

    def render(self, task: Task) -> Text:
        return Text() if task.total is None and not task.completed else super().render(task)


class _Left(TimeRemainingColumn):
    """Time left; empty where it is not known."""

    def render(self, task: Task) -> Text:
        return Text() if task.total is None else Text.assemble(super().render(task), " left")


class _More(ProgressColumn):
    """The text behind the bar, cut off where the terminal ends."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["more"], no_wrap=True, overflow="ellipsis")


@contextmanager
def _display() -> Iterator[Progress]:
    """The display of the terminal: the one that is there, or a new one."""
    active = _SHOWN.get()
    if active is not None:
        yield active
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(24), _Count(), TimeElapsedColumn(), _Left(), _More())
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as progress:
        token = _SHOWN.set(progress)
        try:
            yield progress
        finally:
            _SHOWN.reset(token)


class _DrawnBar(Bar):
    """A bar on the terminal."""

    def __init__(self, progress: Progress, note: str, total: float | None):
        self.progress, self.task = progress, progress.add_task(note, total=total, more="")

    def __call__(self, steps: float = 1) -> None:
        self.progress.advance(self.task, steps)

    def describe(self, note: str, more: str = "") -> None:
        self.progress.update(self.task, description=note, more=more)

    def begin(self, note: str, total: float) -> None:
        self.progress.reset(self.task, total=total, description=note)


class _PlainLines(Bar):
    """A bar as lines that say how far the work is."""

    def __init__(self, note: str, total: float | None, steady: bool = False):
        self.note, self.more, self.total, self.steady = note, "", total, steady
        self.done, self.begun, self.printed = 0.0, time.monotonic(), False

    def __call__(self, steps: float = 1) -> None:
        self.done += steps

    def describe(self, note: str, more: str = "") -> None:
        self.note, self.more = note, more

    def begin(self, note: str, total: float) -> None:
        self.ended("done")
        self.note, self.total, self.done, self.begun, self.printed = note, total, 0.0, time.monotonic(), False

    def line(self, text: str) -> None:
        console.print(text)

    def speak(self) -> None:
        """Print a line."""
        self.printed = True
        self._print(f"{self.state(time.monotonic() - self.begun)}  {self.more}".rstrip())

    def ended(self, how: str) -> None:
        """Print the last line, if there was another."""
        if self.printed:
            self._print(f"{how} after {format_seconds(time.monotonic() - self.begun)}")

    def state(self, seconds: float) -> str:
        """Steps done, time gone, and time left after some seconds."""
        gone, done = format_seconds(seconds), f"{self.done:,.0f}"
        if self.total is None:
            return f"{done} done, {gone}" if self.done else f"{gone} so far"
        left = f", about {format_seconds(max(seconds * (self.total - self.done) / self.done, 0.0))} left" if self.done else ""
        return f"{done} of {self.total:,.0f}, {gone}{left}"

    def _print(self, text: str) -> None:
        console.spoken = time.monotonic()
        print(f"{self.note}: {text}\n", end="", file=sys.stderr, flush=True)  # noqa: T201  (one write: a line is not torn)


class _Speaker:
    """The bars that are written as plain lines, the innermost last, and the thread that lets that one speak.

    Inside `never_silent` it speaks after SILENCE seconds without a line, and where it has spoken of this bar before, after a twentieth of
    the time gone where that is more; elsewhere after two seconds of work and then at growing distances.
    """

    def __init__(self) -> None:
        self.bars: list[_PlainLines] = []
        self.pause, self.over, self.thread = FIRST_LINE, Event(), Thread()

    def begin(self, bar: _PlainLines) -> None:
        """Let a bar speak, from now on the innermost."""
        self.bars.append(bar)
        if len(self.bars) == 1:
            console.spoken, self.pause, self.over = time.monotonic(), FIRST_LINE, Event()
            self.thread = Thread(target=self._watch, args=(self.over,), daemon=True)
            self.thread.start()

    def end(self, bar: _PlainLines) -> None:
        """Let a bar speak no more."""
        self.bars.remove(bar)
        if not self.bars:
            self.over.set()
            self.thread.join()

    def left(self) -> float:
        """Seconds until a line is due."""
        now, bars, pause = time.monotonic(), self.bars[:], self.pause
        call = next((bar for bar in bars if bar.steady), None)
        if call is not None:
            pause = max(SILENCE, min(RARE * (now - call.begun), LINES_APART) if bars[-1].printed else 0.0)
        return console.spoken + pause - now

    def _watch(self, over: Event) -> None:
        while not over.wait(max(self.left(), 0.0)):
            if self.left() <= 0:
                self.pause = min(2 * self.pause, LINES_APART)
                for bar in self.bars[-1:]:
                    bar.speak()


_SPEAKER = _Speaker()


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
    run = wandb.init(project="channelscope", dir=str(folder), config=settings, mode=None if "WANDB_MODE" in os.environ else "offline")
    groups: set[str] = set()

    def write(group: str, step: int, numbers: Mapping[str, float]) -> None:
        if group not in groups:
            groups.add(group)
            run.define_metric(f"{group}/*", step_metric=f"{group}/step")
        run.log({f"{group}/step": step, **{f"{group}/{name}": value for name, value in numbers.items()}})

    return write, run.finish


_LOGGERS = {"tensorboard": _tensorboard, "wandb": _wandb}
