"""What doctor finds in an installation, and what it calls a problem."""

import importlib.metadata
import re
import sys

import pytest

from channelscope.cli import doctor
from cli.commands import run


def test_every_topic_is_there(capsys):
    assert run("doctor") == 0
    lines = capsys.readouterr().out.splitlines()
    topics = [line.partition(":")[0] for line in lines]
    named = ("python", "channelscope", "torch", "processor", "threads", "devices", "bfloat16 units of the processor", "extra timm")
    for topic in (*named, "extra attribution", "data sets", "temporary files"):
        assert topic in topics
    assert f"python: {sys.version.split()[0]} on" in lines[0]
    assert f"torch: {importlib.metadata.version('torch')}" in lines
    assert lines[-1] == "0 problems found"


def test_a_required_package_that_is_missing_is_a_problem(monkeypatch, capsys):
    held = doctor.installed_version
    monkeypatch.setattr(doctor, "installed_version", lambda name: "" if name in ("networkx", "timm") else held(name))
    assert run("doctor") == 1
    out = capsys.readouterr().out
    assert re.search(r"^PROBLEM  networkx: not installed: pip install 'networkx>=[\d.]+'$", out, re.MULTILINE)
    assert "\nextra timm: timm not installed: pip install 'channelscope[timm]'\n" in out
    assert out.endswith("1 problem found\n")


def test_a_cache_that_cannot_be_written_is_a_problem(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "file" / "hub"))
    assert [(each.topic, each.problem) for each in doctor.caches()][2] == ("weights (hub)", True)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "new" / "hub"))
    assert str(doctor.caches()[2]) == f"weights (hub): {tmp_path / 'new' / 'hub'} can be written"


@pytest.mark.parametrize(
    ("text", "units"),
    [
        ("flags\t\t: fpu avx512_bf16 amx_bf16 amx_tile\n", "AMX, AVX-512"),
        ("Features\t: fp asimd bf16\n", "NEON"),
        ("flags\t\t: fpu avx512f\nbugs\t\t: bf16\n", "none"),
    ],
)
def test_bfloat16_units_are_those_of_the_processors_flags(tmp_path, text, units):
    (tmp_path / "cpuinfo").write_text(text)
    assert doctor.bfloat16_units(tmp_path / "cpuinfo") == units
