"""The page: complete, self-contained, and true to its tables."""

import json
import math
import re
from html.parser import HTMLParser

import pandas as pd
import pytest

from channelscope import tables
from channelscope.errors import FormatError
from channelscope.report import sections
from channelscope.report.page import _cards, _number, _spoken, _subscripts, render, write_report
from channelscope.report.section import Section
from channelscope.tables.quantities import QUANTITIES, Column
from channelscope.tables.run_folder import RunFolder
from report.folders import FACTS, LOCAL, TARGET, large, means, tiny, written
from report.golden import GOLD, data, made


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tiny(tmp_path_factory.mktemp("run"))
    write_report(place)
    return place


@pytest.fixture(scope="module")
def page(folder):
    return (folder / "report.html").read_text()


def embedded(page):
    return json.loads(data(page))


class Tags(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


@pytest.mark.parametrize("name", ["skeleton.html", "sentences.txt"])
def test_the_tiny_report_is_as_it_was(name, tmp_path):
    now = made(tmp_path)[name]
    assert now == (GOLD / name).read_text(), "if this change is meant: python tests/report/golden.py, and read the difference"


def test_nothing_is_loaded_from_elsewhere(folder):
    tags = Tags(render(RunFolder.read(folder), plotly=""))
    for tag, attributes in tags.found:
        assert tag not in {"iframe", "object", "embed"}
        assert attributes.get("src", "data:").startswith("data:")
        assert attributes.get("href", "#").startswith(("#", "data:"))
    policy = next(a["content"] for t, a in tags.found if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy


def test_every_id_is_there_once_and_every_link_has_its_end(folder):
    tags = Tags(render(RunFolder.read(folder), plotly=""))
    ids = [a["id"] for _, a in tags.found if "id" in a]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for t, a in tags.found if t == "a"} <= set(ids)


def test_the_answer_comes_first(page):
    head = page[page.index("<h1>") : page.index('id="map"')]
    assert "Here the two axes are moderately aligned" in head
    assert "0.30 [0.20, 0.40] (n\u00a0=\u00a02 layers)" in head
    assert head.index("mean Spearman 0.30") < head.index("At initialization the same mean was 0.60")


def test_what_was_run_is_on_the_first_screen(page):
    head = page[page.index("<h1>") : page.index("</header>")]
    assert "<code>channelscope axes tiny --data noise</code>" in head


def test_a_folder_of_several_commands_is_titled_by_all_of_them(tmp_path):
    calls = [{"name": name, "command": f"channelscope {name}", "tables": [], "facts": {"title": f"{name} of net"}} for name in "ab"]
    facts = {"title": "a of net", "network": "/home/me/net.py:Net", "data": "digits", "command": "channelscope a\nchannelscope b"}
    text = render(RunFolder(tmp_path, facts | {"calls": calls}), plotly="")
    assert "<h1>2 analyses of net.py:Net on digits</h1>" in text
    assert "2 commands made this page" in text
    assert text.index("<code>channelscope a</code>") < text.index("<code>channelscope b</code>") < text.index("</header>")
    assert "/home/me" not in text[: text.index("<footer>")]


def test_words_between_backticks_are_code_and_stay_text():
    assert str(_spoken("`--mode exact` & <b> (n = 3)")) == "<code>--mode exact</code> &amp; &lt;b&gt; (n\u00a0=\u00a03)"


def test_every_figure_says_how_to_read_it():
    for section in sections.SECTIONS:
        for chart in section.charts:
            assert len(chart.caption) > 20, f"{section.id}: {chart.title}"


def test_cards_place_their_bars_on_the_scale(folder):
    card = _cards(RunFolder.read(folder))[0]
    assert (card["local"], card["target"]) == ("input capture", "task information")
    before, after = card["bars"]
    assert card["reach"] == "1"
    assert (before["at"], before["left"], before["width"]) == (80.0, 75.0, 10.0)
    assert (after["at"], after["text"], after["count"]) == (65.0, "0.30 [0.20, 0.40]", "n = 2 layers")


def test_every_channel_of_every_stage_is_there_to_eight_digits(page):
    frame = embedded(page)["frames"]["channels"]
    assert len(frame["data"]["site"]) == 20
    assert frame["data"]["relevance"][0] == 0.08
    assert frame["columns"]["capture"]["unit"] == "nats"


def test_nan_and_infinity_are_told_apart_and_explained(page):
    channels = embedded(page)["frames"]["channels"]["data"]
    assert channels["overlap"][1] == "inf"
    assert "exact copy" in channels["note"][1]
    assert channels["capture"][16] == "nan"
    assert "silent" in channels["note"][16]


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (math.inf, "inf"),
        (-math.inf, "-inf"),
        (math.nan, "nan"),
        (0.123456789123, 0.12345679),
        (0.99999999999, 0.99999999999),
        (7, 7),
        (0.0, 0.0),
    ],
)
def test_numbers_in_the_page_do_not_round_to_whole_ones(value, plain):
    assert _number(value) == plain


def test_what_was_skipped_and_the_quantities_close_the_page(page):
    assert "<code>fc</code>" in page
    foot = page[page.index('id="quantities"') :]
    for quantity in QUANTITIES.values():
        assert quantity.title in foot
        assert quantity.readout.replace("'", "&#39;") in foot
    assert "channelscope axes tiny --data noise" in foot


def test_text_from_tables_cannot_become_markup(tmp_path):
    place = tiny(tmp_path)
    evil = "</script><script>alert(1)</script>"
    tables.write(tables.table([{"site": "<b>x</b>", "reason": evil}], "skipped"), place / "skipped.csv")
    channels = tables.read(place / "channels.csv")
    channels["note"] = evil
    tables.write(channels, place / "channels.csv")
    tables.write_json(FACTS | {"title": evil, "network": evil}, place / "run.json")
    text = render(RunFolder.read(place), plotly="")
    assert "<script>alert" not in text
    assert "&lt;b&gt;x" in text


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(FormatError, match=r"expected a run folder with run\.json"):
        write_report(tmp_path)


