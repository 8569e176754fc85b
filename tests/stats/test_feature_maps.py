"""Feature-map ranks and channel independences are what brute-force singular values give."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pencil_stats
from channelscope.stats.channel_sums import FeatureMapSums, independence


def maps(images=3, channels=4, height=5, width=6, seed=0):
    return torch.randn(images, channels, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(3, 4, 5, 6), (2, 12, 2, 3), (1, 6, 2, 3), (2, 3, 1, 1), (2, 3, 1, 9)])
def test_both_sums_are_the_pencils(shape):
    x = maps(*shape)
    x[0, 1] = 0
    x[-1, 0] = 1.0  # rank one
    found = FeatureMapSums.of(x)
    assert found.images == shape[0]
    np.testing.assert_allclose(found.rank, pencil_stats.rank(x.numpy()))
    np.testing.assert_allclose(found.independence, pencil_stats.independence(x.double().numpy()), atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 7), st.integers(1, 7), st.integers(0, 1000))
def test_independence_from_either_gram_matrix(channels, positions, seed):
    x = torch.randn(channels, positions, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    np.testing.assert_allclose(independence(x), pencil_stats.independence(x.view(1, channels, 1, positions).numpy()), atol=1e-6)


def test_a_silent_channel_has_no_rank_and_no_independence():
    x = maps()
    x[:, 2] = 0
    found = FeatureMapSums.of(x)
    assert found.rank[2] == 0
    assert float(found.independence[2]) == pytest.approx(0, abs=1e-6)


def test_a_copy_is_less_independent_than_an_original():
    x = maps(1, 3, 4, 4)
    x[0, 1] = x[0, 0]
    x[0, 2] *= x[0, 0].norm() / x[0, 2].norm()
    found = FeatureMapSums.of(x).independence
    assert float(found[0]) == pytest.approx(float(found[1]), rel=1e-6)
    assert float(found[2]) > float(found[0])


def test_orthogonal_channels_lose_their_own_norm():
    x = torch.zeros(1, 3, 1, 4, dtype=torch.float64)
    x[0, 0, 0, 0], x[0, 1, 0, 1], x[0, 2, 0, 2] = 2.0, 3.0, -1.0
    np.testing.assert_allclose(FeatureMapSums.of(x).independence, [2, 3, 1], atol=1e-9)


def test_sums_add_over_images_in_any_order():
    x = maps(6)
    whole = FeatureMapSums.of(x)
    for order in ([2, 4], [1, 1, 4], [6]):
        total = sum((FeatureMapSums.of(part) for part in x.split(order)), FeatureMapSums.zero(4))
        assert total.images == 6
        torch.testing.assert_close(total.rank, whole.rank)
        torch.testing.assert_close(total.independence, whole.independence)
    shuffled = FeatureMapSums.of(x[[3, 0, 5, 1, 4, 2]])
    torch.testing.assert_close(shuffled.independence, whole.independence)
