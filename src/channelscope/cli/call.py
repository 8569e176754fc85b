"""Call: one call of a command, with its options, its result, and what is kept when it is interrupted."""

import json
import platform
import shlex
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from channelscope import tables

VERSION = version("channelscope")


@dataclass
class Call:
    """One call of a command.

    Examples
    --------
    >>> call = Call("scores", {"profile": "net.profile", "errors": True}, ("net.profile", "--errors"))
    >>> call.command_line
    'channelscope scores net.profile --errors'
    >>> call.result(Path("scores.csv"))
    scores.csv
    """

    name: str = ""
    """of the command"""
    options: Mapping[str, Any] = field(default_factory=dict)
    """every option by its flag, without the dashes; defaults included"""
    words: tuple[str, ...] = ()
    """what a user types after the command's name: arguments, and options that have another value than the default"""
    as_json: bool = False
    """print the result as JSON"""
    device: str = "cpu"
    """where the network runs"""
    begun: float = field(default_factory=time.monotonic)
    """when it began, as `time.monotonic` counts"""
    unfinished: dict[Path, str] = field(default_factory=dict)
    """file or folder from which the same command goes on → what it holds"""

    @property
    def command_line(self) -> str:
        """The command as a user types it."""
        return shlex.join(["channelscope", self.name, *self.words])

    def record(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """What run.json says of this call.

        Parameters
        ----------
        facts
            What the tables are about: title, network, weights, data, images, target, …; plain values.

        Returns
        -------
        dict
            Plain values.
        """
        now, seconds = datetime.now().isoformat(timespec="seconds"), round(time.monotonic() - self.begun, 1)
        return {
            "name": self.name,
            "command": self.command_line,
            "options": dict(self.options),
            "versions": {"channelscope": VERSION, "torch": torch.__version__, "python": platform.python_version()},
            "device": self.device,
            "threads": torch.get_num_threads(),
            "date": now,
            "seconds": seconds,
            "facts": {"version": VERSION, "date": now.partition("T")[0], "seconds": seconds, **facts},
        }

    def result(self, path: Path | None = None, text: str = "", **numbers: Any) -> None:
        """Print the result on standard output: the text and the path, or with --json one object with command, path and numbers.

        Parameters
        ----------
        path
            What the command made.
        text
            The result in words.
        **numbers
            Plain values and tables; `tables` is a mapping from name to frame.
        """
        if self.as_json:
            made = {"command": self.name, **({} if path is None else {"path": path}), **numbers}
            print(json.dumps(tables.plain_values(made), ensure_ascii=False, allow_nan=False))
            return
        for each in (text, path):
            if each:
                print(each)

    def interrupted(self) -> str:
        """What is left when the call is interrupted, in one sentence."""
        left = [f"{path} ({what})" for path, what in self.unfinished.items() if path.exists()]
        if not left:
            return "interrupted; nothing was kept"
        return f"interrupted; kept {', '.join(left)}: give the same command again to go on from there"


_CURRENT: ContextVar[Call | None] = ContextVar("call", default=None)


def current_call() -> Call:
    """The call that is being answered; outside of one, a call without a name."""
    return _CURRENT.get() or Call()


@contextmanager
def answering(call: Call) -> Iterator[Call]:
    """Context in which `current_call` gives a call.

    Parameters
    ----------
    call
        The call.

    Examples
    --------
    >>> with answering(Call("axes")):
    ...     current_call().name
    'axes'
    """
    token = _CURRENT.set(call)
    try:
        yield call
    finally:
        _CURRENT.reset(token)
