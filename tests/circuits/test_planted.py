"""Planted truth: where the circuit is known, every criterion that looks at the images finds exactly it."""

import pytest
import torch

import pencil_circuits as pencil
from channelscope.circuits.circuit import Circuit, remove_dead_ends
from channelscope.circuits.criteria import score_kernels
from channelscope.circuits.feature import locate_feature
from channelscope.circuits.kernel_scores import KernelScores
from channelscope.circuits.selection import connected_top_k, top_k, top_share
from channelscope.network.edits import silence

MODEL = pencil.Planted().eval()
IMAGES = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TARGET = locate_feature(MODEL, "c:0", IMAGES)
TRUTH = Circuit.of_feature(TARGET, MODEL.truth)
SEEING = ("gate", "actgrad", "snip", "force", "iterated_gate", "iterated_actgrad", "learned")


@pytest.mark.parametrize("criterion", SEEING)
def test_the_planted_circuit_is_found_exactly(criterion):
    assert TRUTH.count == 6
    found = score_kernels(TARGET, IMAGES, criterion, keep=6)
    assert top_k(found, 6) == TRUTH
    assert connected_top_k(found, 6) == TRUTH
    assert remove_dead_ends(top_k(found, 6), TARGET, "full") == TRUTH


@pytest.mark.parametrize("criterion", ["gate", "actgrad", "snip"])
def test_nothing_else_has_any_saliency(criterion):
    found = score_kernels(TARGET, IMAGES, criterion)
    assert top_share(found, 1.0) == TRUTH
    assert int((found.flatten() > 0).sum()) == 6


def test_bait_is_taken_without_looking():
    assert (top_k(score_kernels(TARGET, IMAGES, "magnitude"), 6) & TRUTH).count == 0
    assert top_k(score_kernels(TARGET, IMAGES, "random", seed=1), 6) != TRUTH


@torch.no_grad()
def test_the_circuit_is_the_feature_and_its_complement_is_nothing():
    with silence(MODEL, ~TRUTH):
        kept = TARGET.feature_map(IMAGES)
    with silence(MODEL, TRUTH):
        rest = TARGET.feature_map(IMAGES)
    assert torch.equal(kept, TARGET.feature_map(IMAGES))
    assert not rest.any()


def test_signs_tell_excitation_from_inhibition():
    signed = score_kernels(TARGET, IMAGES, "gate").signed_values
    for layer, row, column in (("c", 0, 0), ("b", 0, 0), ("a", 0, 0)):
        assert signed[layer][row, column] > 0
    for layer, row, column in (("c", 0, 1), ("b", 1, 1), ("a", 1, 1)):
        assert signed[layer][row, column] < 0


def test_one_path_at_a_time_in_the_polysemantic_unit():
    model = pencil.Polysemantic().eval()
    images = pencil.causes()
    target = locate_feature(model, "c:0@max", images)
    for cause, chosen in enumerate((images[:6], images[6:])):
        found = score_kernels(target, chosen)
        assert top_k(found, 3) == Circuit.of_feature(target, model.truth(cause))
    both = score_kernels(target, images)
    assert isinstance(both, KernelScores)
    assert top_k(both, 6) == Circuit.of_feature(target, {n: model.truth(0)[n] | model.truth(1)[n] for n in target.layers})
