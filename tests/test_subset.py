"""Subset obeys Boolean algebra, survives JSON, and silences exactly what it marks, leaving no trace."""

import copy
import json
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from channelscope.errors import InputError, MismatchError, ShapeError, SiteError
from channelscope.network.edits import silence, zero_kernels
from channelscope.network.sites import sites
from channelscope.subset import Subset


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 5, 3, groups=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(180, 4),
    )
    nn.init.normal_(model[1].bias)
    return model.eval()


IMAGE = torch.randn(2, 3, 8, 8)
BITS = st.lists(st.booleans(), min_size=11, max_size=11)


def of(bits) -> Subset:
    marks = torch.tensor(bits)
    found = sites(network(), IMAGE).found
    return Subset({found[0].name: marks[:6], found[1].name: marks[6:]}, found, (3, 8, 8))


@settings(max_examples=20, deadline=None)
@given(BITS, BITS)
def test_boolean_algebra(a, b):
    a, b = of(a), of(b)
    assert ~(a & b) == ~a | ~b
    assert ~~a == a
    assert (a & ~a).count == 0
    assert (a | ~a).fraction == 1
    assert (a & b) | (a & ~b) == a
    assert a.count + (~a).count == a.total == 11
    assert Subset.from_dict(json.loads(json.dumps(a.as_dict()))) == a
    assert copy.deepcopy(a) == pickle.loads(pickle.dumps(a)) == a


def test_everything_is_every_channel_of_the_sites():
    found = sites(network(), IMAGE).found
    whole = Subset.everything(found, (3, 8, 8))
    assert whole == of([True] * 11)
    assert (whole.sites, whole.input_shape, whole.unit) == (tuple(found), (3, 8, 8), "channels")
    assert ~whole == of([False] * 11)


def test_kernels_are_marked_by_matrices():
    circuit = Subset({"0": torch.eye(6, 3, dtype=torch.bool), "6": torch.ones(4, 180, dtype=torch.bool)})
    assert circuit.unit == "kernels"
    assert circuit.count == 3 + 720
    assert circuit.total == 18 + 720
    assert Subset.from_dict(circuit.as_dict()) == circuit
    assert list(circuit) == ["0", "6"]
    assert len(circuit) == 2
    assert "6" in circuit
    assert "5" not in circuit
    assert repr(circuit) == "Subset(723 of 738 kernels at 2 layers)"


def test_what_is_not_a_subset_is_refused():
    found = sites(network(), IMAGE).found
    with pytest.raises(ShapeError, match="bool"):
        Subset({"0": torch.ones(6)})
    with pytest.raises(ShapeError, match="mixture"):
        Subset({"0": torch.ones(6, dtype=torch.bool), "3": torch.ones(5, 6, dtype=torch.bool)})
    with pytest.raises(ShapeError, match="differ in 3"):
        Subset({"0": torch.ones(6, dtype=torch.bool)}, found, (3, 8, 8))
    with pytest.raises(ShapeError, match="expected 5 channels"):
        Subset({"0": torch.ones(6, dtype=torch.bool), "3": torch.ones(6, dtype=torch.bool)}, found, (3, 8, 8))
    with pytest.raises(MismatchError, match="differ in the shape of 0"):
        Subset({"0": torch.ones(6, dtype=torch.bool)}) & Subset({"0": torch.ones(7, dtype=torch.bool)})
    with pytest.raises(SiteError, match=r"no (site|layer) is called 9; there are: "):
        of([True] * 11)["9"]
    assert Subset({"0": torch.ones(6, dtype=torch.bool)}) != "subset"


def test_a_subset_cannot_be_changed():
    kept = of([True] * 11)
    with pytest.raises(TypeError):
        kept.masks["0"] = torch.zeros(6, dtype=torch.bool)  # type: ignore[index]
    with pytest.raises(TypeError):
        hash(kept)


def by_hand(model: nn.Module, image, off0, off3):
    """The silenced network written out: zero after the activation, not at the convolution."""
    maps = model[2](model[1](model[0](image))).clone()
    maps[:, off0] = 0
    maps = model[4](model[3](maps)).clone()
    maps[:, off3] = 0
    return model[6](model[5](maps))


@torch.no_grad()
def test_silence_is_zero_at_the_cut_point_and_leaves_no_trace():
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plain = model(IMAGE)
    kept = of([True, False, True, True, False, True, True, True, False, True, True])
    with silence(model, ~kept) as inside:
        assert inside is model
        assert torch.equal(model(IMAGE), by_hand(model, IMAGE, [1, 4], [2]))
        with silence(model, Subset({"0": torch.arange(6) == 0, "3": torch.zeros(5, dtype=torch.bool)}, kept.sites, (3, 8, 8))):
            assert torch.equal(model(IMAGE), by_hand(model, IMAGE, [0, 1, 4], [2]))
        assert torch.equal(model(IMAGE), by_hand(model, IMAGE, [1, 4], [2]))
    assert torch.equal(model(IMAGE), plain)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert "forward" not in model.__dict__


@torch.no_grad()
def test_silence_takes_a_graph_or_an_example():
    model = network()
    kept = of([False] * 6 + [True] * 5)
    graph = sites(model, IMAGE).graph
    with silence(graph, ~kept):
        a = model(IMAGE)
    with silence(model, ~kept, example=IMAGE):
        b = model(IMAGE)
    assert torch.equal(a, b)
    assert torch.equal(a, by_hand(model, IMAGE, list(range(6)), []))


def test_silence_after_an_exception():
    model = network()
    with pytest.raises(ZeroDivisionError):
        with silence(model, of([True] * 11)):
            raise ZeroDivisionError
    assert "forward" not in model.__dict__


def test_silence_refuses_another_network():
    other = nn.Sequential(nn.Conv2d(3, 7, 3), nn.ReLU(), nn.Conv2d(7, 2, 3), nn.Flatten(), nn.Linear(32, 2))
    with pytest.raises(MismatchError, match="another network"):
        with silence(other, of([True] * 11)):
            pass
    with pytest.raises(InputError, match="input shape"):
        with silence(network(), Subset({"0": torch.ones(6, dtype=torch.bool)})):
            pass


def test_kernels_are_masked_in_the_weights_and_come_back():
    model = network()
    circuit = Subset({"0": torch.rand(6, 3) > 0.5, "6": torch.rand(4, 180) > 0.5})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    weight = model[0].weight
    for context in (silence(model, ~circuit), zero_kernels(model, ~circuit)):
        with context:
            assert model[0].weight is weight
            assert torch.equal(weight, before["0.weight"] * circuit["0"][:, :, None, None])
            assert torch.equal(model[6].weight, before["6.weight"] * circuit["6"])
            model(IMAGE).sum().backward()
            assert weight.grad is not None
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(MismatchError, match="no such layer"):
        with silence(model, Subset({"12": torch.ones(2, 2, dtype=torch.bool)})):
            pass
    with pytest.raises(MismatchError, match="found a weight of shape"):
        with silence(model, Subset({"0": torch.ones(2, 2, dtype=torch.bool)})):
            pass
    with pytest.raises(ZeroDivisionError):
        with silence(model, ~circuit):
            raise ZeroDivisionError
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
