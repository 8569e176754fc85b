"""Sites: what is a channel, where it is read and where it is cut, and which layers and inputs see it."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import networks
from channelscope import zoo
from channelscope.errors import SiteError
from channelscope.network.operations import layers_called
from channelscope.network.sites import Consumer, InputChannels, consumers, sites
from channelscope.profiling.weight_norms import following_batchnorm
from networks import NARROW, built

COUNTS = {
    "resnet18": 13,
    "resnet50": 19,
    "vgg16_bn": 4,
    "mobilenet_v2": 52,
    "alexnet": 6,
    "squeezenet1_1": 25,
    "resnext50_32x4d": 17,
}


@pytest.mark.parametrize("name", NARROW)
def test_every_layer_is_a_site_or_is_skipped_with_a_reason(name):
    model, shape = built(name)
    found = sites(model, torch.randn(1, *shape))
    layers = {path for path, part in model.named_modules() if isinstance(part, nn.Conv2d | nn.Linear)}
    assert {site.name for site in found} | set(found.skipped) == layers
    assert not {site.name for site in found} & set(found.skipped)
    assert all(found.skipped.values())
    assert [site.depth for site in found] == list(range(len(found.found)))


@pytest.mark.parametrize("name", NARROW)
def test_only_the_layer_of_the_logits_is_skipped(name):
    model, shape = built(name)
    found = sites(model, torch.randn(1, *shape))
    assert set(found.skipped.values()) == {"its outputs are the network's own outputs, not channels inside it"}
    assert len(found.skipped) == 1
    if name in COUNTS:
        layers = [part for part in model.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
        assert len(found.found) == len(layers) - 1


@pytest.mark.parametrize("name", NARROW)
def test_sites_describe_their_layers(name):
    model, shape = built(name)
    found = sites(model, torch.randn(1, *shape))
    values = {}
    with torch.no_grad():
        watch = {
            step: (lambda value, step=step: values.update({step: value.clone()}))
            for site in found
            for step in (site.preactivation, site.activation)
        }
        found.graph.run(torch.randn(2, *shape), hooks=watch)
    for site in found:
        layer = model.get_submodule(site.name)
        assert site.channels == layer.weight.shape[0] == site.shape[site.channel_axis]
        assert values[site.preactivation].shape[1:] == values[site.activation].shape[1:] == site.shape
        assert site.kind == ("linear" if isinstance(layer, nn.Linear) else kind(layer))
        assert site.positions * site.channels == values[site.preactivation][0].numel()
        if site.activation_is_affine:
            factor, shift = (
                part.view([-1 if axis == site.channel_axis else 1 for axis in range(len(site.shape))])
                for part in following_batchnorm(found.graph, site)
            )
            torch.testing.assert_close(
                values[site.activation].double(), values[site.preactivation].double() * factor + shift, rtol=1e-3, atol=1e-4
            )


def kind(layer: nn.Conv2d) -> str:
    if layer.groups == 1:
        return "conv"
    return "depthwise" if layer.groups == layer.in_channels else "grouped"


def cuts(forward, **layers) -> dict[str, str]:
    """Cut point of each site of a small network with this forward pass."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
            self.bn, self.relu, self.fc = nn.BatchNorm2d(4), nn.ReLU(), nn.Linear(4, 2)
            for name, layer in layers.items():
                self.add_module(name, layer)

        def forward(self, x):
            return forward(self, x)

    return {site.name: site.activation for site in sites(Net().eval(), torch.randn(1, 3, 6, 6))}


def test_the_cut_point_is_behind_normalization_and_activation():
    found = cuts(lambda net, x: net.fc(net.b(net.relu(net.bn(net.a(x)))).mean((2, 3))))
    assert found == {"a": "relu", "b": "b"}


def test_a_shared_activation_is_another_place_at_each_call():
    found = cuts(lambda net, x: net.fc(net.relu(net.b(net.relu(net.a(x)))).mean((2, 3))))
    assert found == {"a": "relu", "b": "relu_1"}


def test_a_residual_sum_ends_the_channel():
    def forward(net, x):
        x = net.relu(net.a(x))
        return net.fc(net.relu(x + net.bn(net.b(x))).mean((2, 3)))

    assert cuts(forward) == {"a": "relu", "b": "bn"}


