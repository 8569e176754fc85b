import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import pencil
from channelscope.errors import InputError, ShapeError, SingularError
from channelscope.formulas.gaussian import Gaussian, correlation
from channelscope.formulas.regression import RIDGE, backward_elimination, hulls, peer_regression, replacement_weights, support, task_credit
from channelscope.stats.moments import Moments
from formulas import laws

SEEDS = st.integers(0, 10_000)


def random_rho(channels, seed=0, factors=None):
    return correlation(laws.covariance(channels, seed, factors))


def signs(channels, seed):
    return torch.randint(2, (channels,), generator=torch.Generator().manual_seed(seed)).double() * 2 - 1


# ---------------------------------------------------------------- support


@given(SEEDS, st.sampled_from([RIDGE, 0.1, 0.0]))
@settings(max_examples=20, deadline=None)
def test_support_twin(seed, ridge):
    rho = random_rho(8, seed)
    np.testing.assert_allclose(support(rho, ridge), pencil.support(rho.numpy(), ridge), atol=1e-9)


def test_support_without_ridge_is_least_squares_on_the_samples():
    x = torch.randn(300, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) @ laws.covariance(6, 1)
    value = support(Gaussian.fit(Moments.of(x)).correlation, 0.0)
    for i in range(6):
        others = [j for j in range(6) if j != i]
        design = torch.cat([x[:, others], x.new_ones(300, 1)], 1)
        fitted = design @ torch.linalg.lstsq(design, x[:, i : i + 1]).solution
        residual = (x[:, i] - fitted[:, 0]).square().mean() / x[:, i].var(correction=0)
        assert float(value[i]) == pytest.approx(1 - float(residual), abs=1e-9)


def test_support_of_exact_copies_is_one_without_ridge():
    rho = random_rho(4)
    value = support(laws.with_copy(rho, 2, -1), 0.0)
    assert value[[2, 4]].tolist() == [1.0, 1.0]
    torch.testing.assert_close(value[[0, 1, 3]], support(rho, 0.0)[[0, 1, 3]], rtol=0, atol=1e-9)
    damped = support(laws.with_copy(random_rho(1), 0))
    assert damped.tolist() == pytest.approx([1 / (1 + RIDGE)] * 2)


def test_support_of_a_linear_dependence_among_many():
    mixing = torch.eye(5, dtype=torch.float64)
    mixing = torch.cat([mixing, torch.tensor([[1.0, -2.0, 0.5, 0.0, 0.0]], dtype=torch.float64)])
    law = mixing @ laws.covariance(5) @ mixing.T
    value = support(correlation(law), 0.0)
    assert value[[0, 1, 2, 5]].tolist() == [1.0] * 4
    torch.testing.assert_close(value[[3, 4]], support(correlation(laws.covariance(5)), 0.0)[[3, 4]], rtol=0, atol=1e-9)


def test_support_of_float32_copies_is_one():
    x = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0))
    x = torch.cat([x, 0.7 * x[:, :1] - 4], 1)
    value = support(Gaussian.fit(Moments.of(x)).correlation, 0.0)
    assert value[[0, 3]].tolist() == [1.0, 1.0]
    assert float(value[1]) < 0.01


