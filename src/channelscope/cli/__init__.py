"""The command line: `channelscope COMMAND --help` explains each."""

import ast
import atexit
import gc
import io
import re
import sqlite3
import sys
from collections.abc import Callable, Iterator, MutableMapping
from contextvars import ContextVar
from functools import cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.text import Text
from safetensors import SafetensorError
from typer.core import TyperCommand, TyperGroup

from channelscope.errors import ChannelscopeError, OutOfMemoryError, first_line, no_lack_of_memory
from channelscope.progress import console, never_silent, without_bars

EARLIER_COMMANDS = {"lesion": "ablate", "graphs": "communities", "theory": "gradients", "why": "explain"}
"""command of an earlier version → its present name"""

HEADINGS = {
    "Start": ("measure.demo", "inspection.sites", "inspection.list_", "inspection.info", "doctor.doctor"),
    "Measure": ("measure.profile", "measure.merge", "measure.scores", "measure.axes", "inspection.evaluate"),
    "Experiments": (
        "experiments.ablate",
        "experiments.hulls",
        "experiments.communities",
        "experiments.propagation",
        "experiments.gradients",
        "experiments.trajectory",
    ),
    "Pruning": ("pruning.prune", "benchmark.benchmark", "inspection.export"),
    "Circuits": ("circuits.circuit", "circuits.subcircuits"),
    "Discarded information": ("experiments.discard", "experiments.faithfulness"),
    "Run folders": ("inspection.report", "inspection.compare", "inspection.explain"),
    "Training": ("measure.train",),
}
"""heading in the help → its commands: file of this folder, and function"""


def command_of(place: str) -> str:
    """The name of a command, from its file and function.

    Examples
    --------
    >>> command_of("inspection.list_")
    'list'
    """
    return place.rpartition(".")[2].rstrip("_")


FUNCTIONS = {command_of(place): place for places in HEADINGS.values() for place in places}
"""command → file and function"""


def function_of(name: str) -> Callable[..., None]:
    """The function of a command; its file is imported.

    Examples
    --------
    >>> function_of("list").__name__
    'list_'
    """
    file, _, function = FUNCTIONS[name].partition(".")
    return vars(import_module(f"channelscope.cli.{file}"))[function]


def sentence_of(name: str) -> str:
    """The first paragraph of a command's docstring; its file is read, not imported.

    Examples
    --------
    >>> sentence_of("merge")
    'Add profiles of disjoint images of the same network into one.'
    """
    file, _, function = FUNCTIONS[name].partition(".")
    return _sentences(file)[function]


@cache
def _sentences(file: str) -> dict[str, str]:
    """Function → first paragraph of its docstring, of a file of this folder."""
    texts = {node.name: ast.get_docstring(node) or "" for node in _functions(file)}
    return {name: " ".join(text.partition("\n\n")[0].split()) for name, text in texts.items()}


@cache
def _functions(file: str) -> list[ast.FunctionDef]:
    """The functions of a file of this folder, which is read, not imported."""
    tree = ast.parse(Path(__file__).with_name(f"{file}.py").read_text(encoding="utf-8"))
    return [node for node in tree.body if isinstance(node, ast.FunctionDef)]


def takes_trained(name: str) -> bool:
    """Whether a command takes a network and is about its trained weights.

    Examples
    --------
    >>> takes_trained("axes"), takes_trained("hulls"), takes_trained("train")
    (True, False, False)
    """
    file, _, function = FUNCTIONS[name].partition(".")
    found = next(node for node in _functions(file) if node.name == function)
    kinds = [each.annotation.id for each in found.args.args if isinstance(each.annotation, ast.Name)]
    return name != "train" and "NetworkOptions" in kinds


class LazyCommands(MutableMapping[str, Any]):
    """Every command by its name; the file of a command, and PyTorch with it, is imported when the command is asked for.

    Examples
    --------
    >>> "axes" in LazyCommands(), len(LazyCommands()["axes"].params) > 10
    (True, True)
    """

    def __init__(self) -> None:
        self.made: dict[str, Any] = dict.fromkeys(FUNCTIONS)

    def __getitem__(self, name: str) -> Any:
        """The command; KeyError without one of this name."""
        command = self.made[name]
        if command is None:
            flags, function = import_module("channelscope.cli.flags"), function_of(name)
            one = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)
            one.command(name=name, cls=flags.Command, epilog=flags.examples(function))(flags.command(function))
            command = self.made[name] = typer.main.get_command(one)
        return command

    def __setitem__(self, name: str, command: Any) -> None:
        """Add or replace a command."""
        self.made[name] = command

    def __delitem__(self, name: str) -> None:
        """Remove a command."""
        del self.made[name]

    def __iter__(self) -> Iterator[str]:
        """Names, in the order of the help."""
        return iter(self.made)

    def __len__(self) -> int:
        """Number of commands."""
        return len(self.made)


