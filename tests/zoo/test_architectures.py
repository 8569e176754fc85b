"""Stems for small images: what is changed is what the table says, and the trunk is torchvision's."""

import pytest
import torch
from torch import nn

import pencil_zoo as pencil
from channelscope.data.torchvision_cpu import models
from channelscope.zoo.models import ARCHITECTURES, _convnext, build, first_conv, replace_first_conv, set_input_channels

LIGHT = [name for name in ARCHITECTURES if name not in ("vgg16_bn", "resnet50", "resnet34", "convnext_tiny", "alexnet")]
HEAVY = [name for name in ARCHITECTURES if name not in LIGHT]


@pytest.fixture(scope="module")
def vgg():
    return build("vgg16_bn", 10, 1, 8)


def sizes(model, channels, size):
    """Spatial sizes after every convolution and pool that is met."""
    seen, hooks = [], []
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
            hooks.append(layer.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[-1])))
    with torch.inference_mode():
        logits = model(torch.randn(1, channels, size, size))
    for hook in hooks:
        hook.remove()
    return seen, logits


@pytest.mark.parametrize("name", LIGHT)
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 64)])
def test_small_images_give_logits(name, channels, size):
    seen, logits = sizes(build(name, 7, channels, size), channels, size)
    assert logits.shape == (1, 7)
    assert seen[0] == size, "the first convolution keeps the size"
    assert min(seen) >= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", HEAVY)
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 28), (3, 32), (3, 64)])
def test_small_images_give_logits_in_large_networks(name, channels, size):
    assert sizes(build(name, 7, channels, size), channels, size)[1].shape == (1, 7)


def test_the_convnext_reads_patches_that_leave_sixteen_positions_a_side():
    for size, patch in ((8, 1), (16, 1), (32, 2), (64, 4)):
        model = models.ConvNeXt([models.convnext.CNBlockConfig(8, None, 2)], num_classes=3)
        _convnext(model, 3, size)
        _, _, stem = first_conv(model)
        assert (stem.kernel_size, stem.stride, stem.padding) == ((patch, patch), (patch, patch), (0, 0))
        assert sizes(model.eval(), 3, size)[0][0] == min(16, size)


def test_the_resnet_has_the_published_size_at_a_hundred_classes():
    """11.22 M weights is what the CIFAR-100 literature reports for ResNet-18 with this stem."""
    model = build("resnet18", 100)
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(11.22e6, rel=1e-3)
    assert isinstance(model.maxpool, nn.Identity)
    assert (model.conv1.kernel_size, model.conv1.stride, model.conv1.padding) == ((3, 3), (1, 1), (1, 1))
    assert sizes(model, 3, 32)[0][-1] == 4


def test_the_mobilenet_differs_from_torchvisions_in_one_stride():
    model, original = build("mobilenet_v2", 10), models.mobilenet_v2(num_classes=10)
    ours, theirs = (dict(net.named_modules()) for net in (model, original))
    different = [name for name, layer in theirs.items() if isinstance(layer, nn.Conv2d) and layer.stride != ours[name].stride]
    assert different == ["features.0.0"]
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in original.state_dict().items()}
    assert sizes(model, 3, 32)[0][-1] == pencil.positions_after(32, [(3, 1, 1), *[(3, 2, 1)] * 4]) == 2


def test_the_vgg_drops_the_pools_that_would_leave_nothing(vgg):
    pools = [layer for layer in vgg.features if isinstance(layer, nn.MaxPool2d)]
    assert len(pools) == 3
    seen, logits = sizes(vgg, 1, 8)
    assert seen[-1] == 1
    assert logits.shape == (1, 10)


def test_the_vgg_has_one_linear_layer(vgg):
    (linear,) = [layer for layer in vgg.modules() if isinstance(layer, nn.Linear)]
    assert (linear.in_features, linear.out_features) == (512, 10)
    assert sum(parameter.numel() for parameter in vgg.features.parameters()) == 14_723_136 - 2 * 9 * 64


def test_the_alexnet_reads_averaged_channels():
    model = build("alexnet", 10)
    linears = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linears] == [(256, 4096), (4096, 4096), (4096, 10)]
    assert sizes(model, 3, 32)[0] == [32, 16, 16, 8, 8, 8, 8, 4]
    assert list(model.classifier._modules) == [str(k) for k in range(7)], "the layers keep their names"


@pytest.mark.parametrize("name", ["squeezenet1_0", "squeezenet1_1"])
def test_the_squeezenet_loses_its_first_pool_only(name):
    pools = [layer for layer in build(name, 10).features if isinstance(layer, nn.MaxPool2d)]
    assert len(pools) == 2


def test_a_new_stem_keeps_the_outputs_and_the_bias():
    for bias in (True, False):
        model = nn.Sequential(nn.ReLU(), nn.Sequential(nn.Conv2d(3, 6, 7, 2, 3, bias=bias), nn.Conv2d(6, 6, 1)))
        new = replace_first_conv(model, 5, 3, 1, 1)
        assert model[1][0] is new
        assert new.weight.shape == (6, 5, 3, 3)
        assert (new.bias is not None) == bias
        assert not bias or not new.bias.any()


def test_recoloring_changes_the_input_channels_and_nothing_else():
    model = nn.Sequential(nn.Conv2d(3, 6, 7, 2, 3))
    before = model[0]
    set_input_channels(model, 3)
    assert model[0] is before
    set_input_channels(model, 1)
    assert (model[0].in_channels, model[0].kernel_size, model[0].stride, model[0].padding) == (1, (7, 7), (2, 2), (3, 3))


def test_a_network_without_convolutions_has_no_stem():
    with pytest.raises(ValueError, match="Sequential has no convolution"):
        first_conv(nn.Sequential(nn.Linear(2, 2)))


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "mobilenet_v2"])
def test_images_above_64_pixels_get_torchvisions_own_network(name):
    model, original = build(name, 10, 3, 224), getattr(models, name)(num_classes=10)
    ours, theirs = (repr(net) for net in (model, original))
    assert ours == theirs
