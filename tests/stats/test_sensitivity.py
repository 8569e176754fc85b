"""Sensitivity sums are per image: they add, and absolute values are taken before they do."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from channelscope.stats.channel_sums import Sensitivity

SIZES = st.lists(st.integers(1, 8), min_size=1, max_size=5)


def products(n, seed=0, d=3):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(a, b):
    assert a.images == b.images
    for field in ("read", "read_absolute", "read_square", "cut", "cut_absolute", "cut_square"):
        torch.testing.assert_close(getattr(a, field), getattr(b, field))


def test_sums_are_over_images():
    read, cut = torch.tensor([[1.0, -2.0], [-3.0, 4.0]]), torch.tensor([[0.5, 0.0], [0.5, -1.0]])
    found = Sensitivity.of(read, cut)
    assert found.images == 2
    assert found.read.tolist() == [-2.0, 2.0]
    assert found.read_absolute.tolist() == [4.0, 6.0]
    assert found.read_square.tolist() == [10.0, 20.0]
    assert found.cut.tolist() == [1.0, -1.0]
    assert found.cut_absolute.tolist() == [1.0, 1.0]
    assert found.cut_square.tolist() == [0.5, 1.0]


@settings(max_examples=30, deadline=None)
@given(SIZES, st.integers(0, 1000))
def test_any_partition_adds_up(sizes, seed):
    read, cut = products(sum(sizes), seed), products(sum(sizes), seed + 1)
    parts = [Sensitivity.of(a, b) for a, b in zip(read.split(sizes), cut.split(sizes), strict=True)]
    total = sum(parts, Sensitivity.zero(3))
    close(total, Sensitivity.of(read, cut))
    close(sum(reversed(parts), Sensitivity.zero(3)), total)


def test_absolute_sums_bound_sums():
    found = Sensitivity.of(products(20), products(20, 1))
    assert bool((found.read.abs() <= found.read_absolute).all())
    assert bool((found.cut_absolute**2 <= found.images * found.cut_square + 1e-9).all())


def test_float32_products_are_summed_in_float64():
    tiny = torch.full((1_000,), 1e-8)
    read = torch.cat([torch.ones(1), tiny])[:, None]
    found = Sensitivity.of(read, read)
    assert float(found.read) == pytest.approx(1 + 1e-5, rel=1e-9)
