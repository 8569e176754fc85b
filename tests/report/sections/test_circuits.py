"""The sections on circuits say how well, against what, over how many."""

from pathlib import Path

import pandas as pd

from channelscope import tables
from channelscope.circuits.evaluation import CIRCUIT_COLUMNS
from channelscope.report.page import write_report
from channelscope.report.sections.circuits import (
    CIRCUIT,
    COMPARISON,
    circuit_drawings,
    circuit_sentences,
    comparison_sentences,
    subfeature_sentences,
)
from channelscope.tables.run_folder import RunFolder

SVG = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 40 30"><rect width="40" height="30" fill="red"/></svg>'

ENDS = {"r": 0.9, "r_low": 0.85, "r_high": 0.93, "error": 0.2, "error_low": 0.15, "error_high": 0.26, "images": 40}


def put(folder: Path, name: str, rows: list[dict]) -> None:
    tables.write(tables.table(pd.DataFrame(rows), name, CIRCUIT_COLUMNS), folder / f"{name}.csv")


def folder(path: Path) -> Path:
    row = {"feature": "layer1.0.conv1:3", "criterion": "gate", "kernels": 30, "relevant": 1200, "scored": 64, **ENDS}
    row |= {"rest_error": 1.1, "random_r": 0.05, "random_error": 1.3, "stability": 0.8, "stability_low": 0.7, "stability_high": 0.9}
    put(path, "circuit", [row])
    put(path, "circuit_curve", [{"kept": kept, "kernels": round(1200 * kept), **ENDS} for kept in (0.5, 0.2, 0.1)])
    medians = []
    for name, r, best in (("gate", 0.8, 1), ("actgrad", 0.78, 1), ("random", 0.1, 0)):
        row = {"criterion": name, "kept": 0.1, "n": 20, "median_r": r, "median_r_low": r - 0.05, "median_r_high": r + 0.05}
        medians.append(row | {"median_error": 0.5, "best": best})
    put(path, "circuit_medians", medians)
    put(path, "subcircuits", [{"cluster": n % 2, "image": n, "activation": 3.0, "position": "1,2"} for n in range(9)])
    put(path, "subcircuit_overlap", [{"cluster": 0, "other": 1, "site": site, "shared": 0.25} for site in ("", "a", "b")])
    put(path, "subcircuit_curves", [{"scored_on": "0", "judged_on": 1, "kept": 0.2, "kernels": 9, "peak_error": 0.6, "images": 4}])
    tables.write_json({"title": "a circuit", "network": "net"}, path / "run.json")
    (path / "circuit.svg").write_text(SVG, encoding="utf-8")
    return path


def test_the_diagram_is_linked_where_it_is_there(tmp_path):
    place = folder(tmp_path)
    assert "circuit.html" not in write_report(place).read_text(encoding="utf-8")
    (place / "circuit.html").write_text("the diagram")
    assert '<a href="circuit.html">Open circuit.html</a>' in write_report(place).read_text(encoding="utf-8")


def test_sentences(tmp_path):
    run = RunFolder.read(folder(tmp_path))
    said = circuit_sentences(run)
    assert said[0].startswith("30 of the 1,200 kernels that layer1.0.conv1:3 depends on follow it with r = 0.90 [0.85, 0.93] (n = 40")
    assert said[1].startswith("That is better than as many random kernels, which reach r = 0.05 and an error of 1.30; ")
    assert "error of 1.10" in said[1]
    assert "0.80 [0.70, 0.90] (n = 64 images)" in said[2]
    assert comparison_sentences(run) == [
        "At 0.1 of the kernels gate has the highest median |r|, 0.80 [0.75, 0.85] (n = 20 features); not worse beyond chance: actgrad."
    ]
    assert subfeature_sentences(run) == [
        "The strongest images fall into groups of 5 and 4; the circuits of two groups share 0.25 of their kernels."
    ]


def test_the_page_has_the_sections_and_the_diagram(tmp_path):
    page = write_report(folder(tmp_path)).read_text()
    for section in (CIRCUIT, COMPARISON):
        assert section.title in page
    assert 'id="quantities"' not in page  # no table here has one of them
    run = RunFolder.read(tmp_path)
    assert CIRCUIT.charts[0].suits(run.table("circuit_curve"))
    assert COMPARISON.charts[0].suits(run.table("circuit_medians"))
    assert circuit_drawings(run)[0].figure == tmp_path / "circuit.svg"


def test_without_tables_there_is_nothing_to_say(tmp_path):
    tables.write_json({"title": "none", "network": "net"}, tmp_path / "run.json")
    run = RunFolder.read(tmp_path)
    assert circuit_sentences(run) == comparison_sentences(run) == subfeature_sentences(run) == circuit_drawings(run) == []
