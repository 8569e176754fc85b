"""Every example in a docstring runs as written, and every public function has one."""

import ast
import doctest
import importlib
from pathlib import Path

import pytest

from channelscope.scores.score import Score

ROOT = Path(__file__).parents[1] / "src" / "channelscope"
MODULES = sorted(
    ".".join(["channelscope", *path.relative_to(ROOT).with_suffix("").parts]) for path in ROOT.rglob("*.py") if path.name[:2] != "__"
)
COMMANDS = "channelscope.cli."
"""The docstrings of commands are their help; they are run by the tests of the command line."""


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_run(name):
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    finder = doctest.DocTestFinder(exclude_empty=True)
    formulas = [value.formula for value in vars(module).values() if isinstance(value, Score) and value.formula.__module__ == name]
    examples = [*finder.find(module, name), *(test for formula in formulas for test in finder.find(formula, formula.__name__, module))]
    output: list[str] = []
    for example in examples:
        runner.run(example, out=output.append)
    assert not runner.failures, "".join(output)


@pytest.mark.parametrize("name", [name for name in MODULES if not name.startswith(COMMANDS)])
def test_every_public_function_has_an_example(name):
    tree = ast.parse((ROOT / Path(*name.split(".")[1:])).with_suffix(".py").read_text())
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
    lacking = [node.name for node in functions if ">>> " not in (ast.get_docstring(node) or "")]
    assert not lacking
