"""Gradients of convolutions taken the faster way are the exact ones but for rounding, whatever stride, padding, dilation and bias are."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from channelscope.zoo.precision import FEW_TAPS, SMALL, FasterGradients, loss_and_logits

FASTER = "_ConvolutionBackward"
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
    """The gradients in float64, of numbers that bfloat16 can hold."""
    leaves = [value.bfloat16().double().requires_grad_() for value in (x, weight, bias) if value is not None]
    output = F.conv2d(*leaves, **how)
    output.backward(upstream(output).bfloat16().double())
    return [leaf.grad for leaf in leaves]


def upstream(output):
    return torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output.dtype)


def near(one, two):
    return (one.double() - two.double()).norm() <= ROUNDING * two.double().norm() + 1e-12


def random_layer(draw, channels, filters, output, kernel, stride, dilation, padding, biased):
    """Images, weights, bias and options of a layer with outputs of a size."""
    reach = [gap * (taps - 1) + 1 for gap, taps in zip(dilation, kernel, strict=True)]
    # conv2d itself crashes in bfloat16 where dilated kernels reach beyond the image
    padding = [pad if gap == 1 and pad < taps else 0 for pad, gap, taps in zip(padding, dilation, kernel, strict=True)]
    sizes = [max((n - 1) * step + r - 2 * pad, 1) for n, step, r, pad in zip(output, stride, reach, padding, strict=True)]
    x, weight = torch.randn(5, channels, *sizes, generator=draw), torch.randn(*filters, *kernel, generator=draw)
    bias = torch.randn(filters[0], generator=draw) if biased else None
    return x, weight, bias, {"stride": stride, "padding": padding, "dilation": dilation}


def check(layer, **more):
    """The gradients are taken the faster way, in the precision of the leaves, and are those of float64.

    The output is conv2d's own, which is wrong in bfloat16 for some layers with several filters a channel and outputs one pixel wide.
    """
    x, weight, bias, how = layer
    name, found = gradients(FasterGradients(), x, weight, bias, **how, **more)
    assert name == FASTER
    assert [value.dtype for value in found] == [torch.bfloat16] + [torch.float32] * (2 + (bias is not None))
    for one, two in zip(found[1:], exact(x, weight, bias, **how, **more), strict=True):
        assert one.shape == two.shape
        assert near(one, two)


@settings(deadline=None)
@given(PAIRS, PAIRS, PAIRS, PAIRS, st.tuples(st.integers(0, 2), st.integers(0, 2)), st.booleans(), st.integers(0, 99))
def test_small_maps_have_the_gradients_of_conv2d(output, kernel, stride, dilation, padding, biased, seed):
    check(random_layer(torch.Generator().manual_seed(seed), 3, (4, 3), output, kernel, stride, dilation, padding, biased))


@settings(deadline=None)
@given(
    *(st.tuples(st.integers(1, 7), st.integers(1, 7)) for _ in range(2)),
    *(PAIRS, PAIRS, st.tuples(st.integers(0, 3), st.integers(0, 3))),
    *(st.integers(1, 2), st.booleans(), st.integers(0, 99)),
)
def test_depthwise_layers_have_the_gradients_of_conv2d(output, kernel, stride, dilation, padding, filters, biased, seed):
    layer = random_layer(torch.Generator().manual_seed(seed), 6, (6 * filters, 1), output, kernel, stride, dilation, padding, biased)
    assume(max(stride) > 1 or kernel[0] * kernel[1] > FEW_TAPS)
    check(layer, groups=6)


@pytest.mark.parametrize(("channels", "filters", "how"), [(8, (8, 1, 3, 3), {"groups": 8, "stride": 2}), (3, (8, 3, 4, 4), {})])
def test_gradients_of_inputs_keep_channels_last(channels, filters, how):
    seen = []
    x = torch.randn(2, channels, 6, 6, requires_grad=True).to(memory_format=torch.channels_last).bfloat16()
    x.register_hook(lambda gradient: seen.append(gradient.is_contiguous(memory_format=torch.channels_last)))
    with torch.autocast("cpu", torch.bfloat16), FasterGradients():
        F.conv2d(x, torch.randn(filters), **how).sum().backward()
    assert seen == [True]


@pytest.mark.parametrize(("size", "groups", "padding"), [(5, 1, 1), (4, 2, 1), (4, 1, "same"), (4, 4, 1)])
def test_other_convolutions_are_left_to_conv2d(size, groups, padding):
    x, weight = torch.randn(2, 4, size, size), torch.randn(4, 4 // groups, 3, 3)
    name, _ = gradients(FasterGradients(), x, weight, None, groups=groups, padding=padding)
    assert name == "ConvolutionBackward0"


def test_the_largest_small_map_and_full_precision():
    side = int(SMALL**0.5)
    x, weight = torch.randn(2, 4, side, side), torch.randn(4, 4, 3, 3, requires_grad=True)
    assert gradients(FasterGradients(), x, weight.detach(), None, padding=1)[0] == FASTER
    with FasterGradients():
        assert type(F.conv2d(x, weight, padding=1).grad_fn).__name__ == "ConvolutionBackward0"


def test_steps_of_training_take_them():
    layer = nn.Conv2d(3, 8, 3, padding=1)
    net = nn.Sequential(layer, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    taken = []
    layer.register_forward_hook(lambda module, inputs, output: taken.append(type(output.grad_fn).__name__))
    for precision in ("bfloat16", "float32"):
        loss_and_logits(net, torch.randn(2, 3, 2, 2), torch.tensor([0, 1]), precision)
    assert taken == [FASTER, "ConvolutionBackward0"]


def test_what_is_frozen_gets_no_gradient():
    layer = nn.Conv2d(3, 8, 1)
    layer.weight.requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16), FasterGradients():
        layer(torch.randn(2, 3, 1, 1)).sum().backward()
    assert layer.weight.grad is None
    assert layer.bias is not None
    assert layer.bias.grad is not None


@pytest.mark.parametrize(("channels", "filters", "groups"), [(4, 8, 1), (2, 4, 1), (8, 16, 2)])
def test_narrow_strided_convolutions_of_one_pixel_are_learned_with_their_images_channels_first(channels, filters, groups):
    """With channels last, oneDNN on AVX2 writes their gradient beyond its memory: the process ends, hangs or goes on with other numbers."""
    net = nn.Sequential(nn.Conv2d(3, channels, 3), nn.ReLU(), nn.Conv2d(channels, filters, 1, stride=2, groups=groups), nn.Flatten())
    seen = []
    net[2].register_forward_hook(lambda module, inputs, output: seen.append(output.is_contiguous()))
    x, y = torch.randn(2, 3, 6, 6), torch.tensor([0, 1])
    grads = []
    for layout in (torch.channels_last, torch.contiguous_format):
        net.zero_grad()
        loss_and_logits(net, x.contiguous(memory_format=layout), y, "float32")[0].backward()
        grads.append(torch.cat([parameter.grad.flatten() for parameter in net.parameters() if parameter.grad is not None]))
    assert seen == [True, True]
    torch.testing.assert_close(*grads)
