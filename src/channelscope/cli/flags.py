"""Command-line flags derived from a function's signature; a dataclass parameter becomes one flag a field."""

import ast
import inspect
import re
import tomllib
import traceback
import types
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, fields, is_dataclass
from functools import lru_cache, partial, wraps
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand

from channelscope.cli.call import OPTIONS_OF_A_PROFILE, Call, answering
from channelscope.cli.wording import in_flags, warnings_as_remarks
from channelscope.errors import ChannelscopeError, FormatError, InputError, no_such
from channelscope.progress import console, never_silent, without_bars
from channelscope.tables.run_folder import config_text

PLAIN = (str, int, float, bool, Path)

PARAMETERS = re.compile(r"^Parameters\n-+\n(?P<body>.*?)(?=\n\n\S[^\n]*\n---|\Z)", re.DOTALL | re.MULTILINE)
"""the section of a NumPy docstring, to the heading of the next"""

EXAMPLES = re.compile(r"^channelscope .*$", re.MULTILINE)
"""the lines of a docstring that show a command"""

OPTIONS = ("out", "feature")
"""Parameters that are flags even without a default, and then have to be given."""

SHORT = {"weights": "-w", "data": "-d", "out": "-o"}
"""flag → its one-letter form"""

FLAGS = {
    "ScoreFlags": {"noise": "capture-noise"},
    "HullOptions": {
        "max_size": "hull-size",
        "threshold": "hull-threshold",
        "absolute": "hull-absolute",
        "order": "hull-order",
        "pool": "hull-pool",
        "ridge": "hull-ridge",
    },
    "AblationPlan": {"silence": "ablation", "sites": "layers"},
    "CIDOptions": {"noise": "probe-noise", "side": "grid-side"},
    "ComparedNetwork": {"compare": "against", "compare_weights": "against-weights", "compare_layers": "against-layers"},
}
"""class → field → its flag, where a command with many options needs another word than the class alone does"""

EARLIER_FLAGS = {
    "--evaluated": "--test",
    "--tests": "--test",
    "--tuned": "--tuning",
    "--sites": "--layers",
    "--layers": "--layer-count",
    "--names": "--scores",
    "--errors": "--standard-errors",
    "--silence": "--ablation",
    "--side": "--grid-side",
    "--shards": "--intervals",
    "--no-shards": "--no-intervals",
    "--compare": "--against",
    "--compare-weights": "--against-weights",
    "--compare-layers": "--against-layers",
    "--max-size": "--hull-size",
    "--threshold": "--hull-threshold",
    "--absolute": "--hull-absolute",
    "--order": "--hull-order",
    "--pool": "--hull-pool",
    "--ridge": "--hull-ridge",
}
"""flag of an earlier version → its present name; --noise has two"""

PANELS = {
    "NetworkOptions": "Network",
    "ImageSource": "Images",
    "ProfileOptions": "Profile",
    "ScoreFlags": "Scores",
    "HullOptions": "Replacement sets (hulls)",
    "AblationPlan": "Ablation",
    "CIDOptions": "Discarded information",
    "CircuitOptions": "Circuit",
    "ComparisonOptions": "Comparison of criteria",
    "ComparedNetwork": "Another network",
    "ExtraAnalyses": "Further analyses",
    "Grid": "What is compared",
    "PruningOptions": "Pruning",
}
"""class → heading of its flags in the help; flags of the command itself come first, under Options"""

RUN = "This call"


def _call_flag(name: str, kind: Any, *words: str, line: str, **more: Any) -> inspect.Parameter:
    """A flag that every command has."""
    note = typer.Option(*words, help=line, show_default=False, rich_help_panel=RUN, **more)
    default = False if kind is bool else None
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, note])


def _read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Take a command's options from a file; those given as flags win."""
    if path is not None:
        parameters = context.command.params
        several = {each.name for each in parameters if each.nargs != 1}
        given = config_options(path, context.info_name or "", _option_names(parameters))
        context.default_map = {
            name: ",".join(map(str, value)) if isinstance(value, list) and name not in several else value for name, value in given.items()
        }
    return path


CALL_FLAGS = (
    _call_flag("config", Path | None, "--config", line="take options from this file, such as config.toml of a run folder; flags win",
               callback=_read_config, is_eager=True),
    _call_flag("dry_run", bool, "--dry-run", line="print the options as such a file, and stop"),
    _call_flag("as_json", bool, "--json", line="print the result's numbers as JSON on standard output, and nothing else there"),
    _call_flag("quiet", bool, "-q", "--quiet", line="show no progress and no remarks, only errors and what was made"),
    _call_flag("verbose", bool, "-v", "--verbose", line="show where an error comes from"),
)  # fmt: skip
"""The flags that every command has."""


CHOICES = re.compile(r"Value error, '.*' is not one of '.*'\.")
"""what typer says of a word that is none of an option's choices"""

QUOTED = re.compile(r"'([^']*)'")


