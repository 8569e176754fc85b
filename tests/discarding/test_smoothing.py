"""Maps from few passes: the twin, the limits, and what is gained on maps whose truth is known."""

import numpy as np
import pytest
import torch

import pencil_discarding as pencil
from channelscope.discarding.smoothing import blur_widths, gaussian_blur, multiscale_shrinkage


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
    assert np.allclose(gaussian_blur(plane, width), pencil.blurred(plane.numpy(), width))


def test_scales_halve_down_to_single_cells():
    assert blur_widths(32, 32) == [8.0, 4.0, 2.0, 1.0, 0.5, 0.0]
    assert blur_widths(1, 1) == [0.0]


@pytest.mark.parametrize("draws", [1, 2, 6])
def test_shrunk_agrees_with_its_twin(draws):
    samples = noisy(draws, 3, 8, 6)
    seen = torch.ones(1, 8, 6, dtype=torch.bool)
    seen[0, 0] = False
    found, doubt = multiscale_shrinkage(samples, torch.ones(1, 8, 6), seen)
    expected, stated = pencil.shrunk(samples[:, 0].numpy(), np.ones((8, 6)), seen[0].numpy())
    assert np.allclose(found[0], expected, rtol=1e-9)
    assert np.allclose(doubt, stated, rtol=1e-6)


def test_draws_without_scatter_come_back_as_they_are():
    samples = truth().expand(3, 1, 16, 16)
    for given in (samples, samples[:1]):
        found, doubt = multiscale_shrinkage(given, torch.ones(1, 16, 16), torch.ones(1, 16, 16).bool())
        torch.testing.assert_close(found[0], truth())
        assert abs(float(doubt)) < 1e-12


def test_the_sum_is_kept_and_unseen_cells_are_zero():
    samples, seen = noisy(8), torch.ones(1, 16, 16, dtype=torch.bool)
    seen[0, :, 10:] = False
    found, _ = multiscale_shrinkage(samples, torch.ones(1, 16, 16), seen)
    torch.testing.assert_close(found.sum(), (samples.mean(0) * seen).sum())
    assert found[~seen].eq(0).all()


def test_shrinking_is_worth_many_draws():
    def error(estimate):
        return float((estimate[0].clamp(min=1e-6).log() - truth().log()).square().mean())

    seen, ones = torch.ones(1, 16, 16).bool(), torch.ones(1, 16, 16)
    plain = np.mean([error(noisy(8, seed).mean(0)) for seed in range(5)])
    better = np.mean([error(multiscale_shrinkage(noisy(8, seed), ones, seen)[0]) for seed in range(5)])
    many = np.mean([error(noisy(32, seed).mean(0)) for seed in range(5)])
    assert better < many < plain  # eight draws, shrunk, beat thirty-two


def test_noise_alone_moves_a_flat_map_little():
    """Samples around the start that may be negative, as curvature samples are."""
    source = torch.Generator().manual_seed(1)
    seen, ones = torch.ones(40, 16, 16).bool(), torch.ones(40, 16, 16)
    samples = 1 + 1.5 * torch.randn(4, 40, 16, 16, generator=source, dtype=torch.float64)
    found, _ = multiscale_shrinkage(samples, ones, seen)
    raw = samples.mean(0).std()
    assert (found > 0).all()
    assert (found / samples.mean((0, 2, 3))[:, None, None]).std() < raw / 4


@pytest.mark.parametrize("draws", [4, 8, 16])
def test_doubt_follows_the_error_of_the_map_from_below(draws):
    """Against the known truth: what the noise leaves, without what is too faint to be told from it."""
    seen, ones = torch.ones(1, 16, 16).bool(), torch.ones(1, 16, 16)
    stated, actual = [], []
    for seed in range(12):
        found, doubt = multiscale_shrinkage(noisy(draws, seed), ones, seen)
        stated.append(float(doubt))
        actual.append(float(torch.mean((truth() / found[0] * found[0].mean() / truth().mean() - 1).square())))
    assert 0.2 * np.mean(actual) < np.mean(stated) < np.mean(actual)
