"""The page: complete, self-contained, and true to its tables."""

import json
import re
from html.parser import HTMLParser

import pandas as pd
import pytest

from channelscope import tables
from channelscope.errors import FormatError
from channelscope.report import html
from channelscope.report.quantities import MAIN, QUANTITIES, diagram
from report.folders import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tiny(tmp_path_factory.mktemp("run"))
    html.write(place)
    return place


@pytest.fixture(scope="module")
def page(folder):
    return (folder / "report.html").read_text(encoding="utf-8")


def embedded(page):
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)[1])


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_nothing_is_loaded_from_elsewhere(page):
    tags = Tags()
    tags.feed(page)
    for tag, attributes in tags.found:
        assert tag not in {"iframe", "object", "embed"}
        assert "src" not in attributes
        assert attributes.get("href", "data:").startswith("data:")
    policy = next(a["content"] for t, a in tags.found if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy


def test_the_answer_comes_first(page):
    head = page[: page.index("Two axes, channel by channel")]
    assert "The two axes are weakly aligned" in head
    assert "0.25 [0.15, 0.35]" in head
    assert "n = 2 layers" in head


def test_every_channel_of_every_stage_is_there(page):
    data = embedded(page)
    assert list(data["sites"]) == ["conv1", "layer1.0.conv1"]
    for site, n in (("conv1", 6), ("layer1.0.conv1", 8)):
        for stage in ("initialization", "trained"):
            assert len(data["sites"][site]["stages"][stage]["capture"]) == n


def test_nan_and_infinity_are_told_apart_and_explained(page):
    own = embedded(page)["sites"]["conv1"]["stages"]
    assert own["initialization"]["overlap"][1] == "inf"
    assert "exact copy of 2" in own["initialization"]["note"][1]
    assert own["trained"]["capture"][3] is None
    assert "silent" in own["trained"]["note"][3]


def test_what_was_skipped_and_the_quantities_close_the_page(page):
    assert "<code>fc</code>" in page
    foot = page[page.index("The quantities") :]
    for quantity in QUANTITIES:
        assert quantity.title in foot
        assert quantity.keeps in ("high", "low")


def test_text_from_tables_cannot_become_markup(tmp_path):
    place = tiny(tmp_path)
    tables.write(pd.DataFrame([{"site": "<b>x</b>", "reason": "</script><script>alert(1)</script>"}]), place / "skipped.csv")
    channels = tables.read(place / "channels.csv")
    channels["note"] = "</script><script>alert(2)</script>"
    tables.write(channels, place / "channels.csv")
    text = html.write(place).read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert "&lt;b&gt;x" in text


def test_figures_are_png_and_svg(folder):
    for name in ("alignment", "two-axis-maps", "groups"):
        assert (folder / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (folder / "figures" / f"{name}.svg").read_text()


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(FormatError, match=r"no run at .* expected a folder with run\.json"):
        html.write(tmp_path)


def test_a_missing_table_is_named_and_no_page_is_left(tmp_path):
    place = tiny(tmp_path)
    (place / "groups.csv").unlink()
    with pytest.raises(FormatError, match=r"groups\.csv"):
        html.write(place)
    assert not list(place.glob("report.html*"))


def test_further_tables_become_sections(tmp_path):
    place = tiny(tmp_path)
    gap = {"gap": tables.Column("", meaning="difference")}
    tables.write(tables.table([{"depth": 0, "gap": 0.125}, {"depth": 1, "gap": float("nan")}], "graphs", gap), place / "graphs.csv")
    text = html.write(place).read_text(encoding="utf-8")
    assert "Are overlap and synergy organized in communities?" in text
    assert "<td>0.125</td>" in text
    assert "<td>undefined</td>" in text


def test_the_diagram_names_the_four_main_quantities():
    drawing = diagram()
    assert len(MAIN) == 4
    for words in ("input capture", "peer overlap", "task information", "target excess"):
        assert words in drawing


def test_a_single_stage_needs_no_before(tmp_path):
    place = tiny(tmp_path)
    for name in ("channels", "alignment", "alignment_mean", "groups"):
        frame = tables.read(place / f"{name}.csv")
        tables.write(frame[frame["stage"] == "trained"], place / f"{name}.csv")
    facts = json.loads((place / "run.json").read_text())
    tables.write_json(facts | {"stages": ["trained"]}, place / "run.json")
    assert "At initialization" not in html.write(place).read_text(encoding="utf-8")
