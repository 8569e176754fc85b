"""Least squares, layer by layer, against plain numpy regressions on patches taken by PyTorch's own unfold."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from channelscope.network.graph import ActivationCache
from channelscope.network.removal.groups import groups
from channelscope.pruning import peers
from channelscope.pruning import repair as repair_module
from channelscope.pruning.cut import shrink
from channelscope.pruning.repair import repair
from channelscope.stats.moments import NormalEquations
from channelscope.subset import Subset
from networks import lively
from pencil import peers_matrix
from pencil_pruning import at_scale_slowly, ridge_slowly

IMAGES = torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(7))
RIDGE = 0.05


class Net(nn.Module):
    """A stem, a residual block whose second layer is normalized and added, and a head."""

    def __init__(self):
        super().__init__()
        self.stem, self.up = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 3, stride=1, padding=1)
        self.down, self.norm = nn.Conv2d(5, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 4)

    def steps(self, x):
        """Every tensor a regression needs, by name."""
        stem = F.relu(self.stem(x))
        up = F.relu(self.up(stem))
        total = stem + self.norm(self.down(up))
        pooled = F.relu(total).mean((2, 3))
        return {"images": x, "stem": stem, "up": up, "total": total, "pooled": pooled, "logits": self.head(pooled)}

    def forward(self, x):
        return self.steps(x)["logits"]


def unfolded(x: torch.Tensor, padding: int) -> np.ndarray:
    """(images × positions, channels × 9), by torch's unfold."""
    return F.unfold(x, 3, padding=padding).transpose(1, 2).flatten(0, 1).double().numpy()


def rows(t: torch.Tensor) -> np.ndarray:
    return t.flatten(2).transpose(1, 2).flatten(0, 1).double().numpy()


@pytest.fixture(scope="module")
def repaired():
    torch.manual_seed(0)
    model = lively(Net())
    found = groups(model, IMAGES[:1])
    kept = Subset({"stem": torch.arange(6) != 2, "down": torch.arange(6) != 2, "up": torch.arange(5) > 0}, found.sites, (3, 8, 8))
    inherited = shrink(found, kept)
    small = copy.deepcopy(inherited)
    report = repair(small, found, kept, IMAGES.split(5), ridge=RIDGE, positions=1000)
    with torch.no_grad():
        return model, inherited, small, report, model.steps(IMAGES), small.steps(IMAGES)


STAYING = torch.arange(6) != 2


def supplied(weights: torch.Tensor, source: torch.Tensor, staying: torch.Tensor) -> np.ndarray:
    """What the peers make of a layer's original weights: kept inputs stand in for the removed ones, at every tap."""
    covariance = np.cov(rows(source).T) if source.dim() == 4 else np.cov(source.double().numpy().T)
    gone, kept = (~staying).nonzero().flatten().tolist(), staying.nonzero().flatten().tolist()
    taps = weights.double().flatten(2).numpy() if weights.dim() == 4 else weights.double().numpy()[:, :, None]
    matrix = peers_matrix(covariance, gone, kept, peers.PEER_RIDGE)
    return (taps[:, kept] + np.einsum("odt,dk->okt", taps[:, gone], matrix)).reshape(len(taps), -1)


