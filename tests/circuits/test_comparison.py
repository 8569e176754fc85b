"""Criteria against each other: rows are single circuits, medians are medians, and an interrupted run goes on."""

import sqlite3

import numpy as np
import pandas as pd
import pytest
import torch

from channelscope.circuits import comparison as room
from channelscope.circuits import evaluation
from channelscope.circuits.comparison import compare_criteria, medians, sample_features
from channelscope.circuits.criteria import CircuitOptions
from channelscope.circuits.evaluation import HeldOutImages
from channelscope.circuits.feature import locate_feature
from channelscope.errors import InputError, MismatchError, SampleError, SiteError
from channelscope.network.graph import trace
from channelscope.storage import ResumableStore
from pencil_circuits import Planted, network, pictures

IMAGES, HELD = pictures(6), pictures(6, seed=1)
GRAPH = trace(network("residual"), IMAGES)
FEATURES = ["two:1", "last:0", "last:1"]
CRITERIA = ("gate", "force", "magnitude")


@pytest.fixture(scope="module")
def found():
    return compare_criteria(GRAPH, FEATURES, IMAGES, HELD, CRITERIA, (0.6, 0.3))


def test_rows_are_single_circuits(found):
    frame = found["circuit_compare"]
    assert len(frame) == 3 * 3 * 2
    for row in frame.to_dict("records"):
        target = locate_feature(GRAPH, row["feature"])
        choice = CircuitOptions(row["criterion"], str(row["kept"]))
        circuit = choice.circuit(choice.total_scores(choice.shard_scores(target, IMAGES)))
        assert row["kernels"] == circuit.count
        assert row["error"] == pytest.approx(HeldOutImages.of(target, HELD).fidelity(circuit).error.value, rel=1e-4)


def test_medians_over_features(found):
    frame, table = found["circuit_compare"], found["circuit_medians"]
    assert len(table) == 6
    for row in table.to_dict("records"):
        own = frame[(frame["criterion"] == row["criterion"]) & (frame["kept"] == row["kept"])]
        assert row["median_r"] == pytest.approx(np.median(own["r"].abs().fillna(0)))
        assert row["median_error"] == pytest.approx(own["error"].median())
        assert row["median_r_low"] <= row["median_r"] <= row["median_r_high"]
        assert row["n"] == 3
    for _, part in table.groupby("kept"):
        leader = part.loc[part["median_r"].idxmax()]
        assert leader["best"] == 1
        assert leader["behind"] == 0


def rows(values: dict[str, list[float]]) -> pd.DataFrame:
    made = [
        {"feature": f"a:{n}", "criterion": name, "kept": 0.5, "r": r, "error": 1.0}
        for name, each in values.items()
        for n, r in enumerate(each)
    ]
    return pd.DataFrame(made)


def test_a_tie_is_a_tie_and_a_lead_is_a_lead():
    noise = np.random.default_rng(0).normal(0, 0.01, 15)
    table = medians(rows({"a": list(0.9 + noise), "b": list(0.9 - noise), "c": list(0.5 + noise)})).set_index("criterion")
    assert table["best"].to_dict() == {"a": 1, "b": 1, "c": 0}
    assert table.loc["c", "behind"] == pytest.approx(0.4, abs=0.03)
    assert table.loc["c", "behind_low"] > 0.3


def test_constants_count_as_nothing_and_signs_do_not():
    table = medians(rows({"a": [float("nan"), float("nan"), 0.8], "b": [-0.9, 0.1, 0.2]})).set_index("criterion")
    assert table.loc["a", "median_r"] == 0
    assert table.loc["b", "median_r"] == pytest.approx(0.2)


def test_errors_are_of_the_features_that_have_a_circuit():
    """Three of five features have none of this size: their r counts as 0, and the error says that it is of two."""
    nan = float("nan")
    frame = rows({"a": [nan, nan, nan, 0.8, 0.9]})
    frame.loc[frame["r"].isna(), "error"] = nan
    row = medians(frame.assign(error=frame["error"] * 0.1)).iloc[0]
    assert (row["n"], row["median_r"]) == (5, 0)
    assert (row["n_error"], row["median_error"]) == (2, pytest.approx(0.1))


