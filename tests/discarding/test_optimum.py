"""Optimal noise: exact answers of linear networks, invariances, undefined constraints, and the slow published way."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import pencil_discarding as pencil
from channelscope.discarding import optimum
from channelscope.discarding.jacobian import PerImageRandom, SensitivityEstimator
from channelscope.discarding.noise import GAUSSIAN_ENTROPY, Cells, mean_entropy
from channelscope.discarding.optimum import BUDGETS, Constraint, optimal_noise
from channelscope.errors import InputError

SHAPE = (1, 4, 4)
FREE = torch.full((16,), torch.inf)


def photographs(images=3, shape=SHAPE, seed=5):
    return torch.rand(images, *shape, generator=torch.Generator().manual_seed(seed))


def solved(feature, constraint, mode="exact", cap=FREE, images=None, seed=0, varies=None, cells=None):
    images = photographs() if images is None else images
    varies = torch.ones(images.shape[1:], dtype=torch.bool) if varies is None else varies
    cells = cells or Cells.of(tuple(images.shape[2:]))
    return optimal_noise(
        SensitivityEstimator(feature, images, cells, varies, PerImageRandom(seed, torch.arange(len(images)))), constraint, cap, mode
    )


def linear(size=5, seed=0, values=16):
    matrix = torch.randn(size, values, generator=torch.Generator().manual_seed(seed))
    return (lambda images: images.flatten(1) @ matrix.T), matrix


def rectified(seed=0, width=40):
    """A ReLU network whose second layer sees the first: (1, 4, 4) → width → 60."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, width), nn.ReLU(), nn.Linear(width, 60)).requires_grad_(False)


@pytest.mark.parametrize("mode", ["fast", "exact"])
def test_a_linear_network_has_the_analytic_optimum(mode):
    """σ_i = sqrt(ε / (n |w_i|²)); five features are known in full after five probes."""
    feature, matrix = linear()
    found = solved(feature, Constraint("data", 0.1, 2.0), mode)
    expected = (0.2 / (16 * matrix.square().sum(0))).sqrt()
    best = float(expected.log().mean()) + GAUSSIAN_ENTROPY
    assert (found.cid - best).abs().max() < 1e-3
    assert (found.entropy_gap.abs() < 1e-3).all()
    if mode == "exact":
        torch.testing.assert_close(found.noise_std, expected.expand(3, -1), rtol=5e-3, atol=0)
        torch.testing.assert_close(found.constraint_ratio, torch.ones(3), rtol=1e-3, atol=0)


def test_the_published_numeric_example():
    weights = torch.tensor([10.0, 20, 5, -20, -10])
    feature = lambda images: (images.flatten(1) * weights).sum(1, keepdim=True)  # noqa: E731
    found = solved(feature, Constraint("data", 1.0, 0.00512), cap=torch.full((5,), torch.inf), images=photographs(2, (1, 1, 5)))
    torch.testing.assert_close(found.noise_std[0], torch.tensor([0.0032, 0.0016, 0.0064, 0.0016, 0.0032]), rtol=1e-3, atol=0)


def test_local_normalizer_compares_with_isotropic_noise_at_the_image():
    feature, matrix = linear()
    found = solved(feature, Constraint("local", 1.5))
    g = matrix.square().sum(0)
    expected = (1.5 * 1e-4 * g.sum() / (16 * g)).sqrt()
    assert (found.cid - expected.log().mean() - GAUSSIAN_ENTROPY).abs().max() < 1e-3
    assert (found.isotropic_entropy - GAUSSIAN_ENTROPY - math.log(0.01 * math.sqrt(1.5))).abs().max() < 0.15


def test_caps_hold_and_their_cells_are_counted():
    feature, matrix = linear()
    cap = torch.full((16,), 0.05)
    cap[:4] = 0.001
    found = solved(feature, Constraint("data", 0.1, 1.0), cap=cap)
    expected = pencil.allocation(matrix.square().sum(0).tolist(), 0.1, cap.tolist(), [1] * 16)
    assert np.allclose(found.noise_std[0], expected, rtol=2e-3)
    assert found.capped[0] == float((expected >= cap.numpy() * 0.9999).mean())


