"""Fidelity against its definition, its laws, and circuits whose fidelity is known."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pencil_circuits as pencil
from channelscope.circuits.circuit import Circuit
from channelscope.circuits.criteria import baseline_scores
from channelscope.circuits.evaluation import Fidelity, HeldOutImages, correlation, normalized_error
from channelscope.circuits.feature import locate_feature
from channelscope.circuits.selection import top_k
from channelscope.errors import SampleError, ShapeError
from pencil_circuits import LAST, NETWORKS, Planted, network, pictures

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
