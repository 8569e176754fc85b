"""Tests that notice: small changes of the source, drawn over all rooms, and whether the tests that concern them fail.

    python tools/mutants.py --count 200 --seed 0 --jobs 2

Each change is made in a copy of the repository. The tests of the changed module run until the first failure; a change that no test
notices is a survivor. Results are kept in a file (one JSON line a change), and a run that is given again goes on from there.
"""

import argparse
import ast
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = Path("src") / "channelscope"
SECONDS = 240
"""Time the tests of one change may take; a change that makes them hang is noticed."""
COMPARISONS = {"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "=="}
OPERATORS = {"+": "-", "-": "+", "*": "/", "/": "*", "//": "/", "**": "*", "&": "|", "|": "&"}
SYMBOLS = {
    ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!=", ast.Add: "+", ast.Sub: "-", ast.Mult: "*",
    ast.Div: "/", ast.FloorDiv: "//", ast.Pow: "**", ast.BitAnd: "&", ast.BitOr: "|",
}  # fmt: skip


@dataclass(frozen=True)
class Change:
    """One small change of one file."""

    file: str
    """path below the repository"""
    line: int
    kind: str
    """comparison, sign, constant, condition, dropped statement or swapped arguments"""
    start: int
    """first byte of what is replaced"""
    end: int
    text: str
    """what stands there instead"""

    @property
    def room(self) -> str:
        """First folder below the package, or the file itself."""
        return Path(self.file).relative_to(SOURCE).parts[0].removesuffix(".py")

    @property
    def module(self) -> str:
        """Dotted name of the changed module."""
        return ".".join(("channelscope", *Path(self.file).relative_to(SOURCE).with_suffix("").parts))


class _Changes(ast.NodeVisitor):
    """Every change that can be made in one file."""

    def __init__(self, path: Path):
        self.file = str(path)
        self.raw = (ROOT / path).read_bytes()
        self.starts = [0]
        for line in self.raw.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.found: list[Change] = []
        for node in ast.parse(self.raw).body:
            self.visit(node)

    def _span(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        return self.starts[node.lineno - 1] + node.col_offset, self.starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[operator]

    def _add(self, node: ast.expr | ast.stmt, kind: str, start: int, end: int, text: str) -> None:
        self.found.append(Change(self.file, node.lineno, kind, start, end, text))

    def _between(self, node: ast.expr, left: ast.expr, right: ast.expr, symbol: str, other: str, kind: str) -> None:
        start, end = self._span(left)[1], self._span(right)[0]
        at = self.raw.find(symbol.encode(), start, end)
        if at >= 0:
            self._add(node, kind, at, at + len(symbol), other)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        """Bodies and defaults only: annotations and docstrings change nothing."""
        for default in [*node.args.defaults, *filter(None, node.args.kw_defaults)]:
            self.visit(default)
        for part in node.body:
            self.visit(part)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        """The value, not the annotation."""
        if node.value is not None:
            self.visit(node.value)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Messages are looked at by no one here."""

    def visit_Raise(self, node: ast.Raise) -> None:
        """What an error says is looked at by no one here."""

    def visit_Compare(self, node: ast.Compare) -> None:
        """A comparison that is strict where it was not, or the other way round."""
        if len(node.ops) == 1 and type(node.ops[0]) in SYMBOLS:
            symbol = SYMBOLS[type(node.ops[0])]
            self._between(node, node.left, node.comparators[0], symbol, COMPARISONS[symbol], "comparison")
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        """Another arithmetic operator."""
        if type(node.op) in SYMBOLS and not any(
            isinstance(part, ast.Constant) and isinstance(part.value, str) for part in (node.left, node.right)
        ):
            symbol = SYMBOLS[type(node.op)]
            self._between(node, node.left, node.right, symbol, OPERATORS[symbol], "sign")
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        """`or` for `and`, and the other way round."""
        symbol, other = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        self._between(node, node.values[0], node.values[1], symbol, other, "condition")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        """A number that is off by one, or twice as large."""
        if isinstance(node.value, bool) or not isinstance(node.value, int | float):
            return
        text = str(node.value + 1) if isinstance(node.value, int) else repr(node.value * 2 if node.value else 1.0)
        self._add(node, "constant", *self._span(node), text)

    def visit_Expr(self, node: ast.Expr) -> None:
        """A statement that is left out."""
        if isinstance(node.value, ast.Call):
            self._add(node, "dropped statement", *self._span(node), "pass")
        if not isinstance(node.value, ast.Constant):
            self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        """A statement that is left out."""
        self._add(node, "dropped statement", *self._span(node), "pass")
        self.visit(node.value)

    def visit_Call(self, node: ast.Call) -> None:
        """The first two arguments in each other's place."""
        if len(node.args) >= 2 and not any(isinstance(part, ast.Starred) for part in node.args[:2]):
            (start, middle), (after, end) = self._span(node.args[0]), self._span(node.args[1])
            one, between, two = self.raw[start:middle], self.raw[middle:after], self.raw[after:end]
            name = node.func.id if isinstance(node.func, ast.Name) else ""
            if one != two and name not in {"isinstance", "print", "min", "max", "zip"}:
                self._add(node, "swapped arguments", start, end, (two + between + one).decode())
        self.generic_visit(node)


def drawn(count: int, seed: int) -> list[Change]:
    """So many changes, as evenly over the rooms as there are changes in them."""
    rooms: dict[str, list[Change]] = defaultdict(list)
    for path in sorted((ROOT / SOURCE).rglob("*.py")):
        if path.name != "__main__.py":
            for change in _Changes(path.relative_to(ROOT)).found:
                rooms[change.room].append(change)
    source = random.Random(seed)
    for changes in rooms.values():
        source.shuffle(changes)
    chosen: list[Change] = []
    for turn in range(count):
        chosen += [changes[turn] for _, changes in sorted(rooms.items()) if turn < len(changes)]
        if len(chosen) >= count:
            break
    return chosen[:count]


def concerned(change: Change) -> list[str]:
    """Test files that name the changed module; else those of its room."""
    tests = sorted((ROOT / "tests").rglob("test_*.py"))
    near = [path for path in tests if path.stem == f"test_{Path(change.file).stem}" and change.room in path.parts]
    naming = [path for path in tests if _names(path.read_text(), change.module)]
    room = [path for path in tests if change.room in path.relative_to(ROOT).parts]
    found = list(dict.fromkeys([*near, *naming])) or room or tests
    return [str(path.relative_to(ROOT)) for path in found]


def _names(text: str, module: str) -> bool:
    package, name = module.rsplit(".", 1)
    return re.search(rf"{re.escape(module)}\b|from {re.escape(package)} import [^\n]*\b{name}\b", text) is not None


def noticed(change: Change, folder: Path) -> bool:
    """Whether a test fails when the change is made in a copy of the repository."""
    path = folder / change.file
    whole = path.read_bytes()
    path.write_bytes(whole[: change.start] + change.text.encode() + whole[change.end :])
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--no-header", *concerned(change)]
    places = os.pathsep.join(str(folder / part) for part in ("src", "tests"))
    try:
        done = subprocess.run(command, cwd=folder, env=_environment(places), capture_output=True, timeout=SECONDS)
        return done.returncode != 0
    except subprocess.TimeoutExpired:
        return True
    finally:
        path.write_bytes(whole)


def _environment(places: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": places, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}


def copies(count: int) -> Iterator[Path]:
    """Copies of the repository's source and tests in temporary folders."""
    for _ in range(count):
        folder = Path(tempfile.mkdtemp(prefix="mutants-"))
        for name in ("src", "tests", "docs", "examples", "benchmarks"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        for name in ("pyproject.toml", "README.md"):
            shutil.copy(ROOT / name, folder / name)
        yield folder


def reasons() -> dict[str, str]:
    """Survivors that are no faults, each with its reason."""
    path = ROOT / "tools" / "equivalent_mutants.json"
    return json.loads(path.read_text()) if path.exists() else {}


def named(change: Change) -> str:
    """A change by file, kind and text, which stays the same when lines move."""
    text = (ROOT / change.file).read_bytes()[change.start : change.end].decode()
    return f"{change.file}: {change.kind}: {text} → {change.text}"


def main() -> None:
    """Draw, try, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "mutants.jsonl")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    before = {json.loads(line)["name"]: json.loads(line)["noticed"] for line in lines}
    changes, folders = drawn(options.count, options.seed), list(copies(options.jobs))
    free = list(folders)

    def tried(change: Change) -> tuple[Change, bool]:
        name = named(change)
        if name not in before:
            folder = free.pop()
            try:
                before[name] = noticed(change, folder)
            finally:
                free.append(folder)
            with options.out.open("a") as file:
                file.write(json.dumps({"name": name, "noticed": before[name], **asdict(change)}) + "\n")
        return change, before[name]

    known = reasons()
    killed: dict[str, list[bool]] = defaultdict(list)
    with ThreadPoolExecutor(options.jobs) as pool:
        for change, gone in pool.map(tried, changes):
            if not gone and named(change) in known:
                continue
            killed[change.room].append(gone)
            if not gone:
                print(f"survivor {change.file}:{change.line}  {named(change).split(': ', 1)[1]}", flush=True)
    for folder in folders:
        shutil.rmtree(folder)
    for room, results in sorted(killed.items()):
        print(f"{room:14s} {sum(results):3d} of {len(results):3d} noticed")
    every = [result for results in killed.values() for result in results]
    print(f"{'all':14s} {sum(every):3d} of {len(every):3d} noticed ({sum(every) / len(every):.0%})")


if __name__ == "__main__":
    main()