def test_uniform_noise_has_the_same_caps():
    """Half of the cells are capped at .01: the others make up for it, up to a level that bisection finds."""
    feature, matrix = linear()
    cap = torch.cat([torch.full((8,), 0.01), torch.full((8,), 1.0)])
    found = solved(feature, Constraint("data", 0.1, 1.0), cap=cap)
    level = pencil.isotropic(matrix.square().sum(0).tolist(), 0.1, cap.tolist(), [1] * 16)
    expected = np.mean([math.log(min(level, c)) for c in cap.tolist()]) + GAUSSIAN_ENTROPY
    assert np.allclose(found.isotropic_entropy, expected, atol=0.15)  # the draw's own noise is in the level
    assert (found.cid >= found.isotropic_entropy - 0.15).all()


@pytest.mark.parametrize(
    ("normalizer", "size"), [("data", 1), ("data", 2), ("data", 3), ("data", 5), ("data", 6), ("local", 1), ("local", 2), ("local", 5)]
)
def test_fast_mode_refuses_a_small_feature_that_is_not_linear(normalizer, size):
    """Its level would be measured against a Jacobian that holds at other noise: ratios below zero, and intervals that miss."""
    feature, _ = linear(size)
    constraint, cap = Constraint(normalizer, 0.1, 1.0, noise=0.1), torch.full((16,), 0.5)
    curved = lambda images: (feature(images) - feature(torch.full_like(images, 0.5))).square()  # noqa: E731
    with pytest.raises(InputError, match=rf"has {size} numbers .* pass mode='exact'"):
        solved(curved, constraint, "fast", cap)
    assert (solved(curved, constraint, "exact", cap).constraint_ratio > 0).all()
    assert (solved(feature, constraint, "fast", cap).constraint_ratio - 1).abs().max() < 0.02


def test_a_constraint_that_may_be_out_of_reach_is_not_said_to_be():
    """All cells at their caps, and a response that is ε up to the scatter of its draws."""
    net = rectified()
    clean = photographs()
    noise = 0.1 * torch.randn(4000, *SHAPE, generator=torch.Generator().manual_seed(5))
    mean = torch.stack([(net(one + noise) - net(one[None])).square().sum(1).mean() for one in clean])
    found = solved(net, Constraint("data", 1.0, float(mean.mean())), "fast", torch.full((16,), 0.1))
    at_caps = (found.noise_std == 0.1).all(1)
    assert at_caps.any()
    assert found.constraint_reached.all()
    assert (found.cid_se > 0).all()


def test_a_constraint_out_of_reach_is_said():
    feature, _ = linear()
    found = solved(feature, Constraint("data", 1e6, 1.0), cap=torch.full((16,), 0.1), mode="fast")
    assert (found.cid_se == 0).all()
    torch.testing.assert_close(found.isotropic_entropy, found.cid, atol=1e-5, rtol=0)  # no gain where both are at the caps
    assert not found.constraint_reached.any()
    torch.testing.assert_close(found.noise_std, torch.full((3, 16), 0.1))
    assert (found.constraint_ratio < 0.01).all()


def test_pixels_outside_the_receptive_field_sit_at_the_cap():
    feature, matrix = linear(values=8)
    found = solved(lambda images: feature(images[..., :2, :]), Constraint("data", 0.1, 0.1), cap=torch.full((16,), 0.5))
    assert (found.noise_std[:, 8:] == 0.5).all()
    assert (found.outside_receptive_field == 0.5).all()
    expected = pencil.allocation(matrix.square().sum(0).tolist(), 0.01, [0.5] * 8, [1] * 8)
    assert np.allclose(found.noise_std[0, :8], expected, rtol=2e-3)


