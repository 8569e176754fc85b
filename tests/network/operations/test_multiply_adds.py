"""Multiply-adds by entry agree with torch's flop counter, in total and step by step."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from networks import built
from removals import graph_of


def flops(model, *image):
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # the fused kernels are not counted
        model.requires_grad_(True)(*image)
    return counter.get_total_flops()


def agree(model, *shape):
    graph = graph_of(model, *shape)
    assert 2 * sum(graph.macs.values()) == flops(model, torch.zeros(1, *shape, dtype=torch.float64))
    return graph


class Every(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), nn.ConvTranspose2d(6, 4, 2, 2, groups=2)
        self.attention, self.lstm, self.c = (
            nn.MultiheadAttention(4, 2, batch_first=True),
            nn.LSTM(4, 3, batch_first=True),
            nn.Conv1d(3, 5, 3),
        )
        self.w = nn.Parameter(torch.randn(5, 7))

    def forward(self, x):
        x = self.b(self.a(x)).flatten(2).transpose(1, 2)
        x = x + F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None])[:, 0]
        x = x + torch.einsum("bij,bjk->bik", x @ x.transpose(1, 2), x)
        x = self.lstm(self.attention(x, x, x, need_weights=False)[0])[0]
        x = self.c(x.transpose(1, 2)).mean(2)
        return torch.addmm(x.sum(), x, self.w)


def test_every_entry():
    graph = agree(Every(), 4, 6, 6)
    assert graph.macs["a"] == 6 * 2 * 9 * 9
    assert graph.macs["b"] == 6 * 9 * 4 * 2
    assert graph.macs["scaled_dot_product_attention"] == 2 * 36 * 36 * 4
    assert graph.macs["attention_in_proj"] + graph.macs["attention_out_proj"] == 4 * 36 * 16
    assert graph.macs["matmul_1"] + graph.macs["matmul_2"] == 2 * 36 * 36 * 4
    assert graph.macs["c"] == 5 * 34 * 9
    assert "lstm" in graph.opaque


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2", "convnext_tiny", "densenet121", "regnety_002"])
def test_networks(name):
    model, shape = built(name)
    graph = agree(model, *shape)
    assert sum(layer.taps * layer.positions * len(layer.inputs) * len(layer.outputs) // layer.groups for layer in graph.layers) == sum(
        graph.macs.values()
    )


def test_a_step_without_an_entry_is_counted_as_executed_and_named():
    class Solved(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.b(torch.linalg.multi_dot([self.a(x), x.T, x]))

    graph = agree(Solved(), 4)
    assert list(graph.opaque) == ["linalg_multi_dot()"]


def test_a_method_without_an_entry_is_counted_as_executed_and_named():
    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.w, self.b = nn.Linear(4, 4), nn.Parameter(torch.randn(6, 4)), nn.Linear(6, 2)

        def forward(self, x):
            return self.b(self.a(x).inner(self.w))

    graph = agree(Inner(), 4)
    assert list(graph.opaque) == ["inner()"]
    assert graph.macs["inner"] == 4 * 6
