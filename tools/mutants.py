"""Tests that notice: small changes of the source, drawn over all rooms, and whether the tests that concern them fail.

    python tools/mutants.py --count 200 --seed 0 --jobs 2

Each change is made in a copy of the repository. The tests that execute the changed line run, quick ones and those of the changed module
first, until one fails; a change that no test notices is a survivor. Results are kept in a file (one JSON line a change), and a run that is
given again goes on from there. Records of which tests execute which line are made first; `--near` goes without. Survivors that are no
faults stand in `equivalent_mutants.json` with the reason.
"""

import argparse
import ast
import compileall
import hashlib
import json
import py_compile
import re
import resource
import shutil
import signal
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import pytest
from forked_tests import PLAIN, ROOT, SOURCE, Child, LineMap, Recorder, ended, forked, test_files

SECONDS = 90
"""Time that the tests of one change take together, at most, when nothing is changed."""
PATIENCE = 7200
"""Seconds after which a change is said to hang that uses no processor."""
COMPARISONS = {"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "=="}
OPERATORS = {"+": "-", "-": "+", "*": "/", "/": "*", "//": "/", "**": "*", "&": "|", "|": "&"}
SYMBOLS = {
    ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!=", ast.Add: "+", ast.Sub: "-", ast.Mult: "*",
    ast.Div: "/", ast.FloorDiv: "//", ast.Pow: "**", ast.BitAnd: "&", ast.BitOr: "|",
}  # fmt: skip


@dataclass(frozen=True)
class Change:
    """One small change of one file."""

    name: str
    """file, function, line of code and change: it stays the same when lines move"""
    file: str
    """path below the repository"""
    statement: int
    """first line of the changed statement"""
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
        self.inside: list[str] = []
        self.statement = 1
        self.times: Counter[str] = Counter()
        for node in ast.parse(self.raw).body:
            self.visit(node)

    def visit(self, node: ast.AST) -> None:
        """Remember the statement and the function or class around a change."""
        before = self.statement
        if isinstance(node, ast.stmt):
            self.statement = node.lineno
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            self.inside.append(node.name)
        super().visit(node)
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            self.inside.pop()
        self.statement = before

    def _span(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        return self.starts[node.lineno - 1] + node.col_offset, self.starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[operator]

    def _add(self, node: ast.expr | ast.stmt, kind: str, start: int, end: int, text: str) -> None:
        line, replaced = self.raw[self.starts[node.lineno - 1] : self.starts[node.lineno]], self.raw[start:end].decode()
        name = f"{self.file} {'.'.join(self.inside)}: {line.decode().strip()}: {kind}: {replaced} → {text}"
        self.times[name] += 1
        name += f" ({self.times[name]})" if self.times[name] > 1 else ""
        self.found.append(Change(name, self.file, self.statement, node.lineno, kind, start, end, text))

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
    """So many changes, as evenly over the rooms as there are changes in them; the same ones while their lines stay as they are."""
    rooms: dict[str, list[Change]] = defaultdict(list)
    for path in sorted((ROOT / SOURCE).rglob("*.py")):
        if path.name != "__main__.py":
            for change in _Changes(path.relative_to(ROOT)).found:
                rooms[change.room].append(change)
    for changes in rooms.values():
        changes.sort(key=lambda change: hashlib.sha256(f"{seed} {change.name}".encode()).digest())
    chosen: list[Change] = []
    for turn in range(count):
        chosen += [changes[turn] for _, changes in sorted(rooms.items()) if turn < len(changes)]
        if len(chosen) >= count:
            break
    return chosen[:count]


def chosen_tests(change: Change, lines: LineMap) -> list[list[str]]:
    """The tests to run, quick ones first: those that execute the changed line, in the module's test file, in its room and elsewhere, and
    the rest of the module's test file. Where none executes the line, the test files that name the module count as its own. Of test
    files without a record, all tests run."""
    covering = lines.executing(change.file, change.statement, change.line)
    beside = {change.room, f"test_{change.room}.py"}
    own = {path for path in test_files() if Path(path).stem == f"test_{Path(change.file).stem}" and Path(path).parts[1] in beside}
    if not covering:
        own |= {path for path in test_files() if _names((ROOT / path).read_text(), change.module)}
    rest = {name for name in lines.seconds if name.split("::")[0] in own} - set(covering)
    whole = sorted(path for path in own if path not in lines.slowest)

    def part(name: str) -> int:
        path = name.split("::")[0]
        return 3 if name in rest else 0 if path in own else 1 if change.room in Path(path).parts else 2

    parts, total = ([], whole, [], [], []), 0.0
    for name in sorted([*covering, *rest], key=lambda name: (part(name), lines.seconds[name])):
        if total + lines.seconds[name] <= SECONDS or not any(parts):
            parts[part(name) + (part(name) > 0)].append(name)
            total += lines.seconds[name]
    return [tests for tests in parts if tests]


def near_tests(change: Change) -> list[list[str]]:
    """The test files to run without records: the module's own, then those of its room that name it; where it has none of its own, all of
    the folder that mirrors the module's too, or all that name it, or those of the package."""
    beside, texts = {change.room, f"test_{change.room}.py"}, {path: (ROOT / path).read_text(encoding="utf-8") for path in test_files()}
    inside = [path for path in texts if beside & set(Path(path).parts)]
    naming = [path for path, text in texts.items() if _names(text, change.module)]
    own = [path for path in inside if Path(path).stem == f"test_{Path(change.file).stem}"]
    rest = [path for path in inside if path in naming and path not in own]
    if not own:
        mirror = Path("tests", *Path(change.file).parts[2:-1])
        rest += [path for path in inside if mirror in Path(path).parents and path not in rest]
        rest = rest or naming or ["tests/test_package.py"]
    return [tests for tests in (own, rest) if tests]


def _names(text: str, module: str) -> bool:
    package, name = module.rsplit(".", 1)
    return re.search(rf"{re.escape(module)}\b|from {re.escape(package)} import [^\n]*\b{name}\b", text) is not None


def run_changed(change: Change, folder: Path, parts: list[list[str]], seconds: float, result: Path) -> int:
    """Make the change in a copy of the repository, run tests there until one fails; so many seconds of the processor at most."""
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds)))
    path = folder / change.file
    whole = path.read_bytes()
    path.write_bytes(whole[: change.start] + change.text.encode() + whole[change.end :])
    plugin = Recorder()
    code = 0
    for tests in parts:
        code = code or int(pytest.main([*PLAIN, "-x", "--timeout=0", *tests], plugins=[plugin]))
        code = 0 if code == pytest.ExitCode.NO_TESTS_COLLECTED else code
    result.write_text(json.dumps({"failed": plugin.failed, "why": plugin.why, "ran": len(plugin.seconds)}))
    return code


