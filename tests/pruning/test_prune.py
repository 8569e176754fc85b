"""prune: one ranking is followed, of several the one that leaves the nearest network is chosen on images the repair has not seen."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from channelscope import scores
from channelscope.errors import BudgetError, InputError, MismatchError, SampleError
from channelscope.network.removal.groups import groups
from channelscope.profiling.collect import collect
from channelscope.pruning.budget import Budget
from channelscope.pruning.cut import shrink
from channelscope.pruning.optimal_brain_surgeon import optimal_brain_surgeon
from channelscope.pruning.prune import kl_divergence, prune
from channelscope.ranking import Ranking

IMAGES = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1))
OTHERS = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(3)
    layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    model = nn.Sequential(*layers)
    layers[-1].weight.data *= 20
    return groups(model.eval().requires_grad_(False), IMAGES[:1])


@pytest.fixture(scope="module")
def good(network):
    return optimal_brain_surgeon(network, [IMAGES])


def turned(ranking):
    """Last comes first."""
    values = {site: -column for site, column in ranking.values.items()}
    return dataclasses.replace(ranking, name="turned", values=values)


def same(one, two):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


@pytest.mark.parametrize("first", [True, False])
def test_the_ranking_that_leaves_the_nearer_network_is_chosen(network, good, first):
    pair = (good, turned(good)) if first else (turned(good), good)
    made = prune(pair, network, [IMAGES], macs=0.6)
    distances = [kl_divergence(prune(each, network, [IMAGES], macs=0.6).model, network, [OTHERS]) for each in pair]
    assert made.ranking is pair[distances.index(min(distances))]
    assert same(made.model, prune(made.ranking, network, [IMAGES], macs=0.6).model)


@pytest.mark.parametrize("budget", [0.8, 0.6, 0.4])
def test_every_fourth_image_judges_and_is_not_fitted_to(network, budget):
    candidates = [optimal_brain_surgeon(network, [IMAGES], exponent=exponent) for exponent in (0.0, 1.0, 2.0)]
    aside = torch.arange(64) % 4 == 3
    trials = [prune(each, network, [IMAGES[~aside]], macs=budget).model for each in candidates]
    distances = [kl_divergence(trial, network, [IMAGES[aside]]) for trial in trials]
    chosen = prune(candidates, network, [IMAGES[:30], IMAGES[30:]], macs=budget).ranking
    assert chosen is candidates[distances.index(min(distances))]


def test_divergence_is_the_mean_over_images(network):
    class Shifted(nn.Module):
        def forward(self, x):
            logits = network.graph.model(x)
            return logits + torch.linspace(0, 1, logits.shape[1])

    with torch.no_grad():
        theirs, ours = network.graph.model(OTHERS).softmax(1), Shifted()(OTHERS).softmax(1)
    expected = (theirs * (theirs / ours).log()).sum(1).mean()
    assert kl_divergence(Shifted(), network, [OTHERS[:10], OTHERS[10:]]) == pytest.approx(float(expected), rel=1e-4)
    assert kl_divergence(network.graph.model, network, [OTHERS]) == 0


def test_what_cannot_be_chosen_between_is_refused(network, good):
    profile = collect(network.graph.model, [IMAGES])
    (capture,) = scores.lookup("capture")
    with pytest.raises(InputError, match="images are needed"):
        prune([good, capture(profile)], network, profile, macs=0.6, method="peers")
    with pytest.raises(SampleError, match="at least 8 images are needed, received 7"):
        prune([good, turned(good)], network, [IMAGES[:7]], macs=0.6)
    with pytest.raises(InputError, match="received none"):
        prune([], network, [IMAGES], macs=0.6)


class Bright(nn.Module):
    """Takes another branch where the image is bright, which noise never is; there it counts its channels."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x):
        h = self.b(torch.relu(self.a(x))).mean((2, 3))
        return h * torch.where(x.mean((1, 2, 3)) > 50, 6.0 / self.a.out_channels, 1.0)[:, None]


@pytest.mark.parametrize("method", ["none", "batchnorm"])
def test_the_smaller_network_is_compared_on_the_images_too(method):
    found = groups(Bright().eval(), IMAGES[:1])
    ranking = Ranking("by hand", "", "high", {"a": np.arange(6.0), "b": np.ones(2)}, found.sites, (3, 8, 8))
    with pytest.raises(MismatchError, match="away from the silenced one at output on real images"):
        prune(ranking, found, [IMAGES + 100], macs=0.6, method=method)
    assert prune(ranking, found, None, macs=0.6, method="none").kept.count == 3 + 2
    assert prune(ranking, found, [], macs=0.6, method="none").kept.count == 3 + 2


class Wasteful(Bright):
    """Fewer channels are made up for by more work, which only carrying it out tells."""

    def forward(self, x):
        h = self.b(torch.relu(self.a(x)))
        for _ in range(6 - self.a.out_channels):
            h = h + 0 * torch.einsum("bchw,cd->bdhw", h, torch.ones(2, 2, dtype=h.dtype))
        return h.mean((2, 3))


def test_a_budget_that_the_smaller_network_does_not_meet_is_refused_or_taken():
    found = groups(Wasteful().eval(), IMAGES[:1])
    ranking = Ranking("by hand", "", "high", {"a": np.arange(6.0)}, found.sites, (3, 8, 8))
    with pytest.raises(BudgetError, match=r"at most 0.6 of 1,920 multiply-adds, the smaller network carries out 1,728 \(0.900\)"):
        prune(ranking, found, None, macs=0.6, method="none")
    assert prune(ranking, found, None, budget=Budget(0.6, closest=True), method="none").kept.count == 3
    with pytest.raises(BudgetError, match="smallest budget is"):
        prune(ranking, found, None, macs=0.01, method="none")
    assert prune(ranking, found, None, budget=Budget(0.01, closest=True), method="none").kept.count == 1


def test_the_original_is_run_once_to_choose_between_rankings(network, good):
    model, runs = network.graph.model, []
    handle = model.register_forward_hook(lambda module, images, output: runs.append(len(images[0])) if module is model else None)
    try:
        for rankings in ([good, turned(good)], [good, turned(good), turned(good)]):
            runs.clear()
            prune(rankings, network, [IMAGES], macs=0.6)
            assert runs.count(16) == 1
    finally:
        handle.remove()


@pytest.mark.parametrize("method", ["none", "batchnorm", "least_squares"])
def test_the_result_holds_the_network_before_its_repair(network, good, method):
    result = prune(good, network, [IMAGES], macs=0.6, method=method)
    assert same(result.unrepaired, shrink(network, result.kept))
    assert (result.unrepaired is result.model) == (method == "none")
    assert same(result.unrepaired, result.model) == (method != "least_squares")
    assert not result.unrepaired.training


def test_a_result_is_shown_in_one_line(network, good):
    result = prune(good, network, [IMAGES], macs=0.6, method="none")
    kept = f"{result.kept.count} of 16 channels kept by {good.name}"
    assert repr(result) == f"PruningResult({kept}, RepairReport(none))"


def test_groups_in_the_place_of_images_are_refused():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.Flatten()).eval()
    found = groups(model, torch.zeros(1, 3, 8, 8))
    with pytest.raises(InputError, match=r"they take the network's place, shrink\(found, kept\)"):
        shrink(model, found.to_subset([True, False, True, True]), found)
