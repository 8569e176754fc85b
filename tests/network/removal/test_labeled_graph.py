"""The networks of the equality tests: all of today's groups are found, and more; the smaller networks compute what the silenced ones do."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from channelscope.network.removal.groups import groups
from channelscope.network.removal.trial import labeled_graph
from networks import NARROW, built
from removals import assert_exact, drawn, graph_of


@pytest.mark.parametrize("name", NARROW)
def test_groups_and_removal(name):
    model, shape = built(name)
    earlier = groups(model, torch.zeros(2, *shape))
    graph = graph_of(model, *shape)
    sites = {site.name for site in earlier.sites}
    mine = {frozenset(member for member in group if member[0] in sites) for group in graph.groups}
    before = {frozenset(group.members) for group in earlier.members}
    assert before == mine
    assert graph.opaque == {}
    small = assert_exact(graph, drawn(graph))
    assert type(small) is type(model)


class Bare(nn.Module):
    """A weight that belongs to no layer."""

    def __init__(self):
        super().__init__()
        self.weight, self.head = nn.Parameter(torch.randn(5, 4, generator=torch.Generator().manual_seed(0))), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(F.linear(x, self.weight).relu())


def test_rows_of_a_weight_without_a_layer_are_channels():
    walk = labeled_graph(Bare().eval(), torch.ones(2, 4))
    assert sorted(member for group in walk.groups for member in group) == [("weight", channel) for channel in range(5)]


def test_a_buffer_of_integers_along_the_channels_keeps_them():
    class Shifted(nn.Module):
        def __init__(self, kind):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 1), nn.Linear(16, 2)
            self.register_buffer("shift", torch.arange(4, dtype=kind).view(4, 1, 1))

        def forward(self, x):
            return self.head((self.conv(x) + self.shift).relu().flatten(1))

    assert len(groups(Shifted(torch.float32).eval(), torch.randn(1, 3, 2, 2))) == 4
    assert (
        "add() combines it with something that cannot be removed"
        in groups(Shifted(torch.int64).eval(), torch.randn(1, 3, 2, 2)).unprunable["conv"]
    )
