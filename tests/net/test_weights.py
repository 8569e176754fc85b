"""Weight facts against definitions, and the affine way from read to cut point."""

import numpy as np
import pytest
import torch
from torch import nn

from channelscope.net.find import sites
from channelscope.net.layout import layout
from channelscope.net.weights import consumers, cut_affine, weight_facts, weight_rows
from networks import NARROW, built


@pytest.mark.parametrize("name", NARROW)
def test_norms_and_distances(name):
    model, shape = built(name)
    found = sites(model, torch.randn(1, *shape))
    facts = weight_facts(found)
    for site in found:
        rows = model.get_submodule(site.name).weight.detach().double().reshape(site.channels, -1).numpy()
        np.testing.assert_allclose(facts[site.name]["l1"], np.abs(rows).sum(1))
        np.testing.assert_allclose(facts[site.name]["l2"], np.sqrt((rows**2).sum(1)))
        distances = [sum(np.linalg.norm(a - b) for b in rows) for a in rows[:3]]
        np.testing.assert_allclose(facts[site.name]["distances"][:3], distances, rtol=1e-6)
        norm = model.get_submodule(site.norm) if site.norm else None
        if isinstance(norm, nn.BatchNorm2d):
            np.testing.assert_allclose(facts[site.name]["gamma"], norm.weight.detach())
        assert weight_rows(model.get_submodule(site.name)).shape == rows.shape


def outgoing(*layers) -> torch.Tensor | None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(2))
    model(torch.zeros(1, 3, 8, 8))
    return weight_facts(sites(model, torch.zeros(1, 3, 8, 8)))["0"].get("outgoing")


def test_outgoing_weights_of_a_convolution():
    reader = nn.Conv2d(6, 5, 3)
    expected = reader.weight.detach().double().square().sum((0, 2, 3)).sqrt()
    torch.testing.assert_close(outgoing(reader), expected)


def test_outgoing_weights_of_groups_and_depthwise():
    reader = nn.Conv2d(6, 4, 3, groups=2)
    squares = reader.weight.detach().double().square()  # 4 × 3: outputs 0, 1 read channels 0 … 2, outputs 2, 3 read 3 … 5
    expected = torch.cat([squares[:2].sum((0, 2, 3)), squares[2:].sum((0, 2, 3))]).sqrt()
    torch.testing.assert_close(outgoing(reader), expected)
    deep = nn.Conv2d(6, 6, 3, groups=6)
    torch.testing.assert_close(outgoing(deep), deep.weight.detach().double().square().sum((1, 2, 3)).sqrt())


def test_outgoing_weights_of_several_readers_add_up():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.one, self.two, self.fc = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 2)

        def forward(self, x):
            x = self.stem(x).relu()
            return self.fc((self.one(x) + self.two(x)).mean((2, 3)))

    model = Net()
    found = sites(model, torch.zeros(1, 3, 8, 8))
    both = model.one.weight.detach().double().square().sum((0, 2, 3)) + model.two.weight.detach().double().square().sum((0, 2, 3))
    torch.testing.assert_close(weight_facts(found)["stem"]["outgoing"], both.sqrt())
    assert consumers(found.graph, found["stem"]) == ["one", "two"]
    assert "outgoing" not in weight_facts(found)["one"]  # what it feeds is a sum


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_the_affine_way(affine, bias):
    norm = nn.BatchNorm2d(4, affine=affine)
    nn.init.normal_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=bias), norm, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
    found = sites(model, torch.zeros(1, 3, 6, 6))
    factor, shift = cut_affine(found.graph, found["0"])
    x = torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        torch.testing.assert_close(
            model[:2](x).double(), model[0](x).double() * factor.view(4, 1, 1) + shift.view(4, 1, 1), rtol=1e-4, atol=1e-5
        )


def test_normalization_by_the_batch_is_not_affine():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten(), nn.Linear(64, 2)).eval()
    assert not sites(model, torch.randn(2, 3, 6, 6))["0"].affine


def test_the_layout_is_channels_last_where_the_network_can_run_so():
    model, shape = built("resnet18")
    image = torch.randn(1, *shape)
    assert layout(sites(model, image).graph, image) is torch.channels_last

    class Viewing(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 1), nn.Linear(4 * 36, 2)

        def forward(self, x):
            return self.fc(self.conv(x).view(-1, 4 * 36))

    image = torch.randn(1, 3, 6, 6)
    assert layout(sites(Viewing(), image).graph, image) is torch.contiguous_format


def test_finding_the_layout_leaves_a_training_network_as_it_was():
    model, shape = built("resnet18")
    model.train()
    before = model.bn1.running_mean.clone()
    image = torch.randn(1, *shape)
    layout(sites(model, image).graph, image)
    assert torch.equal(model.bn1.running_mean, before)
    assert model.training
