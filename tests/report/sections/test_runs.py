"""The section on two runs says what differs beyond chance, and draws the numbers of both."""

import math

import pandas as pd
import pytest

from channelscope import tables
from channelscope.report.page import write_report
from channelscope.report.sections.runs import SIDE_BY_SIDE, comparison_sentences, side_by_side
from channelscope.tables.run_folder import RunFolder, compare_runs


def run(path, shift: float, **facts) -> RunFolder:
    """A run with alignments that have intervals, a number that has none, and the scores of two layers."""
    rows = [
        {"local": local, "target": "relevance", "rho": rho, "low": rho - 0.05, "high": rho + 0.05, "n": 9}
        for local, rho in (("capture", 0.1 + shift), ("overlap", 0.2), ("support", 0.3 + shift / 20))
    ]
    channels = [
        {"site": site, "depth": depth, "channel": channel, "capture": channel + (shift if channel == 1 else 0.0) * (3 - depth)}
        for depth, site in ((2, "conv1"), (5, "conv2"))
        for channel in range(4)
    ]
    frames = {"alignment_mean": pd.DataFrame(rows), "channels": pd.DataFrame(channels), "pruning": pd.DataFrame([{"macs": 0.5 + shift}])}
    return RunFolder(path, {"network": "tiny", **facts}, frames)


@pytest.fixture
def compared(tmp_path):
    frames = compare_runs(run(tmp_path, 0.0, images=100, title="one"), run(tmp_path, 2.0, images=200, title="two"))
    for name, frame in frames.items():
        tables.write(frame, tmp_path / f"{name}.csv")
    tables.write_json({"title": "one against two"}, tmp_path / "run.json")
    return RunFolder.read(tmp_path)


def test_the_numbers_that_differ_most_come_first_and_those_without_intervals_are_left_out(compared):
    frame = side_by_side(compared)
    assert list(frame["number"].unique()) == [
        "alignment_mean: input capture, task information, rho",
        "alignment_mean: peer support, task information, rho",
        "alignment_mean: peer overlap, task information, rho",
    ]
    assert list(frame["run"]) == ["first", "second"] * 3
    assert list(frame["value"].round(3)) == [0.1, 2.1, 0.3, 0.4, 0.2, 0.2]
    assert list((frame["value_high"] - frame["value_low"]).round(3)) == [0.1] * 6
    assert SIDE_BY_SIDE.charts[0].suits(frame)
    assert side_by_side(RunFolder(compared.folder, {}, {})) is None


def test_what_differs_is_said(compared):
    assert comparison_sentences(compared) == [
        "4 numbers are in both runs; of 3 with intervals, 2 differ beyond their intervals, where chance alone would give about 0.2.",
        "The runs differ in images (100, 200).",
        "Median rank correlation of the channels of a layer between the runs (n = 2 layers): input capture 0.72.",
    ]
    assert list(compared.table("compared_channels")["depth"]) == [2, 5]


def test_runs_of_the_same_options_and_runs_without_intervals(tmp_path):
    same = compare_runs(run(tmp_path, 0.0), run(tmp_path, 0.0))
    assert comparison_sentences(RunFolder(tmp_path, {}, same))[1] == "What was run is the same."
    bare = {"pruning": pd.DataFrame([{"macs": 0.5}])}
    plain = compare_runs(RunFolder(tmp_path, {}, bare), RunFolder(tmp_path, {"note": "x" * 80}, bare))
    assert side_by_side(RunFolder(tmp_path, {}, plain)) is None
    assert comparison_sentences(RunFolder(tmp_path, {}, plain))[1] == "The runs differ in note."
    assert math.isnan(plain["compared_values"]["difference_low"].iloc[0])


def test_the_page_puts_two_runs_side_by_side(compared):
    page = write_report(compared.folder).read_text()
    assert '<section id="comparison"' in page
    for words in ("Two runs side by side", "Numbers that differ most", "Rank correlation of channels between the runs"):
        assert words in page
    assert (compared.folder / "figures" / "comparison.svg").is_file()
    assert (compared.folder / "figures" / "comparison_2.svg").is_file()
