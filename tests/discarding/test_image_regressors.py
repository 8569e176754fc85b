"""Guides: what a picture says of its own map, the fit against a general solver, and what it is worth."""

import numpy as np
import torch

import pencil_discarding as pencil
from channelscope.discarding.noise import Cells
from channelscope.discarding.smoothing import gamma_regression, image_regressors


def pictures(count=2, side=12):
    """Noise, brighter and of more contrast toward one corner."""
    ramp = torch.linspace(0.5, 1, side, dtype=torch.float64)
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(4), dtype=torch.float64) * ramp * ramp[:, None]


def seen(count, rows, columns):
    return torch.ones(count, rows, columns, dtype=torch.bool)


def test_features_are_standardized_over_the_cells():
    found = image_regressors(pictures(), Cells.of((12, 12), 6))
    assert found.shape == (2, 6, 6, 12)
    torch.testing.assert_close(found.mean((1, 2)), torch.zeros(2, 12, dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(found.square().mean((1, 2)), torch.ones(2, 12, dtype=torch.float64))


def test_a_picture_without_contrast_says_only_where_its_cells_are():
    found = image_regressors(torch.full((1, 3, 8, 8), 0.4), Cells.of((8, 8)))
    assert found[..., :8].eq(0).all()
    assert found[..., 8:].abs().amax((0, 1, 2)).gt(1).all()


def test_pictures_do_not_see_each_other():
    both = pictures()
    torch.testing.assert_close(image_regressors(both, Cells.of((12, 12), 6))[1:], image_regressors(both[1:], Cells.of((12, 12), 6)))


def test_brightness_and_scale_change_no_contrast():
    """Contrast is relative to the picture's own: only the 8-bit floor knows an absolute scale."""
    plain, brighter = (image_regressors(images, Cells.of((12, 12), 6))[..., 0] for images in (pictures(), 0.5 * pictures() + 0.3))
    torch.testing.assert_close(plain, brighter, atol=0.01, rtol=0)


def test_the_fit_agrees_with_a_general_solver():
    features = image_regressors(pictures(1), Cells.of((12, 12), 6))
    source = torch.Generator().manual_seed(1)
    start = 0.5 + torch.rand(1, 6, 6, generator=source, dtype=torch.float64)
    samples = start * (0.4 * features[..., 0] - 0.2 * features[..., 9]).exp() * (1 + 0.4 * torch.randn(4, 1, 6, 6, generator=source))
    found = gamma_regression(samples, start, seen(1, 6, 6), features)
    expected = pencil.regressed(samples.flatten(1).numpy(), start.flatten().numpy(), features.flatten(0, 2).numpy())
    assert np.allclose(found.flatten(), expected, rtol=1e-6)


def test_a_map_that_follows_the_picture_is_found_from_very_noisy_draws():
    """Four draws whose noise is larger than the signal: the fit is nearer than their mean by far."""
    features = image_regressors(pictures(3, 32), Cells.of((32, 32), 16))
    truth = (0.5 * features[..., 1] + 0.3 * features[..., 5]).exp()
    noise = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64).square()
    found = gamma_regression(truth * noise, torch.ones_like(truth), seen(3, 16, 16), features)
    off, raw = ((estimate / truth).log().std() for estimate in (found, (truth * noise).mean(0)))
    assert off < raw / 4


def test_unseen_cells_are_zero_and_do_not_count():
    features = image_regressors(pictures(1), Cells.of((12, 12), 6))
    half = seen(1, 6, 6)
    half[0, 3:] = False
    samples = torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64) + 0.5
    other = samples.clone()
    other[:, :, 3:] = 100.0
    found, again = (gamma_regression(given, torch.ones(1, 6, 6, dtype=torch.float64), half, features) for given in (samples, other))
    assert found[~half].eq(0).all()
    torch.testing.assert_close(found, again)


def test_an_image_that_a_layer_does_not_see_at_all_has_no_map():
    features = image_regressors(pictures(1), Cells.of((12, 12), 6))
    found = gamma_regression(
        torch.zeros(2, 1, 6, 6, dtype=torch.float64), torch.ones(1, 6, 6, dtype=torch.float64), ~seen(1, 6, 6), features
    )
    assert found.eq(0).all()
