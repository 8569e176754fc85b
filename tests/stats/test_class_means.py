"""Class counts and means add, and give the pooled within-class scatter exactly."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pencil_stats
from channelscope.errors import ShapeError
from channelscope.stats.channel_sums import ClassMeans, ClassMeansAccumulator
from channelscope.stats.moments import Moments

SEEDS = st.integers(0, 10_000)


def labeled(n, classes=5, d=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) + labels[:, None], labels


def close(a, b):
    assert torch.equal(a.counts, b.counts)
    torch.testing.assert_close(a.means, b.means, rtol=1e-10, atol=1e-10)


def test_counts_and_means_are_the_definition():
    x, y = labeled(40, classes=6)
    y[y == 4] = 3
    counts, means = pencil_stats.class_means(x.numpy(), y.numpy(), 6)
    found = ClassMeans.of(x, y, 6)
    np.testing.assert_array_equal(found.counts, counts)
    np.testing.assert_allclose(found.means, means)
    assert found.counts[4] == 0
    assert not found.means[4].any()


@settings(max_examples=30, deadline=None)
@given(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9)), SEEDS)
def test_addition_is_associative_and_commutative_with_a_zero(sizes, seed):
    x, y = labeled(sum(sizes), seed=seed)
    a, b, c = (ClassMeans.of(rows, labels, 5) for rows, labels in zip(x.split(sizes), y.split(sizes), strict=True))
    close((a + b) + c, a + (b + c))
    close(a + b, b + a)
    close(a + ClassMeans.zero(5, 3), a)
    close(ClassMeans.zero(5, 3) + a, a)
    close(a + b + c, ClassMeans.of(x, y, 5))


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.integers(2, 60))
def test_the_within_scatter_is_the_definition(seed, n):
    x, y = labeled(n, seed=seed)
    within = ClassMeans.of(x, y, 5).within_class_moments(Moments.of(x))
    np.testing.assert_allclose(within.scatter, pencil_stats.within_scatter(x.numpy(), y.numpy()), atol=1e-9)
    assert within.count == n
    assert not within.mean.any()


def test_within_never_exceeds_total():
    x, y = labeled(60)
    total = Moments.of(x)
    gap = total.scatter - ClassMeans.of(x, y, 5).within_class_moments(total).scatter
    assert float(torch.linalg.eigvalsh(gap).min()) > -1e-9


def test_one_class_has_all_the_scatter_and_one_sample_a_class_none():
    x, _ = labeled(12)
    total = Moments.of(x)
    torch.testing.assert_close(ClassMeans.of(x, torch.zeros(12, dtype=torch.long), 1).within_class_moments(total).scatter, total.scatter)
    each = ClassMeans.of(x, torch.arange(12), 12).within_class_moments(total).scatter
    torch.testing.assert_close(each, torch.zeros(3, 3, dtype=torch.float64), rtol=0, atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 3), SEEDS)
def test_growing_sums_give_every_site_and_shard_its_classes(sizes, shards, seed):
    x, y = labeled(sum(sizes), seed=seed)
    owners = torch.randint(shards, (len(x),), generator=torch.Generator().manual_seed(seed))
    sums = ClassMeansAccumulator(5, shards)
    for rows, labels, owner in zip(x.split(sizes), y.split(sizes), owners.split(sizes), strict=True):
        sums.add(owner, labels, {"a": rows, "b": -2 * rows})
    for shard in range(shards):
        own = owners == shard
        close(sums.of("a", shard, 3), ClassMeans.of(x[own], y[own], 5))
        close(sums.of("b", shard, 3), ClassMeans.of(-2 * x[own], y[own], 5))


def test_room_is_made_for_the_classes_that_are_seen():
    sums = ClassMeansAccumulator(1_000, 10)
    sums.add(torch.tensor([0, 3]), torch.tensor([5, 999]), {"a": torch.randn(2, 4)})
    assert sums._sums["a"][1].numel() <= 4 * 4
    assert sums.of("a", 3, 4).counts[999] == 1
    assert not sums.of("a", 1, 4).counts.any()


def test_sums_of_classes_far_from_zero_keep_their_digits():
    x, y = labeled(2_000, seed=3)
    sums = ClassMeansAccumulator(5, 1)
    for rows, labels in zip((x + 1e6).split(100), y.split(100), strict=True):
        sums.add(torch.zeros_like(labels), labels, {"a": rows})
    torch.testing.assert_close(sums.of("a", 0, 3).means - 1e6, ClassMeans.of(x, y, 5).means, rtol=0, atol=1e-8)


def test_classes_of_different_sizes_do_not_add():
    with pytest.raises(ShapeError, match="class means"):
        ClassMeans.zero(5, 3) + ClassMeans.zero(4, 3)
