"""Cost agrees with torch's flop counter, by layer and in total, and the ledger with a rebuilt network."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from channelscope.network.cost import MacCounter, cost, fused_kernels, macs
from channelscope.network.removal.groups import groups
from channelscope.pruning.cut import shrink
from networks import built


def flops(model: nn.Module, *image: torch.Tensor) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*image)
    return counter.get_total_flops()


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2", "convnext_tiny", "densenet121"])
def test_one_mac_is_two_flops(name):
    model, shape = built(name)
    image = torch.zeros(1, *shape)
    price = cost(model, torch.zeros(4, *shape))
    assert 2 * price.total_macs == flops(model, image)
    assert price.other_macs == 0
    assert price.total_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert MacCounter(groups(model, image)).total == price.total_macs


def test_a_function_on_a_layers_own_parameters_is_the_layers_cost():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.last(F.linear(x, self.first.weight, self.first.bias).relu() @ torch.ones(6, 6))

    price = cost(Net().eval(), torch.zeros(3, 4))
    assert price.macs == {"first": 24, "last": 12}
    assert (price.other_macs, price.elsewhere) == (36, {"": 36})


def test_a_layer_by_hand():
    model = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(24, 5)).eval()
    price = cost(model, torch.zeros(1, 4, 4, 4))
    assert price.macs == {"0": 6 * 2 * 9 * 4, "3": 24 * 5}
    assert price.parameters == {"0": 6 * 2 * 9 + 6, "1": 12, "3": 125}


def test_calls_add_up_and_products_of_activations_are_counted_apart():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.shared, self.up = nn.Linear(4, 4), nn.ConvTranspose2d(3, 4, 2, 2)

        def forward(self, x):
            x = self.up(x).flatten(2).transpose(1, 2)
            x = self.shared(x)
            return (self.shared(x) @ x.transpose(1, 2)).mean(2)

    price = cost(Attention(), torch.zeros(2, 3, 3, 3))
    assert price.macs == {"up": 3 * 9 * 4 * 4, "shared": 2 * 36 * 16}
    assert price.other_macs == 36 * 4 * 36
    assert 2 * price.total_macs == flops(Attention().eval(), torch.zeros(1, 3, 3, 3))


def test_a_failing_network_keeps_no_hooks():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(7, 7))
    with pytest.raises(RuntimeError):
        cost(model, torch.zeros(1, 3, 8, 8))
    assert not model[0]._forward_hooks


class Everything(nn.Module):
    """One module of a kind whose products one fused kernel carries out."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.lstm, self.gru = nn.LSTM(8, 16, batch_first=True, bidirectional=True), nn.GRU(8, 16, batch_first=True)
        self.bilinear, self.matrix = nn.Bilinear(8, 8, 3), nn.Parameter(torch.randn(5, 8))

    def forward(self, x):
        heads = x.view(len(x), 6, 2, 4).transpose(1, 2)
        return {
            "attention": lambda: self.attention(x, x, x, need_weights=False)[0],
            "encoder": lambda: self.encoder(x),
            "fused attention": lambda: F.scaled_dot_product_attention(heads, heads, heads),
            "lstm": lambda: self.lstm(x)[0],
            "gru": lambda: self.gru(x)[0],
            "bilinear": lambda: self.bilinear(x, x),
            "matrix and vector": lambda: self.matrix @ x[0, 0],
            "by keyword": lambda: self.encoder.linear1(input=x),
        }[self.kind]()


BY_HAND = {
    "attention": 6 * 8 * 24 + 2 * 6 * 6 * 8 + 6 * 8 * 8,
    "encoder": 6 * 8 * 24 + 2 * 6 * 6 * 8 + 6 * 8 * 8 + 2 * 6 * 8 * 16,
    "fused attention": 2 * 2 * 6 * 6 * 4,
    "lstm": 2 * 6 * (8 * 64 + 16 * 64),
    "gru": 6 * (8 * 48 + 16 * 48),
    "bilinear": 6 * 3 * 8 * 8,
    "matrix and vector": 5 * 8,
    "by keyword": 6 * 8 * 16,
}


