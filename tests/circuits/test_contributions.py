"""Contributions of kernels: the gate identity for every geometry, and each rule against its slow twin."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import pencil_circuits as pencil
from channelscope.circuits import kernel_scores
from channelscope.circuits.kernel_scores import actgrad, gate_scores, magnitude, snip
from channelscope.network.patches import LayerKernels

EVEN = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # PyTorch says that it has to copy


@st.composite
def layers(draw, modes=("zeros",)):
    """A convolution of any stride, dilation, groups and padding, an input and a gradient."""
    groups = draw(st.sampled_from([1, 2, 3]))
    inputs, outputs = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))
    kernel = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    stride = (draw(st.integers(1, 3)), draw(st.integers(1, 2)))
    dilation = (draw(st.integers(1, 2)), draw(st.integers(1, 3)))
    mode = draw(st.sampled_from(modes))
    padding = (
        draw(st.sampled_from(["same", "valid"]) if stride == (1, 1) else st.nothing()) if draw(st.booleans()) and stride == (1, 1) else None
    )
    padding = padding or (draw(st.integers(0, 2)), draw(st.integers(0, 2)))
    torch.manual_seed(draw(st.integers(0, 1000)))
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, padding_mode=mode).double()
    x = torch.randn(3, inputs, draw(st.integers(7, 9)), draw(st.integers(7, 9)), dtype=torch.float64)
    return conv, x, torch.randn_like(conv(x))


def weight_gradients(module: nn.Module, x: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """dJ_b/dw of every image by autograd, one image at a time."""
    return torch.stack([torch.autograd.grad((module(x[b : b + 1]) * g[b : b + 1]).sum(), module.weight)[0] for b in range(len(x))])


@EVEN
@settings(max_examples=60, deadline=None)
@given(layers(modes=("zeros", "circular", "reflect", "replicate")))
def test_gate_identity(case):
    conv, x, g = case
    products = (conv.weight.detach() * weight_gradients(conv, x, g)).sum((3, 4))
    size, signed = gate_scores(x, g, LayerKernels.of(conv))
    assert torch.allclose(size, products.abs().sum(0), rtol=1e-9, atol=1e-12)
    assert torch.allclose(signed, products.sum(0), rtol=1e-9, atol=1e-10)


@EVEN
@settings(max_examples=25, deadline=None)
@given(layers())
def test_rules_are_their_pencil_twins(case):
    conv, x, g = case
    layer = LayerKernels.of(conv)
    maps = np.concatenate([explicit_maps(conv, x[b : b + 1]) for b in range(len(x))])
    size, signed = gate_scores(x, g, layer)
    np.testing.assert_allclose(size, pencil.gate(maps, g.numpy()), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(signed, pencil.signed_gate(maps, g.numpy()), rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(actgrad(x, g, layer), pencil.actgrad(maps, g.numpy()), rtol=1e-9, atol=1e-12)
    slopes = conv.weight.detach() * weight_gradients(conv, x, g)
    np.testing.assert_allclose(snip(x, g, layer), slopes.abs().mean((3, 4)).sum(0), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(snip(x, g, layer, per_batch=True), slopes.sum(0).abs().mean((2, 3)), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(magnitude(layer), pencil.magnitude(conv.weight.detach().numpy()), rtol=1e-12)


def explicit_maps(conv: nn.Conv2d, x: torch.Tensor) -> np.ndarray:
    """Contribution maps of one image by loops; 'same' padding is put around the image first."""
    padding = conv.padding
    if padding == "same":
        reach = [step * (size - 1) for step, size in zip(conv.dilation, conv.kernel_size, strict=True)]
        x = nn.functional.pad(x, (reach[1] // 2, reach[1] - reach[1] // 2, reach[0] // 2, reach[0] - reach[0] // 2))
    padding = (0, 0) if isinstance(padding, str) else padding
    return pencil.contribution_maps(x.numpy(), conv.weight.detach().numpy(), conv.stride, conv.dilation, padding, conv.groups)


def test_maps_sum_to_the_output():
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, 2, 1, groups=2).double()
    x = torch.randn(2, 4, 7, 7, dtype=torch.float64)
    maps = explicit_maps(conv, x).sum(2) + conv.bias.detach().numpy()[:, None, None]
    np.testing.assert_allclose(maps, conv(x).detach(), rtol=1e-10)


@pytest.mark.parametrize("shape", [(5, 6), (5, 4, 6), (5, 1, 6)])
def test_a_linear_layer_is_a_convolution_of_one_tap(shape):
    torch.manual_seed(0)
    linear = nn.Linear(6, 3).double()
    x = torch.randn(*shape, dtype=torch.float64)
    g = torch.randn_like(linear(x))
    conv = nn.Conv2d(6, 3, 1).double()
    conv.weight.data = linear.weight.data[:, :, None, None]
    maps, slopes = (part.reshape(5, -1, part.shape[-1]).transpose(1, 2)[..., None] for part in (x, g))
    for rule in (gate_scores, actgrad, snip):
        flat, folded = rule(x, g, LayerKernels.of(linear)), rule(maps, slopes, LayerKernels.of(conv))
        for a, b in zip(flat, folded, strict=True) if isinstance(flat, tuple) else [(flat, folded)]:
            assert torch.allclose(a, b, rtol=1e-10)
    products = linear.weight.detach() * weight_gradients(linear, x, g)
    assert torch.allclose(gate_scores(x, g, LayerKernels.of(linear))[0], products.abs().sum(0), rtol=1e-10)


@pytest.mark.parametrize("rule", [gate_scores, actgrad, snip])
def test_small_blocks_give_the_same(rule, monkeypatch):
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, 1, 1, groups=2).double()
    x, g = torch.randn(5, 4, 7, 7, dtype=torch.float64), torch.randn(5, 6, 7, 7, dtype=torch.float64)
    whole = rule(x, g, LayerKernels.of(conv))
    monkeypatch.setattr("channelscope.network.patches.BLOCK_NUMBERS", 2000)
    monkeypatch.setattr(kernel_scores, "CHUNK_NUMBERS", 200)
    parts = rule(x, g, LayerKernels.of(conv))
    for a, b in zip(whole, parts, strict=True) if isinstance(whole, tuple) else [(whole, parts)]:
        assert torch.allclose(a, b, rtol=1e-12)


def test_sums_hide_what_cancels():
    """Two positions that pull in opposite directions: nothing for the gate, something for ActGrad."""
    conv = nn.Conv2d(1, 1, 1, bias=False)
    conv.weight.data.fill_(2.0)
    x, g = torch.tensor([[[[1.0, 1.0]]]]), torch.tensor([[[[1.0, -1.0]]]])
    layer = LayerKernels.of(conv)
    assert gate_scores(x, g, layer)[0].item() == 0
    assert snip(x, g, layer).item() == 0
    assert actgrad(x, g, layer).item() == 2
    two = torch.cat([x, x]), torch.cat([g.abs(), -g.abs()])
    assert gate_scores(*two, layer)[0].item() == 8
    assert gate_scores(*two, layer)[1].item() == 0
    assert snip(*two, layer).item() == 8
    assert snip(*two, layer, per_batch=True).item() == 0
