"""Reference pages made from the library when the site is built: one page a room, the scores, the commands, the columns of tables."""

import ast
import importlib
import inspect
from pathlib import Path

import typer

import channelscope
from channelscope import cli, scores, tables

SOURCE = Path(channelscope.__file__).parent
DOCS = Path(__file__).parents[1]
NOT_SHOWN = {"cli"}


def packages() -> list[str]:
    """Dotted names of all folders of the library but the command line, parents before their parts."""
    folders = sorted(path.parent for path in SOURCE.rglob("__init__.py") if path.parent != SOURCE)
    return [name for folder in folders if (name := ".".join(folder.relative_to(SOURCE).parts)).split(".")[0] not in NOT_SHOWN]


def first_sentence(thing) -> str:
    """The first paragraph of a docstring on one line, ready for a table."""
    text = (inspect.getdoc(thing) or "").split("\n\n")[0]
    return " ".join(text.split()).replace("|", "\\|")


def members(module: str) -> list[str]:
    """Public functions, classes and described values that a module defines, in the order of the file."""
    body = ast.parse((SOURCE / Path(*module.split("."))).with_suffix(".py").read_text("utf-8")).body
    found = []
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.append(node.name)
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target if isinstance(node, ast.AnnAssign) else None
        described = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        if isinstance(target, ast.Name) and described:
            found.append(target.id)
    return [name for name in found if not name.startswith("_")]


def modules(package: str) -> list[str]:
    """Modules of a folder that define something public."""
    folder = SOURCE / Path(*package.split("."))
    names = [f"{package}.{path.stem}" for path in sorted(folder.glob("*.py")) if not path.stem.startswith("_")]
    return [name for name in names if members(name)]


def public(package: str) -> list[str]:
    """The table of the names that a room exports, with the first sentence of each."""
    room = importlib.import_module(f"channelscope.{package}")
    names = vars(room).get("__all__", [])
    rows = [
        (name, first_sentence(getattr(room, name)))
        for name in names
        if inspect.isroutine(getattr(room, name)) or inspect.isclass(getattr(room, name))
    ]
    if not rows:
        return []
    return ["| name | what it gives |", "|---|---|", *(f"| `{package}.{name}` | {says} |" for name, says in rows), ""]


def automodule(module: str) -> list[str]:
    """The part of a page that documents one module."""
    return [
        f"## {module}",
        "",
        "```{eval-rst}",
        f".. automodule:: channelscope.{module}",
        f"   :members: {', '.join(members(module))}",
        "```",
        "",
    ]


def room_page(package: str, parts: list[str]) -> str:
    """The page of one folder: its purpose, its public names, its modules, its parts."""
    room = importlib.import_module(f"channelscope.{package}")
    lines = [f"# {package}", "", f"*For readers of code and for users of `channelscope.{package}`.* {inspect.getdoc(room)}", ""]
    if parts:
        lines += ["```{toctree}", ":hidden:", "", *parts, "```", ""]
    lines += public(package)
    for module in modules(package):
        lines += automodule(module)
    return "\n".join(lines)


def face_page(rooms: list[str]) -> str:
    """The first page of the reference: verbs and nouns of the package, and the list of rooms."""
    names = [name for name in channelscope.__all__ if not inspect.ismodule(getattr(channelscope, name))]
    lines = [
        "# Python API",
        "",
        "*For those who call the library from Python.* Everything that most programs need is an attribute of `channelscope` itself; "
        "the rooms hold the rest. Every public function has an example that runs in the tests.",
        "",
        "| name | what it gives |",
        "|---|---|",
    ]
    lines += [f"| {link(name)} | {first_sentence(getattr(channelscope, name))} |" for name in names]
    lines += ["", "## Rooms", "", "| room | what it holds |", "|---|---|"]
    top = [room for room in rooms if "." not in room]
    lines += [f"| [{room}]({room}.md) | {first_sentence(importlib.import_module(f'channelscope.{room}'))} |" for room in top]
    lines += ["", "```{toctree}", ":hidden:", "", *top, "plain-data", "```", ""]
    return "\n".join(lines)


def link(name: str) -> str:
    """A name of the package with a link to its entry."""
    thing = getattr(channelscope, name)
    return f"{{py:obj}}`{name} <{thing.__module__}.{thing.__qualname__}>`"


