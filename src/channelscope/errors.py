"""The errors that the library raises: what was expected, what was received, where, and what to do."""

import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from types import TracebackType

MAX_NEAR = 4
"""Near matches named by a message."""

MAX_LISTED = 40
"""Names listed by a message."""


class ChannelscopeError(Exception):
    """Base of the library's errors; the command line prints the message without a traceback and exits with status 2."""


class InputError(ChannelscopeError):
    """An argument, a file or a batch is not what the call needs."""


class WeightsError(InputError):
    """A weights file is missing, corrupt, or does not fit the network."""


class DataError(InputError):
    """Images or labels cannot be used: missing, corrupt, empty, of the wrong size, or outside the network's classes."""


class TracingError(ChannelscopeError):
    """The network's forward pass cannot be followed as a graph."""


class SiteError(ChannelscopeError):
    """A site does not exist, or the network has none."""


class ShapeError(ChannelscopeError):
    """Two things that must have matching sizes do not."""


class SampleError(ChannelscopeError):
    """Too few images for what was asked."""


class SingularError(ChannelscopeError):
    """A covariance has no inverse and none was asked for by shrinkage."""


class NumericError(ChannelscopeError):
    """Activations are not finite."""


class MismatchError(ChannelscopeError):
    """Two things that must describe the same network, weights or measurement do not."""


class FormatError(ChannelscopeError):
    """A file is damaged, or written by another version of the format."""


class BudgetError(ChannelscopeError):
    """A budget that cannot be met."""


class OutOfMemoryError(ChannelscopeError):
    """There is not enough memory for a step; nothing is said of the network."""


FAILURES = (RuntimeError, TypeError, ValueError, AttributeError, AssertionError, LookupError, ArithmeticError)
"""What the code of a network raises where it cannot run; a handler first lets `no_lack_of_memory` look at the error."""


def first_line(error: BaseException) -> str:
    """First line of an error's message; the name of its class where it has none.

    Examples
    --------
    >>> first_line(AssertionError()), first_line(ValueError("too large\\nby far"))
    ('AssertionError', 'too large')
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


ALLOCATION = ("allocate memory", "bad_alloc")
"""In the messages of PyTorch's errors when the processor's memory does not suffice."""


def no_lack_of_memory(error: BaseException) -> None:
    """Raise OutOfMemoryError for an error that says so: it tells nothing of the code in which it came up.

    Examples
    --------
    >>> no_lack_of_memory(RuntimeError("sizes do not match"))
    >>> no_lack_of_memory(MemoryError("8 bytes"))
    Traceback (most recent call last):
    channelscope.errors.OutOfMemoryError: there is not enough memory (8 bytes)
    """
    if isinstance(error, ChannelscopeError):
        return
    known = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # of torch, which may not be imported
    if known or (isinstance(error, RuntimeError) and any(word in str(error) for word in ALLOCATION)):
        raise OutOfMemoryError(f"there is not enough memory ({first_line(error)})") from error


class UserCode:
    """Context in which code of the user runs: any error of it is raised again as one of the library's, with its reason and line.

    Parameters
    ----------
    kind
        Class of the error that is raised.
    said
        What cannot be done.
    advice
        What to do, after the reason.

    Examples
    --------
    >>> with UserCode(InputError, "network 'net.py:Net' cannot be made"):
    ...     {}["depth"]
    Traceback (most recent call last):
    channelscope.errors.InputError: network 'net.py:Net' cannot be made (KeyError: 'depth')
    """

    def __init__(self, kind: type[ChannelscopeError], said: str, advice: str = ""):
        self.kind, self.said, self.advice = kind, said, advice

    def __enter__(self) -> None:
        """Nothing."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Raise the library's error in the place of any other, of a call of `exit` too."""
        if isinstance(error, Exception | SystemExit) and not isinstance(error, ChannelscopeError):
            no_lack_of_memory(error)
            raise self.kind(f"{self.said} ({_reason(error)}{_line(error)}){self.advice}") from error


PLAIN = (AssertionError, ImportError, RuntimeError, SyntaxError, TypeError, ValueError)
"""errors whose messages say what is wrong without the name of their class"""


