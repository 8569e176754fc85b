"""Edits: what happens inside, and that nothing is left outside."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from channelscope.errors import InputError, MismatchError
from channelscope.network.edits import edit, silence, zero_channels, zero_kernels
from channelscope.network.module_state import zero_batch
from channelscope.network.sites import sites
from channelscope.subset import Subset
from networks import NARROW, built


def marked(found, shape, share: float = 0.4, seed: int = 0) -> Subset:
    source = np.random.default_rng(seed)
    marks = {site.name: torch.from_numpy(source.random(site.channels) < share) for site in found}
    return Subset(marks, found.found, shape)


@pytest.fixture(scope="module")
def net():
    model, shape = built("resnet18")
    found = sites(model, torch.randn(1, *shape))
    return model, shape, found, torch.randn(3, *shape)


def values(graph, x, steps) -> dict[str, torch.Tensor]:
    seen = {}
    with torch.no_grad():
        graph.run(x, hooks={step: (lambda value, step=step: seen.update({step: value.clone()})) for step in steps})
    return seen


def test_silenced_channels_are_zero_where_consumers_look_and_others_are_what_they_were(net):
    model, _, found, x = net
    site = found["layer1.0.conv1"]
    mask = torch.zeros(site.channels, dtype=torch.bool)
    mask[[1, 5]] = True
    before = values(found.graph, x, [site.activation])[site.activation]
    seen = {}
    with (
        torch.no_grad(),
        edit(found.graph, {site.activation: zero_channels(mask, site.channel_axis)}),
        edit(found.graph, {site.activation: lambda v: seen.update(v=v)}),
    ):
        model(x)
    assert not seen["v"][:, mask].any()
    assert torch.equal(seen["v"][:, ~mask], before[:, ~mask])


def test_channels_can_be_set_to_constants():
    mask = torch.tensor([False, True, True])
    change = zero_channels(mask, 2, torch.tensor([9.0, 1.5, -2.0]))
    maps = torch.randn(2, 4, 5, 3)
    changed = change(maps)
    assert torch.equal(changed[..., 0], maps[..., 0])
    assert (changed[..., 1] == 1.5).all()
    assert (changed[..., 2] == -2).all()


@pytest.mark.parametrize("name", NARROW)
def test_outside_the_model_is_as_it_was_even_after_an_exception(name):
    model, shape = built(name)
    x = torch.randn(2, *shape)
    state = copy.deepcopy(model.state_dict())
    found = sites(model, x[:1])
    subset = marked(found, shape)
    with torch.no_grad():
        before = model(x)
        with silence(model, subset):
            inside = model(x)
        with pytest.raises(ZeroDivisionError), silence(model, subset):
            raise ZeroDivisionError
        assert torch.equal(model(x), before)
    assert not torch.allclose(inside, before)
    assert "forward" not in vars(model)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_edits_nest_and_the_inner_one_acts_last(net):
    model, _, found, x = net
    cut = found["layer1.0.conv1"].activation
    with torch.no_grad():
        with edit(found.graph, {cut: lambda v: v + 1}):
            one = model(x)
            with edit(found.graph, {cut: lambda v: v * 0}):
                both = model(x)
            assert torch.equal(model(x), one)
        with edit(found.graph, {cut: lambda v: v * 0}):
            assert torch.equal(model(x), both)


def test_two_silences_are_their_union(net):
    model, shape, found, x = net
    a, b = marked(found, shape, 0.2, 1), marked(found, shape, 0.2, 2)
    with torch.no_grad():
        with silence(model, a), silence(model, b):
            nested = model(x)
        with silence(model, a | b):
            torch.testing.assert_close(model(x), nested)


def test_everything_silenced_leaves_the_bias(net):
    model, shape, found, x = net
    with torch.no_grad(), silence(model, Subset.everything(found.found, shape)):
        torch.testing.assert_close(model(x), model.fc.bias.expand(3, -1))


def test_nothing_silenced_changes_nothing(net):
    model, shape, found, x = net
    with torch.no_grad():
        before = model(x)
        with silence(model, ~Subset.everything(found.found, shape)):
            torch.testing.assert_close(model(x), before)


def test_kernels_are_masked_in_the_weights_and_gradients_reach_them():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    weight = model[0].weight
    before = weight.detach().clone()
    kernels = torch.zeros(4, 3, dtype=torch.bool)
    kernels[2, 1] = kernels[0, 0] = True
    with zero_kernels(model, Subset({"0": kernels})):
        assert model[0].weight is weight
        assert not weight[2, 1].any()
        assert torch.equal(weight[1], before[1])
        model(torch.randn(2, 3, 6, 6)).sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight, before)


def test_subsets_of_other_networks_are_refused(net):
    model, _, _, _ = net
    other, shape = built("vgg16_bn")
    foreign = marked(sites(other, torch.randn(1, *shape)), shape)
    with pytest.raises(MismatchError, match="of another network"), silence(model, foreign):
        pass
    with pytest.raises(MismatchError, match=r"expected kernels \(4, 3\) at conv9, found no such layer"):
        with zero_kernels(model, Subset({"conv9": torch.ones(4, 3, dtype=torch.bool)})):
            pass
    with pytest.raises(InputError, match="needs its sites and input shape"):
        with silence(model, Subset({"conv1": torch.ones(64, dtype=torch.bool)})):
            pass


def test_a_blank_image_has_the_networks_type():
    assert zero_batch(nn.Linear(2, 2).double(), (3, 4, 4)).dtype == torch.float64
    assert zero_batch(nn.Linear(2, 2), (3, 4, 4)).shape == (1, 3, 4, 4)
