"""Cells, reverse water-filling (published example, optimality, limits), and denoising of maps whose truth is known."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pencil_discarding as pencil
from channelscope.discarding.noise import (
    GAUSSIAN_ENTROPY,
    Cells,
    blur_widths,
    entropy,
    entropy_gap,
    gamma_regression,
    gaussian_blur,
    image_regressors,
    isotropic,
    mean_entropy,
    multiscale_shrinkage,
    water_filling,
)
from channelscope.errors import InputError, NumericError, ShapeError

CELLS = 12
numbers = st.lists(st.floats(0.01, 100), min_size=CELLS, max_size=CELLS)
counts = st.lists(st.integers(1, 9), min_size=CELLS, max_size=CELLS)


def found(sensitivity, budget, cap, values=None):
    """The allocation for one image, from plain lists."""
    values = [1] * len(sensitivity) if values is None else values
    return water_filling(
        torch.tensor([sensitivity], dtype=torch.float64),
        torch.tensor([budget], dtype=torch.float64),
        torch.tensor(cap, dtype=torch.float64),
        torch.tensor(values, dtype=torch.float64),
    )


def test_the_published_numeric_example():
    weights = torch.tensor([[10.0, 20, 5, -20, -10]], dtype=torch.float64)
    free = torch.full((5,), torch.inf, dtype=torch.float64)
    sigma = water_filling(weights.square(), torch.tensor([0.00512], dtype=torch.float64), free, torch.ones(5).double()).noise_std
    torch.testing.assert_close(sigma, torch.tensor([[0.0032, 0.0016, 0.0064, 0.0016, 0.0032]]).double(), rtol=1e-6, atol=0)
    printed = torch.tensor([[0.00316, 0.00181, 0.00633, 0.00175, 0.00308]]).double()  # 5,000 published optimization steps
    assert ((printed - sigma).abs() / sigma).max() < 0.15


@settings(max_examples=30, deadline=None)
@given(numbers, numbers, st.floats(0.01, 1e4), st.lists(st.integers(0, 2), min_size=CELLS, max_size=CELLS))
def test_the_level_of_uniform_noise_agrees_with_bisection(sensitivity, cap, budget, values):
    given = [torch.tensor(each, dtype=torch.float64) for each in ([sensitivity], [budget], cap, values)]
    assert float(isotropic(*given)) == pytest.approx(pencil.isotropic(sensitivity, budget, cap, values), rel=1e-6)


def test_uniform_noise_without_caps_and_where_nothing_is_seen():
    free = torch.full((2,), torch.inf)
    assert isotropic(torch.tensor([[3.0, 1.0], [0.0, 0.0]]), torch.tensor([16.0, 1.0]), free, torch.ones(2)).tolist() == [2.0, math.inf]


@settings(max_examples=30, deadline=None)
@given(numbers, st.floats(0.01, 100))
def test_without_caps_every_cell_spends_the_same(sensitivity, budget):
    result = found(sensitivity, budget, [math.inf] * CELLS)
    expected = [math.sqrt(budget / (CELLS * g)) for g in sensitivity]
    assert np.allclose(result.noise_std[0], expected, rtol=1e-9)
    assert bool(result.reached.all())
    assert not bool(result.capped.any())


@settings(max_examples=40, deadline=None)
@given(numbers, st.floats(0.001, 1000), numbers, counts)
def test_agrees_with_bisection_on_the_water_level(sensitivity, budget, cap, values):
    result = found(sensitivity, budget, cap, values)
    assert np.allclose(result.noise_std[0], pencil.allocation(sensitivity, budget, cap, values), rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(numbers, st.floats(0.1, 10), numbers, counts)
def test_conditions_of_optimality(sensitivity, share, cap, values):
    """Budget spent; free cells at one level; capped cells would want more."""
    largest = sum(c * c * g for c, g in zip(cap, sensitivity, strict=True))
    budget = min(share / 10.1, 0.99) * largest
    result = found(sensitivity, budget, cap, values)
    spent = result.noise_std[0].square() * torch.tensor(sensitivity, dtype=torch.float64)
    assert math.isclose(float(spent.sum()), budget, rel_tol=1e-9)
    level, free = float(result.water_level[0]), ~result.capped[0]
    assert np.allclose((spent / torch.tensor(values))[free], level, rtol=1e-9)
    assert bool(((spent / torch.tensor(values))[~free] <= level * (1 + 1e-9)).all())


@settings(max_examples=20, deadline=None)
@given(numbers, numbers, counts, st.integers(0, 2**31))
def test_no_feasible_noise_has_more_entropy(sensitivity, cap, values, seed):
    budget = 0.3 * sum(c * c * g for c, g in zip(cap, sensitivity, strict=True))
    best = found(sensitivity, budget, cap, values).noise_std
    count = torch.tensor(values, dtype=torch.float64)
    source = torch.Generator().manual_seed(seed)
    other = (best * (1 + 0.3 * torch.randn(20, CELLS, generator=source, dtype=torch.float64)).abs()).clamp(max=torch.tensor(cap).double())
    spent = (other.square() * torch.tensor(sensitivity)).sum(1, keepdim=True)
    other = torch.minimum(other * (budget / spent).sqrt().clamp(max=1), torch.tensor(cap).double())
    assert (mean_entropy(other, count) <= mean_entropy(best, count) + 1e-9).all()


@settings(max_examples=20, deadline=None)
@given(numbers, numbers, st.floats(0.01, 100))
def test_the_unit_of_the_pixels_shifts_entropy_by_its_logarithm(sensitivity, cap, factor):
    budget = 0.3 * sum(c * c * g for c, g in zip(cap, sensitivity, strict=True))
    before = found(sensitivity, budget, cap).noise_std
    after = found([g / factor**2 for g in sensitivity], budget, [c * factor for c in cap]).noise_std
    assert np.allclose(after, before * factor, rtol=1e-9)
    gained = mean_entropy(after, torch.ones(CELLS)) - mean_entropy(before, torch.ones(CELLS))
    assert math.isclose(float(gained), math.log(factor), abs_tol=1e-9)


@settings(max_examples=20, deadline=None)
@given(numbers, numbers, st.floats(0.1, 0.4))
def test_a_larger_budget_never_quiets_a_cell(sensitivity, cap, share):
    largest = sum(c * c * g for c, g in zip(cap, sensitivity, strict=True))
    small, large = (found(sensitivity, part * largest, cap).noise_std for part in (share, 2 * share))
    assert (large >= small - 1e-12).all()


def test_what_caps_cannot_spend_is_said():
    result = found([1.0, 1.0], 5.0, [1.0, 1.0])
    assert not bool(result.reached.any())
    assert result.noise_std.tolist() == [[1.0, 1.0]]
    assert bool(result.capped.all())


def test_each_image_has_its_own_level():
    result = water_filling(torch.tensor([[1.0, 1.0], [4.0, 4.0]]), torch.tensor([0.5, 0.5]), torch.full((2,), torch.inf), torch.ones(2))
    torch.testing.assert_close(result.noise_std, torch.tensor([[0.5, 0.5], [0.25, 0.25]]))


def test_unseen_cells_sit_at_their_cap():
    result = found([0.0, 1.0, 1.0], 0.02, [0.3, 1.0, 1.0])
    torch.testing.assert_close(result.noise_std, torch.tensor([[0.3, 0.1, 0.1]]).double())
    assert result.capped.tolist() == [[True, False, False]]


def test_unseen_cells_without_a_cap_are_refused():
    with pytest.raises(NumericError, match=r"does not see 2 cells \(the first is 1\)"):
        found([1.0, 0.0, 0.0], 1.0, [math.inf] * 3)


def test_constant_cells_are_left_out():
    result = found([1.0, 0.0, 1.0], 2.0, [math.inf] * 3, [1, 0, 1])
    torch.testing.assert_close(result.noise_std, torch.tensor([[1.0, 0.0, 1.0]]).double())
    assert math.isclose(float(mean_entropy(result.noise_std, torch.tensor([1.0, 0, 1]))), GAUSSIAN_ENTROPY)


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_sensitivities_that_are_no_squares_are_refused(bad):
    with pytest.raises(NumericError, match="finite sensitivities"):
        found([1.0, bad], 1.0, [1.0, 1.0])


def test_cells_must_match():
    with pytest.raises(ShapeError, match="3 cells, 2 caps, 3 counts"):
        found([1.0, 1.0, 1.0], 1.0, [1.0, 1.0])


@pytest.mark.parametrize("deviation", [0.01, 0.5, 3.0])
def test_entropy_is_the_integral(deviation):
    assert math.isclose(float(entropy(torch.tensor(deviation, dtype=torch.float64))), pencil.entropy(deviation), abs_tol=1e-6)


def test_no_noise_has_no_entropy():
    assert float(entropy(torch.tensor(0.0))) == -math.inf


def test_unspent_entropy_is_jensens_gap_also_of_runaway_cells():
    """Shares without noise: ½ (ln mean s − mean ln s), up to twenty times the mean."""
    share = torch.linspace(0.3, 2, 64, dtype=torch.float64)
    share[5] = 20.0
    s = share / share.mean()
    expected = 0.5 * (s - 1 - s.log()).mean()
    found = entropy_gap(share.expand(3, 1, 64), torch.ones(1, 64, dtype=torch.bool))
    torch.testing.assert_close(found[0], expected)


def test_unspent_entropy_has_no_noise_in_it():
    """Equal shares seen through noise larger than themselves: nothing to gain, on average over images."""
    source = torch.Generator().manual_seed(0)
    share = 1 + 1.5 * torch.randn(40, 50, 256, generator=source, dtype=torch.float64)
    found = entropy_gap(share, torch.ones(50, 256, dtype=torch.bool))
    assert abs(float(found.mean())) < 3 * float(found.std()) / 50**0.5 + 0.002
    assert float(found.std()) < 0.01


def test_unspent_entropy_is_of_free_cells_alone():
    share = torch.ones(2, 1, 8)
    share[..., 4:] = 100.0
    free = torch.arange(8)[None] < 4
    assert float(entropy_gap(share, free)) == 0.0


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
    for some in (samples, samples[:1]):
        found, doubt = multiscale_shrinkage(some, torch.ones(1, 16, 16), torch.ones(1, 16, 16).bool())
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


planes = st.tuples(st.integers(1, 14), st.integers(1, 14))


@settings(max_examples=40, deadline=None)
@given(planes, st.integers(1, 9), st.integers(0, 2**31))
def test_sums_agree_with_a_loop(plane, side, seed):
    cells = Cells.of(plane, side)
    values = torch.rand(2, *plane, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    sums = cells.sum_by_cell(values)
    assert sums.shape == (2, len(cells))
    for own, expected in zip(sums, values, strict=True):
        assert np.allclose(own.view(cells.grid), pencil.cell_sums(expected.numpy(), cells.grid))


@settings(max_examples=40, deadline=None)
@given(planes, st.integers(1, 9), st.integers(0, 2**31))
def test_spreading_is_the_transpose_of_summing(plane, side, seed):
    cells = Cells.of(plane, side)
    source = torch.Generator().manual_seed(seed)
    values = torch.rand(*plane, generator=source, dtype=torch.float64)
    weights = torch.rand(len(cells), generator=source, dtype=torch.float64)
    assert torch.isclose((cells.sum_by_cell(values) * weights).sum(), (values * cells.expand_to_pixels(weights)).sum())


@settings(max_examples=30, deadline=None)
@given(planes, st.integers(1, 20))
def test_every_pixel_is_in_one_cell_and_no_cell_is_empty(plane, side):
    cells = Cells.of(plane, side)
    counts = cells.sum_by_cell(torch.ones(plane))
    assert counts.min() >= 1
    assert counts.sum() == plane[0] * plane[1]
    assert counts.max() <= (-(-plane[0] // cells.grid[0])) * (-(-plane[1] // cells.grid[1]))


@settings(max_examples=30, deadline=None)
@given(planes, st.integers(1, 20))
def test_a_flat_map_has_one_mean_however_unequal_the_cells(plane, side):
    cells = Cells.of(plane, side)
    assert torch.equal(cells.mean_by_cell(torch.full((3, *plane), 0.25)), torch.full((3, len(cells)), 0.25))
    assert torch.equal(cells.pixels, cells.sum_by_cell(torch.ones(plane)))


def test_small_images_have_a_cell_per_pixel():
    cells = Cells.of((32, 32))
    assert cells.per_pixel
    assert len(cells) == 1024
    plane = torch.rand(32, 32)
    assert torch.equal(cells.sum_by_cell(plane), plane.flatten())
    assert torch.equal(cells.expand_to_pixels(cells.sum_by_cell(plane)), plane)


def test_large_images_have_a_grid_unless_told_otherwise():
    assert Cells.of((224, 224)).grid == (56, 56)
    assert Cells.of((224, 224), None).per_pixel
    assert Cells.of((40, 100), 56).grid == (40, 56)


@pytest.mark.parametrize("side", [0, -3])
def test_no_cells_are_refused(side):
    with pytest.raises(InputError, match="at least one cell"):
        Cells.of((8, 8), side)
