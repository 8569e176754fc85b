"""Maps from few passes: the twin, the limits, and what is gained on maps whose truth is known."""

import math

import numpy as np
import pytest
import torch

import pencil_discarding as pencil
from channelscope.discarding.shrinkage import blurred, scales, shortfall, shrunk


def truth(rows=16, columns=16):
    """A smooth positive map with a bright spot."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, rows), torch.linspace(-1, 1, columns), indexing="ij")
    return (torch.exp(-4 * ((x - 0.3).square() + y.square())) + 0.1).double()


def noisy(draws, seed=0, rows=16, columns=16):
    """Samples as probes give them: the truth times a squared normal number."""
    source = torch.Generator().manual_seed(seed)
    return truth(rows, columns) * torch.randn(draws, 1, rows, columns, generator=source, dtype=torch.float64).square()


@pytest.mark.parametrize("width", [0, 0.5, 1, 2])
def test_blur_agrees_with_a_double_loop(width):
    plane = torch.rand(7, 9, dtype=torch.float64)
    assert np.allclose(blurred(plane, width), pencil.blurred(plane.numpy(), width))


def test_scales_halve_down_to_single_cells():
    assert scales(32, 32) == [8.0, 4.0, 2.0, 1.0, 0.5, 0.0]
    assert scales(1, 1) == [0.0]


@pytest.mark.parametrize(("draws", "chance"), [(2, 1.0), (6, 1.0), (6, 0.3), (6, 0.001), (1, 0.001)])
def test_shrunk_agrees_with_its_twin(draws, chance):
    samples = noisy(draws, 3, 8, 6)
    seen = torch.ones(1, 8, 6, dtype=torch.bool)
    seen[0, 0] = False
    found = shrunk(samples, torch.ones(1, 8, 6), seen, chance)
    expected = pencil.shrunk(samples[:, 0].numpy(), np.ones((8, 6)), seen[0].numpy(), chance)
    assert np.allclose(found[0], expected, rtol=1e-9)


def test_draws_without_scatter_come_back_as_they_are():
    samples = truth().expand(3, 1, 16, 16)
    found = shrunk(samples, torch.ones(1, 16, 16), torch.ones(1, 16, 16).bool())
    torch.testing.assert_close(found[0], truth())
    torch.testing.assert_close(shrunk(samples[:1], torch.ones(1, 16, 16), torch.ones(1, 16, 16).bool())[0], truth())


def test_the_sum_is_kept_and_unseen_cells_are_zero():
    samples, seen = noisy(8), torch.ones(1, 16, 16, dtype=torch.bool)
    seen[0, :, 10:] = False
    found = shrunk(samples, torch.ones(1, 16, 16), seen)
    torch.testing.assert_close(found.sum(), (samples.mean(0) * seen).sum())
    assert found[~seen].eq(0).all()


def test_shrinking_is_worth_many_draws():
    def error(estimate):
        return float((estimate[0].clamp(min=1e-6).log() - truth().log()).square().mean())

    seen, ones = torch.ones(1, 16, 16).bool(), torch.ones(1, 16, 16)
    plain = np.mean([error(noisy(8, seed).mean(0)) for seed in range(5)])
    better = np.mean([error(shrunk(noisy(8, seed), ones, seen)) for seed in range(5)])
    many = np.mean([error(noisy(32, seed).mean(0)) for seed in range(5)])
    assert better < many < plain  # eight draws, shrunk, beat thirty-two


@pytest.mark.parametrize("draws", [2, 4, 12])
def test_noise_alone_is_hardly_ever_believed(draws):
    """Samples around the start, alike over wide areas as curvature samples are: a flat map stays flat."""
    source = torch.Generator().manual_seed(1)
    seen, ones = torch.ones(40, 16, 16).bool(), torch.ones(40, 16, 16)
    samples = 1 + 6 * blurred(torch.randn(draws, 40, 16, 16, generator=source, dtype=torch.float64), 2)
    moved = (shrunk(samples, ones, seen, 0.001) / samples.mean((0, 2, 3))[:, None, None] - 1).abs().amax((1, 2)) > 1e-6
    assert moved.sum() <= 3


def test_shortfall_estimates_what_is_missed():
    """Against the known truth: entropy lost when noise is allocated by an estimated map, ½ ln of means of ratios."""
    seen, ones = torch.ones(1, 16, 16).bool(), torch.ones(1, 16, 16)
    estimated, actual = [], []
    for seed in range(12):
        samples = noisy(8, seed)
        estimated.append(float(shortfall(samples, ones, seen)))
        ratio = (truth() / shrunk(samples, ones, seen)[0]).flatten()
        actual.append(float((ratio.mean().log() - ratio.log().mean()) / 2))
    assert 0.7 * np.mean(actual) < np.mean(estimated) < 2.0 * np.mean(actual)


def test_shortfall_needs_five_draws():
    seen, ones = torch.ones(1, 16, 16).bool(), torch.ones(1, 16, 16)
    assert math.isnan(float(shortfall(noisy(4), ones, seen)))