def test_a_branch_ends_the_channel():
    def forward(net, x):
        y = net.a(x)
        return net.fc((net.b(y) + F.relu(y)).mean((2, 3)))

    assert cuts(forward) == {"a": "a", "b": "b"}


def test_mixing_ends_the_channel():
    assert cuts(lambda net, x: net.fc(net.ln(net.a(x)).mean((2, 3))), ln=nn.GroupNorm(2, 4))["a"] == "a"
    assert cuts(lambda net, x: net.fc(F.softmax(net.a(x), 1).mean((2, 3))))["a"] == "a"
    assert cuts(lambda net, x: net.fc(net.pool(net.a(x)).flatten(1)), pool=nn.AdaptiveAvgPool2d(1))["a"] == "a"


def test_scales_and_functions_are_followed():
    assert cuts(lambda net, x: net.fc(F.hardswish(net.a(x) * 0.5).mean((2, 3))))["a"] == "hardswish"
    for name in ("abs", "square", "neg", "exp", "relu"):
        assert cuts(lambda net, x, name=name: net.fc(vars(torch)[name](net.bn(net.a(x))).mean((2, 3))))["a"].startswith(name)
    assert cuts(lambda net, x: net.fc(torch.clamp(net.a(x), min=0).sigmoid().mean((2, 3))))["a"] == "sigmoid"


def test_a_square_is_no_scaling():
    assert cuts(lambda net, x: net.fc((lambda y: y * y)(net.a(x)).mean((2, 3))))["a"] == "a"


def skipped(forward, **layers) -> dict[str, str]:
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.fc = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 2)
            for name, layer in layers.items():
                self.add_module(name, layer)

        def forward(self, x):
            return forward(self, x)

    return sites(Net().eval(), torch.randn(1, 3, 6, 6)).skipped


def test_reasons():
    assert "called 2 times" in skipped(lambda net, x: net.fc((net.a(net.a(x)) + net.b(x)).mean((2, 3))), b=nn.Conv2d(3, 3, 1))["a"]
    assert skipped(lambda net, x: net.fc(net.a(net.up(x)).mean((2, 3))), up=nn.ConvTranspose2d(3, 3, 2))["up"] == "transposed convolution"
    assert "not called" in skipped(lambda net, x: net.fc(net.a(x).mean((2, 3))), idle=nn.Conv2d(3, 3, 1))["idle"]
    weight = skipped(lambda net, x: net.fc(F.conv2d(net.a(x), 2 * net.raw.weight).mean((2, 3))), raw=nn.Conv2d(3, 3, 1))
    assert "not called as a module" in weight["raw"]


def functional(call) -> list[str]:
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.fc = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Linear(4, 2)
            self.b = nn.Linear(4, 4, bias=False)

        def forward(self, x):
            y = call(self, x)
            return self.fc(F.linear(torch.relu(y).mean((2, 3)), self.b.weight))

    return [site.name for site in sites(Net().eval(), torch.randn(1, 3, 6, 6))]


def test_a_function_on_a_layers_own_parameters_is_the_layer():
    assert functional(lambda net, x: F.conv2d(x, net.a.weight, net.a.bias, 2, 1)) == ["a", "b"]
    assert functional(lambda net, x: torch.conv2d(input=x, weight=net.a.weight, bias=net.a.bias, stride=(2, 2), padding=[1])) == ["a", "b"]


def test_a_function_on_a_layers_own_weight_with_another_bias_is_the_layer_and_a_shift():
    assert functional(lambda net, x: F.conv2d(x, net.a.weight, 2 * net.a.bias, 2, 1)) == ["a", "b"]
    assert functional(lambda net, x: F.conv2d(x, net.a.weight, None, 2, 1)) == ["a", "b"]
    assert functional(lambda net, x: F.conv2d(x, net.a.weight, x.mean((0, 2, 3)).repeat(2)[:4], 2, 1)) == ["a", "b"]


def test_a_function_that_does_something_else_with_a_layers_weight_is_not_the_layer():
    assert functional(lambda net, x: F.conv2d(x, net.a.weight, net.a.bias)) == ["b"]
    assert functional(lambda net, x: F.conv2d(x, 2 * net.a.weight, net.a.bias, 2, 1)) == ["b"]
    assert functional(lambda net, x: net.a(x)) == ["a", "b"]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("other", [lambda net: torch.cat([net.b.weight[0, :, 0, 0], net.fc.bias[:1]])[:3], lambda net: None])
