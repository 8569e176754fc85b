"""A choice leads from images to a circuit, in one piece or in groups of images; impossible choices are refused."""

import numpy as np
import pytest
import torch

from channelscope.circuits.circuit import Circuit, remove_dead_ends
from channelscope.circuits.criteria import CRITERIA, CircuitOptions, parse_keep, score_kernels
from channelscope.circuits.feature import locate_feature
from channelscope.circuits.selection import connected_top_k, top_k
from channelscope.errors import BudgetError, InputError
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
    with pytest.raises(InputError, match="expected one of gate, actgrad"):
        CircuitOptions("gates")
    with pytest.raises(InputError, match="sum or mean"):
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
