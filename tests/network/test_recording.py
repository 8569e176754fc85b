"""Recording: wrappers are taken off, and in the comparison rounding is no difference; anything else is."""

import pytest
import torch
from torch import distributed, nn

import channelscope
from channelscope.errors import TracingError
from channelscope.network.cost import cost
from channelscope.network.tracing.recording import other_image, same, unwrapped

ONE = torch.tensor([1.0, 2.0])

EQUAL = {
    "rounding": (ONE, ONE + 1e-6),
    "nothing": (None, None),
    "nested": ({"a": [ONE, 3]}, {"a": [ONE.clone(), 3]}),
    "not a number": (torch.tensor([float("nan")]), torch.tensor([float("nan")])),
}
DIFFERENT = {
    "value": (ONE, ONE + 0.1),
    "shape": (ONE, ONE[None]),
    "type of numbers": (ONE, ONE.double()),
    "one part": ({"a": ONE, "b": ONE}, {"a": ONE, "b": -ONE}),
    "a key": ({"a": ONE}, {"b": ONE}),
    "length": ([ONE], [ONE, ONE]),
    "number": ((ONE, 3), (ONE, 4)),
    "kind": (ONE, [ONE]),
}


@pytest.mark.parametrize(("a", "b"), EQUAL.values(), ids=EQUAL)
def test_the_same(a, b):
    assert same(a, b)


@pytest.mark.parametrize(("a", "b"), DIFFERENT.values(), ids=DIFFERENT)
def test_another(a, b):
    assert not same(a, b)
    assert not same(b, a)


@pytest.mark.parametrize("make", [torch.zeros, torch.rand, torch.ones], ids=["blank", "noise", "constant"])
def test_the_other_image_is_another(make):
    batch = make(3, 2, 4, 4)
    image = other_image(batch)
    assert image.shape == (1, 2, 4, 4)
    assert not torch.isclose(image, batch[:1]).any()
    assert torch.equal(other_image(batch), image)


def test_whole_numbers_stay_whole_numbers_that_occur():
    tokens = torch.tensor([[3, 1, 2], [0, 0, 0]])
    assert other_image(tokens).tolist() == [[2, 3, 1]]
    assert other_image(torch.tensor([5.0])).tolist() == [5]


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


def test_a_network_of_distributed_training_is_the_one_inside(tmp_path):
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        net, x = network(), torch.randn(2, 3, 16, 16)
        with pytest.warns(UserWarning, match="wrapped in DistributedDataParallel: the Sequential inside is used"):
            found = channelscope.groups(nn.parallel.DistributedDataParallel(net), x)
        assert found.graph.model is net
        assert [site.name for site in found.sites] == ["0", "2"]
    finally:
        distributed.destroy_process_group()


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
