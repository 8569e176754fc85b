"""Flags are the signature: dataclass fields, defaults, help, and the types the command line has no word for."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Literal
from unittest.mock import MagicMock

import pytest
import typer
from typer.testing import CliRunner

from channelscope import progress
from channelscope.cli.flags import command, field_lines
from channelscope.progress import progress_bar


@dataclass(frozen=True)
class Animal:
    """A test dataclass."""

    name: str
    """what it is called"""
    legs: int = 4
    """how many legs"""
    scale: tuple[float, ...] | None = None
    """three numbers"""
    mix: float | Literal["oas"] | None = None
    """a number or a word"""
    tame: bool = True
    """whether it bites"""


def show(animal: Animal, out: Path, kind: Literal["a", "b"] = "a", names: tuple[str, ...] = ("x", "y")) -> None:
    """Print an animal.

    More text that is not the summary.

    Parameters
    ----------
    animal
        The animal.
    out : Path
        Where it goes, which is
        said in two lines.
    kind, names
        ONNX, or not. Both have this text.

    Returns
    -------
    None
        Nothing.
    """
    print(repr(animal), out, kind, names)


@pytest.fixture
def invoke():
    app = typer.Typer()
    app.command()(command(show))
    return lambda *arguments: CliRunner().invoke(app, list(arguments))


def test_fields_become_flags_and_come_back_as_the_dataclass(invoke):
    result = invoke("cat", "--out", "there", "--legs", "3", "--scale", "0.5,0.25,1", "--mix", "oas", "--no-tame", "--kind", "b")
    assert result.exit_code == 0, result.output
    assert repr(Animal("cat", 3, (0.5, 0.25, 1.0), "oas", False)) in result.output
    assert "there b ('x', 'y')" in result.output


def test_defaults_are_the_signatures(invoke):
    result = invoke("cat", "--out", "there")
    assert repr(Animal("cat")) in result.output
    assert "there a ('x', 'y')" in result.output


def test_a_number_stays_a_number(invoke):
    assert "mix=0.25" in invoke("cat", "--out", "there", "--mix", "0.25").output


def test_help_comes_from_the_source(invoke):
    text = " ".join(invoke("--help").output.replace("│", " ").split())
    for words in ("Print an animal.", "how many legs"):
        assert words in text
    for absent in ("More text", "Nothing", "The animal", "two lines."):
        assert absent not in text


def test_descriptions_become_help_without_capital_and_full_stop(invoke):
    text = " ".join(invoke("--help").output.replace("│", " ").split())
    assert "where it goes, which is said in two lines" in text
    assert text.count("ONNX, or not. Both have this text") == 2


@pytest.mark.parametrize("flag", ["-q", "--quiet", ""])
def test_every_command_can_hide_its_bars(flag, monkeypatch):
    hidden = []

    def work(out: Path) -> None:
        """Work."""
        with progress_bar("work", 1):
            hidden.append(progress.Progress.call_args.kwargs["disable"])

    monkeypatch.setattr(progress, "Progress", MagicMock())
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=SimpleNamespace(isatty=lambda: True)))
    app = typer.Typer()
    app.command()(command(work))
    for arguments in (["--out", "x", *filter(None, [flag])], ["--out", "x"]):
        assert CliRunner().invoke(app, arguments).exit_code == 0
    assert hidden == [bool(flag), False]


def test_lines_below_a_sentence_are_help_too():
    def go(out: Path) -> None:
        """Go.

        out  where to
        """

    app = typer.Typer()
    app.command()(command(go))
    assert "where to" in CliRunner().invoke(app, ["--help"]).output


def test_missing_arguments_and_wrong_types_are_usage_errors(invoke):
    assert invoke("cat").exit_code == 2
    assert invoke("cat", "--out", "there", "--legs", "many").exit_code == 2
    assert invoke("cat", "--out", "there", "--kind", "c").exit_code == 2


def test_field_lines_are_the_strings_below_the_fields():
    assert field_lines(Animal) == {
        "name": "what it is called",
        "legs": "how many legs",
        "scale": "three numbers",
        "mix": "a number or a word",
        "tame": "whether it bites",
    }


@dataclass(frozen=True)
class Trip:
    """Another test dataclass."""

    stops: tuple[str, ...] | None = None
    """where to halt"""
    legs: int = 4
    """parts of the way"""


def travel(animal: Animal, trip: Trip, out: Path) -> None:
    """Take an animal along.

    Parameters
    ----------
    out
        Where to.
    """
    print(repr(animal), repr(trip), out)


def test_a_field_of_two_dataclasses_is_one_flag_for_both():
    app = typer.Typer()
    app.command()(command(travel))
    result = CliRunner().invoke(app, ["cat", "--legs", "2", "--out", "there"])
    assert repr(Animal("cat", 2)) in result.output
    assert repr(Trip(legs=2)) in result.output


def test_words_stay_words_even_if_they_look_like_numbers():
    app = typer.Typer()
    app.command()(command(travel))
    assert repr(Trip(stops=("0", "1.0"))) in CliRunner().invoke(app, ["cat", "--stops", "0, 1.0", "--out", "there"]).output
