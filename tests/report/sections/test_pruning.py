"""The section on a smaller network says what was lost and given back, with n and interval."""

import pandas as pd

from channelscope import tables
from channelscope.pruning.prune import SUMMARY_COLUMNS
from channelscope.report.page import write_report
from channelscope.report.sections.pruning import PRUNING, pruning_sentences
from channelscope.tables.run_folder import RunFolder as Run


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


def test_sentences(tmp_path):
    said = pruning_sentences(Run.read(folder(tmp_path)))
    assert said[0].startswith("The network keeps 49.8% of its multiply-adds (498 of 1,000)")
    assert "1.0 ms instead of 2.0 ms" in said[0]
    assert "0.60 [0.53, 0.67] (n = 200 images)" in said[2]


def test_the_page_has_the_section_and_its_chart(tmp_path):
    path = write_report(folder(tmp_path))
    page = path.read_text()
    assert PRUNING.title in page
    assert PRUNING.charts[0].suits(Run.read(tmp_path).table("pruning"))


def test_without_the_table_there_is_nothing_to_say(tmp_path):
    tables.write_json({"title": "small", "network": "net"}, tmp_path / "run.json")
    assert pruning_sentences(Run.read(tmp_path)) == []
