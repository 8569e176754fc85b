"""Flags are the signature: dataclass fields, defaults, help, and the types the command line has no word for."""

import inspect
import json
import re
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Literal, Union, get_args, get_origin

import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

from channelscope import cli, progress
from channelscope.cli.call import current_call
from channelscope.cli.flags import Command, command, examples, field_lines
from channelscope.errors import ChannelscopeError, InputError
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
def test_every_command_can_hide_progress_and_remarks(flag, monkeypatch):
    monkeypatch.setattr(progress, "SILENCE", 0.01)

    def work(out: Path) -> None:
        """Work."""
        progress.console.print("a remark")
        time.sleep(0.3)
        with progress_bar("bar", 1) as advance:
            time.sleep(0.05)
            advance()

    app = typer.Typer()
    app.command()(command(work))
    result = CliRunner().invoke(app, ["--out", "x", *filter(None, [flag])])
    assert result.exit_code == 0
    said = re.sub(r"\d\.\d s", "TIME", result.stderr).splitlines()
    assert said[-1:] == ([] if flag else ["bar: done after TIME"])
    assert ("a remark" in said, "work: TIME so far" in said) == (not flag, not flag)
    assert not progress.console.quiet


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


# ---- what every command has --------------------------------------------------------------------------------------------------


def call_of(function, *arguments):
    app = typer.Typer(add_completion=False)
    app.command(cls=Command)(command(function))
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_options_of_a_file_are_those_of_the_flags_and_flags_win(tmp_path):
    printed = call_of(show, "cat", "--out", "there", "--legs", "3", "--scale", "0.5,1", "--no-tame", "--dry-run")
    assert printed.exit_code == 0, printed.output
    assert tomllib.loads(printed.output) == {
        "show": {"name": "cat", "legs": 3, "scale": "0.5,1", "tame": False, "out": "there", "kind": "a", "names": "x,y"}
    }
    (tmp_path / "config.toml").write_text(printed.output)
    again = call_of(show, "--config", tmp_path / "config.toml", "--dry-run")
    assert again.output == printed.output
    changed = call_of(show, "dog", "--config", tmp_path / "config.toml", "--tame")
    assert repr(Animal("dog", 3, (0.5, 1.0))) in changed.output


def test_a_file_may_hold_lists_and_options_without_a_section(tmp_path):
    (tmp_path / "config.toml").write_text('name = "cat"\nout = "there"\nscale = [0.5, 1]\n[show]\nlegs = 7\n')
    assert repr(Animal("cat", 7, (0.5, 1.0))) in call_of(show, "--config", tmp_path / "config.toml").output


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[show]\nleg = 3\n", "no option of show is called leg; near matches: legs; there are: name, out, legs, scale"),
        ("[sow]\nlegs = 3\n", "no section is called show; near matches: sow; there are: sow"),
        ("legs =", "expected a TOML file of options"),
    ],
)
def test_a_file_of_options_that_does_not_fit_is_refused(tmp_path, text, said):
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(ChannelscopeError, match=f"--config .*config.toml: {said}"):
        raise call_of(show, "cat", "--out", "x", "--config", tmp_path / "config.toml").exception


def test_a_missing_file_of_options_is_refused(tmp_path):
    assert "none.toml" in str(call_of(show, "cat", "--out", "x", "--config", tmp_path / "none.toml").exception)


def test_the_result_is_the_path_or_one_object():
    def work(out: Path) -> None:
        """Work."""
        current_call().result(out, loss=float("nan"), tables={"rows": pd.DataFrame({"n": [1, 2]})})

    assert call_of(work, "--out", "x").stdout == "x\n"
    result = call_of(work, "--out", "x", "--json")
    assert json.loads(result.stdout) == {"command": "work", "path": "x", "loss": None, "tables": {"rows": [{"n": 1}, {"n": 2}]}}


@dataclass(frozen=True)
class ScoreFlags:
    """A test dataclass with the name of one whose flags have other names."""

    noise: str = "median"
    """of the input"""


def test_a_flag_of_an_earlier_version_is_refused_with_its_present_name():
    def work(scores: ScoreFlags, out: Path, test: int = 3, tests: int = 4) -> None:
        """Work."""
        print(scores, test, tests)

    for earlier, said in (("--evaluated=3", "No such option: --evaluated. It is now --test."), ("--noise", "It is now --capture-noise.")):
        result = call_of(work, "--out", "x", earlier, "3")
        assert result.exit_code == 2
        assert said in result.output
    assert "ScoreFlags(noise='0.5') 3 5" in call_of(work, "--out", "x", "--capture-noise", "0.5", "--tests", "5").output


def test_a_choice_that_there_is_not_is_refused_with_the_near_ones():
    def work(out: Path, repair: Literal["least_squares", "peers"] = "peers", sizes: Literal["small", "big"] | None = None) -> None:
        """Work."""
        print(repair, sizes)

    near = "'--repair': no choice is called Least_Square; near matches: least_squares; there are: least_squares, peers"
    for words, said in (
        (("--repair", "Least_Square"), near),
        (("--sizes", "x y"), "'--sizes': no choice is called x y; there are: small, big"),
    ):
        result = call_of(work, "--out", "x", *words)
        assert result.exit_code == 2
        assert said in " ".join(result.output.replace("│", " ").split())
        assert "Value error" not in result.output
    assert call_of(work, "--out", "x", "--sizes", "big").output == "peers big\n"