def run_unchanged(tests: list[str], result: Path) -> int:
    """Run tests in a copy without any change, and write down which fail."""
    plugin = Recorder()
    code = int(pytest.main([*PLAIN, "--timeout=0", *tests], plugins=[plugin]))
    result.write_text(json.dumps({"failed": plugin.failed}))
    return code


def copies(count: int) -> Iterator[Path]:
    """Copies of the repository's source and tests in temporary folders, compiled such that a changed file is compiled again."""
    for _ in range(count):
        folder = Path(tempfile.mkdtemp(prefix="mutants-"))
        for name in ("src", "tests", "docs", "examples", "benchmarks", "tools"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        for name in ("pyproject.toml", "README.md", "CHANGELOG.md", "Makefile", "CONTRIBUTING.md"):
            shutil.copy(ROOT / name, folder / name)
        compileall.compile_dir(folder / "src", quiet=1, invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH)
        yield folder


def reasons() -> dict[str, str]:
    """Survivors that are no faults, each with its reason."""
    path = ROOT / "tools" / "equivalent_mutants.json"
    return json.loads(path.read_text()) if path.exists() else {}


class Trial:
    """Changes that are tried side by side, one in each copy, and a file with what came of them."""

    def __init__(self, lines: LineMap | None, folders: list[Path], out: Path):
        self.lines, self.free, self.out = lines, list(folders), out
        self.children: list[Child] = []
        self.noticing: dict[Change, str] = {}
        """change → the test that failed"""
        self.of: dict[int, tuple[Change, Path, bytes]] = {}
        found = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
        self.before: dict[str, bool] = {line["name"]: line["noticed"] for line in found if "statement" in line}

    def start(self, change: Change) -> None:
        """Try one change as soon as a copy is free."""
        if not self.free:
            self._end(*next(ended(self.children)))
        folder, tests = self.free.pop(), chosen_tests(change, self.lines) if self.lines else near_tests(change)
        result = folder / "result.json"
        result.unlink(missing_ok=True)
        if not tests:
            self.free.append(folder)
            return self._keep(change, False, "no test executes the line", 0.0)
        whole = (folder / change.file).read_bytes()
        seconds = 60 + 4 * self._expected(tests)
        child = forked(folder, folder / "log.txt", partial(run_changed, change, folder, tests, seconds, result), PATIENCE)
        self.children.append(child)
        self.of[child.pid] = change, folder, whole
        return None

    def _expected(self, tests: list[list[str]]) -> float:
        """Seconds of the processor that tests take by their records, or by what a file without one may take."""
        names = [name for part in tests for name in part]
        files = {name.split("::")[0] for name in names}
        if self.lines is None:
            return SECONDS * len(files)
        known = sum(self.lines.seconds.get(name, SECONDS) for name in names)
        return known + sum(self.lines.slowest.get(path, SECONDS) for path in files)

    def finish(self) -> None:
        """Wait for all that were started."""
        for child, code in ended(self.children):
            self._end(child, code)

    def confirm(self) -> None:
        """Run the tests that noticed something without any change; what a test noticed that fails then too is taken back."""
        folder, tests = self.free[-1], sorted(set(self.noticing.values()))
        result = folder / "result.json"
        result.unlink(missing_ok=True)
        if tests:
            self.children.append(forked(folder, folder / "log.txt", partial(run_unchanged, tests, result), PATIENCE))
            next(ended(self.children))
        failing = json.loads(result.read_text())["failed"] if result.exists() else []
        for change, test in self.noticing.items():
            if test in failing:
                self._keep(change, False, f"fails without a change too: {test}", 0.0)

    def _end(self, child: Child, code: int) -> None:
        change, folder, whole = self.of.pop(child.pid)
        (folder / change.file).write_bytes(whole)
        result = folder / "result.json"
        found = json.loads(result.read_text()) if result.exists() else {"failed": [], "ran": 0}
        self.free.append(folder)
        if not found["failed"] and (code == pytest.ExitCode.USAGE_ERROR or (not code and not found["ran"])):
            return print(f"not tried, see {folder / 'log.txt'}: {change.name}", flush=True)
        by = (
            "out of time"
            if code in (-1, -signal.SIGXCPU, -signal.SIGKILL)
            else f"exit status {code}"
            if code
            else f"{found['ran']} tests pass"
        )
        if found["failed"]:
            by = f"{found['failed'][0]}: {found['why']}"
            self.noticing[change] = found["failed"][0]
        return self._keep(change, code != 0, by, time.monotonic() - child.started)

    def _keep(self, change: Change, noticed: bool, by: str, seconds: float) -> None:
        self.before[change.name] = noticed
        with self.out.open("a") as file:
            file.write(json.dumps({"noticed": noticed, "by": by, "seconds": round(seconds, 1), **asdict(change)}) + "\n")
        print(f"{time.strftime('%H:%M')} {'noticed ' if noticed else 'SURVIVED'} {change.file}:{change.line} [{by}]", flush=True)


def main() -> None:
    """Draw, try, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--rooms", nargs="*", default=[], help="only changes of these rooms, among those drawn")
    parser.add_argument("--again", action="store_true", help="try survivors of earlier runs once more")
    parser.add_argument("--only-record", action="store_true", help="record which tests execute which lines, and try nothing")
    parser.add_argument("--as-recorded", action="store_true", help="try changes with the records that are there")
    parser.add_argument("--near", action="store_true", help="without records: the module's test file and those of its room that name it")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs", help="where results and records are kept")
    options = parser.parse_args()
    folders, changes = list(copies(options.jobs)), drawn(options.count, options.seed)
    lines = None if options.near else LineMap(options.folder / "lines")
    try:
        if lines is not None and options.as_recorded:
            lines.read()
        elif lines is not None:
            lines.update(folders)
        if not options.only_record:
            options.folder.mkdir(parents=True, exist_ok=True)
            trial = Trial(lines, folders, options.folder / "mutants.jsonl")
            known = reasons()
            changes = [change for change in changes if not options.rooms or change.room in options.rooms]
            for change in changes:
                tried = change.name in known or change.name in trial.before
                if not tried or (options.again and change.name not in known and not trial.before[change.name]):
                    trial.start(change)
            trial.finish()
            if lines is None:
                trial.confirm()
            summary(changes, trial.before, known)
    finally:
        for folder in folders:
            shutil.rmtree(folder)


def summary(changes: list[Change], noticed: dict[str, bool], known: dict[str, str]) -> None:
    """Survivors, and how many changes of each room were noticed."""
    rooms: dict[str, list[bool]] = defaultdict(list)
    for change in changes:
        if change.name in noticed and (noticed[change.name] or change.name not in known):
            rooms[change.room].append(noticed[change.name])
            if not noticed[change.name]:
                print(f"survivor at line {change.line} of {change.name}")
    rooms["in all"] = [result for results in rooms.values() for result in results]
    for room, results in rooms.items():
        print(f"{room:14s} {sum(results):3d} of {len(results):3d} noticed ({sum(results) / max(len(results), 1):.0%})")


if __name__ == "__main__":
    main()