def plain_page() -> str:
    """The page of the files that lie beside the rooms."""
    files = sorted(path.stem for path in SOURCE.glob("*.py") if not path.stem.startswith("_"))
    lines = ["# Plain data", "", "*For everyone.* What every room may import: sites, rankings, subsets, errors, evaluation.", ""]
    for module in filter(members, files):
        lines += automodule(module)
    return "\n".join(lines)


def scores_page() -> str:
    """The table of all scores and the documentation of each."""
    lines = [
        "# Scores",
        "",
        "*For those who choose a score, or read a table of them.* `scores.NAME(profile)` is a Ranking; on the command line a score "
        "is called by its name. *Kept* is the end that pruning keeps.",
        "",
        "| score | axis | unit | kept | what it is | source |",
        "|---|---|---|---|---|---|",
    ]
    for name, score in scores.REGISTRY.items():
        lines.append(f"| `{name}` | {score.family} | {score.unit} | {score.keeps} | {first_sentence(score.formula)} | {score.source} |")
    lines += [
        "",
        "The formulas are derived in [the local axis](../theory/local-axis.md) and [the target axis](../theory/target-axis.md).",
    ]
    return "\n".join([*lines, ""])


def flag_rows(command) -> list[str]:
    """One row of a table for every flag of a command."""
    rows = []
    for parameter in command.params:
        if not parameter.name or parameter.name == "help":
            continue
        argument = parameter.param_type_name == "argument"
        spelled = parameter.name.upper() if argument else ", ".join([*parameter.opts, *parameter.secondary_opts])
        default = (
            "" if argument or parameter.default in (None, "", False) else f"`{getattr(parameter.default, 'value', parameter.default)}`"
        )
        says = (parameter.help or "").replace("|", "\\|").replace("*", "\\*")
        rows.append(f"| `{spelled}` | {default} | {says} |")
    return rows


def leaves(group, before: str = ""):
    """Commands of a group and of the groups in it, with their whole names."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from leaves(command, f"{before}{name} ")
        else:
            yield f"{before}{name}", command


def commands_page() -> str:
    """Every command with its flags and defaults."""
    group = typer.main.get_command(cli.app)
    lines = [
        "# Commands",
        "",
        "*For those who work in a terminal.* Each command of `channelscope`, with its flags and their defaults; "
        "`channelscope COMMAND --help` prints the same. Where the command is not found, `python -m channelscope` is the same program.",
        "",
    ]
    for name, command in leaves(group):
        says = "\n\n".join(" ".join(part.split()) for part in (command.help or "").split("\n\n"))
        lines += [f"## {name}", "", says.replace("*", "\\*"), "", "| flag | default | meaning |", "|---|---|---|", *flag_rows(command), ""]
    return "\n".join(lines)


def columns_page() -> str:
    """Every described column of the tables that commands write."""
    lines = [
        "# Columns of tables",
        "",
        "*For those who read the CSV files.* Columns that hold a quantity per channel; each table also has `NAME.columns.json` "
        "beside it, with the unit, digits, meaning and source of every column.",
        "",
        "| column | unit | meaning | source |",
        "|---|---|---|---|",
    ]
    for name, column in tables.COLUMNS.items():
        says = column.meaning.replace("|", "\\|")
        lines.append(f"| `{name}` | {column.unit} | {says} | {column.source} |")
    return "\n".join([*lines, ""])


def pages() -> dict[str, str]:
    """Text of every generated page by its path under docs/."""
    rooms = packages()
    made = {"api/index.md": face_page(rooms), "api/plain-data.md": plain_page()}
    for room in rooms:
        parts = [other for other in rooms if other.rpartition(".")[0] == room]
        made[f"api/{room}.md"] = room_page(room, parts)
    made["reference/scores.md"] = scores_page()
    made["reference/commands.md"] = commands_page()
    made["reference/columns.md"] = columns_page()
    return made


def write(app) -> None:
    """Write what has changed, and remove pages of rooms that are gone."""
    made = pages()
    for folder in ("api", "reference"):
        for path in (DOCS / folder).rglob("*.md"):
            if str(path.relative_to(DOCS)) not in made:
                path.unlink()
    for name, text in made.items():
        path = DOCS / name
        path.parent.mkdir(exist_ok=True)
        if not path.exists() or path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")


def setup(app):
    """Write the pages before Sphinx looks for them."""
    app.connect("config-inited", lambda app, config: write(app))
    return {"parallel_read_safe": True}