def test_support_of_independent_channels_is_zero():
    assert float(support(torch.eye(5, dtype=torch.float64)).max()) < 1e-12
    assert hulls(torch.eye(5, dtype=torch.float64)).size.tolist() == [0] * 5
    assert support(torch.ones(1, 1, dtype=torch.float64)).tolist() == pytest.approx([0.0], abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ridge", [0.0, 1e-3, 0.5])
def test_task_credit_is_what_leaving_one_out_costs(seed, ridge):
    joint = random_rho(7, seed)
    rho, aim = joint[:-1, :-1], joint[-1, :-1]
    np.testing.assert_allclose(task_credit(aim, rho, ridge), pencil.task_credit(aim.numpy(), rho.numpy(), ridge), atol=1e-9)


def test_a_copied_channel_has_no_task_credit_and_takes_none_from_the_others():
    joint = random_rho(7, 1)
    rho, aim = joint[:-1, :-1], joint[-1, :-1]
    copied = task_credit(torch.cat([aim, -aim[2:3]]), laws.with_copy(rho, 2, -1), 0.0)
    rest = [channel for channel in range(len(aim)) if channel != 2]
    assert copied[[2, -1]].tolist() == [0, 0]
    torch.testing.assert_close(copied[rest], task_credit(aim, rho, 0.0)[rest], rtol=0, atol=1e-9)
    damped = task_credit(torch.cat([aim, -aim[2:3]]), laws.with_copy(rho, 2, -1), 1e-6)
    torch.testing.assert_close(copied, damped, rtol=0, atol=1e-4)


def test_task_credit_leaves_silent_channels_out_and_refuses_a_negative_ridge():
    joint = random_rho(7, 0)
    rho, aim = joint[:-1, :-1], joint[-1, :-1]
    found = task_credit(torch.cat([aim[:1], torch.tensor([torch.nan]), aim[1:]]), laws.with_silent(rho, 1))
    assert bool(found[1].isnan())
    torch.testing.assert_close(found[[0, 2, 3, 4, 5, 6]], task_credit(aim, rho))
    with pytest.raises(InputError, match="ridge is at least 0, received -1"):
        task_credit(aim, rho, -1)


def test_support_leaves_silent_channels_out():
    rho = random_rho(5)
    value = support(laws.with_silent(rho, 2))
    assert value.isnan().nonzero().flatten().tolist() == [2]
    torch.testing.assert_close(value[[0, 1, 3, 4, 5]], support(rho))
    assert bool(support(torch.full((2, 2), torch.nan)).isnan().all())


@given(SEEDS)
@settings(max_examples=15, deadline=None)
def test_support_invariances(seed):
    rho = random_rho(7, seed)
    sign, order = signs(7, seed), torch.randperm(7, generator=torch.Generator().manual_seed(seed))
    value = support(rho)
    torch.testing.assert_close(support(rho * torch.outer(sign, sign)), value)
    torch.testing.assert_close(support(rho[order][:, order]), value[order])
    fewer = support(rho[:5, :5])
    assert bool((fewer <= value[:5] + 1e-12).all()), "more peers never explain less"
    assert bool((support(rho, 0.1) <= value + 1e-12).all()), "more ridge never explains more"
    with pytest.raises(InputError, match="ridge"):
        support(rho, -0.1)


# ---------------------------------------------------------------- hulls


@given(SEEDS, st.sampled_from(["forward", "prefix"]), st.sampled_from([RIDGE, 0.0]), st.sampled_from([0.5, 0.9, 1.0]))
@example(1236, "forward", RIDGE, 1.0)
@settings(max_examples=40, deadline=None)
def test_hull_is_the_greedy_least_squares_choice(seed, order, ridge, threshold):
    rho = random_rho(7, seed, factors=4)
    result = hulls(rho, 4, threshold, ridge=ridge, order=order)
    for target in range(7):
        members, curve, reached = pencil.hull(rho.numpy(), target, 4, threshold, ridge, order)
        size = int(result.size[target])
        assert result.members[target].tolist() == members + [-1] * (4 - size)
        np.testing.assert_allclose(result.explained[target, :size], curve, atol=1e-9)
        assert bool(result.explained[target, size:].isnan().all())
        assert bool(result.saturated[target]) is not reached
    torch.testing.assert_close(result.compactness, result.support / result.size)


def test_hull_of_all_peers_is_peer_support():
    rho = random_rho(6)
    result = hulls(rho, 10, 1.0)
    torch.testing.assert_close(result.explained[:, 4], support(rho))
    assert not result.saturated.any()
    assert result.members.shape == (6, 10)


def test_hull_of_a_copy_is_one_channel():
    rho = laws.with_copy(random_rho(5), 3, -1)
    for ridge in (0.0, RIDGE):
        result = hulls(rho, ridge=ridge)
        assert result.members[3, :2].tolist() == [5, -1]
        assert result.members[5, 0] == 3
        assert result.size[3] == 1
        assert float(result.explained[3, 0]) == pytest.approx(1 / (1 + ridge))
        assert float(result.compactness[3]) == pytest.approx(1, abs=0.01)


def test_hull_adds_no_copy_of_a_member():
    generator = torch.Generator().manual_seed(0)
    a, b, noise = torch.randn(3, 2000, 1, generator=generator, dtype=torch.float64)
    x = torch.cat([a + b + 0.3 * noise, a, a, b], 1)
    rho = correlation(Moments.of(x).covariance)
    for ridge in (0.0, RIDGE):
        first = hulls(rho, 3, 0.9, ridge=ridge).members[0].tolist()
        assert set(first) in ({1, 3, -1}, {2, 3, -1})
    prefix = hulls(rho, 3, 1.0, ridge=0.0, order="prefix")
    assert float(prefix.explained[0].nan_to_num(0).max()) == pytest.approx(float(prefix.support[0]))


def test_absolute_threshold_that_cannot_be_reached_saturates():
    rho = torch.eye(4, dtype=torch.float64)
    rho[0, 1] = rho[1, 0] = 0.5
    result = hulls(rho, 3, 0.9, relative=False, ridge=0.0)
    assert result.size.tolist() == [1, 1, 0, 0]
    assert bool(result.saturated.all())
    assert hulls(rho, 3, 0.9, ridge=0.0).saturated.tolist() == [False] * 4
    assert hulls(rho, 3, 0.2, relative=False, ridge=0.0).saturated.tolist() == [False, False, True, True]
    assert hulls(rho, 3, 0.9).compactness.isnan().tolist() == [False, False, True, True]


def test_a_target_that_is_stuck_never_takes_itself_while_others_go_on():
    stuck = laws.with_copy(torch.tensor([[1.0, 0.6], [0.6, 1.0]], dtype=torch.float64), 1)
    half = 0.5**0.5
    going = torch.tensor([[1.0, half, half], [half, 1, 0], [half, 0, 1]], dtype=torch.float64)
    result = hulls(torch.block_diag(stuck, going), 2, 0.9, relative=False, ridge=0.0, pool=2)
    assert result.members.tolist()[:4] == [[1, -1], [2, -1], [1, -1], [4, 5]]
    assert result.saturated.tolist()[:4] == [True, False, False, False]


def test_absolute_threshold_on_a_real_law_matches_the_curve():
    rho = random_rho(9, 2, factors=3)
    whole, part = hulls(rho, 8, 1.0, ridge=0.0), hulls(rho, 8, 0.6, relative=False, ridge=0.0)
    for target in range(9):
        curve = whole.explained[target]
        needed = int((curve < 0.6).sum()) + 1
        assert int(part.size[target]) == min(needed, int(whole.size[target]))
        assert bool(part.saturated[target]) == (float(whole.support[target]) < 0.6)


def test_hull_size_limit_saturates():
    rho = random_rho(12, 1)
    result = hulls(rho, 2, 1.0)
    assert bool((result.size == 2).all())
    assert bool(result.saturated.all())


def test_pool_limits_the_candidates():
    rho = random_rho(10, 3)
    result = hulls(rho, 5, 1.0, pool=3)
    near = rho.abs().fill_diagonal_(-1).topk(3, dim=1).indices
    for target in range(10):
        assert set(result.members[target].tolist()) - {-1} <= set(near[target].tolist())
    assert int(result.size.max()) == 3
    torch.testing.assert_close(hulls(rho, 5, 0.9, pool=9).members, hulls(rho, 5, 0.9).members)


def test_hulls_leave_silent_channels_out():
    rho = random_rho(6, 4)
    plain, quiet = hulls(rho, 4), hulls(laws.with_silent(rho, 2), 4)
    rest = torch.tensor([0, 1, 3, 4, 5, 6])
    assert quiet.size[2] == 0
    assert not quiet.saturated[2]
    assert quiet.compactness[2].isnan()
    assert quiet.members[2].tolist() == [-1] * 4
    back = torch.where(plain.members < 0, plain.members, rest[plain.members.clamp(min=0)])
    assert torch.equal(quiet.members[rest], back)
    torch.testing.assert_close(quiet.explained[rest], plain.explained, equal_nan=True)


@given(SEEDS)
@settings(max_examples=10, deadline=None)
def test_hull_invariances(seed):
    rho = random_rho(8, seed)
    sign, order = signs(8, seed), torch.randperm(8, generator=torch.Generator().manual_seed(seed))
    plain = hulls(rho, 4)
    flipped, moved = hulls(rho * torch.outer(sign, sign), 4), hulls(rho[order][:, order], 4)
    assert torch.equal(flipped.members, plain.members)
    torch.testing.assert_close(moved.explained, plain.explained[order], equal_nan=True)
    assert bool((plain.explained.diff(dim=1).nan_to_num(0) >= 0).all())


def test_hulls_of_more_targets_than_a_block(monkeypatch):
    rho = random_rho(11, 5)
    whole = hulls(rho, 4)
    monkeypatch.setattr("channelscope.formulas.regression.BLOCK_CHANNELS", 4)
    torch.testing.assert_close(hulls(rho, 4).explained, whole.explained, equal_nan=True)
    assert torch.equal(hulls(rho, 4).members, whole.members)


def test_hulls_of_tiny_layers():
    one = hulls(torch.ones(1, 1, dtype=torch.float64))
    assert one.size.tolist() == [0]
    assert one.members.shape == (1, 10)
    assert hulls(torch.full((3, 3), torch.nan)).size.tolist() == [0, 0, 0]
    two = hulls(torch.tensor([[1.0, 0.5], [0.5, 1.0]], dtype=torch.float64))
    assert two.members[:, 0].tolist() == [1, 0]


@pytest.mark.parametrize("wrong", [{"max_size": 0}, {"threshold": 0.0}, {"threshold": 1.5}, {"order": "backward"}, {"pool": 0}])
def test_hulls_refuse_impossible_options(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(InputError, match=rf"^{name}: expected .*, received {value}$"):
        hulls(torch.eye(3, dtype=torch.float64), **wrong)


# ---------------------------------------------------------------- replacement


def test_replacement_is_ordinary_least_squares():
    x = torch.randn(200, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64) @ laws.covariance(5) + 4
    m = Moments.of(x)
    weights, intercept = replacement_weights(m.covariance, m.mean, 1, [3, 0, -1, -1])
    expected, constant = pencil.replacement(x.numpy(), 1, [3, 0])
    np.testing.assert_allclose(weights, expected, rtol=1e-8)
    assert float(intercept) == pytest.approx(constant, rel=1e-8)
    prediction = x[:, [3, 0]] @ weights + intercept
    assert float((x[:, 1] - prediction).mean()) == pytest.approx(0, abs=1e-10)


def test_replacement_reaches_the_hulls_explained_variance():
    covariance = laws.covariance(6, 3)
    hull = hulls(correlation(covariance), 3, 1.0, ridge=0.0)
    for target in range(6):
        weights, _ = replacement_weights(covariance, torch.zeros(6, dtype=torch.float64), target, hull.members[target])
        left = covariance[target, target] - weights @ covariance[hull.members[target], target]
        assert float(1 - left / covariance[target, target]) == pytest.approx(float(hull.explained[target, 2]))


def test_replacement_by_nobody_is_the_mean():
    weights, intercept = replacement_weights(laws.covariance(3), torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64), 2, [])
    assert len(weights) == 0
    assert intercept == 3


def test_replacement_edge_cases():
    covariance, mean = laws.with_copy(torch.eye(2, dtype=torch.float64), 0), torch.zeros(3, dtype=torch.float64)
    with pytest.raises(ShapeError, match="channel 1"):
        replacement_weights(covariance, mean, 1, [0, 1])
    with pytest.raises(SingularError, match="ridge"):
        replacement_weights(covariance, mean, 1, [0, 2])
    weights, _ = replacement_weights(covariance, mean, 0, [2])
    assert weights.tolist() == [1.0]


# ---------------------------------------------------------------- peers matrix


@given(SEEDS, st.sampled_from([0.0, 1e-3, 0.5]))
@settings(max_examples=20, deadline=None)
def test_peers_matrix_twin(seed, ridge):
    covariance = laws.covariance(7, seed)
    dropped, kept = [1, 4], [0, 2, 3, 6]
    value = peer_regression(covariance, torch.tensor(dropped), torch.tensor(kept), ridge)
    np.testing.assert_allclose(value, pencil.peers_matrix(covariance.numpy(), dropped, kept, ridge), rtol=1e-6, atol=1e-9)
    scaled = peer_regression(1e-6 * covariance, torch.tensor(dropped), torch.tensor(kept), ridge)
    torch.testing.assert_close(scaled, value)


def test_peers_matrix_edge_cases():
    covariance = laws.covariance(5)
    covariance[2] = covariance[:, 2] = 0
    dropped, kept = torch.tensor([2, 0]), torch.tensor([1, 3])
    assert peer_regression(covariance, dropped, kept)[0].tolist() == [0.0, 0.0]
    withsilent = peer_regression(covariance, torch.tensor([0]), torch.tensor([1, 2]))
    assert withsilent[0, 1] == 0
    assert peer_regression(covariance, dropped, torch.tensor([], dtype=torch.long)).shape == (2, 0)
    assert peer_regression(covariance, torch.tensor([], dtype=torch.long), kept).shape == (0, 2)
    with pytest.raises(SingularError, match="silent"):
        peer_regression(covariance, torch.tensor([0]), torch.tensor([1, 2]), 0.0)
    with pytest.raises(SingularError, match="silent"):
        peer_regression(covariance, torch.tensor([0]), torch.tensor([2]))
    with pytest.raises(InputError, match="ridge"):
        peer_regression(covariance, dropped, kept, -1.0)


# ---------------------------------------------------------------- backward elimination


@given(SEEDS, st.sampled_from([RIDGE, 0.0]))
@settings(max_examples=20, deadline=None)
def test_backward_elimination_twin(seed, ridge):
    covariance = laws.covariance(7, seed)
    weights = torch.rand(7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1
    result = backward_elimination(covariance, weights, ridge)
    order, cost = pencil.backward_elimination(covariance.numpy(), weights.numpy(), ridge)
    assert result.order.tolist() == order
    np.testing.assert_allclose(result.cost, cost, rtol=1e-6)


def test_elimination_costs_never_fall_and_the_last_costs_its_variance():
    covariance, weights = laws.covariance(30, 8), torch.ones(30, dtype=torch.float64)
    result = backward_elimination(covariance, weights)
    cost = result.cost[result.order]
    assert bool((cost.diff() >= -1e-12).all())
    last = result.order[-1]
    assert float(cost[-1]) == pytest.approx(float(covariance[last, last]))
    assert sorted(result.order.tolist()) == list(range(30))


def test_one_of_two_copies_goes_first_and_the_other_stays():
    covariance = laws.with_copy(torch.eye(4, dtype=torch.float64), 1)
    result = backward_elimination(covariance, torch.tensor([5.0, 1, 5, 5, 1], dtype=torch.float64))
    first = int(result.order[0])
    assert first in (1, 4)
    assert float(result.cost[first]) < 0.01
    other = 5 - first
    assert float(result.cost[other]) == pytest.approx(1)


def test_silent_and_unread_channels_cost_nothing():
    covariance = laws.covariance(5)
    covariance[3] = covariance[:, 3] = 0
    weights = torch.tensor([1.0, 0.0, 1, 1, 1], dtype=torch.float64)
    result = backward_elimination(covariance, weights)
    assert result.order[:2].tolist() == [3, 1]
    assert result.cost[[3, 1]].tolist() == [0.0, 0.0]
    silent = backward_elimination(torch.zeros(3, 3, dtype=torch.float64), torch.ones(3, dtype=torch.float64))
    assert silent.order.tolist() == [0, 1, 2]


def test_elimination_does_not_see_units_or_order():
    covariance, weights = laws.covariance(9, 2), torch.rand(9, dtype=torch.float64) + 0.1
    factor = torch.exp(3 * torch.randn(9, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    plain = backward_elimination(covariance, weights)
    scaled = backward_elimination(covariance * torch.outer(factor, factor), weights / factor.square())
    assert torch.equal(plain.order, scaled.order)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    moved = backward_elimination(covariance[order][:, order], weights[order])
    assert torch.equal(order[moved.order], plain.order)


def test_elimination_refuses_what_it_cannot_do():
    covariance = laws.with_copy(torch.eye(2, dtype=torch.float64), 0)
    with pytest.raises(SingularError):
        backward_elimination(covariance, torch.ones(3), 0.0)
    for wrong in (torch.tensor([1.0, -1, 1]), torch.tensor([1.0, torch.nan, 1])):
        with pytest.raises(InputError, match="squared norms"):
            backward_elimination(covariance, wrong)
