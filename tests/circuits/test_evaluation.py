"""The tables about a circuit: every number against what it says it is."""

import math

import numpy as np
import pytest
import torch

from channelscope import tables
from channelscope.circuits.circuit import Circuit
from channelscope.circuits.evaluation import CURVE_FRACTIONS, HeldOutImages, area_over_log_size, evaluate_circuit
from channelscope.circuits.located_feature import locate_feature
from channelscope.circuits.options import CircuitOptions
from pencil_circuits import LAST, Planted, network, pictures


def judged(model: torch.nn.Module, feature: str, images: torch.Tensor, held: torch.Tensor, choice: CircuitOptions):
    target = locate_feature(model, feature, images)
    parts = choice.shard_scores(target, images)
    return choice.circuit(choice.total_scores(parts)), parts, evaluate_circuit(choice, parts, HeldOutImages.of(target, held))


@pytest.fixture(scope="module")
def residual():
    return judged(network("residual"), f"{LAST['residual']}:1", pictures(12), pictures(8, seed=1), CircuitOptions(keep="0.4"))


@pytest.fixture(scope="module")
def planted():
    noise = torch.Generator().manual_seed(0)
    images, held = torch.randn(12, 3, 8, 8, generator=noise), torch.randn(8, 3, 8, 8, generator=noise)
    return judged(Planted().eval(), "c:0", images, held, CircuitOptions(keep="6"))


def test_the_tables_describe_themselves(residual, tmp_path):
    _, _, frames = residual
    assert list(frames) == ["circuit", "circuit_curve", "circuit_layers", "circuit_channels", "circuit_kernels"]
    for name, frame in frames.items():
        tables.write(frame, tmp_path / f"{name}.csv")
        again = tables.read(tmp_path / f"{name}.csv")
        assert len(again) == len(frame)
        assert all(again.attrs["columns"][column]["meaning"] for column in again)
        assert again.attrs["provenance"]["held-out images"] == 8


def test_the_planted_circuit_is_complete_exact_and_stable(planted):
    circuit, _, frames = planted
    row = frames["circuit"].iloc[0]
    assert (row["kernels"], row["asked"], row["scored"], row["images"]) == (6, 6, 12, 8)
    assert row["relevant"] == circuit.total
    assert row["kept"] == 6 / circuit.total
    assert row["r"] == pytest.approx(1)
    assert row["error"] == row["error_low"] == row["error_high"] == 0
    assert row["rest_error"] >= 1
    assert row["random_r"] < 0.9
    assert row["random_error"] > 0.1
    assert row["stability"] == row["stability_low"] == row["stability_high"] == 1


def test_the_summary_is_what_the_circuit_does(residual):
    circuit, parts, frames = residual
    row = frames["circuit"].iloc[0]
    held = HeldOutImages.of(parts[0].feature, pictures(8, seed=1))
    assert row["kernels"] == circuit.count <= row["asked"] == round(0.4 * circuit.total)
    assert row["error"] == held.fidelity(circuit).error.value
    assert row["r_low"] <= row["r"] <= row["r_high"]
    assert row["rest_error"] == held.fidelity(~circuit).error.value
    assert row["stability_low"] <= row["stability"] <= row["stability_high"] <= 1


def test_the_curve_falls_to_the_sizes_that_any_path_allows(residual):
    circuit, parts, frames = residual
    curve = frames["circuit_curve"]
    smallest = parts[0].feature.shortest_path
    assert curve["kept"].tolist() == [share for share in CURVE_FRACTIONS if share * circuit.total >= smallest]
    assert curve["kernels"].is_monotonic_decreasing
    held = HeldOutImages.of(parts[0].feature, pictures(8, seed=1))
    saliency = CircuitOptions().total_scores(parts)
    for row in curve.to_dict("records"):
        own = CircuitOptions().circuit(saliency, row["kept"])
        assert row["kernels"] == own.count
        assert row["error"] == held.fidelity(own).error.value


