import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import pencil
import pencil_experiments
from channelscope.errors import ShapeError
from channelscope.formulas.ranks import constant, partial_correlation, partial_spearman, ranks, spearman

FEW = st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=3, max_size=20)


def columns(n, k, seed=0):
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(FEW)
@settings(deadline=None)
def test_spearman_twin_with_ties(pairs):
    x, y = (torch.tensor([float(pair[side]) for pair in pairs], dtype=torch.float64) for side in (0, 1))
    value = float(spearman(x, y))
    if len(x.unique()) == 1 or len(y.unique()) == 1:
        assert math.isnan(value)
    else:
        assert value == pytest.approx(pencil.spearman(x.numpy(), y.numpy()))
        assert value == pytest.approx(stats.spearmanr(x.numpy(), y.numpy()).statistic)


def test_spearman_sees_order_only():
    x, y = columns(30, 2).T
    value = spearman(x, y)
    torch.testing.assert_close(spearman(x.exp(), y**3), value)
    torch.testing.assert_close(spearman(-x, y), -value)
    torch.testing.assert_close(spearman(y, x), value)
    assert float(spearman(x, x.exp())) == pytest.approx(1)


def test_spearman_leaves_nan_out_and_ranks_inf_last():
    x = torch.tensor([1.0, 2.0, math.nan, 3.0, math.inf, 4.0])
    y = torch.tensor([1.0, 3.0, 5.0, 2.0, 9.0, math.nan])
    kept = [0, 1, 3, 4]
    expected = pencil.spearman(x[kept].numpy(), y[kept].numpy())
    assert float(spearman(x, y)) == pytest.approx(expected)


def test_spearman_by_column():
    x, y = columns(15, 3, 1), columns(15, 3, 2)
    x[4, 1] = math.nan
    value = spearman(x, y)
    assert value.shape == (3,)
    for k in range(3):
        torch.testing.assert_close(value[k], spearman(x[:, k], y[:, k]))
    torch.testing.assert_close(spearman(x[:, 0], y)[2], spearman(x[:, 0], y[:, 2]))
    torch.testing.assert_close(spearman(x, y[:, 0])[1], spearman(x[:, 1], y[:, 0]))


def test_spearman_undefined_and_refused():
    assert spearman(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0])).isnan()
    assert spearman(torch.ones(5), torch.arange(5.0)).isnan()
    with pytest.raises(ShapeError, match="5 and 4 rows"):
        spearman(torch.ones(5), torch.ones(4))


@given(st.integers(0, 10_000), st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_partial_spearman_twin(seed, k):
    rows = columns(25, 2 + k, seed)
    rows[:, 0] += rows[:, 2]
    rows[:, 1] += rows[:, 2].round()
    value = float(partial_spearman(rows[:, 0], rows[:, 1], rows[:, 2:]))
    expected = pencil.partial_spearman(rows[:, 0].numpy(), rows[:, 1].numpy(), rows[:, 2:].numpy())
    assert value == pytest.approx(expected, abs=1e-9)


def test_partial_spearman_removes_a_common_cause():
    rows = columns(4000, 3, 7)
    x, y = rows[:, 0] + 3 * rows[:, 2], rows[:, 1] + 3 * rows[:, 2]
    assert float(spearman(x, y)) > 0.85
    assert abs(float(partial_spearman(x, y, rows[:, 2:]))) < 0.1


def test_partial_spearman_edge_cases():
    rows = columns(12, 3, 3)
    x, y, z = rows.T
    torch.testing.assert_close(partial_spearman(x, y, rows[:, :0]), spearman(x, y))
    assert partial_spearman(x, y, x[:, None]).isnan()
    assert partial_spearman(x[:3], y[:3], z[:3, None]).isnan()
    longer = [torch.cat([column, torch.tensor([math.nan], dtype=torch.float64)]) for column in (x, y, z)]
    torch.testing.assert_close(partial_spearman(longer[0], longer[1], longer[2][:, None]), partial_spearman(x, y, z[:, None]))


# ---------------------------------------------------------------- partial correlation


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 5), st.integers(7, 30))
def test_equals_the_correlation_of_residuals(seed, k, n):
    columns = np.random.default_rng(seed).normal(size=(n, k)) @ np.random.default_rng(seed + 1).normal(size=(k, k))
    assert partial_correlation(torch.tensor(columns)).item() == pytest.approx(pencil_experiments.partial_correlation(columns), abs=1e-6)


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
    np.testing.assert_allclose(ranks(torch.tensor(values, dtype=torch.float64)).numpy(), pencil_experiments.ranked(values))


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