def test_another_bias_of_a_function_is_the_networks_arithmetic(bias, other):
    """The recorded pass and the pass with calls of the layer equal the network; channels are read before and cut behind the shift."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.fc = nn.Conv2d(3, 3, 1, bias=bias), nn.Conv2d(3, 3, 1), nn.Linear(3, 2)

        def forward(self, x):
            return self.fc(self.b(F.conv2d(x, self.a.weight, other(self)).relu()).mean((2, 3)))

    net, images = Net().double().eval(), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    found = sites(net, images)
    rebiased = bias or other(net) is not None
    assert (found["a"].preactivation, found["a"].activation, found["a"].activation_is_affine) == ("a", "relu", False)
    assert [part.through_sum for part in consumers(found.graph, found["a"])] == [False]
    with torch.no_grad(), layers_called(net):
        called = net(images)
    with torch.no_grad():
        for received in (called, found.graph.run(images)):
            assert torch.allclose(received, net(images), rtol=1e-12, atol=1e-12)
    assert ("add" in found.graph.nodes) == rebiased


def test_a_bias_added_behind_a_layer_is_part_of_its_channels():
    shift, table = torch.ones(4, 1, 1), torch.ones(4, 6, 6)
    assert cuts(lambda net, x: net.fc((net.a(x) + shift).mean((2, 3))))["a"] == "add"
    assert cuts(lambda net, x: net.fc((net.a(x) + table).mean((2, 3))))["a"] == "a"  # a number for each position too
    assert set(skipped(lambda net, x: net.fc(net.a(x).mean((2, 3))) + shift[:2, 0, 0])) == {"fc"}


def test_a_layer_with_hooks_is_not_called_in_the_place_of_a_function():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(16, 2)).eval()

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net

        def forward(self, x):
            return self.inner[2](self.inner[1](F.conv2d(x, net[0].weight, net[0].bias)))

    image = torch.randn(1, 3, 2, 2)
    handle = net[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    with pytest.raises(SiteError):
        sites(Net().eval(), image)
    handle.remove()
    assert [site.name for site in sites(Net().eval(), image)] == ["inner.0"]


@pytest.mark.parametrize("end", [lambda y: y.softmax(1), lambda y: torch.flatten(y, 1), lambda y: F.log_softmax(y, 1), lambda y: F.relu(y)])
def test_what_leads_to_the_output_alone_is_the_output(end):
    assert set(skipped(lambda net, x: end(net.fc(net.a(x).mean((2, 3)))))) == {"fc"}


def test_pooled_maps_that_are_the_logits_are_the_output():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    found = sites(model.eval(), torch.randn(1, 3, 8, 8))
    assert [site.name for site in found] == ["0"]
    assert set(found.skipped) == {"2"}


def test_heads_that_are_moved_and_joined_are_the_output():
    def forward(net, x):
        y = net.a(x)
        return torch.cat([net.b(y).permute(0, 2, 3, 1).flatten(1), net.c(y).flatten(1) / 2], 1)

    found = skipped(forward, b=nn.Conv2d(3, 3, 1), c=nn.Conv2d(3, 2, 1))
    assert found["b"] == "its outputs are the network's own outputs, not channels inside it"
    assert "a" not in found


def test_a_layer_whose_shape_alone_is_used_is_not_the_output():
    def forward(net, x):
        y = net.a(x)
        return F.interpolate(net.b(F.avg_pool2d(y, 2)), size=y.shape[-2:])

    assert set(skipped(forward, b=nn.Conv2d(3, 2, 1))) == {"b", "fc"}


def test_a_network_without_sites_says_why():
    with pytest.raises(SiteError, match=r"no convolution or linear layer .* 1: its outputs are the network's own"):
        sites(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), torch.randn(1, 3, 2, 2))


def test_sites_are_looked_up_by_name_with_near_matches():
    model, shape = built("resnet18")
    found = sites(model, torch.randn(1, *shape))
    assert found["layer1.0.conv1"].name == "layer1.0.conv1"
    with pytest.raises(SiteError, match=r"layer1\.0\.conv"):
        found["layer1.0.conv3"]


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
