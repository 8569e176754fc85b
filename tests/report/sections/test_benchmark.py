"""The section on compared scores names the best under each rule and says how sure that is."""

import numpy as np

from channelscope import tables
from channelscope.benchmark.analysis import COLUMNS, analyze
from channelscope.benchmark.trial import ORIGINAL, Trial
from channelscope.report.page import write_report
from channelscope.report.sections.pruning import BENCHMARK, benchmark_sentences
from channelscope.tables.run_folder import RunFolder

CHANCES = {"l2": 0.6, "l1": 0.5, "capture": 0.8, "random": 0.2}


def folder(path, budgets=None):
    draw = np.random.default_rng(0)

    def row(chance):
        hits = draw.random(200) < chance
        about = {"loss": 1.0, "kept": 0.5, "parameters": 10, "images": 200, "hits": hits, "reason": ""}
        return {"accuracy": float(hits.mean()), **about}

    done = {ORIGINAL: row(0.9)}
    for score, chance in CHANCES.items():
        for repair in ("none", "batchnorm"):
            done |= {Trial(0, score, budget, "global", repair): row(chance) for budget in (budgets or {}).get(score, (0.8, 0.5))}
    for name, frame in analyze(done).items():
        tables.write(tables.describe(frame, {"name": name, "columns": COLUMNS}), path / f"{name}.csv")
    tables.write_json({"title": "compared", "network": "net"}, path / "run.json")
    return path


def test_sentences(tmp_path):
    said = benchmark_sentences(RunFolder.read(folder(tmp_path)))
    assert len(said) == 3
    assert said[0].startswith("Input capture has the largest area of 4 scores under every rule: 0.")
    assert said[0].count("(n = 200 images), one seed (global, ") == 2
    assert "of 12 pairs of scores differ" in said[1]
    assert said[2].endswith(" over 4 scores, between (global, no repair) and (global, BatchNorm re-estimated).")


def test_what_no_area_contains_is_said(tmp_path):
    assert benchmark_sentences(RunFolder.read(folder(tmp_path, {"l1": (0.8,)})))[2] == (
        "6 of the measurements are part of no area (l2, capture, random): the table of what is left out says why."
    )


def test_two_winners_are_two_sentences(tmp_path):
    run = RunFolder.read(folder(tmp_path))
    areas = run.table("benchmark_auc")
    areas.loc[(areas["score"] == "l1") & (areas["repair"] == "none"), "auc"] = 1.0
    said = benchmark_sentences(run)
    assert said[0].startswith("L1 norm has the largest area of 4 scores under 1 of 2 rules: 1.000")
    assert said[1].startswith("Input capture has the largest area of 4 scores under 1 of 2 rules: ")
    assert said[1].endswith("one seed (global, BatchNorm re-estimated).")


def test_the_page_has_charts_of_named_rows(tmp_path):
    run = RunFolder.read(folder(tmp_path))
    assert len(BENCHMARK.charted(run)) == 3
    page = write_report(tmp_path).read_text()
    assert BENCHMARK.title in page
    assert "FLOPs-AUC" in page


def test_without_the_table_there_is_nothing_to_say(tmp_path):
    tables.write_json({"title": "compared", "network": "net"}, tmp_path / "run.json")
    assert benchmark_sentences(RunFolder.read(tmp_path)) == []
