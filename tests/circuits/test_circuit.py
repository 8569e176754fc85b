"""A circuit is a subset over the relevant kernels; dropping dead ends changes nothing, and drops all there is."""

import copy
import json
import pickle

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from channelscope.circuits.circuit import Circuit, remove_dead_ends, union
from channelscope.circuits.criteria import baseline_scores
from channelscope.circuits.feature import locate_feature
from channelscope.circuits.selection import top_k
from channelscope.errors import InputError, MismatchError
from channelscope.network.edits import silence
from channelscope.network.graph import trace
from channelscope.subset import Subset
from pencil_circuits import LAST, NETWORKS, network, pictures

IMAGES = pictures(3)
TARGETS = {name: locate_feature(network(name), f"{LAST[name]}:1", IMAGES) for name in NETWORKS}


def some(name: str, fraction: float, seed: int) -> Circuit:
    return top_k(baseline_scores(TARGETS[name], "random", seed), fraction)


@torch.no_grad()
def run(circuit: Circuit, target) -> torch.Tensor:
    with silence(target.model, ~circuit):
        return target.feature_map(IMAGES)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(list(NETWORKS)), st.floats(0.05, 0.95), st.integers(0, 30))
def test_boolean_algebra_stays_among_relevant_kernels(name, fraction, seed):
    a, b = some(name, fraction, seed), some(name, fraction, seed + 1)
    whole = Circuit.full(TARGETS[name])
    assert ~(a & b) == ~a | ~b
    assert ~~a == a
    assert (a | ~a) == whole
    assert whole.fraction == 1
    assert (a & ~a).count == 0
    assert a.count + (~a).count == a.total == TARGETS[name].relevant_count
    assert isinstance(a & b, Circuit)
    assert (a & b).feature == TARGETS[name].feature
    assert union([a, b, a]) == a | b
    assert Circuit.from_dict(json.loads(json.dumps(a.as_dict()))) == a
    assert Circuit.from_dict(json.loads(json.dumps(a.as_dict()))).total == a.total
    copied = copy.deepcopy(a)
    assert (copied, copied.total, copied.feature) == (a, a.total, a.feature)


def test_the_whole_circuit_is_the_network():
    for target in TARGETS.values():
        assert torch.equal(run(Circuit.full(target), target), target.feature_map(IMAGES))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(list(NETWORKS)), st.floats(0.02, 0.9), st.integers(0, 60))
def test_dropping_dead_ends_backward_leaves_outputs_bit_identical(name, fraction, seed):
    circuit, target = some(name, fraction, seed), TARGETS[name]
    trimmed = remove_dead_ends(circuit, target)
    assert torch.equal(run(circuit, target), run(trimmed, target))
    assert (trimmed & circuit) == trimmed
    assert remove_dead_ends(trimmed, target) == trimmed
    assert (remove_dead_ends(circuit, target, "full") & trimmed) == remove_dead_ends(circuit, target, "full")
    assert remove_dead_ends(circuit, target, "none") is circuit


@settings(max_examples=15, deadline=None)
@example("residual", 0.25, 7)
@given(st.sampled_from(["residual", "dense", "inception", "chain"]), st.floats(0.1, 0.5), st.integers(0, 60))
def test_dead_ends_against_brute_force(name, fraction, seed):
    """A kept kernel is a dead end exactly if no weights and no images make the feature notice that it is gone."""
    circuit, target = some(name, fraction, seed), TARGETS[name]
    trimmed = remove_dead_ends(circuit, target)
    noise = torch.Generator().manual_seed(seed)
    model = target.model
    before = {key: value.clone() for key, value in model.state_dict().items()}
    noticed = {layer: torch.zeros_like(marks) for layer, marks in circuit.masks.items()}
    try:
        for parameter in model.parameters():  # positive weights: nothing is cut by an activation, nothing cancels
            parameter.data = torch.rand(parameter.shape, generator=noise, dtype=torch.float64) + 0.5
        for name_of, buffer in model.named_buffers():
            if name_of.endswith("running_mean"):
                buffer.zero_()  # nor by a normalization in front of one
        model.double()
        images = torch.rand(1, 2, 8, 8, generator=noise, dtype=torch.float64) + 0.5
        with torch.no_grad():
            for layer, row, column in [(n, *k) for n, marks in circuit.masks.items() for k in marks.nonzero().tolist()]:
                fewer = {n: marks.clone() for n, marks in circuit.masks.items()}
                fewer[layer][row, column] = False
                with silence(model, ~circuit):
                    with_it = target.feature_map(images)
                with silence(model, ~circuit._with(fewer)):
                    noticed[layer][row, column] = not torch.equal(target.feature_map(images), with_it)
    finally:
        model.float()
        model.load_state_dict(before)
    for layer, marks in trimmed.masks.items():
        assert torch.equal(marks, noticed[layer])


