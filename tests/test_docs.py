"""Every page names what exists: names of the library, files, commands with their flags, and links."""

import ast
import importlib
import inspect
import re
import tomllib
from pathlib import Path

import pytest
import torch
import typer

import channelscope
from channelscope import cli
from channelscope.data.images import ImageSplits
from channelscope.data.splits import Split
from channelscope.formulas.gaussian import Gaussian
from channelscope.network.channel_graph import ChannelGraph
from channelscope.network.graph import Graph
from channelscope.network.operations.step import Step
from channelscope.network.removal.groups import Groups
from channelscope.scores.score import REGISTRY, LayerStatistics
from channelscope.stats.profile import Profile

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
MADE = ("api", "reference")
"""folders of pages that are made when the site is built"""

PAGES = sorted(
    path
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")]
    if not path.is_relative_to(DOCS) or path.relative_to(DOCS).parts[0] not in MADE
)
COMMANDS = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
LIBRARIES = {"torch": torch, "x": torch.ones(1), "nn": torch.nn, "F": torch.nn.functional, "autograd": torch.autograd}
VARIABLES = {
    "split": Split,
    "images": ImageSplits,
    "law": Gaussian,
    "profile": Profile,
    "step": Step,
    "layer": LayerStatistics,
    "Graph": Graph,
    "Groups": Groups,
    "ChannelGraph": ChannelGraph,
}
"""names that stand for an object or a class of the library"""

WRITTEN = (
    ".csv",
    ".json",
    ".safetensors",
    ".sqlite",
    ".html",
    ".md",
    ".png",
    ".svg",
    ".profile",
    ".npy",
    ".pt",
    ".pt2",
    ".onnx",
    ".toml",
    ".unfinished",
)
"""endings of files that commands write or read"""

EXAMPLES = {"nets.py", "path/to/file.py"}
"""files of a user that pages speak of"""

DOTTED = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+")
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
PYTHON = ("python", "{code-cell} ipython3")
"""languages of a block of Python: a page's, and a notebook's"""

ROLE = re.compile(r"\{[\w:]+\}`[^`\n]+`")


def named(page):
    return str(page.relative_to(ROOT))


def inline(text: str) -> list[str]:
    """What stands between single back-ticks."""
    return re.findall(r"`([^`\n]+)`", ROLE.sub("", FENCE.sub("", text)))


def member(owner, name: str):
    """An attribute of a module or class, or an argument that a class is made of; AttributeError where it has none of that name."""
    if inspect.isclass(owner) and name in inspect.signature(owner).parameters:
        return None
    if hasattr(owner, name) or not hasattr(owner, "__path__"):
        return getattr(owner, name)
    return importlib.import_module(f"{owner.__name__}.{name}")


def resolve(name: str):
    """What a dotted name stands for, with the package's name before it where the page leaves it out; None for a field."""
    first, *rest = name.removeprefix("channelscope.").split(".")
    owner = LIBRARIES.get(first) or VARIABLES.get(first) or member(importlib.import_module("channelscope"), first)
    for part in rest:
        owner = None if owner is None else member(owner, part)
    return owner


def exists(name: str) -> bool:
    if name.endswith(WRITTEN):
        return True
    if name.endswith(".py"):
        return name in EXAMPLES or any(path.name == name for folder in ("src", "tests") for path in (ROOT / folder).rglob("*.py"))
    try:
        resolve(name)
    except (AttributeError, ImportError):
        return False
    return True


def commands(text: str) -> list[list[str]]:
    """The words of every line that begins with `channelscope`, in a block of commands or between back-ticks."""
    blocks = [body.replace("\\\n", " ") for language, body in FENCE.findall(text) if language not in (*PYTHON, "json")]
    lines = [line for block in blocks for line in block.splitlines()] + inline(text)
    return [re.split(r"\s{2,}#", line)[0].split()[1:] for line in lines if line.startswith("channelscope ")]


