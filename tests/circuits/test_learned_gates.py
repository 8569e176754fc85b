"""Learned gates: the relaxation against its definition, and the best small circuit where all can be tried."""

import itertools
import math

import pytest
import torch
from torch import nn

import pencil_circuits as pencil
from channelscope.circuits.circuit import Circuit
from channelscope.circuits.criteria import baseline_scores, score_kernels
from channelscope.circuits.feature import locate_feature
from channelscope.circuits.kernel_scores import GradientOptions, with_positions
from channelscope.circuits.learned_gates import GateTraining, hard_concrete, learned_gates, open_probability
from channelscope.circuits.selection import top_k
from channelscope.zoo import toys
from pencil_circuits import network, pictures


@pytest.mark.parametrize("odds", [-3.0, -0.5, 0.0, 0.7, 4.0])
def test_hard_concrete(odds):
    for noise in (0.01, 0.2, 0.5, 0.9, 0.999):
        assert float(hard_concrete(torch.tensor(odds), torch.tensor(noise))) == pytest.approx(pencil.opening(odds, noise), abs=1e-5)
    assert float(open_probability(torch.tensor(odds))) == pytest.approx(pencil.openness(odds), abs=0.005)


def test_gates_are_exactly_shut_or_open():
    noise = torch.rand(2000, generator=torch.Generator().manual_seed(0))
    values = hard_concrete(torch.zeros(2000), noise)
    assert (values == 0).any()
    assert (values == 1).any()
    assert values.min() >= 0
    assert values.max() <= 1


def error(target, images, marks) -> float:
    y = target.feature_map(images)
    with target.ablated({layer: target.relevant[layer] & ~marks[layer] for layer in target.relevant}):
        guess = target.feature_map(images)
    return pencil.fidelity(y.flatten().numpy(), guess.flatten().numpy())[1]


class Sum(nn.Module):
    """One layer of eight channels that almost cancel in pairs; what matters is the pair, not the single kernel."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(8, 1, 1, bias=False)
        self.a.weight.data = torch.tensor([3.0, -3, 1.5, 1.2, 0.2, 0.2, 0.1, 0.1]).view(1, 8, 1, 1)

    def forward(self, x):
        return self.a(x)


def test_closed_gates_do_not_count_as_open():
    """Inside one kernel of eight, one gate can be open: there is nothing beyond the budget, and the error alone moves it."""
    images = torch.randn(6, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    target = locate_feature(Sum(), "a:0", images)
    room = Circuit.of_feature(target, {"a": torch.tensor([[False, False, True] + [False] * 5])})
    found = [
        score_kernels(
            target, images, "learned", keep=1, gradient=GradientOptions(inside=room), training=GateTraining(steps=20, penalty=penalty)
        )
        for penalty in (0.0, 100.0)
    ]
    assert float(found[0]["a"][0, 2]) > 0.9
    assert torch.equal(found[0]["a"], found[1]["a"])
    assert found[0].inside == room


@torch.no_grad()
def test_the_best_circuit_of_all():
    """Inputs 0 and 1 are nearly equal, so their large kernels cancel: the gate criterion keeps both, training drops them."""
    noise = torch.Generator().manual_seed(0)
    images = torch.randn(24, 8, 3, 3, generator=noise)
    images[:, 1] = images[:, 0] + 0.05 * images[:, 1]
    target = locate_feature(Sum(), "a:0", images)
    best = min(
        (error(target, images, {"a": torch.tensor([[i in chosen for i in range(8)]])}), chosen)
        for chosen in itertools.combinations(range(8), 2)
    )
    assert best[1] == (2, 3)
    gate = top_k(score_kernels(target, images), 2)
    assert gate["a"][0].tolist() == [True, True] + [False] * 6
    learned = top_k(score_kernels(target, images, "learned", keep=2, training=GateTraining(steps=300)), 2)
    assert tuple(learned["a"][0].nonzero().flatten().tolist()) == best[1]
    assert error(target, images, learned.masks) == pytest.approx(best[0])
    assert best[0] < 0.05 < 0.5 < error(target, images, gate.masks)


@torch.no_grad()
def test_training_improves_on_its_start():
    images = pictures(16)
    target = locate_feature(network("residual"), "last:0", images)
    learned = top_k(score_kernels(target, images, "learned", keep=0.15, training=GateTraining(steps=150)), 0.15)
    gate = top_k(score_kernels(target, images), 0.15)
    assert learned.count == gate.count
    assert error(target, images, learned.masks) < error(target, images, gate.masks)


def test_training_is_seeded():
    images = pictures(4)
    target = locate_feature(network("chain"), "c:0", images)
    one = score_kernels(target, images, "learned", keep=6, training=GateTraining(steps=5))
    assert torch.equal(one.flatten(), score_kernels(target, images, "learned", keep=6, training=GateTraining(steps=5)).flatten())
    assert not torch.equal(
        one.flatten(), score_kernels(target, images, "learned", keep=6, training=GateTraining(steps=5, seed=1)).flatten()
    )
    assert one.signed_values is not None


def test_gates_begin_at_the_kth_largest_score():
    """Weights 0, 0, 3, 0, 0: the first of one kernel begins at ln α = 0, those without a score at −4."""
    toy = toys.independent_channels()
    feature = locate_feature(toy.model, "conv:2", toy.batches[0][0])
    batches = with_positions(feature, [toy.batches[0][0]])
    found = learned_gates(feature, batches, 1, baseline_scores(feature, "magnitude"), GateTraining(steps=0))
    shift = 2 / 3 * math.log(11)
    closed, at_threshold = (1 / (1 + math.exp(-(log_alpha + shift))) for log_alpha in (-4, 0))
    assert found["conv"][2].tolist() == pytest.approx([closed, closed, at_threshold, closed, closed], abs=1e-6)
