"""Variances add up, whatever the partition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from channelscope.errors import ShapeError
from channelscope.stats.moments import Variance


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.floats(-1e3, 1e3), st.integers(0, 2**31))
def test_any_partition_gives_the_variance_of_the_whole(sizes, shift, seed):
    values = torch.randn(sum(sizes), 2, 3, generator=torch.Generator().manual_seed(seed)).double() + shift
    parts = [Variance.of(part) for part in values.split(sizes)]
    whole = sum(parts[1:], start=parts[0])
    assert whole.count == len(values)
    torch.testing.assert_close(whole.each, values.var(0, correction=0), atol=1e-8, rtol=1e-8)
    assert whole.total == pytest.approx(float(values.var(0, correction=0).sum()), abs=1e-8)


def test_a_constant_does_not_vary():
    assert Variance.of(torch.full((4, 2), 0.3)).total == 0


def test_different_shapes_do_not_add():
    with pytest.raises(ShapeError, match=r"\(2,\) and \(3,\)"):
        Variance.of(torch.rand(4, 2)) + Variance.of(torch.rand(4, 3))
