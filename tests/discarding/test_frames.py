"""Tables: intervals, what has not converged, and differences on one scale only."""

import math

import pandas as pd
import pytest
import torch
from scipy import stats

from channelscope import tables
from channelscope.discarding import frames
from channelscope.discarding.discard import NUMBERS, Discarded
from channelscope.discarding.rule import Rule
from channelscope.discarding.view import Layer
from channelscope.errors import MismatchError


def found(layer="a", depth=1, images=(3, 1, 2), reached=None, **numbers):
    """Hand-made numbers of one layer."""
    count = len(images)
    given = {"cid": -2.0, "error": 0.01, "gap": 0.005, "uniform": -2.5, "ratio": 1.0, "ratio_error": 0.01, "capped": 0.1, "unseen": 0.0}
    values = {name: torch.as_tensor({**given, **numbers}[name]).expand(count).clone() for name in NUMBERS}
    flags = torch.ones(count, dtype=torch.bool) if reached is None else torch.tensor(reached)
    return Discarded(Layer(layer, layer, depth), torch.tensor(images), torch.rand(count, 4), values, flags, 20, 6, 0.5)


def test_a_row_per_image_and_layer_in_order():
    frame = frames.by_image([found("b", 2), found("a", 1)], Rule(), "net")
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
    ({"error": 0.03}, "fast", "level known to ± 0.030 nats"),
    ({"gap": 0.05}, "exact", "0.050 nats from the optimum"),
    ({"gap": 0.05, "error": 0.05}, "exact", "; "),
])  # fmt: skip
def test_what_has_not_converged_says_so(numbers, mode, said):
    frame = frames.by_image([found(**numbers)], Rule(mode=mode), "net")
    assert not frame.converged.any()
    assert said in frame.note[0]


def test_a_gap_that_fast_mode_has_put_into_the_cid_is_no_failure():
    assert frames.by_image([found(gap=0.05)], Rule(), "net").converged.all()


def test_what_is_out_of_reach_is_a_bound_and_left_out_of_means():
    frame = frames.by_image([found(reached=[True, True, False], cid=torch.tensor([-2.0, -1.0, 5.0]))], Rule(), "net")
    assert "with all noise at its cap" in frame[~frame.reached].note.item()
    layer = frames.by_layer(frame).iloc[0]
    assert layer.cid == pytest.approx(-1.5)
    assert (layer.n, layer.unreached) == (2, 1)
    assert layer.converged == pytest.approx(2 / 3)


def test_layer_means_have_t_intervals_over_images():
    frame = frames.by_image([found(cid=torch.tensor([-1.0, -2.0, -3.0]))], Rule(), "net")
    layer = frames.by_layer(frame).iloc[0]
    assert (layer.cid, layer.n) == (pytest.approx(-2), 3)
    assert layer.cid_high - layer.cid == pytest.approx(stats.t.isf(0.025, 2) / math.sqrt(3))


def test_one_image_has_no_interval():
    mean, low, high = frames.t_interval(pd.Series([1.0]))
    assert mean == 1.0
    assert math.isnan(low)
    assert math.isnan(high)
    assert math.isnan(frames.t_interval(pd.Series([], dtype=float))[0])


def test_differences_are_paired_over_images():
    here = frames.by_image([found(cid=torch.tensor([-1.0, -2.0, -3.0]))], Rule(), "big")
    there = frames.by_image([found("z", 9, (1, 2, 3), cid=torch.tensor([-1.5, -2.5, -0.5]))], Rule(mode="exact"), "small")
    row = frames.difference(here, there).iloc[0]
    assert (row.layer, row.other_layer, row.network, row.other) == ("a", "z", "big", "small")
    assert row.difference == pytest.approx(0.5)
    assert row.difference_high == pytest.approx(0.5)


@pytest.mark.parametrize(("rule", "said"), [
    (Rule(normalizer="local"), r"differ in normalizer \(data and local\)"),
    (Rule(kappa=0.2), r"kappa \(0.1 and 0.2\)"),
    (Rule(cap=False), "cap"),
    (Rule(side=7), "side"),
])  # fmt: skip
def test_other_scales_are_not_compared(rule, said):
    with pytest.raises(MismatchError, match=said):
        frames.difference(frames.by_image([found()], Rule(), "a"), frames.by_image([found()], rule, "b"))


def test_other_images_or_layer_counts_are_not_compared():
    here = frames.by_image([found()], Rule(), "a")
    with pytest.raises(MismatchError, match="different images"):
        frames.difference(here, frames.by_image([found(images=(7, 8, 9))], Rule(), "b"))
    with pytest.raises(MismatchError, match="as many layers of both networks, received 1 and 2"):
        frames.difference(here, frames.by_image([found(), found("b", 2)], Rule(), "b"))


def test_tables_come_back_from_disk_with_their_convention(tmp_path):
    frame = frames.by_image([found()], Rule(kappa=0.25), "net")
    for made in (frame, frames.by_layer(frame)):
        tables.write(made, tmp_path / f"{made.attrs['name']}.csv")
        again = tables.read(tmp_path / f"{made.attrs['name']}.csv")
        assert again.attrs["provenance"]["convention"]["kappa"] == 0.25
        assert list(again) == list(made)
    assert frames.difference(frame, tables.read(tmp_path / "discarded.csv")).difference.item() == 0
