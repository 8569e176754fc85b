"""Selection: exactly so many kernels, stable ties, the FORCE schedule to the number, and circuits that never fall apart."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import pencil_circuits as pencil
from channelscope.circuits.circuit import Circuit, remove_dead_ends
from channelscope.circuits.criteria import baseline_scores, score_kernels
from channelscope.circuits.feature import locate_feature
from channelscope.circuits.kernel_scores import KernelScores
from channelscope.circuits.selection import connected_top_k, geometric_schedule, kernel_count, score_order, top_k, top_share
from channelscope.errors import BudgetError
from pencil_circuits import LAST, NETWORKS, network, pictures

TARGETS = {name: locate_feature(network(name), f"{LAST[name]}:1", pictures(2)) for name in NETWORKS}


def test_the_published_schedule():
    assert geometric_schedule(74, 15) == [64, 54, 46, 40, 34, 29, 25, 21, 18, 15]


@given(st.integers(1, 500), st.integers(0, 5000))
def test_schedules_end_at_the_size_asked_for(keep, more):
    found = geometric_schedule(keep + more, keep)
    assert found == pencil.schedule(keep + more, keep)
    assert found[-1] == keep
    assert found == sorted(found, reverse=True)
    assert len(found) == 10


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(list(NETWORKS)), st.floats(0.001, 1), st.integers(0, 50))
def test_exactly_so_many_kernels(name, fraction, seed):
    target = TARGETS[name]
    found = top_k(baseline_scores(target, "random", seed), fraction)
    assert found.count == kernel_count(target, fraction) == max(1, round(fraction * target.relevant_count))
    assert found.total == target.relevant_count
    whole = top_k(baseline_scores(target, "random", seed), found.count)
    assert whole == found


def test_ties_go_to_the_first():
    target = TARGETS["chain"]
    even = KernelScores(target, "even", {layer: marks.double() for layer, marks in target.relevant.items()}, 1)
    found = top_k(even, 5)
    assert found["a"].flatten().nonzero().flatten().tolist() == [0, 1, 2, 3, 4]
    assert found.count == 5
    assert score_order(torch.tensor([1.0, 2, 2, 0, 2])).tolist() == [1, 2, 4, 0, 3]


def test_the_largest_are_kept():
    target = TARGETS["residual"]
    scores = baseline_scores(target, "random")
    found = top_k(scores, 20)
    kept = torch.cat([scores[layer][found[layer]] for layer in found])
    left = torch.cat([scores[layer][(~found)[layer]] for layer in found])
    assert kept.min() > left.max()


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(list(NETWORKS)), st.floats(0.05, 1))
def test_fewest_kernels_that_reach_a_share(name, share):
    scores = baseline_scores(TARGETS[name], "random")
    found = top_share(scores, share)
    held = sum(float(scores[layer][found[layer]].sum()) for layer in found)
    assert held >= share * float(scores.flatten().sum()) * (1 - 1e-12)
    if found.count > 1:
        fewer = top_k(scores, found.count - 1)
        assert sum(float(scores[layer][fewer[layer]].sum()) for layer in fewer) < share * float(scores.flatten().sum())


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(list(NETWORKS)), st.floats(0, 1), st.integers(0, 20))
def test_grown_circuits_have_no_dead_ends(name, fraction, seed):
    target = TARGETS[name]
    size = target.shortest_path + round(fraction * (target.relevant_count - target.shortest_path))
    found = connected_top_k(baseline_scores(target, "random", seed), size)
    assert remove_dead_ends(found, target, "full") == found
    assert target.shortest_path <= found.count <= size
    assert size - found.count <= len(list(target.channel_graph.calls))
    if name == "chain":
        assert found.count == size or size - found.count < 3
    if fraction == 1:
        assert found.count == target.relevant_count


def test_growing_prefers_the_better_kernels():
    """Without bottlenecks, growing and taking the largest agree on almost everything."""
    target = TARGETS["residual"]
    scores = score_kernels(target, pictures(4))
    found, best = connected_top_k(scores, 0.6), top_k(scores, 0.6)
    assert found.iou(best)[""] > 0.8
    assert found.count == best.count


def test_layer_collapse_is_prevented():
    """Magnitudes that leave a whole layer out: `top` has no path left, `grown` has."""
    target = TARGETS["chain"]
    values = {layer: marks.double() * (0.001 if layer == "b" else 1) for layer, marks in target.relevant.items()}
    scores = KernelScores(target, "skewed", values, 1)
    assert not top_k(scores, 10)["b"].any()
    found = connected_top_k(scores, 10)
    assert found["b"].any()
    assert found.count == 10
    assert remove_dead_ends(top_k(scores, 10), target, "full").count == 0


def test_two_separate_paths_cannot_be_split():
    """Only 4 or 8 kernels form live circuits; a budget of 6 gives 4."""

    class Lanes(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(2, 2, 1, groups=2) for _ in range(3))
            self.d = nn.Conv2d(2, 1, 1)

        def forward(self, x):
            return self.d(torch.relu(self.c(torch.relu(self.b(torch.relu(self.a(x)))))))

    target = locate_feature(Lanes(), "d:0", pictures(1))
    assert target.shortest_path == 4
    assert connected_top_k(baseline_scores(target, "random"), 6).count == 4
    assert connected_top_k(baseline_scores(target, "random"), 8).count == 8


def test_too_small_a_size_says_the_smallest():
    target = TARGETS["residual"]
    with pytest.raises(BudgetError, match="no path from the images has 2 kernels; the smallest circuit has 3"):
        connected_top_k(baseline_scores(target, "random"), 2)
    assert connected_top_k(baseline_scores(target, "random"), 3).count == 3


def test_whole_numbers_of_any_kind_are_numbers_of_kernels():
    target = TARGETS["chain"]
    assert kernel_count(target, np.int64(3)) == 3
    assert type(kernel_count(target, np.int64(3))) is int
    assert (kernel_count(target, 1), kernel_count(target, 1.0)) == (1, target.relevant_count)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(list(NETWORKS)), st.floats(0, 1), st.integers(0, 20))
def test_kernels_scored_inside_a_circuit_are_selected_inside_it(name, fraction, seed):
    """Whatever the scores: all but half of the circuit's kernels score zero, as all kernels outside it do."""
    target = TARGETS[name]
    room = connected_top_k(
        baseline_scores(target, "random", seed), target.shortest_path + round(0.4 * (target.relevant_count - target.shortest_path))
    )
    plain = baseline_scores(target, "random", seed + 1)
    values = {layer: torch.where(room[layer] & (plain[layer] > 0.5), plain[layer], 0.0) for layer in room}
    scores = replace(plain, values=values, inside=room)
    smallest = int(target.channel_graph.distances(room.masks)[target.feature_nodes].min())
    size = smallest + round(fraction * (room.count - smallest))
    for found in (top_k(scores, size), connected_top_k(scores, size)):
        assert found & room == found
    assert top_k(scores, size).count == size
    assert smallest <= connected_top_k(scores, size).count <= size
    assert remove_dead_ends(connected_top_k(scores, size), target, "full") == connected_top_k(scores, size)
    if room.count < target.relevant_count:
        with pytest.raises(BudgetError, match=f"scored inside has {room.count}"):
            top_k(scores, room.count + 1)


def test_growing_where_no_path_lies_inside():
    target = TARGETS["chain"]
    room = Circuit.of_feature(target, {layer: marks & (layer != "b") for layer, marks in target.relevant.items()})
    with pytest.raises(BudgetError, match="no path from the images lies inside the circuit"):
        connected_top_k(replace(baseline_scores(target, "random"), inside=room), 5)


@pytest.mark.parametrize("keep", [0, -1, 0.0, 1.5, 10**6, True])
def test_sizes_that_make_no_sense(keep):
    with pytest.raises(BudgetError, match="keep: expected 1 to"):
        top_k(baseline_scores(TARGETS["chain"], "random"), keep)


def test_shares_that_make_no_sense():
    target = TARGETS["chain"]
    with pytest.raises(BudgetError, match="share"):
        top_share(baseline_scores(target, "random"), 0.0)
    nothing = KernelScores(target, "zero", {layer: torch.zeros(marks.shape) for layer, marks in target.relevant.items()}, 1)
    with pytest.raises(BudgetError, match="positive total"):
        top_share(nothing, 0.5)
