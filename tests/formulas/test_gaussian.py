import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import ledoit_wolf_shrinkage, oas

import pencil
from channelscope.errors import InputError, SampleError, ShapeError, SingularError
from channelscope.formulas.gaussian import FLOAT32_RESOLUTION, Gaussian, cholesky, correlation, ledoit_wolf_penalty, solve
from channelscope.stats.moments import Moments
from formulas import laws

SEEDS = st.integers(0, 10_000)


def samples(n, d, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.linalg.cholesky(laws.covariance(d, seed)).T
    return torch.randn(n, d, generator=generator, dtype=torch.float64) @ mixing + 3


def fitted(n=200, d=5, seed=0, shrinkage=None):
    return Gaussian.fit(Moments.of(samples(n, d, seed)), shrinkage)


def test_fit_is_the_maximum_likelihood_law():
    x = samples(200, 5)
    law = Gaussian.fit(Moments.of(x))
    count, mean, scatter = pencil.moments(x.numpy())
    assert law.count == count == 200
    np.testing.assert_allclose(law.mean, mean)
    np.testing.assert_allclose(law.covariance, scatter / count)
    assert law.describe() == "Gaussian, ML covariance, n=200"
    assert len(law) == 5


@pytest.mark.parametrize(("n", "d"), [(30, 20), (2000, 6), (10, 40), (50, 2)])
def test_oas_is_the_published_intensity(n, d):
    raw, shrunk = fitted(n, d, 3), fitted(n, d, 3, "oas")
    strength = pencil.oas(raw.correlation.numpy(), n)
    torch.testing.assert_close(shrunk.correlation[0, 1], (1 - strength) * raw.correlation[0, 1])
    assert shrunk.describe() == f"Gaussian, OAS shrinkage {strength:.2g}, n={n:,}"


def test_oas_is_scikit_learns_on_many_standardized_channels():
    x = samples(60, 200)
    law = Gaussian.fit(Moments.of(x), "oas")
    standard = ((x - x.mean(0)) / x.std(0, correction=0)).numpy()
    expected, _ = oas(standard, assume_centered=True)  # leaves out the terms 2/p
    np.testing.assert_allclose(law.correlation, expected, atol=0.01)


def test_shrinkage_leaves_variances_and_scales_correlations():
    raw, shrunk = fitted(), fitted(shrinkage=0.25)
    torch.testing.assert_close(shrunk.variance, raw.variance)
    off = ~torch.eye(5, dtype=torch.bool)
    torch.testing.assert_close(shrunk.correlation[off], 0.75 * raw.correlation[off])
    assert "shrinkage 0.25" in shrunk.describe()
    torch.testing.assert_close(fitted(shrinkage=1).correlation, torch.eye(5, dtype=torch.float64))


@pytest.mark.parametrize("wrong", [-0.1, 1.5, "ledoit", math.nan])
def test_other_shrinkage_is_refused(wrong):
    with pytest.raises(InputError, match="oas"):
        fitted(shrinkage=wrong)


@pytest.mark.parametrize("n", [0, 1])
def test_two_samples_are_needed(n):
    with pytest.raises(SampleError, match="2 samples"):
        Gaussian.fit(Moments.of(torch.ones(n, 3)))


def test_units_do_not_matter():
    x = samples(40, 6)
    factor = torch.tensor([1e-6, 1.0, -3.0, 1e5, 0.1, 7.0], dtype=torch.float64)
    for shrinkage in (None, "oas", 0.2):
        plain, scaled = Gaussian.fit(Moments.of(x), shrinkage), Gaussian.fit(Moments.of(x * factor), shrinkage)
        torch.testing.assert_close(scaled.correlation, plain.correlation * torch.outer(factor.sign(), factor.sign()))


def test_index_marginalizes():
    law = fitted()
    for index in ([3, 1], torch.tensor([3, 1]), slice(1, 4, 2), torch.tensor([False, True, False, True, False])):
        part = law[index]
        torch.testing.assert_close(part.mean, law.mean[index])
        torch.testing.assert_close(part.covariance, law.covariance[index][:, index])
        assert part.describe() == law.describe()


@given(SEEDS)
@settings(max_examples=25, deadline=None)
def test_given_conditions(seed):
    law = fitted(seed=seed)
    value = torch.tensor([0.5, -2.0], dtype=torch.float64)
    mean, spread = pencil.conditional(law.mean.numpy(), law.covariance.numpy(), [3, 0], value.numpy())
    left = law.given([3, 0], value)
    np.testing.assert_allclose(left.mean, mean, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(left.covariance, spread, rtol=1e-6, atol=1e-9 * float(law.variance.max()))
    torch.testing.assert_close(law.given([3, 0]).mean, law.mean[[1, 2, 4]])


@given(SEEDS)
@settings(max_examples=25, deadline=None)
def test_conditioning_twice_is_conditioning_once(seed):
    law = fitted(seed=seed)
    torch.testing.assert_close(law.given([1]).given([2]).covariance, law.given([1, 3]).covariance, rtol=1e-7, atol=1e-10)


def test_given_nothing_is_the_law_itself():
    law = fitted()
    torch.testing.assert_close(law.given([]).covariance, law.covariance)


def test_what_a_copy_leaves_is_nothing():
    x = samples(300, 3).float()
    law = Gaussian.fit(Moments.of(torch.cat([x, -3 * x[:, :1] + 5], 1)))
    left = law.given([0])
    assert left.variance[2] == 0
    assert left.silent.tolist() == [False, False, True]
    assert left.covariance[2].abs().sum() == 0


def test_silent_is_a_matter_of_float32_rounding():
    x = samples(100, 4)
    x[:, 1] = 1234.5
    x[:, 2] = 1000 + 1e-5 * x[:, 2]
    x[:, 3] *= 1e-12
    law = Gaussian.fit(Moments.of(x))
    assert law.silent.tolist() == [False, True, True, False]
    rho = law.correlation
    assert bool(rho[1].isnan().all())
    assert bool(rho[:, 2].isnan().all())
    assert rho[0, 0] == 1
    assert rho[3, 3] == 1
    assert -1 <= rho[0, 3] <= 1


def test_silent_survives_shrinkage():
    x = samples(10, 30)
    x[:, 7] = 2.0
    law = Gaussian.fit(Moments.of(x), "oas")
    assert law.silent.nonzero().flatten().tolist() == [7]


def test_shrinkage_of_a_silent_layer():
    law = Gaussian.fit(Moments.of(torch.ones(10, 3)), "oas")
    assert bool(law.silent.all())


def test_correlation_matches_its_twin():
    law = fitted()
    np.testing.assert_allclose(law.correlation, pencil.correlation(law.covariance.numpy()))
    np.testing.assert_allclose(correlation(law.covariance), pencil.correlation(law.covariance.numpy()))
    assert float(correlation(law.covariance).diagonal().sub(1).abs().max()) == 0


def test_cholesky_and_solve():
    law = fitted(seed=5)
    scale, lower = cholesky(law.covariance)
    torch.testing.assert_close(scale[:, None] * (lower @ lower.T) * scale, law.covariance)
    right = torch.randn(5, 3, dtype=torch.float64)
    torch.testing.assert_close(law.covariance @ solve(law.covariance, right), right)
    with pytest.raises(ShapeError, match="5 equations"):
        solve(law.covariance, right[:2])


def test_solve_keeps_digits_of_badly_scaled_channels():
    law = fitted(seed=6)
    factor = torch.tensor([1e-9, 1e9, 1.0, 1e-5, 1e4], dtype=torch.float64)
    wild = law.covariance * torch.outer(factor, factor)
    answer = solve(wild, torch.diag(factor))
    torch.testing.assert_close(answer * factor[:, None], torch.linalg.inv(law.covariance), rtol=1e-8, atol=0)


def test_singular_says_who_and_what_to_do():
    x = samples(500, 6)
    x[:, 2] = 0.0
    x[:, 4] = x[:, 0] - 2 * x[:, 1]
    law = Gaussian.fit(Moments.of(x))
    with pytest.raises(SingularError) as caught:
        law.given([0, 1, 2, 3, 4])
    message = str(caught.value)
    assert "5 channels, 500 samples" in message
    assert "rank 3" in message
    assert "1 channel (2) is silent: drop them." in message
    assert "1 channel (" in message.split(" silent: ")[1]
    assert not bool(law[~law.silent].silent.any())
    assert "pass shrinkage='oas'" in message


def test_singular_lists_only_the_first_of_many():
    x = samples(12, 30)
    with pytest.raises(SingularError, match=r"rank 11\. 19 channels \((\d+, ){8}…\) are determined"):
        cholesky(Gaussian.fit(Moments.of(x)).covariance)
    assert Gaussian.fit(Moments.of(x), "oas").given(list(range(29))).variance > 0


@pytest.mark.parametrize(("silent", "listed"), [(8, "0, 1, 2, 3, 4, 5, 6, 7"), (9, "0, 1, 2, 3, 4, 5, 6, 7, …")])
def test_eight_channels_are_listed_in_full(silent, listed):
    x = samples(100, 10)
    x[:, :silent] = 0.0
    with pytest.raises(SingularError, match=rf"{silent} channels \({listed}\) are silent"):
        cholesky(Gaussian.fit(Moments.of(x)).covariance)


def test_singular_by_float32_rounding_is_seen():
    x = samples(1000, 3).float()
    law = Gaussian.fit(Moments.of(torch.cat([x, x @ torch.tensor([[0.3], [-1.7], [0.9]])], 1)))
    with pytest.raises(SingularError, match="rank 3"):
        law.given([0, 1, 2, 3])
    assert 1e-7 < FLOAT32_RESOLUTION < 1e-5


@pytest.mark.parametrize(("n", "d"), [(5, 12), (40, 12), (400, 3)])
def test_the_penalty_is_that_of_scikit_learns_ledoit_wolf_on_single_samples(n, d):
    x = samples(n, d, n)
    x -= x.mean(0)
    square = float(x.square().sum(1).square().mean())
    shrunk = ledoit_wolf_shrinkage(x.numpy(), assume_centered=True)
    assert ledoit_wolf_penalty(x.T @ x / n, square, n) == pytest.approx(shrunk / (1 - shrunk))


@pytest.mark.parametrize("n", [400, 40_000])
def test_the_penalty_vanishes_with_many_samples_of_alike_coordinates_too(n):
    """For p alike coordinates b² is near p²/n and |Σ|² = p: four times p/n, where Ledoit and Wolf's own estimate is far above 1."""
    x = torch.randn(n, 20, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    penalty = ledoit_wolf_penalty(x.T @ x / n, float(x.square().sum(1).square().mean()), n)
    assert penalty == pytest.approx(4 * 21 / n, rel=0.2)
    assert ledoit_wolf_shrinkage(x.numpy(), assume_centered=True) > 0.8


def test_the_penalty_counts_images_not_their_positions():
    """Positions that repeat one another say no more than one of them."""
    once = torch.arange(1, 9) * torch.randn(30, 1, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    penalties = []
    for positions in (1, 50):
        x = once.expand(-1, positions, -1)
        each = torch.einsum("npi,npj->nij", x, x) / positions
        penalties.append(ledoit_wolf_penalty(each.mean(0), float(each.square().sum((1, 2)).mean()), 30))
    assert penalties[0] == pytest.approx(penalties[1])
    assert 0.1 < penalties[0] < 1


def test_the_penalty_is_zero_where_samples_agree_and_infinite_where_they_say_nothing():
    sure = torch.diag(torch.tensor([3.0, 1.0]))
    assert ledoit_wolf_penalty(sure, 10.0, 5) == 0
    assert ledoit_wolf_penalty(sure, 1000.0, 5) == math.inf
    assert ledoit_wolf_penalty(torch.zeros(2, 2), 0.0, 5) == math.inf
