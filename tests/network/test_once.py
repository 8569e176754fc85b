"""Cutting, silencing, shrinking and repairing one network trace it once, and again only where it has changed."""

import numpy as np
import pytest
import torch
from torch import nn

from channelscope.network.edits import silence
from channelscope.network.removal import groups as grouping
from channelscope.network.sites import sites
from channelscope.pruning.cut import cut, shrink
from channelscope.pruning.repair import repair
from channelscope.ranking import Ranking

IMAGES = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Switched(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.factor = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), 1.0

    def forward(self, x):
        return self.b(torch.relu(self.a(x)) * self.factor).mean((2, 3))


@pytest.fixture
def walks(monkeypatch):
    """How often the network is walked through."""
    made: list[int] = []

    class Counted(grouping.SiteLabels):
        def __init__(self, *args):
            made.append(1)
            super().__init__(*args)

    monkeypatch.setattr(grouping, "SiteLabels", Counted)
    return made


def ranked(model) -> Ranking:
    found = sites(model, IMAGES[:1]).found
    values = {site.name: np.arange(float(site.channels)) for site in found}
    return Ranking("by hand", "", "high", values, found, (3, 8, 8))


def test_one_walk_for_all_four(walks, monkeypatch):
    model = Switched().eval()
    ranking = ranked(model)
    kept = cut(ranking, model, macs=0.5)
    traced: list[int] = []
    monkeypatch.setattr("channelscope.network.edits.trace", lambda *_: traced.append(1))
    with torch.no_grad(), silence(model, ~kept):
        expected = model(IMAGES)
    small = shrink(model, kept)
    torch.testing.assert_close(small(IMAGES), expected)
    repair(small, model, kept, [IMAGES])
    assert len(walks) == 1
    assert not traced


def test_a_network_that_has_changed_is_walked_again(walks):
    model = Switched().eval()
    kept = cut(ranked(model), model, macs=0.5)
    model.factor = 3.0
    with torch.no_grad(), silence(model, ~kept):
        silenced = model(IMAGES)
    with torch.no_grad():
        torch.testing.assert_close(shrink(model, kept)(IMAGES), silenced)
    assert len(walks) == 2
    assert kept.groups is not None
    twin = Switched().eval()
    assert shrink(twin, kept).a.out_channels == 4
    assert len(walks) == 3
    assert shrink(model.double(), kept).a.weight.dtype == torch.float64
    assert len(walks) == 4