@torch.no_grad()
def test_the_first_layer_reads_the_images(repaired):
    model, inherited, small, *_ = repaired
    x, t = unfolded(IMAGES, 0), rows(model.stem(IMAGES)[:, STAYING])
    prior = at_scale_slowly(inherited.stem.weight.flatten(1).double().numpy(), x, t)
    weights, constant = ridge_slowly(x, t, prior, RIDGE)
    np.testing.assert_allclose(small.stem.weight.flatten(1).numpy(), weights, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(small.stem.bias.numpy(), constant, rtol=1e-3, atol=1e-5)


@torch.no_grad()
def test_an_inner_layer_reads_the_repaired_network_and_aims_at_the_original(repaired):
    model, _, small, _, before, after = repaired
    x, t = unfolded(after["stem"], 1), rows(model.up(before["stem"])[:, 1:])
    prior = at_scale_slowly(supplied(model.up.weight, before["stem"], STAYING)[1:], x, t)
    weights, constant = ridge_slowly(x, t, prior, RIDGE)
    np.testing.assert_allclose(small.up.weight.flatten(1).numpy(), weights, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(small.up.bias.numpy(), constant, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_a_summed_layer_makes_up_for_the_other_term(repaired):
    model, _, small, _, before, after = repaired
    x, t = unfolded(after["up"], 1), rows(before["total"][:, STAYING] - after["stem"])
    prior = at_scale_slowly(supplied(model.down.weight, before["up"], torch.arange(5) > 0)[STAYING.numpy()], x, t)
    weights, constant = ridge_slowly(x, t, prior, RIDGE)
    expected = x @ weights.T + constant
    np.testing.assert_allclose(rows(small.norm(small.down(after["up"]))), expected, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_the_head_reads_what_it_will_get_and_aims_at_the_logits(repaired):
    model, _, small, _, before, after = repaired
    x, t = after["pooled"].double().numpy(), before["logits"].double().numpy()
    prior = at_scale_slowly(supplied(model.head.weight, before["pooled"], STAYING), x, t)
    weights, constant = ridge_slowly(x, t, prior, RIDGE)
    np.testing.assert_allclose(small.head.weight.numpy(), weights, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(small.head.bias.numpy(), constant, rtol=1e-3, atol=1e-4)


def test_errors_are_fractions_of_what_there_was_to_explain(repaired):
    model, inherited, _, report, before, after = repaired
    assert list(report.relative_errors) == ["stem", "up", "down", "head"]
    x, t = after["pooled"].double().numpy(), before["logits"].double().numpy()
    rest = t - x @ inherited.head.weight.double().numpy().T
    assert report.relative_errors["head"][0] == pytest.approx(rest.var(0).mean() / t.var(0).mean(), rel=1e-3)
    prior, held = at_scale_slowly(supplied(model.head.weight, before["pooled"], STAYING), x, t), []
    for fit, judge in ((slice(0, None, 2), slice(1, None, 2)), (slice(1, None, 2), slice(0, None, 2))):
        weights, _ = ridge_slowly(x[fit], t[fit], prior, 2 * RIDGE)
        held.append((t[judge] - x[judge] @ weights.T).var(0).mean())
    assert report.relative_errors["head"][1] == pytest.approx(np.mean(held) / t.var(0).mean(), rel=1e-2)


def test_the_penalty_is_the_one_that_predicts_best(repaired, monkeypatch):
    """With one penalty to choose from, it is taken; with all four, none of them predicts unseen images better."""
    model = repaired[0]
    found = groups(model, IMAGES[:1])
    kept = Subset({"stem": STAYING, "down": STAYING, "up": torch.arange(5) > 0}, found.sites, (3, 8, 8))
    errors = {}
    for shares in ((0.01,), (10.0,), (0.01, 0.1, 1.0, 10.0)):
        monkeypatch.setattr(repair_module, "RIDGES", shares)
        report = repair(shrink(found, kept), found, kept, IMAGES.split(5))
        errors[shares] = report.relative_errors["stem"][1]
    assert errors[0.01, 0.1, 1.0, 10.0] <= min(errors[(0.01,)], errors[(10.0,)]) + 1e-12


def test_weights_that_hardly_vary_are_stretched_by_no_more_than_a_bound(repaired):
    """A thousandth of the target's spread is brought to four times itself, not to all of it."""
    x, t = unfolded(IMAGES, 0), rows(repaired[0].stem(IMAGES))
    small, wide = 1e-3 * repaired[0].stem.weight.flatten(1).double(), 2 * repaired[0].stem.weight.flatten(1).double()
    normal = NormalEquations.of(torch.from_numpy(x)[None], torch.from_numpy(t)[None])
    torch.testing.assert_close(normal.match_target_variance(small[None], 4.0)[0], 4 * small)
    torch.testing.assert_close(normal.match_target_variance(wide[None], 4.0)[0], wide / 2)
    assert torch.equal(normal.match_target_variance(0 * wide[None], 4.0)[0], 0 * wide)


def test_a_layer_that_reads_too_much_is_left_alone_with_a_reason(repaired, monkeypatch):
    model = repaired[0]
    found = groups(model, IMAGES[:1])
    kept = Subset({"stem": STAYING, "down": STAYING, "up": torch.arange(5) > 0}, found.sites, (3, 8, 8))
    monkeypatch.setattr(repair_module, "MAX_FAN_IN", 40)
    small = shrink(found, kept)
    before = small.up.weight.clone()
    report = repair(small, found, kept, IMAGES.split(5))
    assert "45 values at once" in report.skipped["up"]
    assert torch.equal(small.up.weight, before)
    assert set(report.relative_errors) == {"stem", "down", "head"}


def test_few_positions_are_enough_and_seeded(repaired):
    model = repaired[0]
    found = groups(model, IMAGES[:1])
    kept = Subset({"stem": STAYING, "down": STAYING, "up": torch.arange(5) > 0}, found.sites, (3, 8, 8))
    made = []
    for _ in range(2):
        small = shrink(found, kept)
        repair(small, found, kept, IMAGES.split(5), positions=6)
        made.append(small.state_dict())
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])


def test_targets_are_kept_in_memory_only_while_they_are_needed(monkeypatch):
    caches = []
    monkeypatch.setattr(repair_module, "ActivationCache", lambda *given: caches.append(ActivationCache(*given)) or caches[-1])
    model = lively(Net())
    found = groups(model, IMAGES[:1])
    kept = Subset({"stem": torch.arange(6) != 2, "down": torch.arange(6) != 2, "up": torch.arange(5) > 0}, found.sites, (3, 8, 8))
    assert repair(shrink(found, kept), found, kept, [IMAGES], ridge=RIDGE).relative_errors
    assert [cache.held for cache in caches] == [set(), set()]