def test_full_removal_is_what_is_left_of_whole_paths():
    target = TARGETS["chain"]
    circuit = Circuit.full(target)
    marks = {layer: kernels.clone() for layer, kernels in circuit.masks.items()}
    marks["a"][2] = False  # nothing feeds channel 2 of a
    marks["c"][:, 1] = False  # nothing reads channel 1 of b
    circuit = circuit._with(marks)
    backward, full = remove_dead_ends(circuit, target), remove_dead_ends(circuit, target, "full")
    assert not backward["b"][1].any()
    assert backward["b"][0].all()
    assert full["b"][0].tolist() == [True, True, False, True]
    assert not torch.equal(run(full, target), run(circuit, target))  # the bias of channel 2 is lost


def test_nothing_is_left_where_nothing_leads():
    target = TARGETS["dense"]
    circuit = Circuit.full(target)
    marks = {layer: kernels.clone() & (layer != "head") for layer, kernels in circuit.masks.items()}
    assert remove_dead_ends(circuit._with(marks), target).count == 0


def test_overlap_by_layer():
    target = TARGETS["chain"]
    whole = Circuit.full(target)
    half = whole._with({layer: marks.clone() & (layer != "a") for layer, marks in whole.masks.items()})
    shares = whole.iou(half)
    assert shares["a"] == 0
    assert shares["b"] == 1
    assert shares[""] == half.count / whole.count
    assert half.iou(half)["a"] != half.iou(half)["a"]  # nan: neither has a kernel there


def test_circuits_of_features_that_depend_on_other_kernels_are_not_merged():
    """b:1 and b:2 share the kernels of a and differ in a row of b each."""
    graph = trace(network("chain"), pictures())
    one, other = (Circuit.full(locate_feature(graph, f"b:{channel}")) for channel in (1, 2))
    for merge in (lambda: one | other, lambda: one & other, lambda: union([one, other])):
        with pytest.raises(MismatchError, match="received circuits of b:1 and b:2"):
            merge()
    both = Subset(one.masks) | Subset(other.masks)
    assert both["b"].any(1).tolist() == [False, True, True, False]
    assert one.iou(other) == {"": 8 / 16, "a": 1.0, "b": 0.0}
    assert (one | Circuit.full(locate_feature(graph, "b:1@max"))) == one


def test_what_is_no_circuit_is_refused():
    target = TARGETS["chain"]
    with pytest.raises(MismatchError, match="do not reach the feature"):
        Circuit(target.full_mask(), relevant=target.relevant, feature=target.feature)
    with pytest.raises(MismatchError, match="exactly the layers"):
        Circuit({"a": target.relevant["a"]}, relevant=target.relevant, feature=target.feature)
    with pytest.raises(MismatchError, match=r"not of the same network|depend on the same kernels"):
        Circuit.full(target) & Circuit.full(TARGETS["dense"])
    with pytest.raises(InputError, match="no rule for dead ends is called forward; there are: backward, full, none"):
        remove_dead_ends(Circuit.full(target), target, "forward")
    assert repr(Circuit.full(target)) == f"Circuit({target.relevant_count} of {target.relevant_count} kernels of head:1 at 4 layers)"


def test_a_circuit_is_copied_and_pickled_whole():
    circuit = top_k(baseline_scores(TARGETS["chain"], "random"), 0.4)
    for other in (copy.deepcopy(circuit), pickle.loads(pickle.dumps(circuit))):
        assert other == circuit
        assert (other.feature, other.total) == (circuit.feature, circuit.total)


def test_relevant_kernels_of_any_pattern_survive_json():
    diagonal = torch.eye(3, 4, dtype=torch.bool)
    kept = Circuit({"conv": diagonal & (torch.arange(4) < 2)}, relevant={"conv": diagonal})
    back = Circuit.from_dict(json.loads(json.dumps(kept.as_dict())))
    assert torch.equal(back.relevant["conv"], diagonal)
    assert back == kept