def test_constant_pixels_are_left_out():
    feature, matrix = linear()
    varies = torch.ones(SHAPE, dtype=torch.bool)
    varies[0, 0] = False
    found = solved(feature, Constraint("data", 0.1, 1.0), varies=varies)
    assert (found.noise_std[:, :4] == 0).all()
    expected = (0.1 / (12 * matrix.square().sum(0)[4:])).sqrt()
    torch.testing.assert_close(found.noise_std[:, 4:], expected.expand(3, -1), rtol=5e-3, atol=0)


def test_scaling_one_layer_up_and_the_next_down_changes_nothing():
    net = rectified()
    before = solved(net, Constraint("data", 0.1, 1.0), "fast")
    net[1].weight *= 4.0
    net[1].bias *= 4.0
    net[3].weight /= 4.0
    after = solved(net, Constraint("data", 0.1, 1.0), "fast")
    assert (before.cid - after.cid).abs().max() < 1e-4


def test_rotating_or_duplicating_features_changes_nothing():
    """With as many numbers as probes see in full, the squared columns of Q·J are those of J; σ_f² is a trace."""
    net = rectified(width=12)
    plain = solved(net[:2], Constraint("data", 0.1, 1.0))
    rotation = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(3)))[0]
    turned = solved(lambda images: net[:2](images) @ rotation.T, Constraint("data", 0.1, 1.0))
    twice = solved(lambda images: net[:2](images).repeat(1, 2), Constraint("data", 0.1, 2.0))
    assert (plain.cid - turned.cid).abs().max() < 1e-4
    assert (plain.cid - twice.cid).abs().max() < 5e-4  # other probes: the ReLU's kinks are met at other noise


@pytest.mark.parametrize(("constraint", "rescaled"), [
    (Constraint("data", 0.1, 1.0), Constraint("data", 0.1, 1.0)),
    (Constraint("local", 1.5), Constraint("local", 1.5, noise=0.03)),
])  # fmt: skip
def test_the_unit_of_pixels_shifts_entropy_by_its_logarithm(constraint, rescaled):
    """x → 3x: H moves by ln 3 under `data`, and under `local` when its noise is scaled along."""
    feature, _ = linear()
    one = solved(feature, constraint)
    three = solved(lambda images: feature(images / 3), rescaled, images=3 * photographs())
    assert (three.cid - one.cid - math.log(3)).abs().max() < 1e-3


def test_identity_and_mean_are_told_apart_by_data_and_not_by_local():
    """On equal pixels both keep all there is; per unit of its own variance the mean lets far more noise through."""
    average = lambda images: images.flatten(1).mean(1, keepdim=True)  # noqa: E731
    identity = lambda images: images.flatten(1)  # noqa: E731
    same = [solved(feature, Constraint("local", 1.5)).cid.mean() for feature in (identity, average)]
    assert abs(same[0] - same[1]) < 1e-3
    variance = 1 / 12  # pixels of an image equal, uniform over images: variance 16/12 for the identity, 1/12 for the mean
    own = [solved(f, Constraint("data", 0.1, v)).cid.mean() for f, v in ((identity, 16 * variance), (average, variance))]
    assert math.isclose(own[1] - own[0], math.log(16) / 2, abs_tol=2e-3)


def test_cells_share_one_level():
    feature, matrix = linear()
    cells = Cells.of((4, 4), 2)
    found = solved(feature, Constraint("data", 0.1, 1.0), cap=torch.full((4,), torch.inf), cells=cells)
    g = cells.sum_by_cell(matrix.square().sum(0).view(4, 4))
    torch.testing.assert_close(found.noise_std, (0.1 * 4 / 16 / g).sqrt().expand(3, -1), rtol=5e-3, atol=0)