def test_errors_speak_of_flags_and_verbose_shows_where_they_come_from():
    def work(animal: Animal, out: Path) -> None:
        """Work."""
        raise InputError(f"{out}/legs_file: expected legs='3', pass scale or another name (tame=True or --tame); out_of_place is none")

    result = call_of(work, "cat", "--out", "x")
    assert str(result.exception) == "x/legs_file: expected --legs 3, pass --scale or another name (--tame); out_of_place is none"
    assert "Traceback" not in result.stderr
    assert "in work" in call_of(work, "cat", "--out", "x", "-v").stderr


def test_an_interrupted_command_says_what_is_whole_too(tmp_path):
    def work(out: Path) -> None:
        """Work."""
        current_call().whole[out] = "the profile, which --profile takes"
        out.write_text("")
        raise KeyboardInterrupt

    said = call_of(work, "--out", tmp_path / "it").stderr.replace("\n", " ").strip()
    assert said == f"interrupted; kept {tmp_path / 'it'} (the profile, which --profile takes)"


@pytest.mark.parametrize("kept", [True, False])
def test_an_interrupted_command_says_what_it_kept(tmp_path, kept):
    def work(out: Path) -> None:
        """Work."""
        current_call().unfinished[out] = "batches so far"
        if kept:
            out.write_text("")
        raise KeyboardInterrupt

    result = call_of(work, "--out", tmp_path / "it")
    assert result.exit_code == 130
    said = f"interrupted; kept {tmp_path / 'it'} (batches so far): give the same command again to go on from there"
    assert (said if kept else "interrupted; nothing was kept") in result.stderr.replace("\n", " ")


def test_the_command_line_is_what_differs_from_the_defaults(capsys):
    lines = []

    def work(animal: Animal, out: Path, names: tuple[str, ...] = ("x",)) -> None:
        """Work."""
        lines.append(current_call().command_line)

    call_of(work, "a cat", "--out", "x", "--legs", "4", "--no-tame", "--names", "y,z", "-q")
    assert lines == ["channelscope work 'a cat' --out x --no-tame --names y,z"]


def test_help_has_a_heading_for_each_kind_of_option_and_examples():
    def work(scores: ScoreFlags, animal: Animal, out: Path) -> None:
        """Work.

        Parameters
        ----------
        out
            A place.

        Examples
        --------
        channelscope work cat --out there
        """

    app = typer.Typer(rich_markup_mode=None)
    app.command(cls=Command, epilog=examples(work))(command(work))
    text = CliRunner().invoke(app, ["--help"]).output
    headings = [line for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert headings == ["Arguments:", "Options:", "Scores:", "This call:", "Examples:"]
    assert text.rstrip().endswith("\n  channelscope work cat --out there")
    assert "a place" in text


KINDS = {bool: "yes or no", int: "number", float: "number", str: "word", Path: "path"}
"""type of a flag → what a user types"""

SMALL_WORDS = {"also", "that", "with", "from", "where", "which", "this", "their", "those", "default", "each", "instead"}


def flags_of_commands():
    """Flag or argument → command → (what a user types, help, heading), as every command declares them."""
    found = {}
    for name in cli.FUNCTIONS:
        for parameter in inspect.signature(command(cli.function_of(name))).parameters.values():
            kind, note = get_args(parameter.annotation)
            inner = [each for each in get_args(kind) if each is not type(None)] if get_origin(kind) in (Union, UnionType) else [kind]
            (plain,) = inner
            typed = "word" if get_origin(plain) is Literal else "paths" if plain == list[Path] else KINDS[plain]
            label = parameter.name.upper() if isinstance(note, typer.models.ArgumentInfo) else f"--{parameter.name.replace('_', '-')}"
            found.setdefault(label, {})[name] = (typed, note.help, note.rich_help_panel)
    return found


def nouns(line: str) -> set[str]:
    """Words of a line of help that could say what the flag is about, in the singular."""
    return {word.rstrip("s") for word in re.findall(r"[a-z]{3,}", line.lower())} - SMALL_WORDS


def test_the_same_flag_is_the_same_thing_in_every_command():
    found = flags_of_commands()
    assert len(found) > 100
    wrong = []
    for flag, commands in found.items():
        lines = {line for _, line, _ in commands.values()}
        assert all(lines), f"{flag} is not explained"
        if len({typed for typed, _, _ in commands.values()}) > 1:
            wrong.append(f"{flag} is typed in different ways: { ({name: typed for name, (typed, _, _) in commands.items()}) }")
        if flag == "--out":
            assert all(nouns(line) & {"file", "folder"} for line in lines)
        elif flag.startswith("--") and not set.intersection(*map(nouns, lines)):
            wrong.append(f"{flag} is about different things: {lines}")
    assert not wrong, "\n".join(wrong)


def test_a_thing_has_one_flag():
    """Two flags with the same explanation would be two names for a thing."""
    explained = {}
    for flag, commands in flags_of_commands().items():
        for _, line, _ in commands.values():
            explained.setdefault(line, set()).add(flag)
    assert {line: flags for line, flags in explained.items() if len(flags) > 1} == {}


def test_flags_of_a_kind_stand_below_one_heading_and_help_names_no_field():
    for flag, commands in flags_of_commands().items():
        headings = {heading for _, _, heading in commands.values()} - {None}
        assert len(headings) <= 1 or flag in ("--finetune", "--scores", "--layers"), (flag, headings)
        for _, line, _ in commands.values():
            for word in re.findall(r"`(\w+)`", line):
                assert word in (*cli.FUNCTIONS, "all"), (flag, line)
