"""Gradients of convolutions with small output maps are the exact ones but for rounding, whatever stride, padding, dilation and bias are."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from channelscope.zoo.precision import SMALL, SmallMapGradients, loss_and_logits

BY_PRODUCT = "_ConvolutionBackward"
PAIRS = st.tuples(st.integers(1, 3), st.integers(1, 3))
ROUNDING = 2.0**-7
"""of bfloat16, twice"""


def gradients(mode, x, weight, bias, **how):
    """Output and gradients of a convolution in bfloat16, and what computed them."""
    leaves = [value.clone().requires_grad_() for value in (x, weight, bias) if value is not None]
    with torch.autocast("cpu", torch.bfloat16), mode:
        output = F.conv2d(*leaves, **how)
    output.backward(upstream(output))
    return type(output.grad_fn).__name__, [output.detach(), *(leaf.grad for leaf in leaves)]


def exact(x, weight, bias, **how):
    """The same in float64, of numbers that bfloat16 can hold."""
    leaves = [value.bfloat16().double().requires_grad_() for value in (x, weight, bias) if value is not None]
    output = F.conv2d(*leaves, **how)
    output.backward(upstream(output).bfloat16().double())
    return [output.detach(), *(leaf.grad for leaf in leaves)]


def upstream(output):
    return torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output.dtype)


def near(one, two):
    return (one.double() - two.double()).norm() <= ROUNDING * two.double().norm() + 1e-12


@settings(deadline=None)
@given(PAIRS, PAIRS, PAIRS, PAIRS, st.tuples(st.integers(0, 2), st.integers(0, 2)), st.booleans(), st.integers(0, 99))
def test_small_maps_have_the_gradients_of_conv2d(output, kernel, stride, dilation, padding, biased, seed):
    draw = torch.Generator().manual_seed(seed)
    reach = [gap * (taps - 1) + 1 for gap, taps in zip(dilation, kernel, strict=True)]
    # conv2d itself crashes in bfloat16 where dilated kernels reach beyond the image
    padding = [pad if gap == 1 and pad < taps else 0 for pad, gap, taps in zip(padding, dilation, kernel, strict=True)]
    sizes = [max((n - 1) * step + r - 2 * pad, 1) for n, step, r, pad in zip(output, stride, reach, padding, strict=True)]
    x, weight = torch.randn(5, 3, *sizes, generator=draw), torch.randn(4, 3, *kernel, generator=draw)
    bias = torch.randn(4, generator=draw) if biased else None
    how = {"stride": stride, "padding": padding, "dilation": dilation}
    name, found = gradients(SmallMapGradients(), x, weight, bias, **how)
    assert name == BY_PRODUCT
    assert [value.dtype for value in found] == [torch.bfloat16] + [torch.float32] * (2 + biased)
    for one, two in zip(found, exact(x, weight, bias, **how), strict=True):
        assert one.shape == two.shape
        assert near(one, two)


@pytest.mark.parametrize(("size", "groups", "padding"), [(5, 1, 1), (4, 2, 1), (4, 1, "same")])
def test_other_convolutions_are_left_to_conv2d(size, groups, padding):
    x, weight = torch.randn(2, 4, size, size), torch.randn(4, 4 // groups, 3, 3)
    name, _ = gradients(SmallMapGradients(), x, weight, None, groups=groups, padding=padding)
    assert name == "ConvolutionBackward0"


def test_the_largest_small_map_and_full_precision():
    side = int(SMALL**0.5)
    x, weight = torch.randn(2, 4, side, side), torch.randn(4, 4, 3, 3, requires_grad=True)
    assert gradients(SmallMapGradients(), x, weight.detach(), None, padding=1)[0] == BY_PRODUCT
    with SmallMapGradients():
        assert type(F.conv2d(x, weight, padding=1).grad_fn).__name__ == "ConvolutionBackward0"


def test_steps_of_training_take_them():
    layer = nn.Conv2d(3, 8, 3, padding=1)
    net = nn.Sequential(layer, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    taken = []
    layer.register_forward_hook(lambda module, inputs, output: taken.append(type(output.grad_fn).__name__))
    for precision in ("bfloat16", "float32"):
        loss_and_logits(net, torch.randn(2, 3, 2, 2), torch.tensor([0, 1]), precision)
    assert taken == [BY_PRODUCT, "ConvolutionBackward0"]


def test_what_is_frozen_gets_no_gradient():
    layer = nn.Conv2d(3, 8, 1)
    layer.weight.requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16), SmallMapGradients():
        layer(torch.randn(2, 3, 1, 1)).sum().backward()
    assert layer.weight.grad is None
    assert layer.bias is not None
    assert layer.bias.grad is not None
