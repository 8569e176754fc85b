"""Criteria: from images to a circuit, impossible choices refused; learned gates against their definition and the best small circuit."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

import pencil_circuits as pencil
from channelscope.circuits.circuit import Circuit, remove_dead_ends
from channelscope.circuits.criteria import (
    CRITERIA,
    CircuitOptions,
    GateTraining,
    baseline_scores,
    hard_concrete,
    learned_gates,
    open_probability,
    parse_keep,
    score_kernels,
)
from channelscope.circuits.feature import locate_feature
from channelscope.circuits.kernel_scores import GradientOptions, with_positions
from channelscope.circuits.selection import connected_top_k, top_k
from channelscope.errors import BudgetError, InputError
from channelscope.zoo import toys
from pencil_circuits import LAST, Planted, network, pictures

IMAGES = pictures(20)
TARGET = locate_feature(network("residual"), f"{LAST['residual']}:1", IMAGES)


@pytest.mark.parametrize(("text", "value"), [("0.1", 0.1), (".05", 0.05), ("1.", 1.0), ("1.0", 1.0), ("210", 210), ("1", 1), (" 7 ", 7)])
def test_sizes_are_fractions_or_counts(text, value):
    assert parse_keep(text) == value
    assert type(parse_keep(text)) is type(value)


@pytest.mark.parametrize(("given", "text"), [(0.1, "0.1"), (1.0, "1."), (1e-5, "0.00001"), (3, "3"), (np.int64(210), "210")])
def test_numbers_are_taken_in_python(given, text):
    assert CircuitOptions(keep=given).keep == text
    assert parse_keep(CircuitOptions(keep=given).keep) == given


def test_without_a_size_a_tenth_is_taken_or_the_shortest_path():
    assert CircuitOptions().keep == "auto"
    assert CircuitOptions().kernels(TARGET) == CircuitOptions(keep=0.1).kernels(TARGET)
    deep = locate_feature(Planted().eval(), "c:0", torch.zeros(2, 3, 8, 8))
    assert CircuitOptions().kernels(deep) == max(deep.shortest_path, round(0.1 * deep.relevant_count))


@pytest.mark.parametrize("given", [-0.5, float("nan"), None])
def test_numbers_that_are_no_size_are_refused(given):
    with pytest.raises(BudgetError, match="keep: expected a fraction"):
        CircuitOptions(keep=given)


@pytest.mark.parametrize("text", ["", "half", "10%", "-3", "1e-2", "0,1", "nan"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(BudgetError, match=r"a fraction such as 0\.1 or a number"):
        CircuitOptions(keep=text)


@pytest.mark.parametrize("criterion", [name for name in CRITERIA if name not in ("snip_batch", "learned")])
def test_the_parts_of_a_saliency_add_up(criterion):
    choice = CircuitOptions(criterion, keep="0.3")
    parts = choice.shard_scores(TARGET, IMAGES)
    whole = score_kernels(TARGET, IMAGES, criterion, keep=0.3)
    assert len(parts) == (1 if CRITERIA[criterion].needs_size or criterion in ("magnitude", "random") else 10)  # 20 images in pairs
    together = choice.total_scores(parts)
    assert together.images == whole.images
    for layer in TARGET.layers:
        assert torch.allclose(together[layer], whole[layer], rtol=1e-5, atol=1e-9)
    assert choice.circuit(together) == remove_dead_ends(top_k(whole, 0.3), TARGET)


def test_at_most_sixteen_groups_of_images_are_scored():
    counts = {images: [part.images for part in CircuitOptions().shard_scores(TARGET, IMAGES[:1].repeat(images, 1, 1, 1))]
              for images in (16, 17, 33)}  # fmt: skip
    assert counts == {16: [1] * 16, 17: [2] * 8 + [1], 33: [3] * 11}


def test_every_option_reaches_the_circuit():
    parts = CircuitOptions().shard_scores(TARGET, IMAGES)
    plain = CircuitOptions(keep="0.3").total_scores(parts)
    assert CircuitOptions(keep="0.3", live=True).circuit(plain) == remove_dead_ends(connected_top_k(plain, 0.3), TARGET)
    assert CircuitOptions(keep="0.3", dead_ends="none").circuit(plain) == top_k(plain, 0.3)
    assert CircuitOptions(keep="0.3", dead_ends="full").circuit(plain) == remove_dead_ends(top_k(plain, 0.3), TARGET, "full")
    evened = CircuitOptions(keep="0.3", layer_norm="l2").total_scores(parts)
    for layer in TARGET.layers:
        assert float(evened[layer].norm()) == pytest.approx(1)
    averaged = CircuitOptions(reduce="mean").total_scores(CircuitOptions(reduce="mean").shard_scores(TARGET, IMAGES))
    assert torch.allclose(averaged.flatten() * 4, plain.flatten(), rtol=1e-4)  # four positions
    assert CircuitOptions(path="gates").shard_scores(TARGET, IMAGES)[0].flatten().ne(parts[0].flatten()).any()


def test_another_size_on_demand():
    choice = CircuitOptions(keep="0.3")
    found = choice.total_scores(choice.shard_scores(TARGET, IMAGES))
    assert choice.circuit(found, 0.6) == remove_dead_ends(top_k(found, 0.6), TARGET)
    assert choice.circuit(found, 40) == remove_dead_ends(top_k(found, 40), TARGET)


def test_seeds_of_the_random_control():
    choice = CircuitOptions("random", keep="0.5")
    one, again, other = (choice.circuit(choice.total_scores(choice.shard_scores(TARGET, IMAGES, seed))) for seed in (0, 0, 1))
    assert one == again
    assert one != other


def test_a_size_below_the_shortest_path_says_the_smallest():
    assert TARGET.shortest_path == 3  # stem, shortcut, last
    with pytest.raises(BudgetError, match=r"keep=2 is 2 of .* the smallest circuit has 3 kernels"):
        CircuitOptions(keep="2").kernels(TARGET)
    with pytest.raises(BudgetError, match="smallest circuit has 3 kernels"):
        CircuitOptions(keep="0.001").shard_scores(TARGET, IMAGES)
    assert CircuitOptions(keep="3", live=True).kernels(TARGET) == 3
    with pytest.raises(BudgetError, match="expected 1 to"):
        CircuitOptions(keep="100000").kernels(TARGET)


def test_words_that_mean_nothing_are_refused():
    with pytest.raises(InputError, match="no criterion is called gates; near matches: gate; there are: gate, actgrad"):
        CircuitOptions("gates")
    with pytest.raises(InputError, match="there are: sum, mean"):
        CircuitOptions(reduce="max").shard_scores(TARGET, IMAGES)


def test_what_is_planted_is_stable_and_what_is_random_is_not():
    model = Planted().eval()
    images = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    target = locate_feature(model, "c:0", images)
    choice = CircuitOptions(keep="6")
    parts = choice.shard_scores(target, images)
    assert len(parts) == 16
    circuit = choice.circuit(choice.total_scores(parts))
    assert circuit == Circuit.of_feature(target, model.truth)
    assert choice.stability(parts, circuit).tolist() == [1.0] * 50
    assert len(choice.stability(parts[:1], circuit)) == 0
    noise = CircuitOptions(keep="0.2")
    own = CircuitOptions("random").shard_scores(TARGET, IMAGES, 0) + CircuitOptions("random").shard_scores(TARGET, IMAGES, 1)
    assert float(noise.stability(own, noise.circuit(noise.total_scores(own))).mean()) < 0.9


def test_all_images_at_once_are_the_sum_of_the_parts():
    for criterion in ("gate", "actgrad", "random", "iterated_gate"):
        choice = CircuitOptions(criterion, layer_norm="l1")
        whole, parts = choice.scores(TARGET, IMAGES, 3), choice.total_scores(choice.shard_scores(TARGET, IMAGES, 3))
        assert whole.images == parts.images
        assert torch.allclose(whole.flatten(), parts.flatten(), rtol=1e-6)


def test_snip_by_batch_sums_the_batches_it_is_given():
    choice = CircuitOptions("snip_batch")
    assert len(choice.shard_scores(TARGET, [IMAGES[:12], IMAGES[12:]])) == 2
    one, two = choice.scores(TARGET, [IMAGES]), choice.scores(TARGET, [IMAGES[:12], IMAGES[12:]])
    assert bool((two.flatten() >= one.flatten() * (1 - 1e-6)).all())
    assert not torch.allclose(one.flatten(), two.flatten())


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


def test_a_strided_convolution_of_one_pixel_and_few_channels_is_learned_with_channels_first():
    """With channels last, oneDNN on AVX2 writes its gradient beyond its memory: the process ends, hangs or goes on with other numbers."""
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 1, stride=2), nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()
    narrow = locate_feature(model, "4:0", pictures(1))
    assert narrow.memory_format == torch.contiguous_format
    model[2] = nn.Conv2d(4, 8, 1)
    assert locate_feature(model, "4:0", pictures(1)).memory_format == torch.channels_last
