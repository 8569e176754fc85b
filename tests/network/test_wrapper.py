"""Wrapped networks: the one inside is used, with a note; what cannot be looked into is refused with a sentence."""

import pytest
import torch
from torch import nn

import channelscope
from channelscope.errors import TracingError
from channelscope.network.cost import cost
from channelscope.network.tracing.recording import unwrapped


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4)).eval()


WRAPPED = {
    "OptimizedModule": lambda net: torch.compile(net, backend="eager"),
    "DataParallel": nn.DataParallel,
    "AveragedModel": torch.optim.swa_utils.AveragedModel,
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_the_network_inside_is_used_with_a_note(wrap, request):
    net, x = network(), torch.randn(2, 3, 16, 16)
    kind = request.node.callspec.id
    with pytest.warns(UserWarning, match=f"wrapped in {kind}: the Sequential inside is used, and layers have its names"):
        found = channelscope.sites(wrap(net), x)
    assert [site.name for site in found] == ["0", "2"]
    with pytest.warns(UserWarning, match=kind):
        assert cost(wrap(net), x).macs == cost(net, x).macs


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
@pytest.mark.filterwarnings("ignore:the network is wrapped:UserWarning")
def test_a_wrapped_network_is_cut_like_the_one_inside(wrap):
    net, x = network(), torch.randn(2, 3, 16, 16)
    wrapped = wrap(net)
    found = channelscope.groups(wrapped, x)
    kept = found.to_subset(torch.arange(len(found)).numpy() % 2 == 0)
    small = channelscope.shrink(wrapped, kept)
    assert type(small) is nn.Sequential
    torch.testing.assert_close(small(x), channelscope.shrink(net, kept)(x))


def test_parts_that_are_compiled_in_place_run_as_written():
    net, x = network(), torch.randn(2, 3, 16, 16)
    net[2].compile(backend="eager")
    net.compile(backend="eager")
    found = channelscope.sites(net, x)
    assert [site.name for site in found] == ["0", "2"]
    torch.testing.assert_close(found.graph.run(x), net(x))


def test_wrappers_inside_wrappers():
    net = network()
    with pytest.warns(UserWarning, match="wrapped in DataParallel"):
        assert unwrapped(nn.DataParallel(torch.compile(net, backend="eager"))) is net


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("script", [torch.jit.script, lambda net: torch.jit.trace(net, torch.zeros(1, 3, 16, 16))], ids=["script", "trace"])
def test_a_scripted_network_is_refused_with_what_to_pass_instead(script):
    with pytest.raises(TracingError, match=r"pass the nn\.Module it was made from"):
        channelscope.sites(script(network()), torch.randn(2, 3, 16, 16))
