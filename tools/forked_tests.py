"""Tests run in children of one process that has imported PyTorch already, and which tests execute which line.

`LineMap` runs each test file once under `coverage`, one context a test, and keeps what it saw in a folder. A record is made again when
its test file changes or a source file that it executed is gone; lines that moved since are found by comparison with the text of that time.
"""

import difflib
import hashlib
import json
import os
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import coverage
import matplotlib.pyplot  # noqa: F401 (imported here once, so that no child has to)
import networkx  # noqa: F401
import pandas  # noqa: F401
import plotly.graph_objects  # noqa: F401
import pytest
import scipy.stats  # noqa: F401
import sklearn.cluster  # noqa: F401
import torch._dynamo  # noqa: F401
import typer  # noqa: F401

ROOT = Path(__file__).resolve().parents[1]
SOURCE = Path("src") / "channelscope"
SHARED = "shared fixture"
"""Context of fixtures that several tests share."""
IMPORT, FIXTURE = -1, -2
"""What stands for a test where a line is executed while modules are imported, or in a shared fixture."""
PLAIN = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--no-header", "--tb=no", "-W", "ignore::pytest.PytestAssertRewriteWarning"]


@dataclass
class Child:
    """A forked process and what it left behind."""

    pid: int
    started: float
    limit: float
    log: Path

    def ended(self) -> int | None:
        """Exit status, None while it runs, -1 where it ran out of time."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() - self.started < self.limit:
            return None
        os.killpg(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        return -1


def forked(folder: Path, log: Path, work: Callable[[], int], limit: float) -> Child:
    """A child that does `work` in a copy of the repository, with its output in a file."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return Child(pid, time.monotonic(), limit, log)
    code = 70
    try:
        os.setsid()
        os.chdir(folder)
        with log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.path[:0] = [str(folder / "src"), str(folder / "tests")]
        places = os.pathsep.join(str(folder / part) for part in ("src", "tests"))
        os.environ.update(PYTHONPATH=places, OMP_NUM_THREADS="1")
        sys.dont_write_bytecode = False  # the copy's tests are compiled once
        code = int(work())
        sys.stdout.flush()
    finally:
        os._exit(code)


def ended(children: list[Child]) -> Iterator[tuple[Child, int]]:
    """Every child with its exit status, in the order in which they end."""
    while children:
        for child in list(children):
            code = child.ended()
            if code is not None:
                children.remove(child)
                yield child, code
        time.sleep(0.1)


class Recorder:
    """A pytest plugin: durations, outcomes, and (with coverage) the lines of each test."""

    def __init__(self, lines: coverage.Coverage | None = None):
        self.lines = lines
        self.seconds: dict[str, float] = defaultdict(float)
        self.failed: list[str] = []
        self.why = ""
        self.skipped: list[str] = []
        self.current = SHARED

    def _context(self, name: str) -> None:
        if self.lines is not None:
            self.lines.switch_context(name)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):  # noqa: D102
        self.current = item.nodeid
        self._context(self.current)
        started = time.monotonic()
        result = yield
        self.seconds[item.nodeid] = time.monotonic() - started
        self.current = SHARED
        self._context(SHARED)
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef):  # noqa: D102
        if fixturedef.scope != "function":
            self._context(SHARED)
        result = yield
        self._context(self.current)
        return result

    def pytest_runtest_logreport(self, report):  # noqa: D102
        if report.failed:
            self.failed.append(report.nodeid)
            self.why = str(report.longrepr).rstrip().rpartition("\n")[2]
        if report.skipped:
            self.skipped.append(report.nodeid)

    def pytest_collectreport(self, report):  # noqa: D102
        if report.failed:
            self.failed.append(report.nodeid)


