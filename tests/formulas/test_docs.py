"""The theory pages and the formulas name each other."""

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "theory").glob("*-axis.md")) + [
    ROOT / "docs" / "theory" / name for name in ("together.md", "resampling.md")
]
NAMED = {name for page in PAGES for name in re.findall(r"`(formulas\.[\w.]+\w)", page.read_text())}
SOURCE = ROOT / "src" / "channelscope" / "formulas"


@pytest.mark.parametrize("name", sorted(NAMED))
def test_what_a_page_names_exists(name):
    parts = name.split(".")
    for split in range(len(parts), 1, -1):
        try:
            found = importlib.import_module("channelscope." + ".".join(parts[:split]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[split:]:
            found = vars(found)[attribute]
        return
    pytest.fail(f"{name} is named in docs/theory but cannot be imported")


def test_every_formula_is_on_a_page():
    last = {name.split(".")[-1] for name in NAMED}
    functions = {
        node.name
        for path in SOURCE.rglob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    }
    assert functions <= last


def test_every_twin_that_is_cited_exists():
    twins = {node.name for node in ast.parse((ROOT / "tests" / "pencil.py").read_text()).body if isinstance(node, ast.FunctionDef)}
    cited = {name for path in SOURCE.rglob("*.py") for name in re.findall(r"tests/pencil\.py::(\w+)", path.read_text())}
    assert cited <= twins