def test_the_checks_notice_what_does_not_exist():
    assert exists("experiments.hulls.replacement_sets")
    assert exists("split.take")
    assert not exists("experiments.hulls.hulls")
    assert not exists("split.taken")
    assert not exists("nothing.at_all")
    assert not exists("nowhere.py")
    assert commands("```\nchannelscope a \\\n  --b 1   # c\n```\nand `channelscope d`") == [["a", "--b", "1"], ["d"]]


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_dotted_name_exists(page):
    found = {match[0] for text in inline(page.read_text("utf-8")) if (match := DOTTED.match(text))}
    assert sorted(name for name in found if not exists(name)) == []


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_call_has_the_arguments_that_it_names(page):
    for text in inline(page.read_text("utf-8")):
        call = re.fullmatch(r"([A-Za-z_][\w.]*)\((.*)\)", text)
        if call is None or call[1].partition(".")[0] in LIBRARIES or ("." not in call[1] and call[1] not in channelscope.__all__):
            continue
        known = inspect.signature(resolve(call[1])).parameters
        given = set(re.findall(r"(?:^|[(,]\s*)(\w+)=", re.sub(r"\([^()]*\)", "", call[2])))
        assert given <= set(known) or any(each.kind is each.VAR_KEYWORD for each in known.values()), text


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_file_of_the_project_exists(page):
    found = {
        text.partition("::")[0] for text in inline(page.read_text("utf-8")) if re.fullmatch(r"[\w/.-]+/[\w.-]+\.(?:py|md)(?:::\w+)?", text)
    }
    missing = {name for name in found if not any((base / name).exists() for base in (ROOT, ROOT / "src" / "channelscope"))}
    assert sorted(missing - EXAMPLES) == []


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_command_exists_with_its_flags(page):
    for name, *words in commands(page.read_text("utf-8")):
        if name.isupper() or name.startswith("-"):
            continue
        assert name in COMMANDS
        known = {flag for parameter in COMMANDS[name].params for flag in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
        assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_import_and_attribute_of_the_python_examples_exists(page):
    for language, body in FENCE.findall(page.read_text("utf-8")):
        if language not in PYTHON:
            continue
        owners = {}
        for node in ast.walk(ast.parse(body)):
            if isinstance(node, ast.Import) and any(alias.name == "channelscope" for alias in node.names):
                owners["channelscope"] = importlib.import_module("channelscope")
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("channelscope"):
                module = importlib.import_module(node.module)
                owners |= {alias.asname or alias.name: member(module, alias.name) for alias in node.names}
        for node in ast.walk(ast.parse(body)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in owners:
                member(owners[node.value.id], node.attr)


@pytest.mark.parametrize(
    ("page", "said"), [("start.md", "relevance    excess"), ("how-to/extend.md", "conv1: 0.70 [0.60, 0.80] (n = 100 images)")]
)
def test_the_python_of_the_page_runs(page, said, capsys):
    blocks = [body for language, body in FENCE.findall((DOCS / page).read_text("utf-8")) if language == "python"]
    try:
        exec(compile("\n".join(blocks), page, "exec"), {"__name__": "page"})
    finally:
        REGISTRY.pop("loudness", None)
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_link_leads_to_a_file(page):
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", FENCE.sub("", page.read_text("utf-8")))
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", [page for page in PAGES if page.is_relative_to(DOCS)], ids=named)
def test_every_page_says_who_it_is_for(page):
    text = re.sub(r"\A---\n.*?\n---\n", "", page.read_text("utf-8"), flags=re.DOTALL)
    _, line = (line for line in text.split("\n\n")[:2])
    assert re.match(r"\*For \w", line)


def test_the_site_shows_every_page():
    shown = {
        (page.parent / name).with_suffix(".md").resolve()
        for page in DOCS.rglob("*.md")
        for language, body in FENCE.findall(page.read_text("utf-8"))
        if language == "{toctree}"
        for name in body.split()
        if not name.startswith(":")
    }
    assert {page for page in PAGES if page.is_relative_to(DOCS)} - shown == {DOCS / "index.md"}


def test_the_list_of_commands_is_whole():
    text = (ROOT / "docs" / "all-of-channelscope.md").read_text("utf-8")
    (line,) = (line for line in text.splitlines() if line.startswith("`channelscope COMMAND --help`"))
    listed = set(re.findall(r"`(\w+)`", line))
    assert set(COMMANDS) <= listed


@pytest.mark.parametrize("page", ["README.md", "docs/start.md"])
def test_every_extra_is_named_where_the_installation_is_explained(page):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    text = (ROOT / page).read_text("utf-8")
    assert [extra for extra in extras if f"`{extra}`" not in text] == []


def test_what_describes_the_package_is_whole_and_agrees():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert {"version", "description", "readme", "license", "authors", "keywords", "classifiers", "urls"} <= set(project)
    assert "Typing :: Typed" in project["classifiers"]
    assert (ROOT / "src" / "channelscope" / "py.typed").is_file()
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    assert f"version: {project['version']}\nlicense: {project['license']}\n" in citation
    assert project["authors"][0]["name"] in citation
    papers = re.findall(r"arXiv (\d{4}\.\d{5})", citation)
    assert [f"https://arxiv.org/abs/{number}" for number in papers] == list(project["urls"].values())


@pytest.mark.parametrize("form", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")), ids=lambda form: form.stem)
def test_every_form_asks_for_versions_and_a_reproduction(form):
    fields = form.read_text("utf-8").split("  - type: ")[1:]
    asked = {re.search(r"id: (\w+)", field)[1]: "required: true" in field for field in fields}
    assert asked["versions"]
    assert asked["reproduction"]


def test_workflows_run_the_tests_and_build_what_is_handed_out():
    text = "".join(path.read_text("utf-8") for path in (ROOT / ".github" / "workflows").glob("*.yml"))
    assert set(re.findall(r"- run: (.*)", text)) == {".ci/run", "make docs", "make wheel"}
    steps = re.findall(r"^make (\S+)$", (ROOT / ".ci" / "run").read_text("utf-8"), re.MULTILINE)
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert {"test", "lint", "docs", "wheel"} <= set(steps) <= set(targets)
