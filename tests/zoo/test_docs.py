"""The how-to page runs as written, and names what exists."""

import re
from dataclasses import fields
from pathlib import Path

from channelscope import data, zoo

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "networks-and-data.md").read_text()


def test_the_page_runs(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    space = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(block, space)  # the page is ours
    assert re.search(r"\d+\.\d% of 359 test images", capsys.readouterr().out)
    assert space["x"].shape[1:] == (1, 8, 8)


def test_the_page_names_every_network():
    for name in zoo.network_names():
        assert f"`{name}`" in PAGE


def test_the_page_names_the_options_of_the_images():
    for field in fields(data.ImageSource):
        if field.name != "root":
            assert re.search(rf"\b{field.name}\b", PAGE), field.name


def test_the_page_names_the_toys():
    words = PAGE[PAGE.index("`zoo.toys`") :]
    for toy in zoo.toys.TOYS:
        assert any(part in words for part in toy.__name__.split("_")), toy.__name__