class LineMap:
    """Which tests execute a line, and how long each takes."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "sources").mkdir(parents=True, exist_ok=True)
        self.seconds: dict[str, float] = {}
        """of every test that passes"""
        self.slowest: dict[str, float] = {}
        """test file → its slowest test, which is often the one that made what the others share"""
        self.tests: dict[str, dict[str, dict[int, list[str]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
        """source file → digest of its text → line → tests"""

    def update(self, copies: list[Path]) -> None:
        """Run the test files that have no valid record, one in each copy of the repository at a time."""
        missing = [path for path in test_files() if not self._valid(path)]
        free, running, of = list(copies), [], {}
        for number, path in enumerate(missing):
            if not free:
                child, code = next(ended(running))
                free.append(self._finished(child, code, of))
            copy, record = free.pop(), self._record(path)
            child = forked(copy, record.with_suffix(".log"), partial(recorded, path, record, copy), 2400)
            running.append(child)
            of[child.pid] = path, copy
            print(f"{time.strftime('%H:%M')} lines of {number + 1}/{len(missing)}: {path}", flush=True)
        for child, code in ended(running):
            self._finished(child, code, of)
        self.read()

    def _finished(self, child: Child, code: int, of: dict[int, tuple[str, Path]]) -> Path:
        path, copy = of[child.pid]
        if code not in (0, 1, 5):
            print(f"{path}: no record (exit status {code}, {child.log})", flush=True)
        return copy

    def _record(self, path: str) -> Path:
        return self.folder / (path.replace("/", "+") + ".json")

    def _valid(self, path: str) -> bool:
        record = self._record(path)
        if not record.exists():
            return False
        found = json.loads(record.read_text())
        return found["digest"] == digest(ROOT / path) and all((ROOT / name).exists() for name in found["sources"])

    def read(self) -> None:
        """Read every record that is there."""
        for path in test_files():
            if not self._record(path).exists():
                continue
            found = json.loads(self._record(path).read_text())
            bad = {*found["failed"], *found["skipped"]}
            passed = {name: seconds for name, seconds in found["seconds"].items() if name not in bad}
            self.seconds |= passed
            self.slowest[path] = max(passed.values(), default=0.0)
            for source, kept in found["sources"].items():
                lines = self.tests[source][kept["digest"]]
                inside = {found["tests"][at] for numbers in kept["lines"].values() for at in numbers if at >= 0} & passed.keys()
                for line, numbers in kept["lines"].items():
                    names = [found["tests"][at] for at in numbers if at >= 0 and found["tests"][at] in passed]
                    names += sorted(inside) if IMPORT in numbers else []
                    names += sorted(passed) if FIXTURE in numbers else []
                    lines[int(line)] += names

    def executing(self, source: str, first: int, last: int) -> list[str]:
        """Tests that execute a line, or a line of the statement from `first` on where none executes `last` by itself."""
        found: dict[str, None] = {}
        for kept, lines in self.tests.get(source, {}).items():
            moved = _moved((self.folder / "sources" / kept).read_text(), (ROOT / source).read_text())
            for line in range(last, first - 1, -1):
                if line in moved and lines.get(moved[line]):
                    found |= dict.fromkeys(lines[moved[line]])
                    break
        return list(found)


@cache
def _moved(before: str, now: str) -> dict[int, int]:
    """Line of today → line of that time."""
    one, two = before.splitlines(), now.splitlines()
    if one == two:
        return {line: line for line in range(1, len(one) + 1)}
    blocks = difflib.SequenceMatcher(None, one, two, autojunk=False).get_matching_blocks()
    return {block.b + at + 1: block.a + at + 1 for block in blocks for at in range(block.size)}


def digest(path: Path) -> str:
    """Short digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def test_files() -> list[str]:
    """All test files that run the library, those of a room before those beside the rooms."""
    found = [path.relative_to(ROOT) for path in (ROOT / "tests").rglob("test_*.py")]
    found = [path for path in found if path.name not in {"test_architecture.py", "test_real.py"}]
    return [str(path) for path in sorted(found, key=lambda path: (len(path.parts) == 2, path))]


def recorded(path: str, record: Path, copy: Path) -> int:
    """Run a test file of a copy under coverage and write its record."""
    lines = coverage.Coverage(data_file=None, source=[str(copy / SOURCE)], config_file=False)
    plugin = Recorder(lines)
    lines.start()
    code = pytest.main([*PLAIN, "--timeout=1200", path], plugins=[plugin])
    lines.stop()
    data = lines.get_data()
    number = {"": IMPORT, SHARED: FIXTURE} | {name: at for at, name in enumerate(plugin.seconds)}
    sources = {}
    for name in sorted(data.measured_files()):
        kept = {line: sorted(number[context] for context in contexts) for line, contexts in data.contexts_by_lineno(name).items()}
        source, text = str(Path(name).relative_to(copy)), Path(name).read_bytes()
        sources[source] = {"digest": hashlib.sha256(text).hexdigest()[:16], "lines": kept}
        (record.parent / "sources" / sources[source]["digest"]).write_bytes(text)
    found = {"digest": digest(copy / path), "tests": list(plugin.seconds), "seconds": plugin.seconds, "failed": plugin.failed}
    record.write_text(json.dumps({**found, "skipped": plugin.skipped, "sources": sources}))
    return code