def test_sizes_below_every_path_are_rows_without_a_number():
    found = compare_criteria(GRAPH, ["last:0"], IMAGES, HELD, ("gate",), (0.01,))
    row = found["circuit_compare"].iloc[0]
    assert row["kernels"] == 0
    assert np.isnan(row["r"])


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch, found):
    path, done = tmp_path / "run" / "compare.unfinished", []
    right = evaluation.fidelity_row

    def stopping(held, circuit):
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(circuit)
        return right(held, circuit)

    monkeypatch.setattr(room, "fidelity_row", stopping)
    with pytest.raises(KeyboardInterrupt):
        compare_criteria(GRAPH, FEATURES, IMAGES, HELD, CRITERIA, (0.6, 0.3), path)
    assert sqlite3.connect(path).execute("SELECT count(*) FROM measured").fetchone() == (5,)
    monkeypatch.setattr(room, "fidelity_row", lambda held, circuit: done.append(circuit) or right(held, circuit))
    again = compare_criteria(GRAPH, FEATURES, IMAGES, HELD, CRITERIA, (0.6, 0.3), path)
    assert len(done) == 18  # nothing twice
    assert not path.exists()
    pd.testing.assert_frame_equal(again["circuit_compare"], found["circuit_compare"], rtol=1e-6)


def test_an_unfinished_run_on_other_images_is_refused(tmp_path):
    path = tmp_path / "compare.unfinished"
    ResumableStore(path, {"weights": "other"}, "", "a comparison of criteria").close()
    with pytest.raises(MismatchError, match="holds another run of a comparison of criteria: they differ in weights"):
        compare_criteria(GRAPH, FEATURES, IMAGES, HELD, CRITERIA, (0.6,), path)


def test_features_are_drawn_from_all_depths():
    chosen = sample_features(GRAPH, IMAGES, 6, seed=0)
    assert len(set(chosen)) == 6
    assert chosen == sample_features(GRAPH, IMAGES, 6, seed=0)
    assert chosen != sample_features(GRAPH, IMAGES, 6, seed=1)
    assert not any(feature.startswith("stem:") for feature in chosen)
    assert len({feature.partition(":")[0] for feature in chosen}) >= 4


def test_dead_channels_are_not_drawn():
    model = Planted().eval()
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    graph = trace(model, images)
    assert "b:2" not in sample_features(graph, images, 3)  # always zero
    with pytest.raises(SampleError, match="expected 50 channels"):
        sample_features(graph, images, 50)


def test_what_does_not_exist_is_refused():
    with pytest.raises(InputError, match="no criterion is called magic; there are: gate, actgrad"):
        compare_criteria(GRAPH, FEATURES, IMAGES, HELD, ("gate", "magic"), (0.5,))
    for what, features, criteria, sizes in (
        ("features", (), ("gate",), (0.5,)),
        ("features", ("two:1", "two:1"), ("gate",), (0.5,)),
        ("criteria", FEATURES, (), (0.5,)),
        ("criteria", FEATURES, ("gate", "gate"), (0.5,)),
        ("sizes", FEATURES, ("gate",), ()),
        ("sizes", FEATURES, ("gate",), (0.5, 0.5)),
    ):
        with pytest.raises(InputError, match=f"expected one or more {what}, each once"):
            compare_criteria(GRAPH, features, IMAGES, HELD, criteria, sizes)
    for size in (2.0, 0.0, -0.1, float("nan"), "half"):
        with pytest.raises(InputError, match=f"above 0 and up to 1.0; received {size}"):
            compare_criteria(GRAPH, FEATURES, IMAGES, HELD, ("gate",), (0.5, size))
    with pytest.raises(SiteError, match="no layer is called lost"):
        compare_criteria(GRAPH, ["lost:1"], IMAGES, HELD)


def test_equal_criteria_are_both_the_best_and_undefined_r_counts_as_zero():
    rows = [[f, c, 0.1, r, 0.5] for f in "abc" for c, r in (("one", 0.8), ("same", -0.8), ("none", float("nan")))]
    found = medians(pd.DataFrame(rows, columns=["feature", "criterion", "kept", "r", "error"])).set_index("criterion")
    assert found["best"].to_dict() == {"one": 1, "same": 1, "none": 0}
    assert found["median_r"].to_dict() == {"one": 0.8, "same": 0.8, "none": 0.0}
    assert found["behind"].to_dict() == {"one": 0.0, "same": 0.0, "none": 0.8}