def _reason(error: BaseException) -> str:
    said = first_line(error)
    return said if type(error) in PLAIN or said == type(error).__name__ else f"{type(error).__name__}: {said}"


def _line(error: BaseException) -> str:
    """The user's line that raised an error, if there is one: none of Python or a library, and no line that was typed in."""
    libraries = "site-packages", str(Path(traceback.__file__).parent)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not any(part in frame.filename for part in libraries)]
    own = [frame for frame in frames if Path(__file__).parent not in Path(frame.filename).parents and Path(frame.filename).is_file()]
    return f", {own[-1].filename}:{own[-1].lineno}" if own else ""


def no_such(what: str, name: str, known: Iterable[str]) -> str:
    """Message that refuses a name, with the nearest names that exist and a list of the others.

    Parameters
    ----------
    what
        What the name should have been a name of, such as "score".
    name
        The name received.
    known
        The names that exist.

    Returns
    -------
    str
        The message of an error; of many names only near matches, or else the first, are listed, with their number.

    Examples
    --------
    >>> no_such("preset", "papr", ["default", "paper"])
    'no preset is called papr; near matches: paper; there are: default, paper'

    References
    ----------
    Near matches are those of `difflib.get_close_matches`.
    """
    names = list(known)
    near = _near(str(name), names)
    if near and len(names) > MAX_LISTED:
        return f"no {what} is called {name}; near matches: {', '.join(near)}; there are {len(names):,} names"
    hint = f"near matches: {', '.join(near)}; " if near else ""
    listed = ", ".join(names[:MAX_LISTED]) + (f", … ({len(names)} in all)" if len(names) > MAX_LISTED else "") if names else "none"
    return f"no {what} is called {name or repr(name)}; {hint}there are: {listed}"


def _near(name: str, names: Iterable[str]) -> list[str]:
    """The names that are nearest to one, whatever is written with capitals."""
    by_small = {each.lower(): each for each in reversed(list(names))}
    return [by_small[each] for each in get_close_matches(name.lower(), by_small, MAX_NEAR)]


def check_choice(what: str, name: str, known: Iterable[str]) -> None:
    """Raise InputError for a name that is none of those there are.

    Parameters
    ----------
    what
        What the name should have been a name of, such as "precision".
    name
        The name received.
    known
        The names there are.

    Raises
    ------
    InputError
        With what `no_such` says.

    Examples
    --------
    >>> check_choice("precision", "float32", ["auto", "float32", "bfloat16"])
    """
    names = tuple(known)
    if name not in names:
        raise InputError(no_such(what, name, names))


def near_paths(path: Path) -> str:
    """The end of a message that says that nothing is at a path: what has a name near that of its first part that is missing.

    Parameters
    ----------
    path
        Where nothing is.

    Returns
    -------
    str
        Empty where there is no near name.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     (Path(folder) / "trained.safetensors").touch()
    ...     near_paths(Path(folder) / "traned.safetensors").removesuffix("trained.safetensors").startswith("; near matches: ")
    True

    References
    ----------
    Near matches are those of `difflib.get_close_matches`.
    """
    missing = next((each for each in (*reversed(path.parents), path) if not each.exists()), path)
    try:
        near = _near(missing.name, [each.name for each in missing.parent.iterdir()])
    except OSError:
        return ""
    return f"; near matches: {', '.join(str(missing.parent / name) for name in near)}" if near else ""


@contextmanager
def at(place: str) -> Iterator[None]:
    """Context that adds a place to the message of any of the library's errors raised inside it.

    Parameters
    ----------
    place
        Where the work is done, such as a site's name.

    Examples
    --------
    >>> with at("layer1.0.conv1"):
    ...     raise ShapeError("expected 16 channels")
    Traceback (most recent call last):
    channelscope.errors.ShapeError: at layer1.0.conv1: expected 16 channels
    """
    try:
        yield
    except ChannelscopeError as error:
        head = str(error.args[0]) if error.args else ""
        error.args = (f"at {place}: {head}", *error.args[1:])
        raise
