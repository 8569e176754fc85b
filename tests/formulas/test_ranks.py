import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import pencil
from channelscope.errors import InputError, ShapeError
from channelscope.formulas.ranks import matched_cells, partial_spearman, spearman, within_cells

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


# ---------------------------------------------------------------- matched cells


def test_matched_cells_are_equally_full():
    cells = matched_cells(columns(90, 1), 3)
    assert cells.bincount().tolist() == [30, 30, 30]
    two = matched_cells(columns(900, 2), 3)
    assert len(two.unique()) == 9
    assert int(two.bincount().min()) > 60


def test_matched_cells_keep_ties_together_and_nan_out():
    covariate = torch.tensor([[1.0], [1.0], [1.0], [2.0], [math.nan], [3.0]])
    cells = matched_cells(covariate, 2)
    assert cells.tolist() == [0, 0, 0, 1, -1, 1]
    assert matched_cells(columns(5, 2), 1).tolist() == [0] * 5
    order = columns(20, 1).flatten().argsort()
    assert bool((matched_cells(columns(20, 1), 4)[order].diff() >= 0).all())
    with pytest.raises(InputError, match="bins"):
        matched_cells(covariate, 0)


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_within_cells_twin(seed):
    rows = columns(40, 2, seed)
    cells = torch.randint(-1, 3, (40,), generator=torch.Generator().manual_seed(seed))
    found = within_cells(rows[:, 0], rows[:, 1], cells)
    rho, gap = pencil.within_cells(rows[:, 0].numpy(), rows[:, 1].numpy(), cells.numpy(), 5)
    assert found.correlation == pytest.approx(rho)
    assert found.difference == pytest.approx(gap)
    sizes = cells[cells >= 0].bincount()
    assert found.rows == int(sizes[sizes >= 5].sum())


def test_matching_removes_a_common_cause():
    rows = columns(6000, 3, 2)
    x, y = rows[:, 0] + 3 * rows[:, 2], rows[:, 1] + 3 * rows[:, 2]
    everyone = within_cells(x, y, torch.zeros(6000, dtype=torch.long))
    matched = within_cells(x, y, matched_cells(rows[:, 2:], 20))
    assert everyone.correlation > 0.85
    assert abs(matched.correlation) < 0.25
    assert abs(matched.difference) < 0.2 * everyone.difference


def test_a_planted_effect_survives_matching():
    rows = columns(1000, 3, 4)
    found = within_cells(rows[:, 0], rows[:, 0] * 2 + rows[:, 1], matched_cells(rows[:, 2:], 4))
    assert found.correlation > 0.8
    assert found.difference > 2
    assert (found.cells, found.rows) == (4, 1000)


def test_within_cells_leaves_small_and_constant_cells_out():
    x, y = torch.arange(10.0), torch.arange(10.0) ** 2
    cells = torch.tensor([0] * 6 + [1] * 4)
    found = within_cells(x, y, cells)
    assert (found.cells, found.rows, found.correlation) == (1, 6, pytest.approx(1))
    nothing = within_cells(torch.ones(10), y, cells)
    assert math.isnan(nothing.correlation)
    assert nothing.rows == 0
    x[0] = math.nan
    assert within_cells(x, y, cells).rows == 5
    assert np.isnan(within_cells(x, y, torch.full((10,), -1)).difference)
