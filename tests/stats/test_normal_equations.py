"""Normal equations add up whatever the partition, and their ridge solution is the textbook's."""

from itertools import pairwise

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from channelscope.stats.normal_equations import NormalEquations, cross_validated_error
from pencil_pruning import ridge_slowly


def samples(seed=0, n=200, groups=2, inputs=5, outputs=3):
    source = torch.Generator().manual_seed(seed)
    x = torch.randn(groups, n, inputs, generator=source, dtype=torch.float64) + 3
    t = (
        x @ torch.randn(groups, inputs, outputs, generator=source, dtype=torch.float64)
        + torch.randn(groups, n, outputs, generator=source).double()
    )
    return x, t, torch.randn(groups, outputs, inputs, generator=source, dtype=torch.float64)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 199), max_size=4, unique=True), st.integers(0, 100))
def test_statistics_of_a_union_are_the_sum(cuts, seed):
    x, t, _prior = samples(seed)
    whole = NormalEquations.of(x, t)
    bounds = [0, *sorted(cuts), 200]
    parts = [NormalEquations.of(x[:, a:b], t[:, a:b]) for a, b in pairwise(bounds)]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    assert total.count == 200
    for name in ("x_mean", "t_mean", "xx", "xt", "tt"):
        torch.testing.assert_close(getattr(total, name), getattr(whole, name), rtol=1e-9, atol=1e-9)


def test_ridge_toward_a_prior_is_the_augmented_least_squares():
    x, t, prior = samples()
    statistics = NormalEquations.of(x, t)
    for share in (0.0, 0.03, 1.0):
        (fitted,) = statistics.ridge(prior, (share,))
        for group in range(2):
            weights, constant = ridge_slowly(x[group].numpy(), t[group].numpy(), prior[group].numpy(), share)
            np.testing.assert_allclose(fitted[group].numpy(), weights, rtol=1e-7, atol=1e-9)
            np.testing.assert_allclose(statistics.intercept(fitted)[group].numpy(), constant, rtol=1e-7, atol=1e-8)


def test_a_strong_ridge_keeps_the_prior_and_so_does_a_constant_input():
    x, t, prior = samples()
    torch.testing.assert_close(next(NormalEquations.of(x, t).ridge(prior, (1e9,))), prior, rtol=1e-6, atol=1e-6)
    still = NormalEquations.of(torch.ones_like(x), t)
    assert torch.equal(next(still.ridge(prior, (0.03,))), prior)


def test_errors_and_outputs_are_those_of_the_samples():
    x, t, prior = samples()
    statistics = NormalEquations.of(x, t)
    guess = x @ prior.transpose(1, 2) + statistics.intercept(prior)[:, None]
    torch.testing.assert_close(statistics.error(prior), (guess - t).square().mean(1), rtol=1e-8, atol=1e-8)
    mean, variance = statistics.output_moments(prior)
    product = x @ prior.transpose(1, 2)
    torch.testing.assert_close(mean, product.mean(1))
    torch.testing.assert_close(variance, product.var(1, correction=0))
    (fitted,) = statistics.ridge(prior, (0.01,))
    assert bool((statistics.error(fitted) <= statistics.error(prior)).all())


def test_without_a_constant_the_samples_are_taken_about_zero():
    x, t, prior = samples()
    (fitted,) = NormalEquations.of(x, t).about_zero().ridge(prior, (0.0,))
    for group in range(2):
        expected = np.linalg.lstsq(x[group].numpy(), t[group].numpy(), rcond=None)[0].T
        np.testing.assert_allclose(fitted[group].numpy(), expected, rtol=1e-7, atol=1e-8)
    assert bool((NormalEquations.of(x, t).about_zero().intercept(fitted) == 0).all())


def test_held_out_errors_are_those_of_each_half_predicting_the_other():
    x, t, prior = samples(n=60)
    halves = (slice(None, 30), slice(30, None))
    expected = []
    for share in (0.1, 10.0):
        total = 0.0
        for fit, judge in (halves, halves[::-1]):
            for group in range(2):
                weights, _ = ridge_slowly(x[group, fit].numpy(), t[group, fit].numpy(), prior[group].numpy(), share)
                rest = t[group, judge].numpy() - x[group, judge].numpy() @ weights.T
                total += np.mean((rest - rest.mean(0)) ** 2) / 4
        expected.append(total)
    parts = [NormalEquations.of(x[:, half], t[:, half]) for half in halves]
    received = cross_validated_error((parts[0], parts[1]), prior, (0.1, 10.0))
    np.testing.assert_allclose(received.numpy(), expected, rtol=1e-4)
