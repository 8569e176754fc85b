"""Charts: which rows are drawn, and between which ends their bars reach."""

import json

import pandas as pd
import pytest

from channelscope import tables
from channelscope.report import figures
from channelscope.report.page import render
from channelscope.report.section import Chart, Section
from channelscope.tables.quantities import Column
from channelscope.tables.run_folder import RunFolder
from report.golden import data

ROWS = [
    {"score": "capture", "rho": 0.3, "low": 0.2, "high": 0.4, "which": "all"},
    {"score": "overlap", "rho": -0.2, "low": -0.3, "high": -0.1, "which": "all"},
    {"score": "relevance", "rho": 0.9, "low": 0.8, "high": 1.0, "which": "controls"},
]


def described(rows, name="scored"):
    return tables.table(rows, name, {each: Column(meaning=each, source="this test") for each in rows[0]})


def axes(chart, frame):
    return [each for each in figures.drawn(chart, frame).axes if each.get_visible()]


def test_only_the_wanted_rows_are_drawn():
    chart = Chart("x", "score", "rho", where={"which": ("all",), "absent": ("x",)})
    assert list(chart.rows(described(ROWS))["score"]) == ["capture", "overlap"]
    assert not Chart("x", "score", "rho", where={"which": ("none",)}).suits(described(ROWS))


def test_bars_reach_between_the_named_columns():
    low, high = Chart("x", "score", "rho", low="low", high="high").interval(described(ROWS))
    assert list(low) == [0.2, -0.3, 0.8]
    assert list(high) == [0.4, -0.1, 1.0]


def test_standard_errors_make_bars_where_no_ends_are_named():
    frame = described([{"score": "capture", "rho": 0.5, "rho_se": 0.1}])
    low, high = Chart("x", "score", "rho").interval(frame)
    assert (low.item(), high.item()) == pytest.approx((0.304, 0.696))
    assert Chart("x", "score", "low").interval(described(ROWS)) is None


def test_rows_stand_one_below_the_other_largest_on_top():
    chart = Chart("x", "score", "rho", kind="rows", low="low", high="high", where={"which": ("all",)}, zero=True, label="Spearman ρ")
    (place,) = axes(chart, described(ROWS))
    assert [label.get_text() for label in place.get_yticklabels()] == ["peer overlap", "input capture"]
    assert place.get_xlabel() == "Spearman ρ"
    (bars,) = place.containers
    segments = [segment[:, 0].tolist() for segment in bars.lines[2][0].get_segments()]
    assert segments == [pytest.approx([0.2, 0.4]), pytest.approx([-0.3, -0.1])]


def test_series_of_rows_do_not_cover_each_other():
    rows = [row | {"which": which} for row in ROWS for which in ("all", "controls")]
    (place,) = axes(Chart("x", "score", "rho", kind="rows", by="which"), described(rows))
    one, other = (set(container.lines[0].get_ydata()) for container in place.containers)
    assert not one & other


def test_bars_stand_on_zero():
    (place,) = axes(Chart("x", "depth", "share", kind="bars"), described([{"depth": 0, "share": 1.0}, {"depth": 1, "share": 0.25}]))
    assert [(bar.get_y(), bar.get_height()) for bar in place.patches] == [(0, 1.0), (0, 0.25)]
    assert place.get_ylim()[0] == 0


@pytest.fixture
def run(tmp_path, monkeypatch):
    section = Section(
        "first",
        "First",
        "?",
        (Chart("A", "score", "rho"), Chart("B", "score", "rho", table="second"), Chart("C", "score", "rho", table="absent")),
        more=("second", "absent"),
    )
    monkeypatch.setattr("channelscope.report.sections.SECTIONS", (section,))
    return RunFolder(tmp_path, {"title": "T"}, {"first": described(ROWS, "first"), "second": described(ROWS[:1], "second")})


def test_a_section_may_have_several_tables_with_charts_of_each(run):
    page = render(run, plotly="")
    (part,) = json.loads(data(page))["sections"]
    assert [(chart["title"], chart["table"]) for chart in part["charts"]] == [("A", "first"), ("B", "second")]
    assert "The numbers (3 rows)" in page
    assert "More numbers: second (1 row)" in page
    assert "absent" not in page


def test_a_table_too_long_for_the_page_is_pointed_to(run, monkeypatch):
    long = RunFolder(run.folder, run.facts, run.tables | {"absent": pd.concat([run.tables["first"]] * 7000)})
    long.tables["absent"].attrs = run.tables["first"].attrs
    monkeypatch.setattr("channelscope.report.sections.SECTIONS", (Section("first", "First", "?", more=("absent",)),))
    page = render(long, plotly="")
    assert "More numbers: absent (21,000 rows): in absent.csv of the run folder." in page
    assert "absent" not in data(page)


def test_many_series_go_from_light_to_dark_and_only_the_ends_are_named():
    rows = [{"score": f"s{number:02}", "rho": 0.1 * number, "which": str(number)} for number in range(12)]
    figure = figures.drawn(Chart("x", "score", "rho", by="which"), described(rows))
    (place,) = (each for each in figure.axes if each.get_visible())
    shades = [sum(container.lines[0].get_color()[:3]) for container in place.containers]
    assert shades == sorted(shades, reverse=True)
    assert [each.get_text() for each in figure.legends[0].get_texts()] == ["0", "… 11"]


RUNS = [
    {"rule": rule, "epochs": epochs, "seed": 0, "score": score, "axis": axis, "budget": budget, "accuracy": 0.5}
    for rule, epochs in (("global", 0), ("global", 3), ("uniform", 0), ("", 0))
    for score, axis in (("l1", "size"), ("l2", "size"), ("capture", "local"))
    for budget in (0.5, 0.8)
]


def test_panels_name_numbers_that_vary_and_leave_out_rows_without_a_value():
    chart = Chart("x", "budget", "accuracy", by="score", panels=("rule", "epochs", "seed", "absent"))
    found = chart.divided(described(RUNS))
    assert [title for title, _ in found] == ["global, epochs 0", "global, epochs 3", "uniform, epochs 0"]
    assert [len(rows) for _, rows in found] == [6, 6, 6]
    assert [title for title, _ in Chart("x", "budget", "accuracy").divided(described(RUNS))] == [""]
    (only,) = Chart("x", "budget", "accuracy", panels=("seed",)).divided(described(RUNS))
    assert only[0] == ""


def test_series_of_a_kind_share_their_color():
    chart = Chart("x", "budget", "accuracy", by="score", color="axis", panels=("rule", "epochs"))
    figure = figures.drawn(chart, described(RUNS))
    for place in [each for each in figure.axes if each.get_visible()]:
        one, two, other = (container.lines[0].get_color() for container in place.containers)
        assert one == two != other
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["size", "local"]
