"""The table of claims: verdicts by interval, intervals over layers or runs, the page that is made from it, and a whole run on a toy."""

import importlib.util
import json
import math
import shutil
import sys
from pathlib import Path

import pytest

from channelscope import zoo
from channelscope.errors import FormatError
from channelscope.zoo.training_run import Schedule

ROOT = Path(__file__).parents[1]


def tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


claims = tool("claims")


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.1, 0.4, "held"),
        (-0.1, 0.4, "open"),
        (0.4, 0.6, "open"),
        (-0.3, -0.1, "not held"),
        (0.6, 0.9, "not held"),
        (math.nan, 1.0, "open"),
        (0.0, 0.4, "open"),
    ],
)
def test_a_claim_is_held_inside_its_bounds_and_not_held_outside(low, high, verdict):
    assert claims.Claim("between 0 and .5", above=0.0, below=0.5).verdict(low, high) == verdict


def test_one_run_has_an_interval_over_layers():
    found = claims.summary(claims.Claim("above 0", "1.19", 0.0), [{"a": 1.0, "b": 3.0, "c": math.nan}], 250)
    assert (found["value"], found["n"], found["published"]) == ("2.0000", "2 layers, 250 images", "1.19")
    assert (found["low"], found["high"], found["verdict"]) == ("1.0000", "3.0000", "held")


def test_three_runs_have_an_interval_over_runs():
    """Means over layers 1, 2, 3: 2 ± 4.303/√3."""
    runs = [{"a → b": mean - 0.5, "b → c": mean + 0.5} for mean in (1.0, 2.0, 3.0)]
    found = claims.summary(claims.Claim("above 0", above=0.0), runs, 1000)
    assert (found["value"], found["n"]) == ("2.0000", "3 runs, 2 connections, 1,000 images")
    assert float(found["low"]) == pytest.approx(2 - 4.3027 / math.sqrt(3), abs=1e-3)
    assert found["verdict"] == "open"


def test_the_page_is_made_from_the_table():
    rows = claims.read(claims.TABLE)
    assert (ROOT / "docs" / "results" / "claims.md").read_text(encoding="utf-8") == claims.page(rows)
    assert len({(row["claim"], row["network"], row["data"]) for row in rows}) == len(rows) > 30
    bounds = {claim.text: claim for claim in claims.CLAIMS.values()}
    for row in rows:
        low, value, high = (float(row[name]) for name in ("low", "value", "high"))
        assert low <= value <= high
        assert row["verdict"] == bounds[row["claim"]].verdict(low, high)
        assert row["published"] == bounds[row["claim"]].published


def test_a_table_with_other_columns_is_refused(tmp_path):
    (tmp_path / "claims.csv").write_text("claim,value\na,1\n", encoding="utf-8")
    with pytest.raises(FormatError, match=r"claims\.csv: expected the columns claim, source, .*, found claim, value"):
        claims.read(tmp_path / "claims.csv")


def test_a_run_is_measured_once_and_its_rows_replace_the_earlier_ones(tmp_path, monkeypatch):
    table, folder = tmp_path / "claims.csv", tmp_path / "run"
    model, images = zoo.load("resnet20(width=8)", "digits")
    zoo.train(model, images, folder, Schedule(epochs=2, batch_size=256, pad=1, flip=False), progress=False)
    words = ["resnet20(width=8)", str(folder), "--images", "150", "--evaluated", "40", "--ablated", "8", "--out", str(table)]
    monkeypatch.setattr(sys, "argv", ["claims.py", *words])
    claims.main()
    rows = claims.read(table)
    named = {row["claim"]: row for row in rows}
    assert {row["verdict"] for row in rows} <= {"held", "not held", "open"}
    assert set(named) == {claim.text for claim in claims.CLAIMS.values()}
    kept = json.loads((tmp_path / "claims" / "resnet20_width_8_digits_run.json").read_text(encoding="utf-8"))
    own = named[claims.CLAIMS["separation"].text]
    assert float(own["value"]) == pytest.approx(sum(kept["values"]["separation"].values()) / len(kept["values"]["separation"]), abs=1e-4)
    assert own["n"] == f"{len(kept['values']['separation'])} layers, 150 images"
    monkeypatch.setattr(claims, "of_network", None)
    claims.main()
    assert claims.read(table) == rows
    shutil.rmtree(folder)
    claims.main()
    assert claims.read(table) == rows
    monkeypatch.setattr(sys, "argv", ["claims.py", *words, "--ablated", "9"])
    with pytest.raises(FormatError, match="measured with other settings"):
        claims.main()
    assert (tmp_path / "claims.md").read_text(encoding="utf-8") == claims.page(rows)
