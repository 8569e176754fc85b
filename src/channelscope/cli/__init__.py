"""The command line: `channelscope COMMAND --help` explains each."""

import sqlite3
import sys
from typing import Annotated

import typer
from rich.text import Text
from safetensors import SafetensorError
from typer.core import TyperGroup

from channelscope.cli import circuits, discarding, doctor, experiments, inspection, measure, pruning, runs
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
    "Discarded information": (discarding.discard, discarding.faithfulness),
    "Run folders": (runs.report, runs.compare, runs.explain),
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


def main() -> None:
    """Run the command line: status 0 when it worked, 2 with one clear sentence when the input is at fault."""
    try:
        app()
    except ChannelscopeError as error:
        console.print(Text.assemble(("error:", "bold red"), f" {error}"))
        sys.exit(2)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        console.print(Text.assemble(("error:", "bold red"), f" {place}{error.strerror or error}"))
        sys.exit(2)
    except (SafetensorError, sqlite3.Error) as error:
        console.print(Text.assemble(("error:", "bold red"), f" a file cannot be read or written: {first_line(error)}"))
        sys.exit(2)
