"""The package's own face: every name is an attribute when it is first used, and importing it loads nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import channelscope

HEAVY = ("torch", "pandas", "matplotlib", "plotly", "sklearn", "networkx", "scipy")
FACE = Path(channelscope.__file__)


def run(lines: str) -> str:
    return subprocess.run([sys.executable, "-c", lines], check=True, capture_output=True, text=True).stdout


def test_importing_the_package_loads_no_library():
    assert run(f"import sys, channelscope; print([name for name in {HEAVY} if name in sys.modules])").strip() == "[]"


def test_rooms_and_their_names_are_there_without_further_imports():
    lines = "import channelscope; print(channelscope.experiments.ablate.__name__, channelscope.circuits.Circuit.__name__)"
    assert run(lines).split() == ["ablate", "Circuit"]
    assert run("import channelscope; print(channelscope.discarding.discard.__name__, channelscope.Subset.__name__)").split() == [
        "discard",
        "Subset",
    ]


@pytest.mark.parametrize("name", channelscope.__all__)
def test_every_public_name_is_an_attribute(name):
    assert getattr(channelscope, name) is not None
    assert name in dir(channelscope)


def test_type_checkers_see_the_same_names():
    (block,) = [node for node in ast.parse(FACE.read_text()).body if isinstance(node, ast.If)]
    seen = {alias.name for node in block.body for alias in node.names}
    assert seen == set(channelscope.__all__)


def test_a_name_that_is_none_is_refused():
    with pytest.raises(AttributeError, match="module 'channelscope' has no attribute 'colect'; near matches: collect"):
        channelscope.colect  # noqa: B018
    with pytest.raises(AttributeError, match=r"attribute 'load_prune'; near matches: load_pruned, save_pruned$"):
        channelscope.load_prune  # noqa: B018


def test_profiling_and_pruning_load_no_library_of_tables_charts_or_data():
    lines = f"import sys; from channelscope import collect, cut, shrink; print([name for name in {HEAVY[1:-1]} if name in sys.modules])"
    assert run(lines).strip() == "[]"


def test_the_face_of_the_data_is_imported_when_it_is_used():
    assert run("from channelscope import data; print(data.ImageSource.__name__, 'Split' in dir(data))").split() == ["ImageSource", "True"]
    with pytest.raises(AttributeError, match=r"module 'channelscope\.data' has no attribute 'Images'"):
        channelscope.data.Images  # noqa: B018
