"""Messages speak the words of the command line: no sentence that a command can print names a function or an argument of Python."""

import ast
import re
import warnings
from collections.abc import Iterator
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from typing import get_type_hints

import pandas as pd
import pytest

import channelscope
from channelscope import cli, tables
from channelscope.cli import flags
from channelscope.cli.call import OPTIONS_OF_A_PROFILE, Call, answering, current_call, finish_run
from channelscope.cli.flags import command
from channelscope.cli.wording import in_flags
from channelscope.errors import SampleError
from channelscope.tables.run_folder import RunFolder
from cli.commands import refused, run

SOURCE = Path(channelscope.__file__).parent

FUNCTIONS = {name for name in channelscope.__all__ if name.islower()} | {"extract_module", "measure_latency", "alive", "state_dict"}

PYTHON = re.compile(
    rf"\b(?:{'|'.join(sorted(FUNCTIONS))})\(|\.\w+\(\)|\b[a-z_]+=(?=[\w'\"])|\b(?:True|False|None)\b|"
    r"(?<![\w-])pass (?:another )?[a-z]+_[a-z_]+|\[~|\b(?:law|profile|model)\.[a-z]"
)
"""a function of the library, a method, an argument with its value, a constant, a name with an underscore to pass, an index"""

UNREACHABLE = {
    "Subset(one.marks)": "sets of circuits are made in Python alone",
    "as cut() and Subset.everything() give it": "commands take subsets from cut",
    "by an edit such as silence(": "no command edits the network that it traces",
    "the network was traced with 1=1": "no command gives arguments to the pass",
    "(cut() does)": "commands take subsets from cut",
    "shrink(found, kept)": "commands give batches",
    "measure_latency(found)": "commands measure their own table, or find it by the network",
    "small = shrink(model, kept)": "commands give the smaller network of the subset",
    'pass columns={"1"': "tables of commands describe every column",
}
"""part of a sentence → why no command prints it"""

OF_THE_NETWORK = {
    "expected NAME or NAME(key=value, …)": "how a network is named on the command line",
    "give F.dropout training=self.training": "the code of the user's network",
    "made by torch.jit.script or torch.jit.trace": "the code of the user's network",
    "(x.data = …)": "the code of the user's network",
    "(register_hook)": "the code of the user's network",
}
"""part of a sentence → whose code it is about"""


@cache
def all_names() -> tuple[dict[str, str], dict[str, str]]:
    """Parameter → flag, over all commands, and of the options that every command's messages may name."""
    names = {}
    for place in cli.FUNCTIONS:
        function = cli.function_of(place)
        for name, kind in get_type_hints(function).items():
            if is_dataclass(kind):
                names |= flags._fields_as_flags([kind])
            elif name != "return":
                names[name] = name.replace("_", "-")
    return names, flags._fields_as_flags(OPTIONS_OF_A_PROFILE)


def strings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every text below a node that is no documentation, with 1 in the place of what is filled in."""
    inside = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            inside.add(id(node.value))
        if isinstance(node, ast.JoinedStr):
            inside |= {id(part) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield node.lineno, "".join(str(part.value) if isinstance(part, ast.Constant) else "1" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield node.lineno, node.value


def messages(path: Path) -> Iterator[tuple[int, str]]:
    """Texts of a file that are raised, warned of, or given back as a reason: of four words or more, and not the text of an object."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name in ("__repr__", "__str__"):
            node.body = []
    yield from ((line, text) for line, text in strings(tree) if len(re.findall(r"[a-z]+ ", text)) > 3)


@pytest.mark.parametrize("folder", sorted({path.relative_to(SOURCE).parts[0] for path in SOURCE.rglob("*.py")}))
def test_no_message_names_a_function_or_an_argument(folder):
    names, further = all_names()
    known = UNREACHABLE | OF_THE_NETWORK
    paths = [SOURCE / folder] if folder.endswith(".py") else sorted((SOURCE / folder).rglob("*.py"))
    wrong = []
    for path in paths:
        for line, text in messages(path):
            if PYTHON.search(text) and not any(part in text for part in known) and PYTHON.search(in_flags(text, names, further)):
                wrong.append(f"{path.relative_to(SOURCE)}:{line}: {text}")
    assert not wrong, "\n".join(wrong)


