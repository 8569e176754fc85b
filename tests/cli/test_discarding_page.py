"""The commands of the page on discarding, run as written on a small network and a small data set."""

import re
import shlex
from pathlib import Path

import pytest

from channelscope import tables
from cli.commands import run
from cli.test_discarding import boxed

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "discarding.md").read_text()


@pytest.mark.slow
def test_the_page_runs(tmp_path, monkeypatch):
    name, weights = boxed(tmp_path, count=40, empty=False)
    monkeypatch.chdir(tmp_path)
    commands = [line for block in re.findall(r"```\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
    assert len(commands) == 6
    for line in commands:
        known = line.replace("MODEL", f"{name} --weights {weights}").replace(" DATA", f" hf:{tmp_path / 'set'}")
        few = ["--test", "4"] if " discard " in line and "--test" not in line else []
        assert run(*shlex.split(known)[1:], "--images", "16", *few) == 0, line
    assert set(tables.read(tmp_path / "runs/compared/discarded.csv").network) == {name, f"{name} pruned to pruned"}
    one, other = (tables.read(tmp_path / "runs" / folder / "concentration.csv") for folder in ("boxes", "masks"))
    assert one.concentration.tolist() == other.concentration.tolist()
    assert tables.read(tmp_path / "runs/faithful/localization.csv").method.tolist()[:2] == ["cid layer1", "cid layer3"]
