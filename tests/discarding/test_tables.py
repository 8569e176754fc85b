"""Tables: intervals, what has not converged, and differences on one scale only."""

import math

import pandas as pd
import pytest
import torch
from scipy import stats

from channelscope import tables
from channelscope.discarding import tables as discarding_tables
from channelscope.discarding.cid import NUMBERS, CIDOptions, CIDResult
from channelscope.discarding.pixel_network import LayerOutput
from channelscope.errors import MismatchError
from channelscope.formulas import intervals


def found(layer="a", depth=1, images=(3, 1, 2), reached=None, **numbers):
    """Hand-made numbers of one layer."""
    count = len(images)
    given = {"cid": -2.0, "error": 0.01, "gap": 0.005, "uniform": -2.5, "ratio": 1.0, "ratio_error": 0.01, "capped": 0.1, "unseen": 0.0}
    values = {name: torch.as_tensor({**given, **numbers}[name]).expand(count).clone() for name in NUMBERS}
    flags = torch.ones(count, dtype=torch.bool) if reached is None else torch.tensor(reached)
    return CIDResult(LayerOutput(layer, layer, depth), torch.tensor(images), torch.rand(count, 4), values, flags, 20, 6, 0.5)


def test_a_row_per_image_and_layer_in_order():
    frame = discarding_tables.image_table([found("b", 2), found("a", 1)], CIDOptions(), "net")
    assert frame.layer.tolist() == ["a"] * 3 + ["b"] * 3
    assert frame.image.tolist() == [1, 2, 3] * 2
    assert frame.attrs["provenance"]["convention"]["normalizer"] == "data"
    reach = stats.t.isf(0.025, 6) * 0.01
    assert frame.cid_high[0] - frame.cid[0] == pytest.approx(reach, rel=1e-5)
    assert frame.gain[0] == pytest.approx(0.5)
    assert frame.converged.all()


@pytest.mark.parametrize(("numbers", "mode", "said"), [
    ({"ratio": 1.06}, "fast", "constraint at 1.060 ± 0.010"),
    ({"ratio": 0.9}, "fast", "constraint at 0.900"),
    ({"ratio": 1.045}, "fast", "constraint at 1.045"),
    ({"error": 0.03}, "fast", "level known to ± 0.030 nats"),
    ({"gap": 0.05}, "exact", "0.050 nats from the optimum"),
    ({"gap": 0.05, "error": 0.05}, "exact", "; "),
])  # fmt: skip
def test_what_has_not_converged_says_so(numbers, mode, said):
    frame = discarding_tables.image_table([found(**numbers)], CIDOptions(mode=mode), "net")
    assert not frame.converged.any()
    assert said in frame.note[0]


def test_a_gap_that_fast_mode_has_put_into_the_cid_is_no_failure():
    assert discarding_tables.image_table([found(gap=0.05)], CIDOptions(), "net").converged.all()


def test_what_is_out_of_reach_is_a_bound_and_left_out_of_means():
    frame = discarding_tables.image_table([found(reached=[True, True, False], cid=torch.tensor([-2.0, -1.0, 5.0]))], CIDOptions(), "net")
    assert "with all noise at its cap" in frame[~frame.reached].note.item()
    layer = discarding_tables.layer_table(frame).iloc[0]
    assert layer.cid == pytest.approx(-1.5)
    assert (layer.n, layer.unreached) == (2, 1)
    assert layer.converged == pytest.approx(2 / 3)


def test_layer_means_have_t_intervals_over_images():
    frame = discarding_tables.image_table([found(cid=torch.tensor([-1.0, -2.0, -3.0]))], CIDOptions(), "net")
    layer = discarding_tables.layer_table(frame).iloc[0]
    assert (layer.cid, layer.n) == (pytest.approx(-2), 3)
    assert layer.cid_high - layer.cid == pytest.approx(stats.t.isf(0.025, 2) / math.sqrt(3))


def test_the_error_of_a_layer_is_the_root_mean_square():
    frame = discarding_tables.image_table([found(images=(0, 1), error=torch.tensor([0.0, 0.02]))], CIDOptions(), "net")
    assert discarding_tables.layer_table(frame).error[0] == pytest.approx(0.02 / math.sqrt(2), rel=1e-5)


def test_one_image_has_no_interval():
    mean, low, high = intervals.t_interval(pd.Series([1.0]))
    assert mean == 1.0
    assert math.isnan(low)
    assert math.isnan(high)
    assert math.isnan(intervals.t_interval(pd.Series([], dtype=float))[0])


def test_differences_are_paired_over_images():
    here = discarding_tables.image_table([found(cid=torch.tensor([-1.0, -2.0, -3.0]))], CIDOptions(), "big")
    there = discarding_tables.image_table(
        [found("z", 9, (1, 2, 3), cid=torch.tensor([-1.5, -2.5, -0.5]))], CIDOptions(mode="exact"), "small"
    )
    row = discarding_tables.difference_table(here, there).iloc[0]
    assert (row.layer, row.other_layer, row.network, row.other) == ("a", "z", "big", "small")
    assert row.difference == pytest.approx(0.5)
    assert row.difference_high == pytest.approx(0.5)


@pytest.mark.parametrize(("rule", "said"), [
    (CIDOptions(normalizer="local"), r"differ in normalizer \(data and local\)"),
    (CIDOptions(kappa=0.2), r"kappa \(0.1 and 0.2\)"),
    (CIDOptions(cap=False), "cap"),
    (CIDOptions(side=7), "side"),
])  # fmt: skip
def test_other_scales_are_not_compared(rule, said):
    with pytest.raises(MismatchError, match=said):
        discarding_tables.difference_table(
            discarding_tables.image_table([found()], CIDOptions(), "a"), discarding_tables.image_table([found()], rule, "b")
        )


def test_other_images_or_layer_counts_are_not_compared():
    here = discarding_tables.image_table([found()], CIDOptions(), "a")
    with pytest.raises(MismatchError, match="different images"):
        discarding_tables.difference_table(here, discarding_tables.image_table([found(images=(7, 8, 9))], CIDOptions(), "b"))
    with pytest.raises(MismatchError, match="as many layers of both networks, received 1 and 2"):
        discarding_tables.difference_table(here, discarding_tables.image_table([found(), found("b", 2)], CIDOptions(), "b"))


def test_tables_come_back_from_disk_with_their_convention(tmp_path):
    frame = discarding_tables.image_table([found()], CIDOptions(kappa=0.25), "net")
    for made in (frame, discarding_tables.layer_table(frame)):
        tables.write(made, tmp_path / f"{made.attrs['name']}.csv")
        again = tables.read(tmp_path / f"{made.attrs['name']}.csv")
        assert again.attrs["provenance"]["convention"]["kappa"] == 0.25
        assert list(again) == list(made)
    assert discarding_tables.difference_table(frame, tables.read(tmp_path / "discarded.csv")).difference.item() == 0
