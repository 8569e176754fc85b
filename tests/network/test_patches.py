"""Patches: weights times patches is what the layer computes, whatever its stride, padding, dilation and groups."""

import pytest
import torch
from torch import nn

from channelscope.network.operations import WeightedLayer, layer_of
from channelscope.network.patches import input_patches, patch_rows

LAYERS = {
    "plain": (nn.Conv2d(4, 6, 3), (4, 9, 8)),
    "padded": (nn.Conv2d(4, 6, 3, padding=1), (4, 9, 8)),
    "strided": (nn.Conv2d(4, 6, (3, 2), stride=(2, 3), padding=(2, 1)), (4, 9, 8)),
    "dilated": (nn.Conv2d(4, 6, 3, dilation=2, padding=2), (4, 9, 8)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2, padding=1, bias=False), (4, 9, 8)),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4, stride=2), (4, 9, 8)),
    "circular": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (4, 9, 8)),
    "reflecting": (nn.Conv2d(4, 6, 3, padding=(1, 2), padding_mode="reflect"), (4, 9, 8)),
    "same": (nn.Conv2d(4, 6, (3, 5), padding="same"), (4, 9, 8)),
    "pointwise": (nn.Conv2d(4, 6, 1, stride=2), (4, 9, 8)),
    "line": (nn.Conv1d(4, 6, 3, stride=2, padding=1), (4, 11)),
    "volume": (nn.Conv3d(2, 3, 2, padding=1), (2, 4, 5, 3)),
    "linear": (nn.Linear(5, 7), (5,)),
    "tokens": (nn.Linear(5, 7), (6, 5)),
}


def computed(module: nn.Module, taken: torch.Tensor) -> torch.Tensor:
    weights = module.weight.flatten(1).view(len(taken), -1, taken.shape[2])
    bias = 0 if module.bias is None else module.bias.view(len(taken), 1, -1)
    return taken @ weights.transpose(1, 2) + bias


@torch.no_grad()
@pytest.mark.parametrize("name", LAYERS)
def test_weights_times_patches_is_the_output(name):
    module, shape = LAYERS[name]
    linear = isinstance(module, nn.Linear)
    inputs = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    output = module(inputs)
    taken = input_patches(module, inputs, tuple(output.shape[1:]), None)
    torch.testing.assert_close(computed(module, taken), patch_rows(layer_of(module), output, None), rtol=1e-4, atol=1e-5)
    positions = output[0].numel() // output.shape[-1 if linear else 1]
    if positions > 2:
        where = torch.stack([torch.randperm(positions)[:2] for _ in range(3)])
        some = input_patches(module, inputs, tuple(output.shape[1:]), where)
        assert some.shape[1] == 6
        torch.testing.assert_close(computed(module, some), patch_rows(layer_of(module), output, where), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_padding_a_module_does_itself_is_read_off_the_output():
    from channelscope.data.torchvision_cpu import models  # declares what timm's import needs

    assert models
    from timm.layers import Conv2dSame

    for stride in (1, 2, 3):
        module = Conv2dSame(3, 4, 4, stride=stride)
        inputs = torch.randn(2, 3, 9, 11)
        output = module(inputs)
        taken = input_patches(module, inputs, tuple(output.shape[1:]), None)
        torch.testing.assert_close(computed(module, taken), patch_rows(layer_of(module), output, None), rtol=1e-4, atol=1e-5)


def test_rows_are_image_by_image_and_group_by_group():
    values = torch.arange(2 * 4 * 3).view(2, 4, 3).float()
    layer = WeightedLayer(4, 4, groups=2)
    assert patch_rows(layer, values, None).shape == (2, 6, 2)
    assert patch_rows(layer, values, None)[1, 0].tolist() == [6, 9]
    assert patch_rows(layer, values, torch.tensor([[2], [0]]))[0].tolist() == [[2, 5], [12, 15]]
