"""The house rules that a machine can check: who imports whom, and how long things may be."""

import ast
from pathlib import Path

import pytest

from channelscope.network.operations import of_function

ROOT = Path(__file__).parents[1] / "src" / "channelscope"
FILES = sorted(ROOT.rglob("*.py"))

PLAIN = {"errors", "types", "site", "ranking", "subset", "tables", "storage", "progress", "display", "lazy"}
STATISTICS = {"stats", "formulas", "scores"}
MEETING = PLAIN | STATISTICS | {"network", "data", "evaluation", "profiling"}
MAY = {
    "errors": set(),
    "types": set(),
    "display": set(),
    "lazy": set(),
    "progress": {"errors"},
    "storage": {"errors"},
    "site": {"errors"},
    "ranking": {"display", "errors", "site"},
    "subset": {"display", "errors", "site", "types"},
    "tables": {"errors", "ranking", "site", "storage"},
    "stats": PLAIN,
    "formulas": PLAIN | {"stats"},
    "scores": PLAIN | {"stats", "formulas"},
    "network": PLAIN,
    "data": PLAIN | {"network"},
    "evaluation": PLAIN | {"stats", "network", "data"},
    "zoo": PLAIN | {"stats", "network", "data", "evaluation"},
    "profiling": PLAIN | {"stats", "network", "data"},
    "circuits": MEETING,
    "discarding": MEETING,
    "experiments": MEETING,
    "pruning": MEETING | {"zoo"},
    "benchmark": MEETING | {"circuits", "discarding", "experiments", "zoo", "pruning"},
    "report": PLAIN,
}
MAY["cli"] = MAY["__init__"] = MAY["benchmark"] | {"benchmark", "report"}
MAY["__main__"] = {"cli"}
MAY["drawing"] = MEETING | {"report", "circuits", "discarding", "pruning"}

EXTRAS = {
    "timm", "transformers", "datasets", "pyarrow", "onnx", "onnxruntime", "ray", "captum", "zennit", "torch_kirigami", "torch_pruning",
    "tensorboard", "wandb",
}  # fmt: skip


def room(path: Path) -> str:
    first = path.relative_to(ROOT).parts[0]
    return first.removesuffix(".py")


def imported(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_point_down(path):
    here = room(path)
    for name in imported(ast.parse(path.read_text())):
        parts = name.split(".")
        if name == "channelscope.drawing.plot":
            continue  # the method `plot` of a result, which imports what draws it when it is called
        if parts[0] == "channelscope" and len(parts) > 1 and parts[1] != here:
            assert parts[1] in MAY[here], f"{here} may not import {parts[1]}"


@pytest.mark.parametrize("path", [p for p in FILES if room(p) in {"tables", "site", "ranking", "report"}], ids=lambda p: p.name)
def test_plain_data_and_report_know_no_torch(path):
    assert not {name for name in imported(ast.parse(path.read_text())) if name.split(".")[0] in {"torch", "torchvision"}}


def documentation(node: ast.AST) -> int:
    """Lines of the docstring."""
    body = node.body
    first = body[0] if body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant) else None
    return first.end_lineno - first.lineno + 1 if first is not None and isinstance(first.value.value, str) else 0


def all_documentation(tree: ast.Module) -> int:
    """Lines of all docstrings of a file."""
    return sum(documentation(node) for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_size_and_manners(path):
    text = path.read_text()
    tree = ast.parse(text)
    assert len(text.splitlines()) - all_documentation(tree) <= 400, "a noun is missing"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno + 1 - documentation(node) <= 60, f"{node.name} is longer than 60 lines"
            count = len(node.args.posonlyargs) + len(node.args.args) + len(node.args.kwonlyargs)
            assert count <= 8, f"{node.name} has {count} parameters"
            for inner in ast.walk(node):
                if isinstance(inner, ast.Import | ast.ImportFrom):
                    module = inner.names[0].name if isinstance(inner, ast.Import) else inner.module
                    inside = module.split(".")[0] in EXTRAS or (node.name == "plot" and module == "channelscope.drawing")
                    assert inside, f"{node.name} imports {module} inside"
        if isinstance(node, ast.ExceptHandler):
            names = {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)} if node.type else {"BaseException"}
            assert not names & {"Exception", "BaseException"}, "catches everything"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
            assert len(node.args) < 3, "three-argument getattr"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("read_text", "write_text"):
            assert "encoding" in {word.arg for word in node.keywords}, f"{node.func.attr} in the locale's encoding"
        if isinstance(node, ast.Constant) and isinstance(node.value, float) and room(path) != "formulas":
            assert node.value == 0 or abs(node.value) >= 1e-3, f"literal {node.value} outside formulas"
    assert not {"utils", "helpers", "common", "core", "base", "manager"} & {path.stem, *path.relative_to(ROOT).parts[:-1]}


