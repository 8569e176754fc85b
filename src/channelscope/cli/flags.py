"""Command-line flags derived from a function's signature; a dataclass parameter becomes one flag a field."""

import ast
import inspect
import re
import types
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import MISSING, fields, is_dataclass
from functools import lru_cache, wraps
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer

from channelscope.progress import without_bars

PLAIN = (str, int, float, bool, Path)

PARAMETERS = re.compile(r"^Parameters\n-+\n(?P<body>.*?)(?=\n\n\S[^\n]*\n---|\Z)", re.DOTALL | re.MULTILINE)
"""the section of a NumPy docstring, to the heading of the next"""

QUIET = inspect.Parameter(
    "quiet",
    inspect.Parameter.KEYWORD_ONLY,
    default=False,
    annotation=Annotated[bool, typer.Option("-q", "--quiet", help="draw no progress bars", show_default=False)],
)
"""The flag that every command has."""

OPTIONS = ("out", "feature")
"""Parameters that are flags even without a default, and then have to be given."""


def command(function: Callable[..., None]) -> Callable[..., None]:
    """A function of plain parameters that typer can read, calling `function` with its dataclasses put together again.

    A parameter annotated with a dataclass is replaced by that dataclass's fields; a field without a default is an
    argument, unless it is one of OPTIONS. A field that two dataclasses have, such as the seed, is one flag for both. Types
    typer does not know (tuples of numbers or words, a number or a word) are read from text. Help comes from the line below
    a field, or from the Parameters section of the function's docstring. Every command also has -q, --quiet.
    """
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, type] = {}
    flat: list[inspect.Parameter] = []
    readers: dict[str, Callable[[Any], Any]] = {}
    help_lines = _parameter_lines(function)
    for name, parameter in inspect.signature(function).parameters.items():
        hint = hints[name]
        if is_dataclass(hint):
            groups[name] = hint  # type: ignore[assignment]
            own = get_type_hints(hint)
            lines = field_lines(hint)
            for field in (each for each in fields(hint) if each.name not in {flag.name for flag in flat}):
                default = field.default if field.default is not MISSING else inspect.Parameter.empty
                flat.append(_flag(field.name, own[field.name], default, lines[field.name], readers))  # type: ignore[arg-type]
        else:
            flat.append(_flag(name, hint, parameter.default, help_lines.get(name, ""), readers))
    flat.sort(key=lambda each: each.default is not inspect.Parameter.empty)

    flat.append(QUIET)

    @wraps(function)
    def run(quiet: bool = False, **given: Any) -> None:
        values = {name: readers.get(name, _same)(value) for name, value in given.items()}
        made = {name: kind(**{field.name: values[field.name] for field in fields(kind)}) for name, kind in groups.items()}  # type: ignore[arg-type]
        with without_bars() if quiet else nullcontext():
            function(**made, **{name: value for name, value in values.items() if name in hints and name not in made})

    run.__signature__ = inspect.Signature(flat)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in flat}
    run.__doc__ = _summary(function)
    return run


def _same(value: Any) -> Any:
    return value


def _flag(name: str, hint: Any, default: Any, line: str, readers: dict[str, Callable[[Any], Any]]) -> inspect.Parameter:
    kind, reader = _simple(hint)
    if reader is not None:
        readers[name] = reader
        default = _text(default)
    if default is inspect.Parameter.empty and name not in OPTIONS:
        note = typer.Argument(help=line, show_default=False)
    else:
        names = [f"--{name.replace('_', '-')}"] + ([f"--no-{name.replace('_', '-')}"] if kind is bool and default is True else [])
        note = typer.Option("/".join(names), help=line, show_default=default not in (None, False, inspect.Parameter.empty))
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, note])


def _simple(hint: Any) -> tuple[Any, Callable[[Any], Any] | None]:
    """The type typer is shown, and how its value becomes what the function wants."""
    if hint in PLAIN or get_origin(hint) is Literal or hint == list[Path] or hint == list[str]:
        return hint, None
    parts = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    inner = [part for part in parts if part is not type(None)]
    if len(inner) == 1 and (inner[0] in PLAIN or get_origin(inner[0]) is Literal):
        return hint, None
    if float in inner:
        return str | None, _number_or_word
    return str | None, _numbers if any({int, float} & set(get_args(part)) for part in inner) else _words


def _number_or_word(text: str | None) -> Any:
    """'0.3' → 0.3, 'oas' → 'oas'."""
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        return text


def _words(text: str | None) -> Any:
    """'l1,l2' → ('l1', 'l2')."""
    return None if text is None else tuple(part.strip() for part in text.split(",") if part.strip())


def _numbers(text: str | None) -> Any:
    """'0.5,0.4' → (0.5, 0.4); what is no number stays a word."""
    return None if text is None else tuple(_number_or_word(part) for part in _words(text))


def _text(default: Any) -> Any:
    if isinstance(default, tuple | list):
        return ",".join(map(str, default))
    return default if default is None or default is inspect.Parameter.empty else str(default)


def _summary(function: Callable) -> str:
    return (inspect.getdoc(function) or "").split("\n\n")[0]


def _parameter_lines(function: Callable) -> dict[str, str]:
    """Descriptions of a NumPy docstring's Parameters section, by name, in the form of help.

    Lines 'name  text' of a docstring without sections are read too.
    """
    text = inspect.getdoc(function) or ""
    section = PARAMETERS.search(text)
    if section is None:
        known = inspect.signature(function).parameters
        lines = [line.strip().partition("  ") for line in text.splitlines()]
        return {head: words.strip() for head, _, words in lines if head in known and words}
    found: dict[str, list[str]] = {}
    names: list[str] = []
    for line in section["body"].splitlines():
        if line and not line[0].isspace():
            names = [name.strip() for name in line.partition(":")[0].split(",")]
            found |= {name: [] for name in names}
        elif line.strip():
            for name in names:
                found[name].append(line.strip())
    return {name: _as_help(" ".join(lines)) for name, lines in found.items()}


def _as_help(sentence: str) -> str:
    """The sentence as help shows it: without its full stop, and lower case unless its first word is a name or an abbreviation."""
    first = sentence.partition(" ")[0]
    lowered = sentence[0].lower() + sentence[1:] if first[:1].isupper() and first[1:].islower() else sentence
    return lowered.removesuffix(".")


@lru_cache
def field_lines(kind: type) -> dict[str, str]:
    """The string below each field of a dataclass."""
    lines: dict[str, str] = {field.name: "" for field in fields(kind)}  # type: ignore[arg-type]
    (body,) = (node.body for node in ast.parse(inspect.getsource(kind)).body if isinstance(node, ast.ClassDef))
    for field, below in pairwise(body):
        named = isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if named and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            lines[field.target.id] = str(below.value.value)  # type: ignore[union-attr]
    return lines
