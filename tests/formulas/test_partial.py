"""Partial correlation against residuals, and its limits."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import pencil_experiments as pencil
from channelscope.errors import ShapeError
from channelscope.formulas.ranks import constant, partial_correlation, ranks


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 5), st.integers(7, 30))
def test_equals_the_correlation_of_residuals(seed, k, n):
    columns = np.random.default_rng(seed).normal(size=(n, k)) @ np.random.default_rng(seed + 1).normal(size=(k, k))
    assert partial_correlation(torch.tensor(columns)).item() == pytest.approx(pencil.partial_correlation(columns), abs=1e-6)


def test_many_samples_at_once_are_each_on_their_own():
    columns = torch.randn(4, 3, 12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole = partial_correlation(columns)
    assert whole.shape == (4, 3)
    torch.testing.assert_close(whole[2, 1], partial_correlation(columns[2, 1]))


def test_two_columns_on_ranks_are_spearman():
    a, b = torch.randn(2, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = stats.spearmanr(a.numpy(), b.numpy()).statistic
    assert partial_correlation(torch.stack([ranks(a), ranks(b)], 1)).item() == pytest.approx(expected)


def test_a_chain_loses_its_ends_correlation_once_the_middle_is_known():
    source = torch.Generator().manual_seed(2)
    first = torch.randn(20_000, dtype=torch.float64, generator=source)
    middle = first + torch.randn(20_000, dtype=torch.float64, generator=source)
    last = middle + torch.randn(20_000, dtype=torch.float64, generator=source)
    assert partial_correlation(torch.stack([first, last], 1)).item() > 0.5
    assert abs(partial_correlation(torch.stack([first, last, middle], 1)).item()) < 0.03


def test_scale_shift_and_order_of_the_given_columns_do_not_matter():
    columns = torch.randn(15, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    moved = columns * torch.tensor([2.0, 5.0, 0.1, 30.0]) + torch.tensor([1.0, -3.0, 100.0, 0.0])
    torch.testing.assert_close(partial_correlation(moved[:, [0, 1, 3, 2]]), partial_correlation(columns))
    torch.testing.assert_close(partial_correlation(columns[:, [1, 0, 2, 3]]), partial_correlation(columns))


@pytest.mark.parametrize(
    "columns",
    [
        torch.ones(10, 2),
        torch.stack([torch.arange(10.0), torch.randn(10), torch.arange(10.0) * 3], 1),
        torch.randn(2, 2),
        torch.randn(3, 3),
    ],
    ids=["constant", "determined", "too few for two", "too few for three"],
)
def test_undefined_is_nan(columns):
    assert partial_correlation(columns).isnan()


def test_exact_dependence_is_one_in_size():
    a = torch.randn(12, dtype=torch.float64)
    assert partial_correlation(torch.stack([a, -3 * a], 1)).item() == pytest.approx(-1)
    b = torch.randn(12, dtype=torch.float64)
    assert partial_correlation(torch.stack([a, a + b, b], 1)).item() == pytest.approx(1)


def test_columns_given_twice_or_constant_change_nothing():
    columns = torch.randn(15, 3, dtype=torch.float64)
    expected = partial_correlation(columns)
    torch.testing.assert_close(partial_correlation(torch.cat([columns, columns[:, 2:]], 1)), expected)
    torch.testing.assert_close(partial_correlation(torch.cat([columns, torch.ones(15, 1)], 1)), expected)


def test_one_sample_that_is_undefined_leaves_the_others_alone():
    columns = torch.randn(3, 10, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    alone = partial_correlation(columns)
    columns[1, :, 0] = 7
    value = partial_correlation(columns)
    assert value[1].isnan()
    torch.testing.assert_close(value[[0, 2]], alone[[0, 2]])


def test_one_column_is_refused():
    with pytest.raises(ShapeError, match="two columns, received 1"):
        partial_correlation(torch.randn(10, 1))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=12))
def test_ranks_by_counting(values):
    np.testing.assert_allclose(ranks(torch.tensor(values, dtype=torch.float64)).numpy(), pencil.ranked(values))


def test_infinity_ranks_last_and_nan_has_no_rank():
    assert ranks(torch.tensor([torch.inf, 0.0, 5.0])).tolist() == [3, 1, 2]
    with pytest.raises(ShapeError, match="nan has no rank"):
        ranks(torch.tensor([0.0, torch.nan]))


@pytest.mark.parametrize("value", [0.1, 0.3, 0.7, 1.1])
@pytest.mark.parametrize("n", [7, 10, 13, 50])
def test_a_constant_whose_mean_is_rounded_is_constant(value, n):
    flat = torch.full((n,), value, dtype=torch.float64)
    noise = torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    assert constant(torch.column_stack([flat, noise])).tolist() == [True, False, False]
    assert partial_correlation(torch.column_stack([flat, noise[:, 0]])).isnan()
    plain = partial_correlation(noise)
    torch.testing.assert_close(partial_correlation(torch.column_stack([noise, flat])), plain)
