""""""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import pencil
from channelscope.errors import InputError, SampleError, ShapeError
from channelscope.formulas.intervals import (
    Interval,
    bootstrap,
    bootstrap_counts,
    bootstrap_mean,
    bootstrap_means,
    effect_size,
    holm,
    jackknife,
    permutation_p,
    sign_flip,
    sign_flip_contrasts,
    student_reach,
    t_interval,
)

NUMBERS = st.floats(-10, 10, allow_nan=False, width=32)


def leave_one_out(values, statistic):
    return torch.stack([statistic(torch.cat([values[:i], values[i + 1 :]])) for i in range(len(values))])


def test_interval_reads_and_contains():
    interval = Interval(0.3123, 0.27, 0.35449, 10, "by hand")
    assert str(interval) == "0.312 [0.27, 0.354]"
    assert 0.3 in interval
    assert 0.27 in interval
    assert 0.4 not in interval
    assert 0.3 not in Interval(0.3, math.nan, math.nan, 1, "none")
    with pytest.raises(AttributeError):
        interval.value = 1.0


@given(st.lists(NUMBERS, min_size=3, max_size=12))
@settings(deadline=None)
def test_jackknife_of_a_mean_is_its_standard_error(numbers):
    values = torch.tensor(numbers, dtype=torch.float64)
    result = jackknife(values.mean(), leave_one_out(values, torch.mean))
    assert float(result.standard_error) == pytest.approx(float(values.std() / len(values) ** 0.5), abs=1e-9)
    assert float(result.corrected) == pytest.approx(float(values.mean()), abs=1e-9)


