"""The residual networks for small images: published sizes, shapes, and projections where the shape changes."""

import pytest
import torch
from torch import nn

from channelscope.zoo.models import Block, SmallResNet

SHORTCUTS = {16: 16 * 32 + 64 + 32 * 64 + 128}


def weights(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("depth", "published"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_sizes_are_the_published_ones(depth, published):
    """He et al. 2016, table 6, in millions; the projections of option B add 2,752."""
    assert weights(SmallResNet(depth)) - SHORTCUTS[16] == pytest.approx(published * 1e6, rel=0.021)


@pytest.mark.parametrize("depth", [8, 14, 20])
def test_the_depth_counts_the_layers_on_the_main_path(depth):
    model = SmallResNet(depth)
    layers = [layer for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear) and "shortcut" not in name]
    assert len(layers) == depth


@pytest.mark.parametrize("depth", [2, 7, 18, 21])
def test_other_depths_are_refused(depth):
    with pytest.raises(ValueError, match=f"6n \\+ 2 .* received {depth}"):
        SmallResNet(depth)


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 32), (3, 17), (4, 64)])
def test_any_image_gives_logits(channels, size):
    model = SmallResNet(8, classes=7, channels=channels, width=4).eval()
    with torch.no_grad():
        assert model(torch.randn(2, channels, size, size)).shape == (2, 7)


def test_stages_halve_the_image_and_double_the_channels():
    model, seen = SmallResNet(8, width=4).eval(), {}
    for name in ("layer1", "layer2", "layer3"):
        stage = model.get_submodule(name)
        stage.register_forward_hook(lambda module, inputs, output, name=name: seen.update({name: tuple(output.shape[1:])}))
    with torch.no_grad():
        model(torch.randn(1, 3, 32, 32))
    assert seen == {"layer1": (4, 32, 32), "layer2": (8, 16, 16), "layer3": (16, 8, 8)}


def test_a_block_is_two_convolutions_and_a_shortcut():
    block = Block(3, 5, 2).eval()
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        inner = torch.relu(block.bn1(block.conv1(x)))
        expected = torch.relu(block.bn2(block.conv2(inner)) + block.shortcut(x))
        assert torch.equal(block(x), expected)


def test_shortcuts_are_projections_exactly_where_the_shape_changes():
    assert isinstance(Block(4, 4, 1).shortcut, nn.Identity)
    for inputs, outputs, stride in ((4, 8, 1), (4, 4, 2), (4, 8, 2)):
        projection = Block(inputs, outputs, stride).shortcut
        assert projection[0].kernel_size == (1, 1)
        assert projection[0].stride == (stride, stride)
        assert projection[0].bias is None


def test_every_channel_is_made_by_a_convolution():
    """No zero-padded identities: tracing finds only convolutions, normalizations, sums and activations."""
    graph = torch.fx.symbolic_trace(SmallResNet(8, width=4)).graph
    functions = {node.target.__name__ for node in graph.nodes if node.op == "call_function"}
    assert functions == {"add"}
    assert not [node for node in graph.nodes if node.op == "call_method"]


def test_the_initialization_keeps_the_variance():
    torch.manual_seed(0)
    model = SmallResNet(20)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            fan_out = layer.out_channels * layer.kernel_size[0] * layer.kernel_size[1]
            assert float(layer.weight.detach().std()) == pytest.approx((2 / fan_out) ** 0.5, rel=0.25)
