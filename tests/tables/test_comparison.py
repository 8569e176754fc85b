"""Two runs side by side: rows are matched by what they are about, and differences have the interval of independent estimates."""

import math
from pathlib import Path

import pandas as pd
import pytest

from channelscope import tables
from channelscope.errors import MismatchError
from channelscope.tables.comparison import compare_runs, difference_interval
from channelscope.tables.run_folder import RunFolder


def run(frames, folder="a", **facts):
    return RunFolder(Path(folder), facts, {name: tables.describe(frame, {"name": name}) for name, frame in frames.items()})


def alignment(*rows):
    return pd.DataFrame(rows, columns=["local", "target", "rho", "low", "high", "n", "pooled"])


def test_rows_are_matched_and_differences_have_intervals():
    first = run(
        {"alignment_mean": alignment(("capture", "relevance", 0.2, 0.1, 0.4, 9, 0.3), ("overlap", "excess", 0.5, 0.4, 0.6, 9, 0.1))}
    )
    second = run({"alignment_mean": alignment(("overlap", "excess", 0.8, 0.6, 0.9, 7, 0.2), ("capture", "excess", 0.1, 0.0, 0.2, 7, 0.4))})
    frame = compare_runs(first, second)["compared_values"]
    assert frame[["table", "row", "quantity"]].to_numpy().tolist() == [
        ["alignment_mean", "local overlap, target excess", "rho"],
        ["alignment_mean", "local overlap, target excess", "pooled"],
    ]
    row = frame.iloc[0]
    assert (row["first"], row["first_low"], row["second"], row["second_high"], row["n_first"], row["n_second"]) == (
        0.5,
        0.4,
        0.8,
        0.9,
        9,
        7,
    )
    assert row["difference"] == pytest.approx(0.3)
    assert row["difference_low"] == pytest.approx(0.3 - math.hypot(0.1, 0.2))
    assert row["difference_high"] == pytest.approx(0.3 + math.hypot(0.1, 0.1))
    assert row["apart"]
    assert math.isnan(frame.iloc[1]["difference_low"])
    assert not frame.iloc[1]["apart"]
    assert frame.attrs["columns"]["difference_low"]["meaning"].startswith("lower end of the 95 % interval of second less first")


def test_an_interval_that_touches_zero_is_not_apart():
    assert difference_interval((0.0, -3.0, 3.0), (5.0, 1.0, 9.0)) == (5.0, 0.0, 10.0)
    assert all(math.isnan(end) for end in difference_interval((0.0, math.nan, math.nan), (1.0, 0.0, 2.0))[1:])


def test_the_only_stages_of_two_runs_belong_together():
    def one(stage, value):
        rows = pd.DataFrame({"stage": [stage] * 2, "site": ["a", "b"], "depth": [0, 1], "rho": [value, value + 0.1], "n": [5, 5]})
        return run({"alignment": rows})

    frame = compare_runs(one("trained", 0.1), one("weights random", 0.3))["compared_values"]
    assert frame["row"].tolist() == ["site a", "site b"]
    assert frame["difference"].tolist() == pytest.approx([0.2, 0.2])


def test_numbers_say_which_row_it_is_where_text_does_not():
    def one(first, second):
        rows = pd.DataFrame({"score": ["l1", "l1"], "budget": [0.5, 0.7], "kept": [0.49, 0.69], "accuracy": [first, second]})
        units = {"budget": "fraction", "kept": "fraction"}
        return RunFolder(Path("x"), {}, {"benchmark": tables.describe(rows, {"name": "benchmark", "units": units})})

    frame = compare_runs(one(0.6, 0.8), one(0.5, 0.9))["compared_values"]
    assert frame["row"].unique().tolist() == ["score l1, budget 0.5", "score l1, budget 0.7"]
    assert frame.query("quantity == 'accuracy'")["difference"].tolist() == pytest.approx([-0.1, 0.1])
    assert frame.query("quantity == 'accuracy'")["unit"].tolist() == ["fraction", "fraction"]


def test_a_table_of_one_row_needs_no_key():
    def one(accuracy):
        return run({"pruning": pd.DataFrame({"accuracy": [accuracy], "accuracy_low": [accuracy - 0.1], "accuracy_high": [accuracy + 0.1]})})

    (row,) = compare_runs(one(0.5), one(0.9))["compared_values"].to_dict("records")
    assert (row["row"], row["quantity"], row["apart"]) == ("", "accuracy", True)
    assert row["difference_low"] == pytest.approx(0.4 - math.hypot(0.1, 0.1))


def test_channels_are_compared_layer_by_layer():
    def one(values, site="conv1"):
        frame = pd.DataFrame({"stage": "trained", "site": site, "channel": range(len(values)), "capture": values})
        return run({"channels": frame})

    (row,) = compare_runs(one([1.0, 2.0, 3.0, math.inf]), one([2.0, 9.0, 4.0, 1.0]))["compared_channels"].to_dict("records")
    assert (row["stage"], row["site"], row["score"], row["n"]) == ("trained", "conv1", "capture", 3)
    assert row["rho"] == pytest.approx(0.5)
    assert (row["first"], row["second"], row["difference"]) == (2.0, 5.0, 3.0)
    assert math.isnan(compare_runs(one([1.0, 2.0]), one([2.0, 1.0]))["compared_channels"]["rho"].iloc[0])
    for other in (one([1.0]), one([1.0, 2.0], "conv2")):
        assert "compared_channels" not in compare_runs(one([1.0, 2.0]), other)


def test_facts_are_side_by_side():
    frames = {"groups": pd.DataFrame({"site": ["a"], "n": [1]})}
    first = run(frames, network="resnet20", stages=["initialization", "trained"], calls=[1], seconds=3.0)
    frame = compare_runs(first, run(frames, network="resnet20", seed=1))["compared_facts"]
    assert frame.to_numpy().tolist() == [
        ["network", "resnet20", "resnet20", True],
        ["stages", "initialization, trained", "", False],
        ["seed", "", "1", False],
    ]


def test_runs_without_a_common_table_are_refused():
    frame = pd.DataFrame({"site": ["a"], "n": [1]})
    with pytest.raises(MismatchError, match="no table in common: a has groups, b has hulls: compare runs of the same command"):
        compare_runs(run({"groups": frame}), run({"hulls": frame}, "b"))