class Command(TyperCommand):
    """A command whose help has a heading for each kind of option, and examples; wrong words are refused with the right or near ones."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """The words that are left over; flags of earlier versions are refused with today's, a wrong choice with the near ones."""
        known = {word for param in self.params for word in (*param.opts, *param.secondary_opts)}
        for word in args:
            flag = word.partition("=")[0]
            if flag in known or not flag.startswith("--"):
                continue
            now = [EARLIER_FLAGS[flag]] if flag in EARLIER_FLAGS else ["--capture-noise", "--probe-noise"] if flag == "--noise" else []
            now = [each for each in now if each in known]
            if now:
                ctx.fail(f"No such option: {flag}. It is now {' or '.join(now)}.")
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            if CHOICES.fullmatch(error.message):
                name, *known = QUOTED.findall(error.message)
                error.message = no_such("choice", name, known)
            raise

    def format_options(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        """Write the arguments, and the options below their headings."""
        panels: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                heading = vars(param).get("rich_help_panel") or ("Arguments" if param.param_type_name == "argument" else "Options")
                heading = RUN if "--help" in param.opts else "Arguments" if param.param_type_name == "argument" else heading
                panels.setdefault(heading, []).append(record)
        panels[RUN] = panels.pop(RUN, [])
        for heading, records in panels.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)

    def format_epilog(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        """Write the examples, a line each."""
        if self.epilog:
            with formatter.section("Examples"):
                for line in self.epilog.splitlines():
                    formatter.write(f"{'':{formatter.current_indent}}{line}\n")


def command(function: Callable[..., None]) -> Callable[..., None]:
    """A function of plain parameters that typer can read, calling `function` with its dataclasses put together again.

    A parameter annotated with a dataclass is replaced by that dataclass's fields; a field without a default is an
    argument, unless it is one of OPTIONS. A field that two dataclasses have, such as the seed, is one flag for both. Types
    typer does not know (tuples of numbers or words, a number or a word) are read from text. Help comes from the line below
    a field, or from the Parameters section of the function's docstring. Every command also has CALL_FLAGS.
    """
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, type] = {}
    flat: dict[str, inspect.Parameter] = {}
    readers: dict[str, Callable[[Any], Any]] = {}
    help_lines = _parameter_lines(function)
    for name, parameter in inspect.signature(function).parameters.items():
        hint = hints[name]
        if is_dataclass(hint):
            groups[name] = hint  # type: ignore[assignment]
            own = get_type_hints(hint)
            lines = field_lines(hint)  # type: ignore[arg-type]
            for field in fields(hint):
                flag = _flag_name(hint, field.name)  # type: ignore[arg-type]
                if flag not in flat:
                    default = field.default if field.default is not MISSING else inspect.Parameter.empty
                    line = _with_flags(lines[field.name], hint)  # type: ignore[arg-type]
                    flat[flag] = _flag(flag, own[field.name], default, line, readers, PANELS.get(hint.__name__))  # type: ignore[union-attr]
        else:
            flat[name] = _flag(name, hint, parameter.default, help_lines.get(name, ""), readers)
    parameters = sorted(flat.values(), key=lambda each: each.default is not inspect.Parameter.empty)

    @wraps(function)
    def run(**given: Any) -> None:
        asked = {flag.name: given.pop(flag.name, flag.default) for flag in CALL_FLAGS}
        options = {_spelled(name): _plain(value) for name, value in given.items()}
        call = Call(command_name(function), options, tuple(_typed_words(parameters, given)), asked["as_json"])
        if asked["dry_run"]:
            print(config_text({call.name: options}), end="")
            return
        with _answering(call, asked["quiet"], asked["verbose"], groups.values()):
            values = {name: readers.get(name, _same)(value) for name, value in given.items()}
            made = {
                name: kind(**{field.name: values[_flag_name(kind, field.name)] for field in fields(kind)})  # type: ignore[arg-type]
                for name, kind in groups.items()
            }
            function(**made, **{name: value for name, value in values.items() if name in hints and name not in made})

    run.__signature__ = inspect.Signature([*parameters, *CALL_FLAGS])  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in (*parameters, *CALL_FLAGS)}
    run.__doc__ = _summary(function)
    return run


def command_name(function: Callable) -> str:
    """The word by which a function is called on the command line.

    Examples
    --------
    >>> command_name(print)
    'print'
    """
    return function.__name__.rstrip("_")


def examples(function: Callable) -> str:
    """The commands that a function's docstring shows, a line each.

    Examples
    --------
    >>> examples(lambda: None)
    ''
    """
    return "\n".join(EXAMPLES.findall(inspect.getdoc(function) or ""))


