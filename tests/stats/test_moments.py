"""Moments are a commutative monoid, index as they are measured, and keep their digits where raw sums lose them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pencil
from channelscope.errors import ShapeError
from channelscope.stats.moments import Moments, approximate_mean, gram

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