def test_jackknife_twin_shapes_and_interval():
    replicates = torch.randn(10, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    value = replicates.mean(0) + 0.01
    result = jackknife(value, replicates)
    np.testing.assert_allclose(result.standard_error, [pencil.jackknife(column) for column in replicates.numpy().T])
    one = jackknife(value[0], replicates[:, 0]).interval(0.9)
    reach = stats.t.ppf(0.95, 9) * pencil.jackknife(replicates[:, 0].numpy())
    assert one.high - one.value == pytest.approx(reach)
    assert one.value - one.low == pytest.approx(reach)
    assert (one.n, one.level) == (10, 0.9)
    assert "10 groups" in one.method


def test_jackknife_removes_the_bias_of_a_plug_in_variance():
    values = torch.randn(20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    result = jackknife(values.var(correction=0), leave_one_out(values, lambda v: v.var(correction=0)))
    assert float(result.corrected) == pytest.approx(float(values.var(correction=1)))


def test_jackknife_covers():
    generator = torch.Generator().manual_seed(0)
    hits = 0
    for _ in range(400):
        values = torch.randn(8, generator=generator, dtype=torch.float64)
        hits += 0.0 in jackknife(values.mean(), leave_one_out(values, torch.mean)).interval()
    assert 0.91 < hits / 400 < 0.985


def test_jackknife_undefined_and_refused():
    result = jackknife(torch.tensor([1.0, math.inf]), torch.tensor([[1.0, math.inf], [2.0, math.inf], [math.nan, 1.0]]))
    assert bool(result.standard_error.isnan().all())
    with pytest.raises(SampleError, match="2 groups"):
        jackknife(torch.tensor(1.0), torch.tensor([1.0]))
    with pytest.raises(ShapeError, match="replicates"):
        jackknife(torch.zeros(3), torch.zeros(5, 2))


def test_shard_weights_are_draws_with_replacement():
    weights = bootstrap_counts(10, 4000, 3)
    assert bool((weights.sum(1) == 10).all())
    assert torch.equal(weights, bootstrap_counts(10, 4000, 3))
    assert not torch.equal(weights, bootstrap_counts(10, 4000, 4))
    assert float(weights.mean()) == 1
    assert float(weights.var()) == pytest.approx(0.9, rel=0.05)
    with pytest.raises(SampleError, match="2 of them"):
        bootstrap_counts(1, 5)


def test_bootstrap_mean_covers_and_is_seeded():
    generator = torch.Generator().manual_seed(0)
    hits = sum(0.0 in bootstrap_mean(torch.randn(30, generator=generator), 400, seed=trial) for trial in range(200))
    assert 0.86 < hits / 200 < 0.99
    values = torch.tensor([1.0, 2.0, 4.0, math.nan], dtype=torch.float64)
    one = bootstrap_mean(values, seed=5)
    assert one == bootstrap_mean(values, seed=5)
    assert one.value == pytest.approx(7 / 3)
    assert one.n == 3
    assert 1 <= one.low <= one.value <= one.high <= 4


@pytest.mark.parametrize("values", [[], [3.0], [math.nan, 3.0]])
def test_bootstrap_mean_of_too_few_has_no_ends(values):
    result = bootstrap_mean(torch.tensor(values))
    assert math.isnan(result.low)
    assert math.isnan(result.high)
    assert math.isnan(result.value) == (len(values) == 0)


def test_bootstrap_of_a_statistic_of_two_columns():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, generator=generator, dtype=torch.float64)
    y = x + torch.randn(200, generator=generator, dtype=torch.float64)

    def pearson(a, b):
        return float(torch.corrcoef(torch.stack([a, b]))[0, 1])

    result = bootstrap(pearson, x, y, draws=500)
    assert 0.5**0.5 in result
    assert result.value == pytest.approx(pearson(x, y))
    assert result.n == 200
    assert result.high - result.low < 0.25
    assert result == bootstrap(pearson, x, y, draws=500)


def test_bootstrap_within_strata_keeps_every_stratum_whole():
    layer = torch.tensor([0, 0, 0, 5, 5])
    x = torch.tensor([1.0, 2.0, 3.0, 100.0, 100.0], dtype=torch.float64)
    result = bootstrap(lambda v: float((v == 100).sum()), x, strata=layer, draws=50)
    assert (result.low, result.high) == (2, 2)
    assert "2 strata" in result.method


def test_bootstrap_undefined_and_refused():
    x = torch.arange(4.0)
    result = bootstrap(lambda v: math.nan, x, draws=10)
    assert math.isnan(result.low)
    with pytest.raises(ShapeError, match="different length"):
        bootstrap(lambda a, b: 0.0, x, x[:2])
    with pytest.raises(ShapeError, match="strata 2"):
        bootstrap(lambda a: 0.0, x, strata=torch.zeros(2))
    with pytest.raises(SampleError, match="no rows"):
        bootstrap(lambda a: 0.0, x[:0])


def eighths(n: int, k: int) -> torch.Tensor:
    """Numbers whose sums, and whose means over a power of two, are exact in floating point."""
    return torch.randint(0, 9, (n, k), generator=torch.Generator().manual_seed(n)).double() / 8


def test_means_of_shared_resamples_are_those_of_each_column_with_the_same_rows():
    columns = eighths(32, 5)
    picks = torch.from_numpy(np.random.default_rng(3).integers(32, size=(150, 32)))
    assert torch.equal(bootstrap_means(columns, 150, 3), columns[picks].mean(1))


def test_intervals_from_shared_resamples_are_those_of_each_difference():
    columns = eighths(64, 3)
    means = bootstrap_means(columns, 500)
    for one, two in itertools.combinations(range(3), 2):
        alone = bootstrap_mean(columns[:, one] - columns[:, two], 500)
        low, high = np.quantile((means[:, one] - means[:, two]).numpy(), [(1 - 0.95) / 2, (1 + 0.95) / 2])
        assert (low, high) == (alone.low, alone.high)


def test_a_bootstrap_of_no_rows_is_refused():
    with pytest.raises(SampleError, match="no rows"):
        bootstrap_means(torch.zeros(0, 2))


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor, pd.Series])
def test_student_interval_is_scipys_and_leaves_nan_out(kind):
    mean, low, high = t_interval(kind([1.0, 4.0, math.nan, 2.5, 3.0]), 0.9)
    numbers = np.array([1.0, 4.0, 2.5, 3.0])
    expected = stats.t.interval(0.9, 3, numbers.mean(), stats.sem(numbers))
    assert (mean, low, high) == pytest.approx((2.625, *expected))