@contextmanager
def _answering(call: Call, quiet: bool, verbose: bool, kinds: Iterable[type]):
    """Context of a call: errors speak of flags, an interruption says what was kept, and with `quiet` only errors are printed."""
    was_quiet = console.quiet
    console.quiet = was_quiet or quiet
    own = {name.replace("-", "_"): name for name in call.options}
    call.wording = partial(in_flags, names=own | _fields_as_flags(kinds), further=_fields_as_flags(OPTIONS_OF_A_PROFILE))
    try:
        with answering(call), warnings_as_remarks(call.wording), without_bars() if quiet else never_silent(call.name):
            yield
    except KeyboardInterrupt:
        console.quiet = was_quiet
        console.print(call.interrupted())
        raise
    except ChannelscopeError as error:
        console.quiet = was_quiet
        if verbose:
            console.print(traceback.format_exc())
        if error.args:
            error.args = (call.wording(str(error.args[0])), *error.args[1:])
        raise
    finally:
        console.quiet = was_quiet


def _fields_as_flags(kinds: Iterable[type]) -> dict[str, str]:
    """Field of the dataclasses → its flag, without the dashes."""
    return {field.name: _spelled(_flag_name(kind, field.name)) for kind in kinds for field in fields(kind)}  # type: ignore[arg-type]


def config_options(path: Path, name: str, known: Mapping[str, str]) -> dict[str, Any]:
    """Options of a command in a TOML file.

    Parameters
    ----------
    path
        The file: options, or a section for each command.
    name
        The command.
    known
        Flag without its dashes → parameter.

    Returns
    -------
    dict
        Parameter → value, as the file has it.

    Raises
    ------
    FormatError
        If the file is missing or damaged.
    InputError
        If it has sections but none for the command, or an option that the command does not have.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder) / "config.toml"
    ...     _ = path.write_text('[prune]\\nmacs = 0.3\\n', encoding="utf-8")
    ...     config_options(path, "prune", {"macs": "macs", "out": "out"})
    {'macs': 0.3}
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise FormatError(f"--config {path}: expected a TOML file of options: {error}") from error
    sections = {key: value for key, value in content.items() if isinstance(value, dict)}
    loose = {key: value for key, value in content.items() if key not in sections}
    if sections and name not in sections and not loose:
        raise InputError(f"--config {path}: {no_such('section', name, sections)}")
    options = {key.replace("_", "-"): value for key, value in {**loose, **sections.get(name, {})}.items()}
    for key in options:
        if key not in known:
            raise InputError(f"--config {path}: {no_such(f'option of {name}', key, known)}")
    return {known[key]: value for key, value in options.items()}


def _option_names(parameters: Iterable[Any]) -> dict[str, str]:
    """Flag without its dashes → parameter, for the options that a file may set."""
    own = {flag.name for flag in CALL_FLAGS}
    return {_spelled(each.name): each.name for each in parameters if each.name not in own and "--help" not in each.opts}


def _spelled(name: str) -> str:
    return name.replace("_", "-")


def _flag_name(kind: type, name: str) -> str:
    """Parameter of a field on the command line."""
    return FLAGS.get(kind.__name__, {}).get(name, name).replace("-", "_")


def _with_flags(line: str, kind: type) -> str:
    """The line of a field with flags in the place of the fields that it names."""
    named = _fields_as_flags([kind])
    return re.sub(r"`(\w+)`", lambda found: f"--{named[found[1]]}" if found[1] in named else found[0], line)


def _plain(value: Any) -> Any:
    """The value as a file of options has it."""
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value if value is None or isinstance(value, bool | int | float) else str(value).encode("utf-8", "backslashreplace").decode()


def _typed_words(parameters: Iterable[inspect.Parameter], given: Mapping[str, Any]) -> Iterable[str]:
    """What a user types to give these values."""
    for each in parameters:
        value, flag = _plain(given[each.name]), f"--{_spelled(each.name)}"
        if isinstance(get_args(each.annotation)[1], typer.models.ArgumentInfo):
            yield from map(str, value if isinstance(value, list) else [value])
        elif value is None or value == _plain(each.default):
            continue
        elif isinstance(value, bool):
            yield flag if value else flag.replace("--", "--no-", 1)
        else:
            yield from (flag, str(value))


def _same(value: Any) -> Any:
    return value


def _flag(
    name: str, hint: Any, default: Any, line: str, readers: dict[str, Callable[[Any], Any]], panel: str | None = None
) -> inspect.Parameter:
    kind, reader = _simple(hint)
    if reader is not None:
        readers[name] = reader
        default = _text(default)
    if default is inspect.Parameter.empty and name not in OPTIONS:
        note = typer.Argument(help=line, show_default=False)
    else:
        flag = f"--{_spelled(name)}"
        words = f"{flag}/--no-{_spelled(name)}" if kind is bool and default is True else flag
        shown = default not in (None, False, inspect.Parameter.empty)
        note = typer.Option(*filter(None, (SHORT.get(name), words)), help=line, show_default=shown, rich_help_panel=panel)
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
    lowered = sentence[0].lower() + sentence[1:] if first[:1].isupper() and (first[1:].islower() or len(first) == 1) else sentence
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
