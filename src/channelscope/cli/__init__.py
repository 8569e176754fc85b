"""The command line: `channelscope COMMAND --help` explains each."""

import io
import sqlite3
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn

import torch
import typer
from rich.text import Text
from safetensors import SafetensorError
from typer.core import TyperGroup

from channelscope.cli import circuits, doctor, experiments, inspection, measure, pruning
from channelscope.cli.call import VERSION
from channelscope.cli.flags import Command, command, command_name, examples
from channelscope.errors import ChannelscopeError, first_line
from channelscope.progress import console

EARLIER_COMMANDS = {"lesion": "ablate", "graphs": "communities", "theory": "gradients", "why": "explain"}
"""command of an earlier version → its present name"""


class WholeSentences(TyperGroup):
    """A list of commands whose sentences are wrapped where click would cut them off."""

    def resolve_command(self, ctx: typer.Context, args: list[str]) -> tuple:  # type: ignore[override]
        """The command; one that had another name in an earlier version is refused with its present one."""
        if args and args[0] in EARLIER_COMMANDS:
            ctx.fail(f"No such command '{args[0]}'. It is now '{EARLIER_COMMANDS[args[0]]}'.")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: typer.Context, formatter) -> None:  # type: ignore[override]
        """Write every command with its sentence, below the heading of its kind."""
        for heading, functions in COMMANDS.items():
            with formatter.section(heading):
                names = [command_name(function) for function in functions]
                formatter.write_dl([(name, self.commands[name].get_short_help_str(limit=1000)) for name in names])


COMMANDS = {
    "Start": (measure.demo, inspection.sites, inspection.list_, inspection.info, doctor.doctor),
    "Measure": (measure.profile, measure.merge, measure.scores, measure.axes, inspection.evaluate),
    "Experiments": (
        experiments.ablate,
        experiments.hulls,
        experiments.communities,
        experiments.propagation,
        experiments.gradients,
        experiments.trajectory,
    ),
    "Pruning": (pruning.prune, pruning.benchmark, inspection.export),
    "Circuits": (circuits.circuit, circuits.subcircuits),
    "Discarded information": (experiments.discard, experiments.faithfulness),
    "Run folders": (inspection.report, inspection.compare, inspection.explain),
    "Training": (measure.train,),
}
"""heading in the help → its commands"""

app = typer.Typer(
    name="channelscope",
    cls=WholeSentences,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for each in (function for functions in COMMANDS.values() for function in functions):
    app.command(name=command_name(each), cls=Command, epilog=examples(each))(command(each))


def _print_version(asked: bool) -> None:
    if asked:
        print(f"channelscope {VERSION}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version and stop")] = False,
) -> None:
    """What the channels of a vision network know, what they share, and which of them it could do without."""


@contextmanager
def _warnings_as_remarks() -> Iterator[None]:
    """Context in which warnings to users are printed as remarks; those to programmers are shown as they were."""
    shown = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, UserWarning):
            console.print(Text.assemble(("note ", "yellow"), str(message)))
        else:
            shown(message, category, *where, **more)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


ALLOCATION = ("allocate memory", "bad_alloc")
"""in the messages of PyTorch's errors when the processor's memory does not suffice"""


def _refuse(sentence: str) -> NoReturn:
    """Print what is wrong and end with status 2."""
    console.print(Text.assemble(("error:", "bold red"), f" {sentence}"))
    sys.exit(2)


def main() -> None:
    """Run the command line: status 0 when it worked, 2 with one clear sentence when the input is at fault."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files are printed in any locale
    try:
        with _warnings_as_remarks():
            app()
    except ChannelscopeError as error:
        _refuse(str(error))
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        _refuse(f"{place}{error.strerror or error}")
    except (SafetensorError, sqlite3.Error) as error:
        _refuse(f"a file cannot be read or written: {first_line(error)}")
    except (MemoryError, RuntimeError) as error:
        if not (isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in str(error) for word in ALLOCATION)):
            raise
        _refuse(f"there is not enough memory ({first_line(error)}): give smaller numbers, such as --batch-size, --images or --size")
