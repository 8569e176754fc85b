"""Who sees a channel: layers and inputs, read off the traced graph."""

import pytest
import torch
from torch import nn

import networks
from channelscope import zoo
from channelscope.network.consumers import Consumer, InputChannels, consumers
from channelscope.network.sites import sites


class Branches(nn.Module):
    """Two branches lined up, pooled, flattened into a linear layer."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 5, 1)
        self.mix, self.pool = nn.Conv2d(9, 6, 3), nn.MaxPool2d(2)
        self.fc1, self.fc2 = nn.Linear(6 * 9, 7), nn.Linear(7, 3)

    def forward(self, x):
        x = torch.cat([self.a(x).relu(), self.b(x).relu()], 1)
        x = self.pool(self.mix(x).relu()).flatten(1)
        return self.fc2(self.fc1(x).relu())


class Gated(nn.Module):
    """A convolution that a gate made of its own average multiplies."""

    def __init__(self):
        super().__init__()
        self.conv, self.gate, self.after = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x = self.conv(x).relu()
        x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        return self.after(x).mean((2, 3))


@pytest.fixture(scope="module")
def found():
    torch.manual_seed(0)
    return sites(Branches().eval(), torch.zeros(2, 3, 8, 8))


def test_lined_up_branches_keep_their_places(found):
    a, b = (InputChannels(found).by_layer(found[name])["mix"] for name in ("a", "b"))
    assert torch.equal(a, torch.eye(9, dtype=torch.bool)[:4])
    assert torch.equal(b, torch.eye(9, dtype=torch.bool)[4:])
    assert consumers(found.graph, found["a"]) == (Consumer("mix", False),)


def test_a_flattened_map_gives_each_channel_its_block(found):
    marks = InputChannels(found).by_layer(found["mix"])["fc1"]
    assert torch.equal(marks, torch.eye(6, dtype=torch.bool).repeat_interleave(9, 1))


def test_a_linear_layer_behind_a_linear_layer(found):
    assert torch.equal(InputChannels(found).by_layer(found["fc1"])["fc2"], torch.eye(7, dtype=torch.bool))


def test_a_residual_stage_is_seen_through_its_sums():
    toy = zoo.toys.residual_pair()
    found = sites(toy.model, toy.batches[0][0])
    assert consumers(found.graph, found["stem"]) == (Consumer("inner", False), Consumer("fc", True))
    assert consumers(found.graph, found["inner"]) == (Consumer("outer", False),)
    assert consumers(found.graph, found["outer"]) == (Consumer("fc", True),)


def test_readers_come_after_the_site_only():
    model, shape = networks.built("resnet18")
    found = sites(model, torch.randn(1, *shape))
    depth = {site.name: site.depth for site in found}
    for site in found:
        assert all(depth.get(reader.layer, len(depth)) > site.depth for reader in consumers(found.graph, site))


def test_a_gate_reads_the_channel_and_the_product_counts_as_met():
    torch.manual_seed(0)
    images = torch.randn(2, 3, 5, 5)
    found = sites(Gated().eval(), images)
    assert consumers(found.graph, found["conv"]) == (Consumer("gate", False), Consumer("after", True))
    marks = InputChannels(found).by_layer(found["conv"])
    assert torch.equal(marks["gate"], torch.eye(4, dtype=torch.bool))
    assert torch.equal(marks["after"], torch.eye(4, dtype=torch.bool))


def test_a_depthwise_layer_reads_one_channel_each():
    toy = zoo.toys.depthwise_block()
    found = sites(toy.model, toy.batches[0][0][:2])
    assert torch.equal(InputChannels(found).by_layer(found["expand"])["depthwise"], torch.eye(8, dtype=torch.bool))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "squeezenet1_1", "densenet121", "vgg16_bn"])
def test_marks_say_what_changes_when_a_channel_changes(name):
    """Slow twin: change one channel, and look at the reader's own input with a hook, other layers held by nothing."""
    model, shape = networks.built(name)
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(2))
    found = sites(model, images)
    site = found.found[len(found) // 3]
    marks = InputChannels(found).by_layer(site)
    assert set(marks) == {reader.layer for reader in consumers(found.graph, site)}
    first = next(iter(marks))
    assert marks[first].shape[0] == site.channels
    node = next(node for node in found.graph.steps.nodes if node.target == first)
    source = node.all_input_nodes[0].name
    before = found.graph.run(images, outputs=source, out_of_place=True)
    for channel in (0, site.channels - 1):

        def raised(maps, channel=channel):
            maps = maps.clone()
            maps[:, channel] += 1 + 2 * maps.abs().max()
            return maps

        after = found.graph.run(images, outputs=source, hooks={site.activation: raised}, out_of_place=True)
        axis = -1 if isinstance(found.graph.modules[first], nn.Linear) else 1
        changed = (after != before).movedim(axis, 0).flatten(1).any(1)
        assert torch.equal(marks[first][channel], changed)


def test_reading_leaves_no_trace():
    model, shape = networks.built("resnet18")
    images = torch.randn(2, *shape)
    found = sites(model, images)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    InputChannels(found).by_layer(found.found[0])
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_layer_that_makes_a_constant_has_no_axis_of_images():
    class Biased(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bias, self.head = nn.Conv2d(3, 4, 1), nn.Linear(2, 4), nn.Linear(4, 2)
            self.register_buffer("places", torch.ones(3, 2))

        def forward(self, x):
            shift = self.bias(self.places).view(3, 4).mean(0)
            return self.head(self.conv(x).mean((2, 3)) + shift)

    found = sites(Biased().eval(), torch.zeros(1, 3, 4, 4))
    marks = InputChannels(found).by_layer(found["conv"])
    assert {layer: seen.tolist() for layer, seen in marks.items()} == {"head": torch.eye(4, dtype=torch.bool).tolist()}
    assert found.skipped["bias"] == "its values are the same for every image"