def test_every_exception_is_still_a_message():
    texts = [text for path in SOURCE.rglob("*.py") for _, text in messages(path)]
    for part in UNREACHABLE | OF_THE_NETWORK:
        assert any(part in text for text in texts), part


CALL = "torchvision:vgg11(dropout=0.2, pretrained=True)"


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("use target='label'", "use --target label"),
        ('pass shrinkage="oas" or fewer', "pass --shrinkage oas or fewer"),
        ("max_size: expected at least 1, received 0", "--hull-size: expected at least 1, received 0"),
        ("macs: 0.1 of 2 cannot be met (closest=True takes it)", "--macs: 0.1 of 2 cannot be met (--closest takes it)"),
        (f"network '{CALL}' of size=3", f"network '{CALL}' of --size 3"),
        ("collect the profile with shards=10", "collect the profile with --shards 10"),
        ("profile: nothing there", "profile: nothing there"),
    ],
)
def test_words_of_python_become_flags(message, said):
    names = {name: name for name in ("target", "shrinkage", "macs", "closest", "profile")} | {"max_size": "hull-size"}
    assert in_flags(message, names, {name: name for name in ("size", "shards", "pretrained", "dropout")}) == said


def test_remarks_and_tables_speak_of_flags_too(capsys, tmp_path):
    assert run("profile", "resnet20(width=4)", "--images", "12", "--out", tmp_path / "few.profile") == 0
    capsys.readouterr()
    assert run("scores", tmp_path / "few.profile", "--scores", "support", "--out", tmp_path / "few.csv") == 0
    said = capsys.readouterr().err
    assert "profile more images or pass --shrinkage oas" in said
    assert "shrinkage='oas'" not in said + (tmp_path / "few.columns.json").read_text() + (tmp_path / "few.csv").read_text()
    assert "collect it with --maps" in refused(capsys, "scores", tmp_path / "few.profile", "--scores", "hrank", "--out", tmp_path / "a.csv")


def test_a_report_speaks_of_flags_too(tmp_path):
    assert run("axes", "resnet20(width=4)", "--images", "12", "--readout", "pooled", "--quiet", "--out", tmp_path) == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    written = page[: page.index("<script")] + "".join(path.read_text() for path in [*tmp_path.glob("*.csv"), *tmp_path.glob("*.json")])
    assert "pass --shrinkage oas" in page
    assert "shrinkage='oas'" not in written


def test_every_table_of_a_run_speaks_of_flags(tmp_path):
    """Whatever table a command leaves: its remarks, and the reasons why scores were refused, of which the table itself stays as it was."""
    said = {"site": ["a"], "reason": ["pass shrinkage='oas'"], "note": ["collect with shards=10"], "rho": [0.5]}
    frame = tables.table(pd.DataFrame(said), "odd", provenance={"refused": {"support at a": "pass shrinkage='oas'"}})
    call = Call("axes", wording=lambda text: in_flags(text, {"shrinkage": "shrinkage", "shards": "shards"}))
    with answering(call):
        finish_run(RunFolder.open(tmp_path), {"odd": frame}, {"title": "Odd"})
    found = tables.read(tmp_path / "odd.csv")
    assert (found["reason"].item(), found["note"].item(), found["rho"].item()) == ("pass --shrinkage oas", "collect with --shards 10", 0.5)
    assert found.attrs["provenance"]["refused"] == {"support at a": "pass --shrinkage oas"}
    assert frame["reason"].item() == frame.attrs["provenance"]["refused"]["support at a"] == "pass shrinkage='oas'"


def test_warnings_speak_of_flags_too(capsys):
    def work() -> None:
        """Work."""
        warnings.warn("pass shrinkage='oas'", UserWarning, stacklevel=1)
        raise SampleError(current_call().wording("collect with shards=10"))

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with pytest.raises(SampleError, match="collect with --shards 10"):
            command(work)()
    assert capsys.readouterr().err == "note pass --shrinkage oas\n"
