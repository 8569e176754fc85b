"""prune: one ranking is followed, of several the one that leaves the nearest network is chosen on images the repair has not seen."""

import dataclasses

import pytest
import torch
from torch import nn

from channelscope import collect, prune, reconstruction, scores
from channelscope.errors import InputError, SampleError
from channelscope.net.groups import groups
from channelscope.prune.prune import divergence

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
    return reconstruction(network, [IMAGES])


def turned(ranking):
    """Last comes first."""
    values = {site: -column for site, column in ranking.values.items()}
    return dataclasses.replace(ranking, name="turned", values=values)


def same(one, two):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


@pytest.mark.parametrize("first", [True, False])
def test_the_ranking_that_leaves_the_nearer_network_is_chosen(network, good, first):
    pair = (good, turned(good)) if first else (turned(good), good)
    made = prune(pair, network, [IMAGES], 0.6)
    distances = [divergence(prune(each, network, [IMAGES], 0.6).model, network.graph.model, [OTHERS], network) for each in pair]
    assert made.ranking is pair[distances.index(min(distances))]
    assert same(made.model, prune(made.ranking, network, [IMAGES], 0.6).model)


@pytest.mark.parametrize("budget", [0.8, 0.6, 0.4])
def test_every_fourth_image_judges_and_is_not_fitted_to(network, budget):
    candidates = [reconstruction(network, [IMAGES], exponent=exponent) for exponent in (0.0, 1.0, 2.0)]
    aside = torch.arange(64) % 4 == 3
    trials = [prune(each, network, [IMAGES[~aside]], budget).model for each in candidates]
    distances = [divergence(trial, network.graph.model, [IMAGES[aside]], network) for trial in trials]
    chosen = prune(candidates, network, [IMAGES[:30], IMAGES[30:]], budget).ranking
    assert chosen is candidates[distances.index(min(distances))]


def test_divergence_is_the_mean_over_images(network):
    class Shifted(nn.Module):
        def forward(self, x):
            logits = network.graph.model(x)
            return logits + torch.linspace(0, 1, logits.shape[1])

    with torch.no_grad():
        theirs, ours = network.graph.model(OTHERS).softmax(1), Shifted()(OTHERS).softmax(1)
    expected = (theirs * (theirs / ours).log()).sum(1).mean()
    assert divergence(Shifted(), network.graph.model, [OTHERS[:10], OTHERS[10:]], network) == pytest.approx(float(expected), rel=1e-4)
    assert divergence(network.graph.model, network.graph.model, [OTHERS], network) == 0


def test_what_cannot_be_chosen_between_is_refused(network, good):
    profile = collect(network.graph.model, [IMAGES])
    (capture,) = scores.named("capture")
    with pytest.raises(InputError, match="images are needed"):
        prune([good, capture(profile)], network, profile, 0.6, method="peers")
    with pytest.raises(SampleError, match="at least 8 images are needed, received 7"):
        prune([good, turned(good)], network, [IMAGES[:7]], 0.6)
    with pytest.raises(InputError, match="received none"):
        prune([], network, [IMAGES], 0.6)
