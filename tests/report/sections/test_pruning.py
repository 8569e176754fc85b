"""The section on a smaller network says what was lost and given back, with n and interval."""

import pandas as pd
import pytest

from channelscope import tables
from channelscope.pruning.prune import SUMMARY_COLUMNS
from channelscope.report.page import write_report
from channelscope.report.sections.pruning import PRUNING, pruning_sentences
from channelscope.tables.run_folder import RunFolder


def folder(path):
    common = {"images": 200, "parameters": 1000, "latency_low": 1.0, "latency_high": 3.0}
    rows = [
        {"state": "original", "accuracy": 0.7, "accuracy_low": 0.63, "accuracy_high": 0.76, "loss": 1.0, "macs": 1000, "kept": 1.0},
        {"state": "repaired", "accuracy": 0.6, "accuracy_low": 0.53, "accuracy_high": 0.67, "loss": 1.5, "macs": 498, "kept": 0.498},
    ]
    frame = pd.DataFrame([{**row, **common, "latency": 2.0 - index} for index, row in enumerate(rows)])
    tables.write(tables.describe(frame[list(SUMMARY_COLUMNS)], {"name": "pruning", "columns": SUMMARY_COLUMNS}), path / "pruning.csv")
    tables.write_json({"title": "small", "network": "net"}, path / "run.json")
    return path


@pytest.mark.parametrize(
    ("before", "apart"), [(0.7, "10.0 points below the original's 70.0 %"), (0.55, "5.0 points above the original's 55.0 %")]
)
def test_the_answer_says_which_network_is_ahead(tmp_path, before, apart):
    frame = RunFolder.read(folder(tmp_path)).table("pruning")
    frame.loc[0, "accuracy"] = before
    (said, *_) = pruning_sentences(RunFolder(tmp_path, {}, {"pruning": frame}))
    assert said == f"With 49.8 % of its multiply-adds the network is right on 60.0 % [53.0 %, 67.0 %] of 200 test images, {apart}."
    frame.loc[0, "accuracy"] = frame.loc[1, "accuracy"]
    assert "200 test images, level with the original's 60.0 %." in pruning_sentences(RunFolder(tmp_path, {}, {"pruning": frame}))[0]


def test_sentences(tmp_path):
    said = pruning_sentences(RunFolder.read(folder(tmp_path)))
    assert said[1].startswith("It has 498 of 1,000 multiply-adds")
    assert "1.00 ms instead of 2.00 ms" in said[1]
    assert len(said) == 2


def test_what_repair_found_is_said_in_percent_as_the_rest(tmp_path):
    run = RunFolder.read(folder(tmp_path))
    frame = run.table("pruning")
    pruned = frame.iloc[1:].assign(state="pruned", accuracy=0.2, accuracy_low=0.15, accuracy_high=0.26)
    said = pruning_sentences(RunFolder(tmp_path, {}, {"pruning": pd.concat([frame.iloc[:1], pruned, frame.iloc[1:]])}))
    assert said[2] == "Without repair: accuracy 20.0 % [15.0 %, 26.0 %] (n = 200 images)."


def test_the_page_has_the_section_and_its_chart(tmp_path):
    path = write_report(folder(tmp_path))
    page = path.read_text()
    assert PRUNING.title in page
    assert PRUNING.charts[0].suits(RunFolder.read(tmp_path).table("pruning"))


def test_the_only_answer_stands_in_the_heading_and_not_again_below(tmp_path):
    page = write_report(folder(tmp_path)).read_text()
    assert page.count("the network is right on 60.0 %") == 1
    assert page.index("the network is right on 60.0 %") < page.index("<section")


def test_without_the_table_there_is_nothing_to_say(tmp_path):
    tables.write_json({"title": "small", "network": "net"}, tmp_path / "run.json")
    assert pruning_sentences(RunFolder.read(tmp_path)) == []
