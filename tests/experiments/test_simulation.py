"""The gradient-flow simulation: coupled at the start, apart after learning; isotropic inputs as the control."""

import numpy as np
import pytest
import torch

from channelscope.experiments.gradients import RATES, SHARE, STRONG, problem, simulate
from channelscope.formulas.gradients import information_step, linear_axes


@pytest.fixture(scope="module")
def frame():
    return simulate(channels=48, inputs=16, steps=120, every=20, seeds=3)["simulation"]


def of(frame, system, column):
    return frame[frame.system == system][column].to_numpy()


def test_the_axes_start_coupled_and_separate(frame):
    """Random channels that see more of the strong direction have more variance and say more; learning undoes this."""
    alignment = of(frame, "channels", "alignment")
    assert of(frame, "channels", "alignment_low")[0] > 0.1
    assert alignment[-1] < 0.1
    assert of(frame, "channels", "relevance")[-1] > 5 * of(frame, "channels", "relevance")[0]


def test_a_linear_network_that_hardly_moves_its_channels_stays_coupled(frame):
    alignment = of(frame, "network", "alignment")
    assert abs(alignment[-1] - alignment[0]) < 0.1


def test_without_a_strong_direction_nothing_is_coupled():
    frame = simulate(channels=48, inputs=16, steps=0, seeds=3, isotropic=True)["simulation"]
    assert (frame.alignment_low < 0).all()
    assert frame.cosine.abs().max() < 1e-6


def test_rows_and_intervals(frame):
    assert of(frame, "channels", "step").tolist() == [0, 20, 40, 60, 80, 100, 120]
    assert set(frame.system) == set(RATES)
    for name in ("alignment", "cosine", "capture", "relevance"):
        assert (frame[f"{name}_low"] <= frame[name]).all()
        assert (frame[name] <= frame[f"{name}_high"]).all()
    assert (frame.n == 3).all()


def test_one_seed_has_no_interval():
    frame = simulate(channels=8, inputs=4, steps=0, seeds=1)["simulation"]
    assert frame.alignment.notna().all()
    assert frame.alignment_low.isna().all()


def test_the_same_numbers_every_time():
    one, other = (simulate(channels=8, inputs=4, steps=20, every=20, seeds=2)["simulation"] for _ in range(2))
    np.testing.assert_array_equal(one.alignment, other.alignment)


@pytest.mark.parametrize("seed", range(3))
def test_the_problem_is_as_described(seed):
    covariance, cross, variance = problem(10, seed)
    values, vectors = torch.linalg.eigh(covariance)
    assert values[-1] == pytest.approx(STRONG)
    torch.testing.assert_close(values[:-1], torch.ones(9, dtype=torch.float64))
    explained = cross @ torch.linalg.solve(covariance, cross)
    assert float(explained) == pytest.approx(1)
    assert float((vectors[:, -1] @ cross) ** 2 / STRONG) == pytest.approx(SHARE)
    assert variance > float(explained)


def test_following_the_gradient_raises_task_information_and_keeps_lengths():
    covariance, cross, variance = problem(6, 0)
    weights = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    after = information_step(weights, covariance, cross, variance, 0.01)
    before, later = (linear_axes(each, each @ covariance, cross, variance).relevance for each in (weights, after))
    assert (later > before).all()
    torch.testing.assert_close(after.norm(dim=1), weights.norm(dim=1), rtol=1e-2, atol=0)
