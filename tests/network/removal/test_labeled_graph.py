"""The networks of the equality tests: all of today's groups are found, and more; the smaller networks compute what the silenced ones do."""

import pytest
import torch

from channelscope.network.removal.groups import groups
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