@pytest.mark.parametrize("kind", BY_HAND)
def test_what_one_fused_kernel_does_counts(kind):
    assert cost(Everything(kind), torch.randn(3, 6, 8)).total_macs == BY_HAND[kind]
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("kind", ["attention", "encoder"])
def test_the_fused_kernels_of_whole_layers_are_counted(kind):
    model = Everything(kind).eval().requires_grad_(False)
    with FlopCounterMode(display=False, custom_mapping=fused_kernels()) as counter:
        model(torch.randn(3, 6, 8))
    assert torch.backends.mha.get_fastpath_enabled()
    assert counter.get_total_flops() == 2 * 3 * BY_HAND[kind]


def test_what_no_layer_does_is_named_by_the_module_that_does_it():
    price = cost(Everything("encoder"), torch.randn(1, 6, 8))
    projections = {"encoder.self_attn.in_proj": 6 * 8 * 24, "encoder.self_attn.out_proj": 6 * 8 * 8}
    assert price.macs == projections | {"encoder.linear1": 768, "encoder.linear2": 768}
    assert price.elsewhere == {"encoder.self_attn": 2 * 6 * 6 * 8}
    assert price.other_macs == 2 * 6 * 6 * 8


MOBILE, SHAPE = built("mobilenet_v2")
FOUND = groups(MOBILE, torch.zeros(1, *SHAPE))


@settings(max_examples=3, deadline=None)
@given(st.floats(0.05, 0.95), st.integers(0, 1000))
def test_the_ledger_knows_what_a_rebuilt_network_costs(share, seed):
    kept = np.random.default_rng(seed).random(len(FOUND)) < share
    for family in {group.sites for group in FOUND.members}:
        kept[next(index for index, group in enumerate(FOUND.members) if group.sites == family)] = True
    subset = FOUND.to_subset(kept)
    small = shrink(FOUND, subset)
    assert macs(FOUND, subset) == cost(small, FOUND.example).total_macs
    assert macs(FOUND, subset, other=10) == macs(FOUND, subset) + 10
    assert macs(FOUND, subset, other=0) == macs(FOUND, subset)


def test_what_is_removed_and_put_back_costs_nothing():
    ledger = MacCounter(FOUND)
    full = ledger.total
    saved = [ledger.remove(group) for group in range(0, 100, 7)]
    assert ledger.total == full - sum(saved)
    assert all(amount > 0 for amount in saved)
    added = [ledger.add(group) for group in reversed(range(0, 100, 7))]
    assert added == saved[::-1]
    assert ledger.total == full


def test_a_parameter_given_to_a_module_is_counted_and_still_wants_its_gradient():
    class Token(nn.Module):
        def __init__(self):
            super().__init__()
            self.token, self.read = nn.Parameter(torch.zeros(1, 1, 4)), nn.Linear(4, 2)

        def forward(self, x):
            return self.read(self.token.expand(len(x), -1, -1)) + x[:, :, 0, :2]

    model = Token()
    assert cost(model, torch.zeros(1, 1, 3, 3)).total_macs == 8
    assert all(parameter.requires_grad for parameter in model.parameters())


class OneSide(nn.Module):
    """A product of channels that stay, behind a LayerNorm, with positions times channels of which some go."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 5, 1), nn.LayerNorm(5)
        self.states, self.out = nn.Conv2d(3, 7, 1), nn.Linear(7, 2)

    def forward(self, x):
        rows = self.norm(self.stem(x).flatten(2).transpose(1, 2)).transpose(1, 2)
        return self.out(rows @ self.states(x).flatten(2).transpose(1, 2)).mean(1)


def test_a_product_costs_less_where_only_one_side_loses_channels():
    model, image = OneSide().eval(), torch.zeros(1, 3, 3, 3)
    found = groups(model, image)
    assert {site for group in found.members for site in group.sites} == {"states"}
    kept = found.to_subset(np.arange(7) > 2)
    assert cost(model, image).total_macs == 9 * 3 * 5 + 9 * 3 * 7 + 5 * 9 * 7 + 5 * 7 * 2
    assert macs(found, kept) == cost(shrink(found, kept), image).total_macs == 9 * 3 * 5 + 9 * 3 * 4 + 5 * 9 * 4 + 5 * 4 * 2
