"""Fidelity against its definition and on circuits whose fidelity is known; the tables about a circuit."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pencil_circuits as pencil
from channelscope import tables
from channelscope.circuits.circuit import Circuit, remove_dead_ends
from channelscope.circuits.criteria import CircuitOptions, baseline_scores
from channelscope.circuits.evaluation import (
    CURVE_FRACTIONS,
    Fidelity,
    HeldOutImages,
    area_over_log_size,
    correlation,
    evaluate_circuit,
    normalized_error,
)
from channelscope.circuits.feature import locate_feature
from channelscope.circuits.selection import top_k
from channelscope.errors import SampleError, ShapeError
from channelscope.formulas.intervals import bootstrap_counts
from channelscope.zoo import toys
from pencil_circuits import LAST, NETWORKS, Planted, network, pictures


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


def toy_feature(name: str = "logit:1"):
    """Six of the 30 kernels of the logit are not zero."""
    toy = toys.independent_channels()
    return toy, locate_feature(toy.model, name, toy.batches[0][0])


def test_signs_are_counted_and_effects_are_over_the_largest_size():
    toy, feature = toy_feature()
    options = CircuitOptions("magnitude", "30", dead_ends="none")
    shards = options.shard_scores(feature, toy.batches)
    effects = {layer: torch.zeros(marks.shape, dtype=torch.float64) for layer, marks in feature.relevant.items()}
    effects["fc"][1] = torch.tensor([1.0, -2.0, 0.0, 0.0, 0.5])
    signs = replace(options.total_scores(shards), signed_values=effects)
    found = evaluate_circuit(options, shards, HeldOutImages.of(feature, toy.batches), signs=signs)
    assert found["circuit_layers"][["site", "excitatory", "inhibitory"]].values.tolist() == [["conv", 0, 0], ["fc", 2, 1]]
    rows = found["circuit_kernels"].query("site == 'fc'").sort_values("input")
    assert rows["effect"].tolist() == [0.5, -1.0, 0.0, 0.0, 0.25]


def test_random_circuits_have_the_three_seeds_after_the_runs():
    toy, feature = toy_feature()
    options, held_out = CircuitOptions("magnitude", "12"), HeldOutImages.of(feature, toy.batches)
    row = evaluate_circuit(options, options.shard_scores(feature, toy.batches), held_out, seed=5)["circuit"].iloc[0]
    chance = [held_out.fidelity(remove_dead_ends(top_k(baseline_scores(feature, "random", seed), 12), feature)) for seed in (6, 7, 8)]
    assert row["random_error"] == sorted(each.error.value for each in chance)[1]


def test_the_curve_goes_down_to_the_shortest_path():
    """Channel 2 has five kernels, and one of them is a path: .2 is one kernel, .1 is none."""
    toy, feature = toy_feature("conv:2")
    options = CircuitOptions("magnitude", "1")
    found = evaluate_circuit(options, options.shard_scores(feature, toy.batches), HeldOutImages.of(feature, toy.batches))
    assert found["circuit_curve"]["kept"].tolist() == [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2]


def test_intervals_are_the_middle_95_percent_of_the_draws():
    noise = torch.Generator().manual_seed(0)
    y, guess = torch.randn(2, 40, 3, generator=noise, dtype=torch.float64)
    fidelity = Fidelity.of(y, guess)
    draws = normalized_error(bootstrap_counts(40, 1000) @ fidelity.sums)
    expected = draws.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    assert [fidelity.error.low, fidelity.error.high] == expected


IMAGES = pictures(6)


def noisy(seed: int, images: int = 5, positions: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    noise = torch.Generator().manual_seed(seed)
    y = torch.randn(images, positions, generator=noise)
    return y, y + 0.5 * torch.randn(images, positions, generator=noise) + 1


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 500), st.floats(0.1, 5), st.floats(-3, 3))
def test_both_measures_are_their_definitions(seed, gain, shift):
    y, guess = noisy(seed)
    guess = gain * guess + shift
    found = Fidelity.of(y, guess)
    r, error = pencil.fidelity(y.flatten().double().numpy(), guess.flatten().double().numpy())
    assert found.r.value == pytest.approx(r, rel=1e-9)
    assert found.error.value == pytest.approx(error, rel=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 500), st.integers(1, 4))
def test_fidelities_add_up(seed, cut):
    y, guess = noisy(seed)
    parts = Fidelity.of(y[:cut], guess[:cut]) + Fidelity.of(y[cut:], guess[cut:])
    whole = Fidelity.of(y, guess)
    assert torch.equal(parts.sums, whole.sums)
    assert parts.images == 5
    assert parts.r == whole.r


def test_r_does_not_see_a_gain_and_the_error_does():
    y, _ = noisy(0)
    found = Fidelity.of(y, 3 * y)
    assert found.r.value == pytest.approx(1)
    assert found.error.value == pytest.approx(4 * float((y**2).sum() / ((y - y.mean()) ** 2).sum()), rel=1e-5)
    assert Fidelity.of(y, -y).r.value == pytest.approx(-1)


def test_exact_and_mean_are_the_marks_of_the_error():
    y, _ = noisy(1)
    assert Fidelity.of(y, y).error.value == 0
    assert Fidelity.of(y, y.double().mean().expand(y.shape)).error.value == pytest.approx(1)


def test_a_constant_has_no_correlation():
    y, _ = noisy(2)
    assert math.isnan(Fidelity.of(y, torch.full_like(y, 0.1)).r.value)
    assert math.isnan(Fidelity.of(y, torch.zeros_like(y)).r.value)
    assert Fidelity.of(y, torch.zeros_like(y)).error.value >= 1
    constant = Fidelity.of(torch.full_like(y, 7.3), y)
    assert math.isnan(constant.r.value)
    assert math.isnan(constant.error.value)
    assert math.isnan(constant.r.low)


def test_intervals_cover_and_shrink():
    y, guess = noisy(3, images=400, positions=1)
    few, many = Fidelity.of(y[:20], guess[:20]).r, Fidelity.of(y, guess).r
    assert many.low < many.value < many.high
    assert many.high - many.low < few.high - few.low
    assert 1 / math.sqrt(1.25) in many
    assert many.n == 400
    assert "400 images" in many.method
    assert math.isnan(Fidelity.of(y[:1], guess[:1]).r.low)


def test_intervals_are_over_images_not_positions():
    """Positions of an image are copies of one another: more of them make no estimate surer."""
    y, guess = noisy(4, images=30, positions=1)
    one, many = Fidelity.of(y, guess), Fidelity.of(y.expand(-1, 50), guess.expand(-1, 50))
    assert many.error.low == pytest.approx(one.error.low, rel=1e-9)
    assert many.error.high == pytest.approx(one.error.high, rel=1e-9)


def test_measures_work_on_stacks_of_sums():
    sums = torch.stack([Fidelity.of(*noisy(seed)).sums.sum(0) for seed in range(3)])
    for measure in (correlation, normalized_error):
        assert torch.equal(measure(sums), torch.stack([measure(row) for row in sums]))


def test_shapes_must_match():
    with pytest.raises(ShapeError, match=r"\(2, 3\) and \(2, 4\)"):
        Fidelity.of(torch.zeros(2, 3), torch.zeros(2, 4))


# ---- of circuits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_the_whole_circuit_is_exact(name):
    target = locate_feature(network(name), f"{LAST[name]}:1", IMAGES)
    held = HeldOutImages.of(target, IMAGES)
    assert held.images == 6
    whole = held.fidelity(Circuit.full(target))
    assert whole.error.value == 0
    assert whole.r.value == pytest.approx(1)


@torch.no_grad()
@pytest.mark.parametrize("rule", ["all", "max", "center"])
def test_circuits_are_judged_at_the_positions_of_the_network(rule):
    target = locate_feature(network("residual"), f"last:1@{rule}", IMAGES)
    circuit = top_k(baseline_scores(target, "random", 3), 0.6)
    found = HeldOutImages.of(target, [IMAGES[:4], IMAGES[4:]]).fidelity(circuit)
    maps = target.feature_map(IMAGES)
    places = target.positions_of(maps)
    with target.ablated((~circuit).masks):
        guess = target.feature_map(IMAGES)
    y, guess = (values.gather(1, places).flatten().double().numpy() for values in (maps, guess))
    r, error = pencil.fidelity(y, guess)
    assert found.r.value == pytest.approx(r, rel=1e-6)
    assert found.error.value == pytest.approx(error, rel=1e-6)


def test_completeness_of_the_planted_circuit():
    model = Planted().eval()
    images = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    target = locate_feature(model, "c:0", images)
    held = HeldOutImages.of(target, images)
    truth = Circuit.of_feature(target, model.truth)
    assert held.fidelity(truth).error.value == 0
    rest = held.fidelity(~truth)  # zero everywhere
    values = target.feature_map(images).double().detach().numpy()
    assert rest.error.value == pytest.approx((values**2).sum() / ((values - values.mean()) ** 2).sum())
    assert math.isnan(rest.r.value)


def test_images_on_which_the_feature_is_constant_are_refused():
    target = locate_feature(Planted().eval(), "c:0", torch.zeros(1, 3, 8, 8))
    with pytest.raises(SampleError, match="never activates on these images"):
        HeldOutImages.of(target, torch.zeros(4, 3, 8, 8))
    with pytest.raises(SampleError, match="at least one image"):
        HeldOutImages.of(target, [])


def test_the_network_is_left_as_it_was():
    model = network("chain")
    target = locate_feature(model, "head:1", IMAGES)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    HeldOutImages.of(target, IMAGES).fidelity(top_k(baseline_scores(target, "random"), 0.5))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not np.any([module._forward_hooks for module in model.modules()])
