"""The accumulator gives each shard the moments of its own samples, whatever the batches and blocks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from channelscope.stats import moments
from channelscope.stats.moments import Moments, MomentsAccumulator


def batches(sizes, each, channels, shards, seed=0):
    """Batches of (samples, columns, spans), sorted by shard, with some shards missing from some batches."""
    generator = torch.Generator().manual_seed(seed)
    for size in sizes:
        owners = torch.randint(shards, (size,), generator=generator).sort().values
        spans, start = [], 0
        for shard, count in enumerate(torch.bincount(owners, minlength=shards).tolist()):
            if count:
                spans.append((shard, slice(start, start + count)))
            start += count
        samples = torch.randn(size, each, channels, generator=generator) * 2 + 10
        yield samples, torch.randn(size, 3, generator=generator), spans


def joined(samples, columns):
    _, each, channels = samples.shape
    rows = samples.reshape(-1, channels).double()
    return torch.cat([rows, columns.double().repeat_interleave(each, 0)], 1)


def expected(parts, shards, targets):
    rows = {shard: [] for shard in range(shards)}
    for samples, columns, spans in parts:
        for shard, own in spans:
            rows[shard].append(joined(samples[own], columns[own, :targets]))
    width = parts[0][0].shape[2] + targets
    return [Moments.of(torch.cat([torch.zeros(0, width, dtype=torch.float64), *rows[shard]])) for shard in range(shards)]


def close(found, wanted):
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.count == other.count
        torch.testing.assert_close(one.mean, other.mean, rtol=1e-6, atol=1e-6)
        size = max(1.0, float(other.scatter.abs().max()), float(other.count * other.mean.square().max()))
        torch.testing.assert_close(one.scatter, other.scatter, rtol=1e-5, atol=1e-6 * size)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(1, 20), min_size=1, max_size=5),
    st.integers(1, 5),
    st.sampled_from([1, 2, 7]),
    st.sampled_from([0, 3]),
    st.integers(0, 10_000),
)
def test_every_shard_has_its_own_moments(sizes, each, shards, targets, seed):
    parts = list(batches(sizes, each, 5, shards, seed))
    sums = MomentsAccumulator(5, targets, shards)
    for samples, columns, spans in parts:
        sums.add(samples, spans)
        sums.close(columns)
    close(sums.finish(), expected(parts, shards, targets))


@pytest.mark.parametrize("targets", [0, 3])
@pytest.mark.parametrize("block", [1, 40, 10_000])
def test_the_block_size_changes_nothing(monkeypatch, block, targets):
    parts = list(batches([8, 8, 30, 1], 4, 6, 3))
    sums = MomentsAccumulator(6, targets, 3)
    sums._block = block
    for samples, columns, spans in parts:
        sums.add(samples.clone(), spans, lent=True)
        sums.close(columns)
    close(sums.finish(), expected(parts, 3, targets))


@pytest.mark.parametrize("block", [1, 10_000])
def test_lent_memory_may_change_afterwards(block):
    parts = list(batches([8, 8], 4, 6, 2))
    wanted = expected(parts, 2, 0)
    sums = MomentsAccumulator(6, 0, 2)
    sums._block = block
    for samples, columns, spans in parts:
        sums.add(samples, spans, lent=True)
        samples.zero_()
        sums.close(columns)
    close(sums.finish(), wanted)


@pytest.mark.parametrize("block", [1, 10_000])
def test_lent_memory_is_not_written_to(block):
    ((samples, columns, spans),) = batches([8], 4, 6, 2)
    before = samples.clone()
    sums = MomentsAccumulator(6, 0, 2)
    sums._block = block
    sums.add(samples, spans, lent=True)
    sums.close(columns)
    sums.finish()
    assert torch.equal(samples, before)


def test_a_view_with_positions_first_or_last_is_the_same():
    ((samples, columns, spans),) = batches([8], 4, 6, 2)
    other = samples.transpose(1, 2).contiguous().transpose(1, 2)
    assert not other.is_contiguous()
    for block in (1, 10_000):
        found = []
        for each in (samples, other):
            sums = MomentsAccumulator(6, 0, 2)
            sums._block = block
            sums.add(each, spans, lent=True)
            sums.close(columns)
            found.append(sums.finish())
        close(*found)


def test_memory_does_not_grow_with_the_images():
    sums = MomentsAccumulator(4, 3, 2)
    sums._block = 64
    most = 0
    for samples, columns, spans in batches([10] * 50, 4, 4, 2):
        sums.add(samples, spans)
        sums.close(columns)
        most = max(most, sum(part.numel() for part in sums._samples))
    assert most <= (64 + 40) * 4
    assert sum(part.count for part in sums.finish()) == 50 * 10 * 4


@pytest.mark.parametrize("channels", [1, 64, 2048, 100_000])
def test_the_block_is_bounded_in_bytes(channels):
    sums = MomentsAccumulator(channels, 0, 1)
    assert sums._block >= 256
    assert sums._block * channels * 4 <= max(moments.BLOCK_BYTES, 256 * channels * 4)


def test_finishing_twice_or_midway_is_harmless():
    parts = list(batches([8, 9], 2, 5, 3))
    sums = MomentsAccumulator(5, 3, 3)
    samples, columns, spans = parts[0]
    sums.add(samples, spans)
    sums.close(columns)
    close(sums.finish(), expected(parts[:1], 3, 3))
    close(sums.finish(), expected(parts[:1], 3, 3))
    samples, columns, spans = parts[1]
    sums.add(samples, spans)
    sums.close(columns)
    close(sums.finish(), expected(parts, 3, 3))


def test_shards_without_samples_are_zero():
    sums = MomentsAccumulator(4, 1, 3)
    sums.add(torch.ones(2, 1, 4), [(1, slice(0, 2))])
    sums.close(torch.ones(2, 1))
    assert [part.count for part in sums.finish()] == [0, 2, 0]
    assert all(len(part) == 5 for part in sums.finish())


def test_double_precision_samples_stay_double():
    x = torch.randn(40, 1, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 1e6
    sums = MomentsAccumulator(3, 0, 1)
    sums.add(x, [(0, slice(0, 40))])
    sums.close(torch.zeros(40, 1))
    (found,) = sums.finish()
    torch.testing.assert_close(found.scatter, Moments.of(x[:, 0]).scatter, rtol=1e-9, atol=1e-9)


def test_shards_far_apart_keep_their_digits():
    """Blocks whose means differ by thousands of standard deviations still merge to float32 precision."""
    generator = torch.Generator().manual_seed(0)
    sums, rows = MomentsAccumulator(3, 0, 1), []
    sums._block = 1
    for shift in (0.0, 1000.0, -500.0):
        x = torch.randn(200, 2, 3, generator=generator) + shift
        rows.append(x.reshape(-1, 3).double())
        sums.add(x, [(0, slice(0, 200))])
        sums.close(torch.zeros(200, 0))
    close(sums.finish(), [Moments.of(torch.cat(rows))])


@pytest.mark.parametrize("drift", [0.0, 3.0, 30.0])
def test_images_in_an_order_that_drifts_away_lose_nothing_that_matters(drift):
    """Samples are measured from where the first ones were: standard deviation 2, means that move by `drift` a batch."""
    parts = [(samples + drift * number, columns, spans) for number, (samples, columns, spans) in enumerate(batches([40] * 10, 4, 6, 2))]
    sums = MomentsAccumulator(6, 3, 2)
    sums._block = 64
    for samples, columns, spans in parts:
        sums.add(samples, spans)
        sums.close(columns)
    for one, other in zip(sums.finish(), expected(parts, 2, 3), strict=True):
        scale = other.scatter.diagonal().sqrt()
        torch.testing.assert_close(one.mean, other.mean, rtol=1e-6, atol=1e-5)
        torch.testing.assert_close(one.scatter / torch.outer(scale, scale), other.scatter / torch.outer(scale, scale), rtol=0, atol=2e-6)


def test_looking_does_not_end_the_collection():
    parts = list(batches([8, 8, 30], 4, 6, 3))
    sums = MomentsAccumulator(6, 3, 3)
    for number, (samples, columns, spans) in enumerate(parts):
        sums.add(samples, spans)
        sums.close(columns)
        close(sums.finish(), expected(parts[: number + 1], 3, 3))


@pytest.mark.parametrize("targets", [0, 3])
@pytest.mark.parametrize("compact", [False, True])
def test_products_kept_by_rows_from_the_diagonal_on_are_the_whole_products(monkeypatch, compact, targets):
    monkeypatch.setattr(moments, "ROWS", 4)
    parts = list(batches([8, 8, 30, 1], 4, 10, 3))
    sums = MomentsAccumulator(10, targets, 3, compact)
    sums._block = 40
    for samples, columns, spans in parts:
        sums.add(samples, spans)
        sums.close(columns)
    rows = sums._products[0].rows
    assert [tuple(block.shape) for block in rows] == [(4, 10), (4, 6), (2, 2)]
    assert {block.dtype for block in rows} == {torch.float32 if compact else torch.float64}
    found = sums.finish()
    close(found, expected(parts, 3, targets))
    for each in found:  # a product in float32 is symmetric up to its rounding
        torch.testing.assert_close(each.scatter, each.scatter.T, rtol=0, atol=1e-7 * float(each.scatter.abs().max()))


def test_sums_that_are_given_up_were_given_before():
    sums, again = MomentsAccumulator(5, 3, 3), MomentsAccumulator(5, 3, 3)
    for samples, columns, spans in batches([8, 9], 2, 5, 3):
        for each in (sums, again):
            each.add(samples, spans)
            each.close(columns)
    close(list(sums.moments(free=True)), again.finish())
    assert [products.rows for products in sums._products] == [[], [], []]


@pytest.mark.parametrize("channels", [3, 512, 700])
def test_memory_of_the_products_is_what_is_kept(channels):
    sums = MomentsAccumulator(channels, 0, 1, compact=True)
    sums.add(torch.ones(2, 1, channels), [(0, slice(0, 2))])
    sums.flush()
    assert moments.products_bytes(channels, True) == 4 * sum(block.numel() for block in sums._products[0].rows)
    assert moments.products_bytes(channels, False) == 2 * moments.products_bytes(channels, True)