class CommandGroup(TyperGroup):
    """The commands, imported one by one; the list of them has whole sentences, wrapped where click would cut them off."""

    def __init__(self, *, commands: Any = None, **options: Any):
        super().__init__(commands=LazyCommands(), **options)  # type: ignore[arg-type]

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        """Names of all commands, in the order of the help."""
        return list(FUNCTIONS)

    def resolve_command(self, ctx: typer.Context, args: list[str]) -> tuple:  # type: ignore[override]
        """The command; one that had another name in an earlier version is refused with its present one."""
        if args and args[0] in EARLIER_COMMANDS:
            ctx.fail(f"No such command '{args[0]}'. It is now '{EARLIER_COMMANDS[args[0]]}'.")
        if args and args[0] in FUNCTIONS and not ctx.resilient_parsing:
            _without_weights(ctx, args[0], args[1:])
        completing = ctx.resilient_parsing  # words are completed in the user's line, where nothing may be printed
        if args and args[0] in FUNCTIONS and "torch" not in sys.modules and not completing:
            _load(args[0], args[1:])
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: typer.Context, formatter) -> None:  # type: ignore[override]
        """Write every command with its sentence, below the heading of its kind."""
        for heading, places in HEADINGS.items():
            with formatter.section(heading):
                formatter.write_dl([(name, sentence_of(name)) for name in map(command_of, places)])

    def shell_complete(self, ctx: typer.Context, incomplete: str) -> list:  # type: ignore[override]
        """Names and options that begin with what was typed; no command is imported for them."""
        commands = self.commands
        self.commands = {name: TyperCommand(name, help=sentence_of(name)) for name in FUNCTIONS}
        try:
            return super().shell_complete(ctx, incomplete)
        finally:
            self.commands = commands


WEIGHTS = re.compile(r"--(weights|pretrained|config)\b.*|-[a-z]*w.*")
"""words that give weights, or may do so, such as a file of options"""

TRAINED = re.compile(r"hf:.*|.*\bpretrained\b.*")
"""names of networks that come with their weights, or may do so"""

ALONE = re.compile(r"--(json|verbose)|-v+|--.*=.*")
"""options that are whole without the next word"""

PUBLISHED = ("timm:", "torchvision:")
"""beginnings of names of networks whose published weights are taken on request"""

WITHOUT_WEIGHTS: ContextVar[str] = ContextVar("without weights", default="")
"""the network of which the first line of this call says that no file gives its weights"""


def without_weights(model: str) -> str:
    """The sentence about a network whose weights no file gives.

    Parameters
    ----------
    model
        Its name, as commands take it.

    Returns
    -------
    str
        Which flags are missing, and what its weights are.

    Examples
    --------
    >>> without_weights("a/nets.py:Net")
    'nets.py:Net: no --weights, so its weights are as its class makes them'
    """
    flags = "--weights or --pretrained" if model.startswith(PUBLISHED) else "--weights"
    made = "as its class makes them" if ".py:" in model else "random"
    return f"{model.rsplit('/', 1)[-1]}: no {flags}, so its weights are {made}"


def _without_weights(ctx: typer.Context, name: str, words: list[str]) -> None:
    """Say in the first line that no file gives the weights, where the words of the call are enough to know it."""
    known = ""
    if takes_trained(name) and not any(WEIGHTS.fullmatch(word) or NO_WORK.fullmatch(word) for word in words):
        places = zip(["", *words], words, strict=False)
        known = next((word for last, word in places if word[:1] != "-" and (last[:1] != "-" or ALONE.fullmatch(last))), "")
        known = "" if TRAINED.fullmatch(known) or Path(known).is_dir() else known
    token = WITHOUT_WEIGHTS.set(known)
    ctx.call_on_close(lambda: WITHOUT_WEIGHTS.reset(token))
    if known and not any(QUIET.fullmatch(word) for word in words):
        console.print(without_weights(known))


QUIET = re.compile(r"--quiet|-v*q[qv]*")
"""words that ask for silence"""

NO_WORK = re.compile(r"--help|-h|--dry-run|--version")
"""words with which a command does not do its work"""


def _load(name: str, words: list[str]) -> None:
    """Import the file of a command, which takes seconds for PyTorch comes with it; before, say what the command will do."""
    quiet = any(QUIET.fullmatch(word) for word in words)
    if not quiet and not any(NO_WORK.fullmatch(word) for word in words):
        sentence = sentence_of(name)
        console.print(f"{name}: {sentence[0].lower()}{sentence[1:].removesuffix('.')}")
    gc.disable()  # there is nothing to collect; a seventh of the time
    try:
        with without_bars() if quiet else never_silent(f"{name}: loading PyTorch"):
            function_of(name)
    except KeyboardInterrupt:
        console.print("interrupted; nothing was kept")
        raise
    finally:
        gc.enable()
    gc.freeze()
    atexit.register(gc.freeze)  # the last collection of all objects keeps the shell waiting


app = typer.Typer(
    name="channelscope",
    cls=CommandGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"channelscope {version('channelscope')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version and stop")] = False,
) -> None:
    """What the channels of a vision network know, what they share, and which of them it could do without."""


def _refuse(sentence: str) -> NoReturn:
    """Print what is wrong and end with status 2."""
    console.print(Text.assemble(("error:", "bold red"), f" {sentence}"))
    sys.exit(2)


def _run() -> None:
    """Run the command; a lack of memory is said as such wherever it comes up."""
    try:
        app()
    except (MemoryError, RuntimeError) as error:
        no_lack_of_memory(error)
        raise


def main() -> None:
    """Run the command line: status 0 when it worked, 2 with one clear sentence when the input is at fault."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files are printed in any locale
    try:
        _run()
    except OutOfMemoryError as error:
        _refuse(f"{error}: give smaller numbers, such as --batch-size, --images or --size")
    except ChannelscopeError as error:
        _refuse(str(error))
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        _refuse(f"{place}{error.strerror or error}")
    except (SafetensorError, sqlite3.Error) as error:
        _refuse(f"a file cannot be read or written: {first_line(error)}")
