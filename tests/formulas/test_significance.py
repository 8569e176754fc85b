import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import pencil
from channelscope.errors import InputError, SampleError
from channelscope.formulas.significance import effect_size, holm, permutation_p, sign_flip, sign_flip_contrasts


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


def eighths(n: int, k: int) -> torch.Tensor:
    """Numbers whose sums, and whose means over a power of two, are exact in floating point."""
    return torch.randint(0, 9, (n, k), generator=torch.Generator().manual_seed(n)).double() / 8


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
