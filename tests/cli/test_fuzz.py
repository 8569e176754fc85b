"""Whatever is typed and whatever lies on disk: the command works, or it ends with status 2 and one sentence; nothing else is changed."""

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings

from cli.fuzzing import Case, Outcome, World, cases, end, table


@contextmanager
def made(*only: str) -> Iterator[World]:
    """Finished runs of every command, or of some, in a folder that every user may read."""
    folder = Path(tempfile.mkdtemp(prefix="channelscope_fuzz_"))
    folder.chmod(0o777)
    (folder / "world").mkdir()
    try:
        yield World.build(folder / "world", *only)
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def world():
    with made("train", "n.profile", "scores") as few:
        yield few


@pytest.fixture(scope="module")
def whole():
    with made() as all_runs:
        yield all_runs


def ended(case: Case, world: World) -> Outcome:
    """Run a case in an empty folder."""
    scratch = world.folder.parent / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    scratch.chmod(0o777)
    return end(case, world, scratch)


def tried(world: World, count: int, first: int) -> tuple[Counter, dict[str, Case]]:
    """So many random command lines: how often each kind ended how, and one case for each way that is wrong."""
    counts: Counter = Counter()
    wrong: dict[str, Case] = {}

    @seed(first)
    @settings(max_examples=count, phases=[Phase.generate], database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(cases())
    def each(case: Case) -> None:
        verdict = ended(case, world).verdict
        counts[case.kind, verdict if verdict in ("worked", "refused") else "wrong"] += 1
        if verdict not in ("worked", "refused"):
            wrong.setdefault(verdict, case)

    each()
    return counts, wrong


def test_two_hundred_random_command_lines_work_or_are_refused_in_one_sentence(whole):
    counts, wrong = tried(whole, 200, 0)
    assert not wrong
    assert {kind for kind, _ in counts} == {"again", "around", "damage", "files", "grammar", "labels", "pictures", "values"}
    assert all(counts[kind, "refused"] for kind, _ in counts)
    assert sum(number for (_, how), number in counts.items() if how == "worked") > 20


SCORES = ("scores", "{n.profile}", "--out", "{out}.csv")

FOUND = {
    "a deviation that is a word": (Case(("profile", "{net.py}:Net", "--std", "x", "--out", "{out}")), "std: expected finite numbers"),
    "bytes that are taken for a pickle": (
        Case(("profile", "{net.py}:Net", "--weights", "{scores}.csv", "--out", "{out}")),
        "scores.csv: not a state dictionary that can be read safely",
    ),
    "a file of a network that fails": (
        Case(("profile", "{stops.py}:Net", "--out", "{out}")),
        "cannot be made for 10 classes and 1 channels (KeyError: 'no such thing', ",
    ),
    "a constructor that fails": (Case(("profile", "{net.py}:Broken", "--out", "{out}")), "(ZeroDivisionError: division by zero, "),
    "a forward pass that fails": (Case(("profile", "{net.py}:BrokenForward", "--out", "{out}")), "(KeyError: 'logits', "),
    "a network of one layer": (Case(("axes", "{net.py}:OneLayer", "--out", "{out}")), "its outputs are the network's own outputs"),
    "a network whose output is a map": (Case(("axes", "{net.py}:Maps", "--out", "{out}")), "expected logits of shape (images, classes)"),
    "a disk that is full": (Case(SCORES, around=("full", "1000")), "File too large"),
    "a folder that may not be written": (Case(SCORES, around=("closed", "")), "Permission denied"),
    "an input that may not be read": (
        Case(SCORES, made=(("n.profile", "copy", "n.profile"),), damage=(("n.profile", 0, "closed", 0),), around=("closed", "")),
        "Permission denied",
    ),
}
"""what random command lines found, or nearly every one of them would, and what is said"""


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_is_said_in_one_sentence(world, name):
    case, said = FOUND[name]
    outcome = ended(case, world)
    assert outcome.verdict == "refused"
    assert said in outcome.said
    assert outcome.said.strip().splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_name_is_printed_in_any_locale(world, encoding):
    words = ("scores", "{n.profile}", "--out", "{out}/é\udcff.csv")
    outcome = ended(Case(words, around=("locale", encoding)), world)
    assert (outcome.verdict, outcome.warned) == ("worked", ())


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 7.28 TiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        RuntimeError("std::bad_alloc"),
        torch.OutOfMemoryError("CUDA out of memory"),
    ],
)
def test_memory_that_does_not_suffice_is_one_sentence(world, monkeypatch, error):
    monkeypatch.setattr("channelscope.cli.call.load_profile", Mock(side_effect=error))
    outcome = ended(Case(SCORES), world)
    assert outcome.verdict == "refused"
    assert f"there is not enough memory ({error}): give smaller numbers" in outcome.said


def test_other_errors_of_the_library_itself_are_not_hidden(world, monkeypatch):
    monkeypatch.setattr("channelscope.cli.call.load_profile", Mock(side_effect=RuntimeError("a bug")))
    assert ended(Case(SCORES), world).verdict.startswith("traceback RuntimeError in ")


PARTS = 6
"""of five hundred command lines each"""


@pytest.fixture(scope="module")
def all_counts():
    counts: Counter = Counter()
    yield counts
    print(f"\n{sum(counts.values()):,} command lines\n\n{table(counts)}")


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("part", range(1, PARTS + 1))
def test_three_thousand_random_command_lines(whole, all_counts, part):
    counts, wrong = tried(whole, 500, part)
    all_counts.update(counts)
    print(f"\npart {part} of {PARTS}: {sum(counts.values())} command lines, {len(wrong)} ways that are wrong", flush=True)
    for verdict, case in wrong.items():
        print(f"{verdict}\n{case}", flush=True)
    assert not wrong
    assert sum(counts.values()) == 500
