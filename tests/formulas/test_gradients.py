import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pencil
from channelscope.errors import ShapeError
from channelscope.formulas.gradients import cosine, information_step, linear_axes, network_step
from channelscope.formulas.ranks import spearman
from formulas import laws

SEEDS = st.integers(0, 10_000)


def problem(seed=0, channels=4, inputs=6, variance_left=0.5):
    """Weights, input covariance, cross-covariance and a possible target variance."""
    generator = torch.Generator().manual_seed(seed)
    sigma = laws.covariance(inputs, seed)
    beta = torch.randn(inputs, generator=generator, dtype=torch.float64)
    weights = torch.randn(channels, inputs, generator=generator, dtype=torch.float64)
    return weights, sigma, sigma @ beta, float(beta @ sigma @ beta) * (1 + variance_left)


@given(SEEDS)
@settings(max_examples=20, deadline=None)
def test_gradients_are_slopes(seed):
    weights, sigma, cross, variance = problem(seed)
    axes = linear_axes(weights, weights @ sigma, cross, variance, noise=0.7)
    for i, w in enumerate(weights.numpy()):
        capture, relevance, up, along = pencil.linear_axes(w, sigma.numpy(), cross.numpy(), variance, 0.7)
        assert float(axes.capture[i]) == pytest.approx(capture)
        assert float(axes.relevance[i]) == pytest.approx(relevance)
        np.testing.assert_allclose(axes.capture_gradient[i], up, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(axes.task_gradient[i], along, rtol=1e-4, atol=1e-6)


def test_gradients_are_autograds():
    weights, sigma, cross, variance = problem(3)
    weights.requires_grad_()
    power, shared = (weights @ sigma * weights).sum(1), weights @ cross
    noise = float(power.detach().quantile(0.5))
    (up,) = torch.autograd.grad((power / noise).log1p().sum() / 2, weights, retain_graph=True)
    (along,) = torch.autograd.grad(-torch.log1p(-shared.square() / (power * variance)).sum() / 2, weights)
    axes = linear_axes(weights.detach(), weights.detach() @ sigma, cross, variance)
    torch.testing.assert_close(axes.capture_gradient, up)
    torch.testing.assert_close(axes.task_gradient, along)


@given(SEEDS, st.floats(0.01, 100))
@settings(max_examples=40, deadline=None)
def test_both_identities(seed, scale):
    weights, sigma, cross, variance = problem(seed)
    axes = linear_axes(scale * weights, scale * weights @ sigma, cross, variance)
    size = axes.residual.norm(dim=1) * weights.norm(dim=1)
    assert float(((weights * axes.residual).sum(1) / size).abs().max()) < 1e-10
    inverse = torch.linalg.inv(sigma)
    assert float(cosine(axes.capture_gradient, axes.residual, inverse).abs().max()) < 1e-8
    assert float(cosine(axes.capture_gradient, axes.task_gradient, inverse).abs().max()) < 1e-8


@given(SEEDS)
@settings(max_examples=20, deadline=None)
def test_euclidean_cosine_is_zero_for_isotropic_inputs_and_eigenvectors(seed):
    weights, sigma, cross, variance = problem(seed)
    isotropic = linear_axes(weights, 3.0 * weights, cross, float(cross @ cross))
    assert float(isotropic.cosine.abs().max()) < 1e-8
    vectors = torch.linalg.eigh(sigma).eigenvectors.T.contiguous()
    assert float(linear_axes(vectors, vectors @ sigma, cross, variance).cosine.abs().max()) < 1e-6


def test_euclidean_cosine_measures_anisotropy():
    weights = torch.tensor([[1.0, 1.0]], dtype=torch.float64)
    cross, values = torch.tensor([1.0, 0.0], dtype=torch.float64), []
    for ratio in (1.0, 3.0, 30.0):
        sigma = torch.diag(torch.tensor([ratio, 1.0], dtype=torch.float64))
        values.append(float(linear_axes(weights, weights @ sigma, cross, 5.0).cosine.abs()))
    assert values[0] < 1e-12
    assert values[0] < values[1] < values[2]


def test_cosine_twin():
    a, b = torch.randn(2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    metric = laws.covariance(5)
    for i in range(3):
        assert float(cosine(a, b, metric)[i]) == pytest.approx(pencil.cosine(a[i].numpy(), b[i].numpy(), metric.numpy()))
        assert float(cosine(a, b)[i]) == pytest.approx(pencil.cosine(a[i].numpy(), b[i].numpy(), np.eye(5)))
    assert cosine(torch.zeros(1, 2), torch.ones(1, 2)).isnan().item()


def test_undefined_where_a_channel_is_silent_or_is_the_target():
    weights, sigma, cross, variance = problem(variance_left=0.0)
    beta = torch.linalg.solve(sigma, cross)
    weights = torch.stack([torch.zeros(6, dtype=torch.float64), beta, weights[0]])
    axes = linear_axes(weights, weights @ sigma, cross, variance)
    assert axes.relevance.isnan().tolist() == [True, False, False]
    assert axes.relevance[1] == math.inf
    assert bool(axes.capture[0].isnan())
    assert bool(axes.task_gradient[0].isnan().all())
    assert bool(axes.task_gradient[1].isnan().all())
    assert bool(axes.task_gradient[2].isfinite().all())


def test_an_uncorrelated_channel_is_at_a_saddle_of_the_task_axis():
    sigma, cross = torch.eye(2, dtype=torch.float64), torch.tensor([1.0, 0.0], dtype=torch.float64)
    axes = linear_axes(torch.tensor([[0.0, 2.0]], dtype=torch.float64), torch.tensor([[0.0, 2.0]]), cross, 2.0)
    assert axes.task_gradient.abs().sum() == 0
    assert axes.residual[0].tolist() == [1.0, 0.0]
    assert sigma.trace() == 2


def test_shapes_must_fit():
    weights, sigma, cross, variance = problem()
    with pytest.raises(ShapeError, match="cross-covariance"):
        linear_axes(weights, weights @ sigma, cross[:3], variance)
    with pytest.raises(ShapeError):
        linear_axes(weights, sigma, cross, variance)


# ---------------------------------------------------------------- flows


def spiked(seed, inputs=24, channels=64, share=0.6):
    """An input with one strong direction that also carries most of the target: capture and relevance start out coupled."""
    generator = torch.Generator().manual_seed(seed)
    values = 1 / torch.arange(inputs, dtype=torch.float64).clamp(min=1)
    values[0] = 10
    basis = torch.linalg.qr(torch.randn(inputs, inputs, generator=generator, dtype=torch.float64)).Q
    sigma = basis * values @ basis.T
    rest = torch.randn(inputs, generator=generator, dtype=torch.float64)
    rest[0] = 0
    beta = rest * ((1 - share) / (rest.square() * values).sum()).sqrt()
    beta[0] = (share / values[0]).sqrt()
    weights = torch.randn(channels, inputs, generator=generator, dtype=torch.float64)
    return weights / weights.norm(dim=1, keepdim=True), sigma, sigma @ (basis @ beta), 2.0


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_information_flow_separates_axes_that_began_together(seed):
    weights, sigma, cross, variance = spiked(seed)
    start = linear_axes(weights, weights @ sigma, cross, variance)
    lengths = weights.norm(dim=1)
    for _ in range(200):
        weights = information_step(weights, sigma, cross, variance, 0.02)
    end = linear_axes(weights, weights @ sigma, cross, variance)
    assert float(spearman(start.capture, start.relevance)) > 0.6
    assert float(spearman(end.capture, end.relevance)) < 0.2
    assert float(end.cosine.abs().mean()) < 0.5 * float(start.cosine.abs().mean())
    assert float(end.relevance.mean()) > 2 * float(start.relevance.mean())
    torch.testing.assert_close(weights.norm(dim=1), lengths, rtol=0.05, atol=0)


def test_information_flow_ends_at_the_regression():
    weights, _, beta, _ = problem(5)
    sigma = torch.diag(torch.linspace(0.5, 2, 6, dtype=torch.float64))
    cross = sigma @ beta
    for _ in range(600):
        weights = information_step(weights, sigma, cross, 1.5 * float(beta @ cross), 0.2)
    assert float(cosine(weights, beta.expand_as(weights)).abs().min()) > 0.999


def test_network_step_is_autograds_and_keeps_the_balance():
    weights, sigma, cross, variance = problem(2)
    readout = torch.randn(4, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    w, a = weights.clone().requires_grad_(), readout.clone().requires_grad_()
    total = w.T @ a
    loss = (variance - 2 * total @ cross + total @ sigma @ total) / 2
    loss.backward()
    new_w, new_a = network_step(weights, readout, sigma, cross, 1e-3)
    torch.testing.assert_close(new_w, weights - 1e-3 * w.grad)
    torch.testing.assert_close(new_a, readout - 1e-3 * a.grad)
    before = weights @ weights.T - torch.outer(readout, readout)
    for _ in range(2000):
        weights, readout = network_step(weights, readout, sigma, cross, 1e-4)
    torch.testing.assert_close(weights @ weights.T - torch.outer(readout, readout), before, rtol=0, atol=0.05)
    error = variance - 2 * (weights.T @ readout) @ cross + (weights.T @ readout) @ sigma @ (weights.T @ readout)
    least = variance - cross @ torch.linalg.solve(sigma, cross)
    assert float(least) < float(error) < float(least) + 0.1 * float(2 * loss.detach() - least)
