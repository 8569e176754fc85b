import math

import pandas as pd
import pytest

from channelscope import tables
from channelscope.report import sections
from channelscope.report.section import Chart, Section
from channelscope.tables.run_folder import RunFolder as Run
from channelscope.tables.run_folder import where
from report.folders import FACTS, tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return Run.read(tiny(tmp_path_factory.mktemp("run")))


def test_sections_appear_in_order_when_the_run_has_their_table(run):
    assert [section.table for section in sections.sections(run)] == ["alignment", "by_depth", "groups"]


def test_a_later_table_finds_its_section(run):
    frame = tables.table([{"site": "conv1", "rho": 0.5}], "zebra")
    more = Run(run.folder, run.facts, {**run.tables, "zebra": frame})
    assert [section.title for section in sections.sections(more)] == [
        "Alignment by depth",
        "Quantities by depth",
        "Clusters",
        "Zebra",
    ]


def test_empty_tables_make_no_section(run):
    empty = Run(run.folder, run.facts, {"groups": run.tables["groups"].iloc[:0]})
    assert sections.sections(empty) == []
    assert empty.table("groups") is None


def test_no_two_sections_share_a_table():
    names = [section.table for section in sections.SECTIONS]
    assert len(names) == len(set(names))
    assert not set(names) & sections.OWN


def test_a_chart_needs_its_columns_and_a_number():
    chart = Chart("x", "depth", "rho")
    assert chart.suits(pd.DataFrame({"depth": [0], "rho": [0.5]}))
    assert not chart.suits(pd.DataFrame({"depth": [0], "rho": [math.nan]}))
    assert not chart.suits(pd.DataFrame({"depth": [0]}))


def test_a_section_says_nothing_unless_asked(run):
    assert Section("x", "X", "?").answer(run) == []


def test_a_run_knows_its_stages(run):
    assert run.stages == ("initialization", "trained")
    assert Run(run.folder, {}, run.tables).stages == ("initialization", "trained")
    assert Run(run.folder, {}, {}).stages == ()


def test_rows_are_chosen_by_the_columns_there_are():
    frame = pd.DataFrame({"site": ["a", "b"], "n": [1, 2]})
    assert list(where(frame, site="b", stage="trained")["n"]) == [2]
    assert len(where(frame)) == 2


def test_facts_survive(run):
    assert run.facts == FACTS


def test_one_of_its_tables_is_enough_for_a_section(run, monkeypatch):
    section = Section("absent", "A", "?", more=("groups",))
    monkeypatch.setattr(sections, "SECTIONS", (section,))
    assert section in sections.sections(run)
    assert list(section.frames(run)) == ["groups"]