@pytest.mark.parametrize(("values", "mean"), [([], math.nan), ([math.nan], math.nan), ([3.0, math.nan], 3.0)])
def test_student_interval_of_too_few_has_no_ends(values, mean):
    assert t_interval(values) == pytest.approx((mean, math.nan, math.nan), nan_ok=True)


def test_student_reach_without_freedom_is_undefined():
    assert math.isnan(student_reach(1.0, 0))
    assert student_reach(2.0, 1) == pytest.approx(25.4124095)


@pytest.mark.parametrize(("undefined", "ends"), [(10, True), (11, False)])
def test_a_bootstrap_undefined_on_more_than_half_of_its_draws_has_no_ends(undefined, ends):
    answers = iter([1.0, *[math.nan] * undefined, *[2.0] * (20 - undefined)])
    result = bootstrap(lambda x: next(answers), torch.arange(4.0), draws=20)
    assert (result.low, result.high) == (pytest.approx((2, 2)) if ends else pytest.approx((math.nan, math.nan), nan_ok=True))


def test_permutation_p_twin_and_sides():
    null = torch.randn(99, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for observed in (-3.0, 0.1, 1.5, 9.0):
        value = torch.tensor(observed, dtype=torch.float64)
        assert float(permutation_p(value, null)) == pytest.approx(pencil.permutation_p(observed, null.tolist()))
        assert float(permutation_p(-value, -null, "less")) == pytest.approx(float(permutation_p(value, null)))
        distance = (null - null.mean()).abs().tolist()
        both = pencil.permutation_p(abs(observed - float(null.mean())), distance)
        assert float(permutation_p(value, null, "both")) == pytest.approx(both)
    assert float(permutation_p(torch.tensor(9.0), null)) == pytest.approx(0.01)


def test_permutation_p_of_many_at_once():
    null = torch.randn(19, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    null[4, 1] = math.nan
    p = permutation_p(torch.tensor([5.0, 5.0, math.nan]), null)
    assert float(p[0]) == pytest.approx(1 / 20)
    assert p.isnan().tolist() == [False, True, True]
    with pytest.raises(InputError, match="side"):
        permutation_p(torch.tensor(0.0), null, "two")


def test_permutation_p_is_uniform_under_the_null():
    draws = torch.randn(20, 4000, generator=torch.Generator().manual_seed(1))
    p = permutation_p(draws[0], draws[1:])
    for level in (0.05, 0.25, 0.5):
        assert float((p <= level + 1e-9).double().mean()) == pytest.approx(level, abs=0.03)


def test_permuted_ties_count_as_hits():
    assert permutation_p(torch.tensor(0.1 + 0.2, dtype=torch.float64), torch.tensor([0.3], dtype=torch.float64)) == 1


@given(st.lists(st.integers(-20, 20).map(lambda k: k / 8), min_size=1, max_size=7))
@settings(deadline=None)
def test_sign_flip_twin(numbers):
    assert sign_flip(torch.tensor(numbers, dtype=torch.float64)) == pytest.approx(pencil.sign_flip(numbers))


def test_sign_flip_least_p_and_sampling():
    assert sign_flip(torch.tensor([1.0, 2, 3, 4, 5])) == pytest.approx(0.0625)
    assert sign_flip(torch.tensor([1.0, 2, 3])) == pytest.approx(0.25)
    assert sign_flip(torch.zeros(4)) == 1
    many = torch.randn(20, generator=torch.Generator().manual_seed(2), dtype=torch.float64) + 0.3
    sampled = sign_flip(many, 20_000)
    assert sampled == sign_flip(many, 20_000)
    scipy_p = stats.permutation_test((many.numpy(),), np.mean, permutation_type="samples", n_resamples=20_000, rng=0).pvalue
    assert sampled == pytest.approx(scipy_p, abs=0.015)
    assert sign_flip(torch.full((30,), 1.0), 99) == pytest.approx(0.01)
    assert math.isnan(sign_flip(torch.tensor([1.0, math.nan])))
    with pytest.raises(SampleError, match="at least one"):
        sign_flip(torch.tensor([]))


@pytest.mark.parametrize("count", [5, 40])
def test_sign_flips_of_many_tests_are_those_of_each(count):
    many = torch.randn(2, 3, count, generator=torch.Generator().manual_seed(3), dtype=torch.float64) + 0.2
    many[1, 2, 0] = math.nan
    received = sign_flip(many, 3000)
    assert received.shape == (2, 3)
    for place in np.ndindex(2, 3):
        assert float(received[place]) == pytest.approx(float(sign_flip(many[place], 3000)), nan_ok=True)
    assert received.isnan().sum() == 1


@given(st.lists(st.floats(0.0001, 1), min_size=1, max_size=8))
@settings(deadline=None)
def test_holm_twin(numbers):
    adjusted = holm(torch.tensor(numbers, dtype=torch.float64))
    np.testing.assert_allclose(adjusted, pencil.holm(numbers))
    assert bool((adjusted >= torch.tensor(numbers, dtype=torch.float64)).all())


def test_holm_leaves_missing_tests_out():
    adjusted = holm(torch.tensor([0.01, math.nan, 0.04], dtype=torch.float64))
    assert adjusted[[0, 2]].tolist() == pytest.approx([0.02, 0.04])
    assert adjusted[1].isnan()
    assert bool(holm(torch.tensor([math.nan])).isnan().all())
    assert len(holm(torch.tensor([]))) == 0


def test_effect_size_twin():
    pairs = [0.4, 0.1, -0.2, 0.9]
    assert effect_size(torch.tensor(pairs, dtype=torch.float64)) == pytest.approx(pencil.effect_size(pairs))
    assert effect_size(-torch.tensor(pairs, dtype=torch.float64)) == pytest.approx(-pencil.effect_size(pairs))
    assert math.isnan(effect_size(torch.tensor([1.0])))
    assert math.isnan(effect_size(torch.tensor([2.0, 2.0])))


def test_permutation_p_is_in_double_precision():
    assert float(permutation_p(torch.tensor(1.0), torch.tensor([2.0, 0.0]))) == 2 / 3


@pytest.mark.parametrize("n", [8, 64])
def test_sign_flips_of_columns_are_those_of_their_differences(n):
    columns, pairs = eighths(n, 4), list(itertools.combinations(range(4), 2))
    contrasts = torch.zeros(4, len(pairs), dtype=torch.float64)
    for place, (one, two) in enumerate(pairs):
        contrasts[one, place], contrasts[two, place] = 1, -1
    p = sign_flip_contrasts(columns, contrasts, 3000, 5)
    assert len(set(p.tolist())) > 3
    assert torch.equal(p, sign_flip((columns @ contrasts).T, 3000, 5))


def test_equal_columns_have_p_one_however_their_sums_are_rounded():
    column = torch.rand(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    columns = torch.stack([column, column / 3, column / 3, column / 3], 1)
    assert sign_flip_contrasts(columns, torch.tensor([[1.0], [-1.0], [-1.0], [-1.0]]), 200).tolist() == [1.0]


def test_sign_flips_of_nan_are_nan_where_the_test_has_them():
    columns = eighths(40, 3)
    columns[7, 2] = torch.nan
    p = sign_flip_contrasts(columns, torch.tensor([[1.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]), 500)
    assert 0 < p[0] <= 1
    assert p[1].isnan()


def test_all_patterns_of_twelve_differences_are_tried():
    p = sign_flip(torch.tensor([1.0] * 11 + [2.0]), permutations=10)
    assert float(p) == 2 / 2**12


def test_contrasts_of_no_differences_are_refused():
    with pytest.raises(SampleError, match="at least one paired difference"):
        sign_flip_contrasts(torch.zeros(0, 3), torch.zeros(3, 1))
