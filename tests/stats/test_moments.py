"""Moments are a commutative monoid and keep their digits; normal equations add up, and their ridge solution is the textbook's."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pencil
from channelscope.errors import ShapeError
from channelscope.stats.moments import Moments, NormalEquations, approximate_mean, cross_validated_error, gram
from pencil_pruning import ridge_slowly

SEEDS = st.integers(0, 10_000)
SIZES = st.lists(st.integers(0, 30), min_size=1, max_size=6)


def block(n, d=4, seed=0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=generator, dtype=torch.float64)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) @ mixing + shift


def close(a, b, tolerance=1e-10):
    assert a.count == pytest.approx(b.count)
    torch.testing.assert_close(a.mean, b.mean, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(a.scatter, b.scatter, rtol=tolerance, atol=tolerance * max(1.0, float(b.scatter.abs().max())))


def test_moments_are_the_definition():
    x = block(50, shift=3)
    count, mean, scatter = pencil.moments(x.numpy())
    found = Moments.of(x)
    assert found.count == count
    np.testing.assert_allclose(found.mean, mean)
    np.testing.assert_allclose(found.scatter, scatter)
    np.testing.assert_allclose(found.covariance, np.cov(x.numpy().T, bias=True))
    np.testing.assert_allclose(found.variance, x.numpy().var(0))
    assert len(found) == 4


@settings(max_examples=40, deadline=None)
@given(SIZES, SEEDS)
def test_the_moments_of_a_union_are_the_sum_whatever_the_partition(sizes, seed):
    x = block(sum(sizes), seed=seed, shift=5)
    total = Moments.zero(4)
    for part in x.split(sizes):
        total = total + Moments.of(part)
    close(total, Moments.of(x), 1e-9)


@settings(max_examples=30, deadline=None)
@given(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9)), SEEDS)
def test_addition_is_associative_and_commutative_with_a_zero(sizes, seed):
    a, b, c = (Moments.of(part) for part in block(sum(sizes), seed=seed).split(sizes))
    close((a + b) + c, a + (b + c))
    close(a + b, b + a)
    close(a + Moments.zero(4), a)
    close(Moments.zero(4) + a, a)


def test_adding_leaves_both_terms_as_they_were():
    a, b = Moments.of(block(5)), Moments.of(block(6, seed=1))
    before = [part.clone() for part in (a.mean, a.scatter, b.mean, b.scatter)]
    a + b
    for part, old in zip((a.mean, a.scatter, b.mean, b.scatter), before, strict=True):
        assert torch.equal(part, old)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=4, unique=True), SEEDS)
def test_indexing_commutes_with_measuring_and_with_adding(index, seed):
    x, y = block(20, seed=seed), block(15, seed=seed + 1)
    close(Moments.of(x)[index], Moments.of(x[:, index]))
    close((Moments.of(x) + Moments.of(y))[index], Moments.of(x)[index] + Moments.of(y)[index])


def test_slices_and_tensors_index_alike():
    x = Moments.of(block(20))
    close(x[:2], x[[0, 1]])
    close(x[torch.tensor([True, False, True, False])], x[[0, 2]])


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_scaling_commutes_with_measuring(seed):
    x = block(25, seed=seed)
    factor, shift = block(1, seed=seed + 1)[0], block(1, seed=seed + 2)[0]
    close(Moments.of(x).scaled(factor, shift), Moments.of(x * factor + shift))


def test_float32_samples_far_from_zero_keep_seven_digits_where_raw_sums_keep_none():
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(20_000, 3, generator=generator) @ torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, 0.3], [0.0, 0.0, 1.0]]) + 1000).float()
    exact = np.cov(x.double().numpy().T, bias=True)
    ours = sum((Moments.of(part) for part in x.split(1500)), Moments.zero(3)).covariance.numpy()
    raw = (x.T @ x / len(x) - torch.outer(x.mean(0), x.mean(0))).numpy()
    assert np.abs(ours - exact).max() < 1e-6
    assert np.abs(raw - exact).max() > 0.05, "the control must fail, or the test proves nothing"


def test_whole_numbers_and_half_precision_are_counted_in_float32():
    x = torch.arange(12).view(6, 2)
    close(Moments.of(x), Moments.of(x.double()))
    half = Moments.of(block(30).half())
    assert half.scatter.dtype == torch.float64
    close(half, Moments.of(block(30).half().double()), 1e-5)


def test_measuring_leaves_the_samples_as_they_were():
    x = block(10).float()
    before = x.clone()
    Moments.of(x)
    assert torch.equal(x, before)


def test_no_samples_have_no_spread():
    nothing = Moments.of(torch.zeros(0, 3))
    assert nothing.count == 0
    assert torch.equal(nothing.scatter, torch.zeros(3, 3, dtype=torch.float64))


def test_moments_of_different_coordinates_do_not_add():
    with pytest.raises(ShapeError, match="4 and 3 coordinates"):
        Moments.of(block(5)) + Moments.of(block(5, d=3))


@pytest.mark.parametrize("d", [1, 5, 255, 256, 257, 300, 515])
def test_the_symmetric_product_is_the_product(d):
    x = torch.randn(40, d, generator=torch.Generator().manual_seed(d))
    expected = x.T @ x
    torch.testing.assert_close(gram(x), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(gram(x), gram(x).T)
    room = torch.full((d + 2, d + 2), 7.0)
    gram(x, room[:d, :d])
    torch.testing.assert_close(room[:d, :d], expected, rtol=1e-4, atol=1e-4)
    assert bool((room[d:] == 7).all()), "the product wrote beyond its place"
    assert bool((room[:, d:] == 7).all())


@pytest.mark.parametrize("n", [1, 2, 255, 256, 257, 5000])
def test_the_point_near_the_mean_is_near_it(n):
    x = block(n, shift=100.0)
    away = (approximate_mean(x) - x.mean(0)).abs() / (x.std(0, correction=0) + 1)
    assert float(away.max()) < (0.5 if n > 256 else 1e-12)


def test_a_misleading_start_does_not_mislead():
    """The point near the mean comes from few rows: here from rows that are nothing like the others."""
    x = block(4096, shift=1.0).float()
    x[::17] += 50
    exact = Moments.of(x.double())
    close(Moments.of(x), exact, 5e-5)  # float32 sums of 4,096 squares, in whatever order the processor adds them
    assert float(((Moments.of(x).mean - exact.mean) / exact.variance.sqrt()).abs().max()) < 1e-6


def samples(seed=0, n=200, groups=2, inputs=5, outputs=3):
    source = torch.Generator().manual_seed(seed)
    x = torch.randn(groups, n, inputs, generator=source, dtype=torch.float64) + 3
    t = (
        x @ torch.randn(groups, inputs, outputs, generator=source, dtype=torch.float64)
        + torch.randn(groups, n, outputs, generator=source).double()
    )
    return x, t, torch.randn(groups, outputs, inputs, generator=source, dtype=torch.float64)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 199), max_size=4, unique=True), st.integers(0, 100))
def test_statistics_of_a_union_are_the_sum(cuts, seed):
    x, t, _prior = samples(seed)
    whole = NormalEquations.of(x, t)
    bounds = [0, *sorted(cuts), 200]
    parts = [NormalEquations.of(x[:, a:b], t[:, a:b]) for a, b in pairwise(bounds)]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    assert total.count == 200
    for name in ("x_mean", "t_mean", "xx", "xt", "tt"):
        torch.testing.assert_close(getattr(total, name), getattr(whole, name), rtol=1e-9, atol=1e-9)


def test_ridge_toward_a_prior_is_the_augmented_least_squares():
    x, t, prior = samples()
    statistics = NormalEquations.of(x, t)
    for share in (0.0, 0.03, 1.0):
        (fitted,) = statistics.ridge(prior, (share,))
        for group in range(2):
            weights, constant = ridge_slowly(x[group].numpy(), t[group].numpy(), prior[group].numpy(), share)
            np.testing.assert_allclose(fitted[group].numpy(), weights, rtol=1e-7, atol=1e-9)
            np.testing.assert_allclose(statistics.intercept(fitted)[group].numpy(), constant, rtol=1e-7, atol=1e-8)


def test_a_strong_ridge_keeps_the_prior_and_so_does_a_constant_input():
    x, t, prior = samples()
    torch.testing.assert_close(next(NormalEquations.of(x, t).ridge(prior, (1e9,))), prior, rtol=1e-6, atol=1e-6)
    still = NormalEquations.of(torch.ones_like(x), t)
    assert torch.equal(next(still.ridge(prior, (0.03,))), prior)


def test_errors_and_outputs_are_those_of_the_samples():
    x, t, prior = samples()
    statistics = NormalEquations.of(x, t)
    guess = x @ prior.transpose(1, 2) + statistics.intercept(prior)[:, None]
    torch.testing.assert_close(statistics.error(prior), (guess - t).square().mean(1), rtol=1e-8, atol=1e-8)
    mean, variance = statistics.output_moments(prior)
    product = x @ prior.transpose(1, 2)
    torch.testing.assert_close(mean, product.mean(1))
    torch.testing.assert_close(variance, product.var(1, correction=0))
    (fitted,) = statistics.ridge(prior, (0.01,))
    assert bool((statistics.error(fitted) <= statistics.error(prior)).all())


def test_without_a_constant_the_samples_are_taken_about_zero():
    x, t, prior = samples()
    (fitted,) = NormalEquations.of(x, t).about_zero().ridge(prior, (0.0,))
    for group in range(2):
        expected = np.linalg.lstsq(x[group].numpy(), t[group].numpy(), rcond=None)[0].T
        np.testing.assert_allclose(fitted[group].numpy(), expected, rtol=1e-7, atol=1e-8)
    assert bool((NormalEquations.of(x, t).about_zero().intercept(fitted) == 0).all())


def test_held_out_errors_are_those_of_each_half_predicting_the_other():
    x, t, prior = samples(n=60)
    halves = (slice(None, 30), slice(30, None))
    expected = []
    for share in (0.1, 10.0):
        total = 0.0
        for fit, judge in (halves, halves[::-1]):
            for group in range(2):
                weights, _ = ridge_slowly(x[group, fit].numpy(), t[group, fit].numpy(), prior[group].numpy(), share)
                rest = t[group, judge].numpy() - x[group, judge].numpy() @ weights.T
                total += np.mean((rest - rest.mean(0)) ** 2) / 4
        expected.append(total)
    parts = [NormalEquations.of(x[:, half], t[:, half]) for half in halves]
    received = cross_validated_error((parts[0], parts[1]), prior, (0.1, 10.0))
    np.testing.assert_allclose(received.numpy(), expected, rtol=1e-4)


def test_a_sum_in_the_memory_of_the_first():
    one, other = (Moments.of(torch.randn(5, 3, generator=torch.Generator().manual_seed(seed)).double()) for seed in (0, 1))
    wanted, place = one + other, one.scatter.data_ptr()
    found = one.add_(other)
    assert found.count == wanted.count
    assert found.scatter.data_ptr() == place
    torch.testing.assert_close(found.mean, wanted.mean, rtol=0, atol=0)
    torch.testing.assert_close(found.scatter, wanted.scatter, rtol=1e-12, atol=1e-12)