def exported(init: Path) -> set[str]:
    """Names that a package's face exports."""
    for node in ast.parse(init.read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__":
            return set(ast.literal_eval(node.value))
    return set()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_lack_of_memory_is_not_taken_for_a_failure_of_the_code(path):
    for handler in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ExceptHandler) and node.type):
        if "FAILURES" in ast.unparse(handler.type):
            assert ast.unparse(handler.body[0]) == f"no_lack_of_memory({handler.name})", f"{path}:{handler.lineno}"


@pytest.mark.parametrize("init", sorted(ROOT.rglob("__init__.py")), ids=lambda path: str(path.parent.relative_to(ROOT)))
def test_no_package_exports_the_name_of_a_submodule(init):
    submodules = {path.stem for path in init.parent.glob("*.py")} | {path.parent.name for path in init.parent.glob("*/__init__.py")}
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")} if init.parent == ROOT else {"toys"}
    assert not (exported(init) & submodules) - rooms


def test_rooms_are_small_and_few():
    files = [path for path in FILES if path.name != "__init__.py"]
    assert len(FILES) <= 165
    short = [path for path in files if len(path.read_text().splitlines()) < 60]
    assert len(short) <= 20, [str(path.relative_to(ROOT)) for path in short]
    for folder in {path.parent for path in files} - {ROOT}:
        assert len([path for path in files if path.parent == folder]) <= 14, folder.name


TABLE_ROOMS = ("network/operations/", "network/tracing/", "zoo/")
"""The table itself; how Python's calls become steps, before the table is asked; building networks."""
NO_LAYERS = {"Module", "Parameter", "Buffer", "ModuleDict", "ModuleList", "Sequential"}
ORDINARY = {"mean", "sum", "max", "min", "all", "any", "zero", "size", "numel", "dim"}
"""Spellings of operations that are words of other things too."""


def dotted(node: ast.AST) -> str:
    return ast.unparse(node) if isinstance(node, ast.Attribute) else ""


def layer_type(name: str) -> bool:
    """Whether a dotted name is a layer or function of torch.nn."""
    first, *_, last = name.split(".") if "." in name else ("", "")
    return (
        (first == "nn" and last.lstrip("_")[0].isupper() and last not in NO_LAYERS)
        or first == "F"
        or (first == "torch" and of_function(last) is not None)
    )


def own_lists(tree: ast.AST) -> list[str]:
    """Types of layers that a file compares with, and collections of operations that it spells out."""
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    found, annotations = [], {id(node.slice) for node in ast.walk(tree) if isinstance(node, ast.Subscript)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("isinstance", "issubclass"):
            types = [part for part in ast.walk(node.args[1]) if id(part) not in inner and layer_type(dotted(part))]
            found += [f"{node.lineno}: {dotted(part)}" for part in types]
        if isinstance(node, ast.Set | ast.Tuple | ast.List) and id(node) not in annotations:
            found += [f"{node.lineno}: {dotted(part)}" for part in node.elts if layer_type(dotted(part))]
            words = {part.value.rstrip("_") for part in node.elts if isinstance(part, ast.Constant) and isinstance(part.value, str)}
            spelled = sorted(word for word in words - ORDINARY if of_function(word) is not None)
            found += [f"{node.lineno}: {', '.join(spelled)}"] if len(spelled) > 1 else []
    return found


def test_own_lists_are_noticed():
    assert own_lists(ast.parse("isinstance(m, nn.Linear | nn.modules.conv._ConvNd)")) == ["1: nn.Linear", "1: nn.modules.conv._ConvNd"]
    assert own_lists(ast.parse("NORMS = (nn.LayerNorm,)\nPOOLS = {'max_pool2d', 'avg_pool2d'}\nIN_PLACE = ['add_', 'mul_', 'of']")) == [
        "1: nn.LayerNorm", "2: avg_pool2d, max_pool2d", "3: add, mul"
    ]  # fmt: skip
    assert own_lists(ast.parse("SUMS = (torch.add,)\nSOFT = {F.softmax}")) == ["1: torch.add", "2: F.softmax"]
    assert own_lists(ast.parse("isinstance(m, nn.Module)\nby = ('mean', 'sum')\nkinds = (torch.float32, nn.Parameter)")) == []
    assert own_lists(ast.parse("def forward(m: tuple[nn.Linear, int]):\n    a, b = m")) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_table_of_operations_is_asked(path):
    name = path.relative_to(ROOT).as_posix()
    assert name.startswith(TABLE_ROOMS) or own_lists(ast.parse(path.read_text())) == []


CITING = {"formulas", "scores", "circuits", "discarding"}


@pytest.mark.parametrize("path", [p for p in FILES if room(p) in CITING], ids=lambda p: str(p.relative_to(ROOT)))
def test_public_formulas_cite_their_source(path):
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            text = ast.get_docstring(node) or ""
            assert "Source" in text or "References\n---" in text, f"{node.name} cites no source"


def test_there_are_tests_enough():
    source = 0
    for path in FILES:
        text = path.read_text()
        source += len(text.splitlines()) - all_documentation(ast.parse(text))
    tests = sum(len(path.read_text().splitlines()) for path in Path(__file__).parent.rglob("*.py"))
    assert tests >= 1.05 * source, f"{tests} lines of tests for {source} of source without docstrings"