def test_a_damaged_file_is_named_and_the_earlier_page_stays(tmp_path):
    place = tiny(tmp_path)
    (place / "report.html").write_text("earlier")
    whole = (place / "groups.csv").read_text()
    (place / "groups.csv").write_text(whole[:200])
    with pytest.raises(FormatError, match=r"groups\.csv"):
        write_report(place)
    (place / "groups.csv").write_text(whole)
    (place / "run.json").write_text("{")
    with pytest.raises(FormatError, match=r"run\.json is damaged"):
        write_report(place)
    assert (place / "report.html").read_text() == "earlier"
    assert not list(place.glob("*.partial*"))


def test_the_page_can_go_elsewhere(folder, tmp_path):
    assert write_report(folder, tmp_path / "deep" / "page.html").read_text().startswith("<!doctype html>")


def test_tables_that_no_section_knows_are_shown(tmp_path):
    place = tiny(tmp_path)
    gap = {"gap": Column("", meaning="difference", source="this test")}
    tables.write(tables.table([{"depth": 0, "gap": 0.125}, {"depth": 1, "gap": math.nan}], "own_idea", gap), place / "own_idea.csv")
    text = render(RunFolder.read(place), plotly="")
    assert "<h2>Own idea</h2>" in text
    assert embedded(text)["frames"]["own_idea"]["data"]["gap"] == [0.125, "nan"]


def test_a_run_of_something_else_needs_no_channels(tmp_path):
    place = written(tmp_path, {"title": "Only theory"}, angles=pd.DataFrame({"site": ["conv1"], "rho": [0.1]}))
    text = render(RunFolder.read(place), plotly="")
    assert "<h1>Only theory</h1>" in text
    assert 'id="map"' not in text
    assert 'id="angles"' in text
    assert 'id="skipped"' not in text, "what was not recorded is not said to be nothing"


def test_a_single_stage_speaks_of_no_other(tmp_path):
    text = render(RunFolder.read(large(tmp_path, widths=(8, 8), stages=1)), plotly="")
    assert "nitialization" not in re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert embedded(text)["stages"] == ["trained"]


def test_an_unlabeled_run(tmp_path):
    place = tiny(tmp_path)
    tables.write_json(FACTS | {"labeled": False, "accuracy": math.nan, "target": "top_margin"}, place / "run.json")
    text = render(RunFolder.read(place), plotly="")
    assert "The images carry no labels" in text
    assert "Accuracy" not in text[: text.index("<script")]


def test_no_interval_is_said_in_the_cards(tmp_path):
    place = tiny(tmp_path)
    rows = means(*(("trained", local, target, 0.5, math.nan, math.nan) for local in LOCAL for target in TARGET), n=1)
    tables.write(rows, place / "alignment_mean.csv")
    text = render(RunFolder.read(place), plotly="")
    assert "0.50 [no interval]" in text
    assert "where no interval could be had, it says so" in text


def test_five_thousand_channels_are_written_quickly(tmp_path):
    run = RunFolder.read(large(tmp_path, widths=(512,) * 5))
    text = render(run, plotly="")
    assert len(embedded(text)["frames"]["channels"]["data"]["site"]) == 5120
    assert len(text) < 2_500_000


def test_small_correlations_get_a_finer_scale_that_all_cards_share(tmp_path):
    place = tiny(tmp_path)
    rows = means(*(("trained", local, target, 0.1, -0.1, 0.4) for local in LOCAL for target in TARGET))
    tables.write(rows, place / "alignment_mean.csv")
    cards = _cards(RunFolder.read(place))
    assert {card["reach"] for card in cards} == {"0.5"}
    (bar,) = cards[0]["bars"]
    assert (bar["at"], bar["left"], bar["width"]) == (60.0, 40.0, 50.0)


def test_refused_scores_stand_under_what_was_skipped(tmp_path):
    place = tiny(tmp_path)
    channels = tables.read(place / "channels.csv")
    channels.attrs["provenance"]["refused"] = {"support at conv1": "120 images are too few"}
    tables.write(channels, place / "channels.csv")
    text = render(RunFolder.read(place), plotly="")
    skipped = text[text.index('id="skipped"') :]
    assert "<td>120 images are too few</td>" in skipped
    assert "<code>conv1</code>" in skipped


def test_symbols_are_set_as_the_paper_writes_them(page):
    assert "I<sub>X</sub>" in page
    assert _subscripts("min(I_T, I_T) <") == "min(I<sub>T</sub>, I<sub>T</sub>) &lt;"


def test_without_alignment_the_title_heads_and_the_sections_answer(tmp_path, monkeypatch):
    section = Section("notes", "Notes", "?", answer=lambda run: [f"{len(run.tables)} table.", "More."])
    monkeypatch.setattr(sections, "SECTIONS", (section,))
    place = written(tmp_path, {"title": "Only notes"}, notes=pd.DataFrame({"site": ["conv1"], "rho": [0.1]}))
    text = render(RunFolder.read(place), plotly="")
    assert "<h1>Only notes</h1>" in text
    assert text.index('<p class="lead">1 table.</p>') < text.index("<h2>Notes</h2>")


def test_headings_do_not_say_where_a_file_lies(tmp_path):
    place = tiny(tmp_path)
    tables.write_json(FACTS | {"title": "Two axes of ../nets/my.py:Net and hf:org/name"}, place / "run.json")
    assert '<p class="eyebrow">Two axes of my.py:Net and hf:org/name</p>' in render(RunFolder.read(place), plotly="")
