"""Reverse water-filling: the published example, its conditions of optimality, its limits."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pencil_discarding as pencil
from channelscope.discarding.noise import GAUSSIAN_ENTROPY, entropy, entropy_gap, isotropic, mean_entropy, water_filling
from channelscope.errors import NumericError, ShapeError

CELLS = 12
numbers = st.lists(st.floats(0.01, 100), min_size=CELLS, max_size=CELLS)
counts = st.lists(st.integers(1, 9), min_size=CELLS, max_size=CELLS)


def found(sensitivity, budget, cap, values=None):
    """The allocation for one image, from plain lists."""
    values = [1] * len(sensitivity) if values is None else values
    return water_filling(
        torch.tensor([sensitivity], dtype=torch.float64),
        torch.tensor([budget], dtype=torch.float64),
        torch.tensor(cap, dtype=torch.float64),
        torch.tensor(values, dtype=torch.float64),
    )


def test_the_published_numeric_example():
    weights = torch.tensor([[10.0, 20, 5, -20, -10]], dtype=torch.float64)
    free = torch.full((5,), torch.inf, dtype=torch.float64)
    sigma = water_filling(weights.square(), torch.tensor([0.00512], dtype=torch.float64), free, torch.ones(5).double()).noise_std
    torch.testing.assert_close(sigma, torch.tensor([[0.0032, 0.0016, 0.0064, 0.0016, 0.0032]]).double(), rtol=1e-6, atol=0)
    printed = torch.tensor([[0.00316, 0.00181, 0.00633, 0.00175, 0.00308]]).double()  # 5,000 published optimization steps
    assert ((printed - sigma).abs() / sigma).max() < 0.15


@settings(max_examples=30, deadline=None)
@given(numbers, numbers, st.floats(0.01, 1e4), st.lists(st.integers(0, 2), min_size=CELLS, max_size=CELLS))
def test_the_level_of_uniform_noise_agrees_with_bisection(sensitivity, cap, budget, values):
    given = [torch.tensor(each, dtype=torch.float64) for each in ([sensitivity], [budget], cap, values)]
    assert float(isotropic(*given)) == pytest.approx(pencil.isotropic(sensitivity, budget, cap, values), rel=1e-6)


def test_uniform_noise_without_caps_and_where_nothing_is_seen():
    free = torch.full((2,), torch.inf)
    assert isotropic(torch.tensor([[3.0, 1.0], [0.0, 0.0]]), torch.tensor([16.0, 1.0]), free, torch.ones(2)).tolist() == [2.0, math.inf]


@settings(max_examples=30, deadline=None)
@given(numbers, st.floats(0.01, 100))
def test_without_caps_every_cell_spends_the_same(sensitivity, budget):
    result = found(sensitivity, budget, [math.inf] * CELLS)
    expected = [math.sqrt(budget / (CELLS * g)) for g in sensitivity]
    assert np.allclose(result.noise_std[0], expected, rtol=1e-9)
    assert bool(result.reached.all())
    assert not bool(result.capped.any())


@settings(max_examples=40, deadline=None)
@given(numbers, st.floats(0.001, 1000), numbers, counts)
def test_agrees_with_bisection_on_the_water_level(sensitivity, budget, cap, values):
    result = found(sensitivity, budget, cap, values)
    assert np.allclose(result.noise_std[0], pencil.allocation(sensitivity, budget, cap, values), rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(numbers, st.floats(0.1, 10), numbers, counts)
def test_conditions_of_optimality(sensitivity, share, cap, values):
    """Budget spent; free cells at one level; capped cells would want more."""
    largest = sum(c * c * g for c, g in zip(cap, sensitivity, strict=True))
    budget = min(share / 10.1, 0.99) * largest
    result = found(sensitivity, budget, cap, values)
    spent = result.noise_std[0].square() * torch.tensor(sensitivity, dtype=torch.float64)
    assert math.isclose(float(spent.sum()), budget, rel_tol=1e-9)
    level, free = float(result.water_level[0]), ~result.capped[0]
    assert np.allclose((spent / torch.tensor(values))[free], level, rtol=1e-9)
    assert bool(((spent / torch.tensor(values))[~free] <= level * (1 + 1e-9)).all())


@settings(max_examples=20, deadline=None)
@given(numbers, numbers, counts, st.integers(0, 2**31))
def test_no_feasible_noise_has_more_entropy(sensitivity, cap, values, seed):
    budget = 0.3 * sum(c * c * g for c, g in zip(cap, sensitivity, strict=True))
    best = found(sensitivity, budget, cap, values).noise_std
    count = torch.tensor(values, dtype=torch.float64)
    source = torch.Generator().manual_seed(seed)
    other = (best * (1 + 0.3 * torch.randn(20, CELLS, generator=source, dtype=torch.float64)).abs()).clamp(max=torch.tensor(cap).double())
    spent = (other.square() * torch.tensor(sensitivity)).sum(1, keepdim=True)
    other = torch.minimum(other * (budget / spent).sqrt().clamp(max=1), torch.tensor(cap).double())
    assert (mean_entropy(other, count) <= mean_entropy(best, count) + 1e-9).all()


@settings(max_examples=20, deadline=None)
@given(numbers, numbers, st.floats(0.01, 100))
def test_the_unit_of_the_pixels_shifts_entropy_by_its_logarithm(sensitivity, cap, factor):
    budget = 0.3 * sum(c * c * g for c, g in zip(cap, sensitivity, strict=True))
    before = found(sensitivity, budget, cap).noise_std
    after = found([g / factor**2 for g in sensitivity], budget, [c * factor for c in cap]).noise_std
    assert np.allclose(after, before * factor, rtol=1e-9)
    gained = mean_entropy(after, torch.ones(CELLS)) - mean_entropy(before, torch.ones(CELLS))
    assert math.isclose(float(gained), math.log(factor), abs_tol=1e-9)


@settings(max_examples=20, deadline=None)
@given(numbers, numbers, st.floats(0.1, 0.4))
def test_a_larger_budget_never_quiets_a_cell(sensitivity, cap, share):
    largest = sum(c * c * g for c, g in zip(cap, sensitivity, strict=True))
    small, large = (found(sensitivity, part * largest, cap).noise_std for part in (share, 2 * share))
    assert (large >= small - 1e-12).all()


def test_what_caps_cannot_spend_is_said():
    result = found([1.0, 1.0], 5.0, [1.0, 1.0])
    assert not bool(result.reached.any())
    assert result.noise_std.tolist() == [[1.0, 1.0]]
    assert bool(result.capped.all())


def test_each_image_has_its_own_level():
    result = water_filling(torch.tensor([[1.0, 1.0], [4.0, 4.0]]), torch.tensor([0.5, 0.5]), torch.full((2,), torch.inf), torch.ones(2))
    torch.testing.assert_close(result.noise_std, torch.tensor([[0.5, 0.5], [0.25, 0.25]]))


def test_unseen_cells_sit_at_their_cap():
    result = found([0.0, 1.0, 1.0], 0.02, [0.3, 1.0, 1.0])
    torch.testing.assert_close(result.noise_std, torch.tensor([[0.3, 0.1, 0.1]]).double())
    assert result.capped.tolist() == [[True, False, False]]


def test_unseen_cells_without_a_cap_are_refused():
    with pytest.raises(NumericError, match=r"does not see 2 cells \(the first is 1\)"):
        found([1.0, 0.0, 0.0], 1.0, [math.inf] * 3)


def test_constant_cells_are_left_out():
    result = found([1.0, 0.0, 1.0], 2.0, [math.inf] * 3, [1, 0, 1])
    torch.testing.assert_close(result.noise_std, torch.tensor([[1.0, 0.0, 1.0]]).double())
    assert math.isclose(float(mean_entropy(result.noise_std, torch.tensor([1.0, 0, 1]))), GAUSSIAN_ENTROPY)


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_sensitivities_that_are_no_squares_are_refused(bad):
    with pytest.raises(NumericError, match="finite sensitivities"):
        found([1.0, bad], 1.0, [1.0, 1.0])


def test_cells_must_match():
    with pytest.raises(ShapeError, match="3 cells, 2 caps, 3 counts"):
        found([1.0, 1.0, 1.0], 1.0, [1.0, 1.0])


@pytest.mark.parametrize("deviation", [0.01, 0.5, 3.0])
def test_entropy_is_the_integral(deviation):
    assert math.isclose(float(entropy(torch.tensor(deviation, dtype=torch.float64))), pencil.entropy(deviation), abs_tol=1e-6)


def test_no_noise_has_no_entropy():
    assert float(entropy(torch.tensor(0.0))) == -math.inf


def test_unspent_entropy_is_jensens_gap_also_of_runaway_cells():
    """Shares without noise: ½ (ln mean s − mean ln s), up to twenty times the mean."""
    share = torch.linspace(0.3, 2, 64, dtype=torch.float64)
    share[5] = 20.0
    s = share / share.mean()
    expected = 0.5 * (s - 1 - s.log()).mean()
    found = entropy_gap(share.expand(3, 1, 64), torch.ones(1, 64, dtype=torch.bool))
    torch.testing.assert_close(found[0], expected)


def test_unspent_entropy_has_no_noise_in_it():
    """Equal shares seen through noise larger than themselves: nothing to gain, on average over images."""
    source = torch.Generator().manual_seed(0)
    share = 1 + 1.5 * torch.randn(40, 50, 256, generator=source, dtype=torch.float64)
    found = entropy_gap(share, torch.ones(50, 256, dtype=torch.bool))
    assert abs(float(found.mean())) < 3 * float(found.std()) / 50**0.5 + 0.002
    assert float(found.std()) < 0.01


def test_unspent_entropy_is_of_free_cells_alone():
    share = torch.ones(2, 1, 8)
    share[..., 4:] = 100.0
    free = torch.arange(8)[None] < 4
    assert float(entropy_gap(share, free)) == 0.0