def test_areas_are_over_all_sizes_whatever_the_shortest_path(residual, planted):
    """The mean of r over ln(kept) from .001 to .9, with 0 at sizes that no path allows."""
    for _, _, frames in (residual, planted):
        curve = frames["circuit_curve"].set_index("kept")["r"].fillna(0)
        steps = sorted(CURVE_FRACTIONS)
        r = [float(curve.get(share, 0.0)) for share in steps]
        logs = [math.log(share) for share in steps]
        wanted = sum((r[k] + r[k + 1]) / 2 * (logs[k + 1] - logs[k]) for k in range(len(steps) - 1)) / (logs[-1] - logs[0])
        assert len(curve) < len(CURVE_FRACTIONS)
        assert frames["circuit"].iloc[0]["r_area"] == pytest.approx(wanted)


def test_a_curve_says_for_which_size_its_scores_were_made(residual):
    assert residual[2]["circuit_curve"]["made_for"].isna().all()
    images = pictures(4)
    circuit, _, frames = judged(network("chain"), "head:1", images, pictures(4, seed=1), CircuitOptions("force", keep="12"))
    assert (frames["circuit_curve"]["made_for"] == 12 / circuit.total).all()


def test_layers_add_up_to_the_circuit(residual):
    circuit, _, frames = residual
    layers = frames["circuit_layers"]
    assert layers["site"].tolist() == list(circuit)
    assert layers["kernels"].sum() == circuit.count
    assert layers["relevant"].sum() == circuit.total
    assert (layers["excitatory"] + layers["inhibitory"] <= layers["kernels"]).all()


def test_kernels_are_named_as_everywhere(planted):
    _, _, frames = planted
    kernels = frames["circuit_kernels"]
    named = {(row.site, row.channel, row.input): row.effect for row in kernels.itertuples()}
    assert set(named) == {
        ("a", 0, "image:0"),
        ("a", 1, "image:1"),
        ("b", 0, "a:0"),
        ("b", 1, "a:1"),
        ("c", 0, "b:0"),
        ("c", 0, "b:1"),
    }
    assert named["c", 0, "b:0"] > 0 > named["c", 0, "b:1"]
    assert kernels["saliency"].max() == 1
    assert kernels["saliency"].is_monotonic_decreasing
    assert kernels["effect"].abs().max() == 1


def test_channels_say_what_they_read_and_feed(planted):
    _, _, frames = planted
    rows = {(row.site, row.channel): (row.reads, row.feeds) for row in frames["circuit_channels"].itertuples()}
    assert rows == {("a", 0): (1, 1), ("a", 1): (1, 1), ("b", 0): (1, 1), ("b", 1): (1, 1), ("c", 0): (2, 0)}


def test_a_sum_feeds_for_all_its_members(residual):
    circuit, _, frames = residual
    kernels, channels = frames["circuit_kernels"], frames["circuit_channels"]
    assert kernels["input"].str.contains("two:[0-3] \\+ stem:[0-3]|stem:[0-3] \\+ two:[0-3]", regex=True).any()
    for row in channels.itertuples():
        name = f"{row.site}:{row.channel}"
        assert row.feeds == sum(name in kernel.split(" + ") for kernel in kernels["input"])
        assert row.reads == circuit[row.site][row.channel].sum()


def test_criteria_without_signs_leave_them_undefined():
    _, _, frames = judged(network("chain"), "head:1", pictures(6), pictures(4, seed=1), CircuitOptions("magnitude", keep="0.5"))
    assert frames["circuit_kernels"]["effect"].isna().all()
    assert frames["circuit_layers"]["excitatory"].isna().all()
    assert frames["circuit"]["stability"].isna().all()  # one part: nothing to draw from


def test_area_over_the_logarithm_of_the_size():
    assert area_over_log_size([1, 0.1], [1, 0]) == pytest.approx(0.5)
    assert area_over_log_size([0.1, 1], [0, 1]) == pytest.approx(0.5)
    assert area_over_log_size([0.01, 0.1, 1], [1, 1, 1]) == pytest.approx(1)
    assert area_over_log_size([0.001, 0.1, 1], [0, 1, 1]) == pytest.approx(2 / 3)
    assert area_over_log_size([0.01, 0.1, 1], [np.nan, 1, 1]) == pytest.approx(0.75)  # a constant explains nothing
    assert math.isnan(area_over_log_size([0.5], [1]))


def test_a_circuit_of_all_kernels_is_the_feature():
    circuit, _, frames = judged(network("dense"), "head:1", pictures(6), pictures(4, seed=1), CircuitOptions(keep="1.0"))
    assert isinstance(circuit, Circuit)
    assert circuit.fraction == 1
    assert frames["circuit"]["error"][0] == 0