def test_the_slow_published_way_finds_no_better_noise():
    """4,000 steps of Adam on a curved network, from scratch, in numpy: the same entropy at the same constraint."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 30)).requires_grad_(False)
    image = photographs(1)

    def feature(images):
        noisy = torch.tensor(np.asarray(images), dtype=torch.float32).requires_grad_()
        values = net(noisy)
        return values.detach().numpy(), lambda v: torch.autograd.grad(values, noisy, torch.tensor(v, dtype=torch.float32))[0].numpy()

    slow = pencil.optimum_by_adam(feature, image[0].numpy(), 0.5, np.full(16, 0.6), steps=1_500)
    entropy = float(mean_entropy(torch.tensor(slow)[None], torch.ones(16)))
    found = solved(net, Constraint("data", 0.5, 1.0), cap=torch.full((16,), 0.6), images=image)
    assert abs(float(found.cid) - entropy) < 0.02
    assert float(found.entropy_gap) < 0.005
    assert abs(float(found.constraint_ratio) - 1) < 3 * float(found.ratio_error) + 0.005


def test_fast_is_near_exact_within_its_own_error():
    torch.manual_seed(2)
    net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU()).requires_grad_(False)
    images = photographs(4, (1, 8, 8))
    variance = float(net(photographs(200, (1, 8, 8), 9)).flatten(1).var(0).sum())
    for constraint in (Constraint("data", 0.1, variance), Constraint("local", 1.5)):
        arguments = {"cap": torch.full((64,), 0.3), "images": images}
        exact = solved(net, constraint, **arguments)
        fast = torch.stack([solved(net, constraint, "fast", seed=seed, **arguments).cid for seed in range(4)])
        assert (fast.mean(0) - exact.cid).abs().mean() < 0.05
        one = solved(net, constraint, "fast", **arguments)
        assert one.passes <= 20
        assert exact.passes <= 30 * one.passes
        assert fast.std(0).mean() < 0.06


def test_errors_say_how_often_they_would_be_wrong():
    """The level's standard error against the spread over seeds."""
    net = rectified()
    runs = [solved(net, Constraint("data", 0.1, 1.0), "fast", seed=seed, images=photographs(6)) for seed in range(12)]
    spread = torch.stack([run.cid for run in runs]).std(0).mean()
    stated = torch.stack([run.cid_se for run in runs]).mean()
    assert 0.4 * spread < stated < 2.0 * spread


def test_the_first_sensitivities_are_estimated_from_every_draw():
    images, (feature, _) = photographs(), linear()
    given = PerImageRandom(0, torch.arange(len(images)))
    estimator = SensitivityEstimator(feature, images, Cells.of((4, 4)), torch.ones(SHAPE, dtype=torch.bool), given)
    for start in (2, 3):
        search = optimum._FixedPoint(estimator, Constraint("data", 0.1, 1.0), FREE, replace(optimum.BUDGETS["exact"], start=start))
        search.isotropic_round()
        assert [len(each.response) for each in search.history] == [start]


def test_defaults_and_normalizers():
    assert not Constraint("data", 0.1, 3.0).local
    assert Constraint("local", 1.5).local
    assert Constraint("local", 1.5).noise == 0.01


@pytest.mark.parametrize("kappa", [0.0, -1.0, math.nan])
def test_kappa_must_be_positive(kappa):
    with pytest.raises(InputError, match="κ"):
        Constraint("local", kappa)


@pytest.mark.parametrize("variance", [None, 0.0, math.nan])
def test_a_feature_without_variance_has_no_cid(variance):
    with pytest.raises(InputError, match="does not vary has no CID"):
        Constraint("data", 0.1, variance)


def test_unknown_normalizers_are_refused():
    with pytest.raises(InputError, match="no normalizer is called global; near matches: local; there are: data, local"):
        Constraint("global", 0.1, 1.0)  # type: ignore[arg-type]


def test_plans_keep_their_promise_of_passes():
    """A clean pass and one for the level; a forward pass and its probes; three a draw; rescaling and check, the audit one more each."""

    def cost(plan):
        start = 2 + plan.start * (1 + plan.probes)
        return start + 3 * sum(plan.rounds) + plan.final + plan.check * (2 if plan.audit else 1)

    assert cost(BUDGETS["fast"]) == 20
    assert cost(BUDGETS["exact"]) <= 30 * cost(BUDGETS["fast"])
