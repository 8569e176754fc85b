"""Two roads, one answer: the shrunken network computes what the silenced one computes."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from channelscope.errors import InputError, MismatchError
from channelscope.network.cost import cost
from channelscope.network.edits import silence
from channelscope.network.removal.comparison import check_same
from channelscope.network.removal.groups import groups
from channelscope.pruning.cut import cut, shrink
from channelscope.ranking import Ranking
from channelscope.subset import Subset
from networks import FULL, NARROW, built


def control(found, seed=0) -> Ranking:
    draw = np.random.default_rng(seed)
    values = {site.name: draw.random(site.channels) for site in found.sites}
    return Ranking("random", "", "high", values, found.sites, tuple(found.example[0].shape[1:]))


@torch.no_grad()
def assert_two_roads_meet(model, found, pairs):
    images = torch.randn(2, *found.example[0].shape[1:], generator=torch.Generator().manual_seed(1))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    whole, full = model(images), cost(model, found.example).total_macs
    for budget, allocation in pairs:
        kept = cut(control(found), found, macs=budget, allocation=allocation)
        small = shrink(found, kept)
        with silence(found.graph, ~kept):
            silenced = model(images)
        assert float((small(images) - silenced).abs().max()) <= 1e-4 * float(silenced.abs().max())
        assert float((whole - silenced).abs().max()) > 0.02 * float(whole.abs().max())
        assert 0.95 * budget <= cost(small, found.example).total_macs / full <= budget
        assert not any(parameter.requires_grad for parameter in small.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


LEAST = {"densenet121": 0.5, "convnext_tiny": 0.5}
"""What is kept whole with a reason costs more than .3 in the narrow versions."""


@pytest.mark.parametrize("name", NARROW)
def test_two_roads_one_answer(name):
    model, shape = built(name)
    found = groups(model, torch.zeros(1, *shape))
    assert_two_roads_meet(model, found, [(0.7, "uniform"), (LEAST.get(name, 0.3), "global")])


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_two_roads_one_answer_at_full_width(name):
    model, shape = built(name, FULL)
    found = groups(model, torch.zeros(1, *shape))
    assert_two_roads_meet(model, found, [(budget, allocation) for budget in (0.7, 0.3) for allocation in ("global", "uniform")])


class Everything(nn.Module):
    """Kinds of layers the zoo lacks: PReLU, transposed convolution, 1-D convolution, flattening."""

    def __init__(self):
        super().__init__()
        self.a, self.act, self.up = nn.Conv2d(3, 6, 3), nn.PReLU(6), nn.ConvTranspose2d(6, 4, 2, 2)
        self.line, self.flat = nn.Conv1d(4, 5, 3), nn.Linear(5 * 142, 7)
        self.head = nn.Linear(7, 3)

    def forward(self, x):
        x = self.up(self.act(self.a(x)))
        x = torch.relu(self.line(x.flatten(2)))
        return self.head(torch.relu(self.flat(x.flatten(1))))


@torch.no_grad()
def test_other_kinds_of_layers():
    model = Everything().eval()
    nn.init.uniform_(model.act.weight, 0.1, 0.9)
    found = groups(model, torch.zeros(1, 3, 8, 8))
    marks = {site.name: torch.ones(site.channels, dtype=torch.bool) for site in found.sites}
    marks["a"][[0, 4]] = False
    marks["line"][2] = False
    marks["flat"][[1, 5]] = False
    kept = Subset(marks, found.sites, (3, 8, 8))
    small = shrink(model, kept)
    x = torch.randn(3, 3, 8, 8)
    with silence(model, ~kept):
        torch.testing.assert_close(small(x), model(x), rtol=1e-4, atol=1e-5)
    assert (small.act.num_parameters, small.up.in_channels, small.flat.in_features, small.flat.out_features) == (4, 4, 4 * 142, 5)


def test_types_modes_gradients_and_the_original_survive():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Flatten(), nn.Linear(144, 2))
    model = model.double().train()
    model[0].requires_grad_(False)
    original = copy.deepcopy(model)
    found = groups(model, torch.zeros(1, 3, 8, 8, dtype=torch.float64))
    kept = cut(control(found), found, macs=0.5)
    small = shrink(found, kept)
    assert small.training
    assert small[0].weight.dtype == torch.float64
    assert not small[0].weight.requires_grad
    assert small[3].weight.requires_grad
    assert small[1].num_features == small[0].out_channels == int(kept["0"].sum())
    assert torch.equal(small[1].running_var, model[1].running_var[kept["0"]])
    assert small.state_dict().keys() == original.state_dict().keys()
    for before, after in zip(original.state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.equal(before, after)
    assert small[0].weight.data_ptr() != model[0].weight.data_ptr()
    small(torch.randn(2, 3, 8, 8, dtype=torch.float64)).sum().backward()


def test_keeping_everything_copies():
    model, shape = built("resnet18")
    found = groups(model, torch.zeros(1, *shape))
    small = shrink(found, Subset.everything(found.sites, shape))
    images = torch.randn(1, *shape)
    assert torch.equal(small(images), model(images))


def test_bad_input():
    model, shape = built("resnet18")
    found = groups(model, torch.zeros(1, *shape))
    every = Subset.everything(found.sites, shape)
    split = {name: marks.clone() for name, marks in every.masks.items()}
    split["layer1.0.conv2"][3] = False
    with pytest.raises(InputError, match="live or die together"):
        shrink(found, Subset(split, found.sites, shape))
    empty = {name: marks.clone() for name, marks in every.masks.items()}
    empty["layer4.1.conv1"][:] = False
    with pytest.raises(InputError, match=r"removes all 512 channels of layer4.1.conv1: keep at least one"):
        shrink(found, Subset(empty, found.sites, shape))
    with pytest.raises(InputError, match="input shape"):
        shrink(model, Subset({"conv1": torch.ones(64, dtype=torch.bool)}))
    with pytest.raises(MismatchError, match="another network"):
        shrink(built("convnext_tiny")[0], every)


def test_a_network_whose_code_would_be_wrong_comes_back_as_its_steps():
    """A network that hides a written-out size from the trace: the comparison catches it."""

    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)

        def forward(self, x):
            x = torch.relu(self.a(x))
            return self.b(x).flatten(1) * (6.0 / self.a.out_channels)

    model = Hidden().eval()
    found = groups(model, torch.zeros(1, 3, 4, 4))
    kept = found.to_subset(np.arange(6) < 3)
    small = shrink(found, kept)
    assert isinstance(small, torch.fx.GraphModule)
    images = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), silence(model, ~kept):
        torch.testing.assert_close(small(images), model(images))
    copied = copy.deepcopy(model)
    copied.a, copied.b = small.a, small.b
    with pytest.raises(MismatchError, match="away from the silenced one"):
        check_same(copied, kept, found)
