"""Extraction: the stand-alone circuit computes what the masked network computes, is smaller, and survives the disk."""

import json
import math
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from channelscope.circuits import folder
from channelscope.circuits.circuit import Circuit
from channelscope.circuits.criteria import baseline_scores
from channelscope.circuits.extraction import extract_module, surviving_channels
from channelscope.circuits.feature import LocatedFeature, locate_feature
from channelscope.circuits.selection import connected_top_k, top_k
from channelscope.errors import FormatError, InputError, MismatchError
from networks import built
from pencil_circuits import LAST, NETWORKS, Planted, network, pictures

IMAGES = pictures(3)
TARGETS = {name: locate_feature(network(name), f"{LAST[name]}:1", IMAGES) for name in NETWORKS}


@torch.no_grad()
def masked(target: LocatedFeature, circuit: Circuit, images: torch.Tensor) -> torch.Tensor:
    with target.ablated((~circuit).masks):
        return target.feature_map(images)


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@torch.no_grad()
@settings(max_examples=60, deadline=None)
@given(st.sampled_from(list(NETWORKS)), st.floats(0.02, 1), st.integers(0, 60), st.booleans())
def test_masked_is_extracted(name, fraction, seed, live):
    target = TARGETS[name]
    scores = baseline_scores(target, "random", seed)
    circuit = (
        connected_top_k(scores, max(target.shortest_path, round(fraction * target.relevant_count))) if live else top_k(scores, fraction)
    )
    small = extract_module(circuit, target)
    expected = masked(target, circuit, IMAGES)
    assert torch.allclose(small(IMAGES).reshape(3, -1), expected, rtol=1e-5, atol=1e-5)
    assert size(small) <= size(target.model)


@torch.no_grad()
@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v2", "squeezenet1_1", "densenet121", "convnext_tiny", "regnety_002", "tf_efficientnet_lite0"]
)
def test_published_networks(name, tmp_path):
    model, shape = built(name)
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    target = locate_feature(model, "logit:3", images)
    circuit = top_k(baseline_scores(target, "magnitude"), 0.2)
    small = extract_module(circuit, target)
    expected = masked(target, circuit, images)
    assert torch.allclose(small(images)[:, None], expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert size(small) < size(model)
    folder.save_circuit(tmp_path, circuit, small)
    again, reread, _ = folder.load_circuit(tmp_path)
    assert again == circuit
    assert torch.equal(reread(images), small(images))


@torch.no_grad()
def test_only_what_is_needed_is_left():
    model = Planted().eval()
    images = torch.randn(4, 3, 8, 8)
    target = locate_feature(model, "c:0", images)
    truth = Circuit.of_feature(target, model.truth)
    small = extract_module(truth, target)
    assert [tuple(p.shape) for p in small.parameters()] == [(2, 3, 3, 3), (2,), (2, 2, 3, 3), (2,), (1, 2, 1, 1), (1,)]
    assert torch.equal(small(images), model(images)[:, 0])
    assert not any(parameter.requires_grad for parameter in small.parameters())


@torch.no_grad()
def test_a_direction_is_projected():
    target = TARGETS["residual"]
    both = locate_feature(target.graph, target.feature.direction("last", torch.tensor([0.5, -2.0])))
    small = extract_module(Circuit.full(both), both)
    maps = both.model(IMAGES)
    assert torch.allclose(small(IMAGES), 0.5 * maps[:, 0] - 2 * maps[:, 1], atol=1e-5)


def test_flattened_channels_leave_in_blocks():
    target = TARGETS["chain"]
    circuit = Circuit.full(target)
    marks = {layer: kernels.clone() for layer, kernels in circuit.masks.items()}
    marks["head"][1, 4:8] = False  # all four positions of channel 1
    kept = surviving_channels(circuit._with(marks), target)
    assert kept["c"].tolist() == [True, False, True]
    assert kept["flat"].tolist() == [True] * 4 + [False] * 4 + [True] * 4
    marks["head"][1, 5] = True
    assert surviving_channels(circuit._with(marks), target)["c"].all()


def test_the_network_is_left_as_it_was():
    target = TARGETS["residual"]
    before = {name: value.clone() for name, value in target.model.state_dict().items()}
    extract_module(top_k(baseline_scores(target, "random"), 0.3), target)
    assert all(torch.equal(value, before[name]) for name, value in target.model.state_dict().items())


def test_a_wrong_extraction_is_never_handed_out(monkeypatch):
    target = TARGETS["chain"]
    room = sys.modules["channelscope.circuits.extraction"]  # the package's name for it is the function
    right = room.effective_mask
    monkeypatch.setattr(
        room, "effective_mask", lambda circuit, target: {n: marks ^ (n == "b") for n, marks in right(circuit, target).items()}
    )
    with pytest.raises(MismatchError, match="away from the masked network"):
        extract_module(top_k(baseline_scores(target, "random"), 0.8), target)


# ---- on disk ----------------------------------------------------------------------------------------------------------------


def saved(tmp_path, name: str = "gated"):
    target = TARGETS[name]
    circuit = top_k(baseline_scores(target, "random"), 0.6)
    small = extract_module(circuit, target)
    folder.save_circuit(tmp_path, circuit, small, {"weights": "abc", "kept": 0.6})
    return circuit, small


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_a_circuit_survives_the_disk(name, tmp_path):
    circuit, small = saved(tmp_path, name)
    again, reread, about = folder.load_circuit(tmp_path)
    assert again == circuit
    assert again.feature == circuit.feature
    assert torch.equal(reread(IMAGES), small(IMAGES))
    assert about == {"weights": "abc", "kept": 0.6}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["circuit.json", "circuit.safetensors"]


def edited(tmp_path, change) -> None:
    data = json.loads((tmp_path / "circuit.json").read_text())
    change(data)
    (tmp_path / "circuit.json").write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(format=2), "expected format 1, found 2"),
        (lambda data: data["steps"][-2].update(op="call_function", target="torch.load"), "torch.load, which no circuit needs"),
        (lambda data: data["steps"][-2].update(op="call_function", target="os.system"), "os.system, which no circuit needs"),
        (lambda data: data["steps"][-2].update(op="call_method", target="numpy"), "method numpy, which no circuit needs"),
        (lambda data: data["steps"][-2].update(op="call_function", target="getattr", args=[1, "__class__"]), "attribute __class__"),
        (lambda data: data["modules"]["stem"].update({"class": "parallel"}), "torch.nn does not have"),
        (lambda data: data["modules"]["stem"]["options"].update(in_channels=7), "do not fit together"),
        (lambda data: data["steps"][1]["args"][0].update(step="nowhere"), "do not fit together"),
        (lambda data: data["steps"][1].update(args=[{"file": "x"}]), "kind file"),
        (lambda data: data.pop("circuit"), "do not fit together"),
    ],
)
def test_damaged_and_malicious_files_are_refused(change, message, tmp_path):
    saved(tmp_path)
    edited(tmp_path, change)
    with pytest.raises(FormatError, match=message):
        folder.load_circuit(tmp_path)


def test_missing_and_cut_files_are_refused(tmp_path):
    with pytest.raises(FormatError, match="expected a circuit"):
        folder.load_circuit(tmp_path)
    saved(tmp_path)
    (tmp_path / "circuit.safetensors").write_bytes((tmp_path / "circuit.safetensors").read_bytes()[:50])
    with pytest.raises(FormatError, match="expected a circuit"):
        folder.load_circuit(tmp_path)


class Own(nn.Linear):
    """Does what its parent does."""


class Doubling(nn.Linear):
    """A forward pass of its own."""

    def forward(self, x):
        return 2 * super().forward(x).tanh()


class Choosing(nn.Linear):
    """A forward pass that nobody can write down as steps."""

    def forward(self, x):
        return super().forward(x) if x.sum() < 1e9 else x


class Special(nn.Module):
    def __init__(self, kind: type[nn.Linear]):
        super().__init__()
        self.conv, self.own = nn.Conv2d(2, 2, 1), kind(8, 8)

    def forward(self, x):
        return torch.lgamma(self.own(self.conv(x)).tanh())


@torch.no_grad()
@pytest.mark.parametrize("kind", [Own, Doubling])
def test_modules_that_torch_does_not_have_are_written_as_their_steps(kind, tmp_path):
    target = locate_feature(Special(kind).eval(), "own:0", IMAGES)
    small = extract_module(Circuit.full(target), target)
    assert {type(module) for module in small.modules()}.isdisjoint({Doubling})
    folder.save_circuit(tmp_path, Circuit.full(target), small)
    _, again, _ = folder.load_circuit(tmp_path)
    assert torch.equal(again(IMAGES).flatten(1), target.feature_map(IMAGES))


class Padded(nn.Module):
    """Pads by itself so that a stride of two leaves half of the positions, rounded up, and divides by the root of a width."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 3, 3, stride=2)

    def forward(self, x):
        x = self.first(x).relu()
        amount = max((math.ceil(x.shape[-1] / 2) - 1) * 2 + 3 - x.shape[-1], 0)
        return self.second(F.pad(x, [amount // 2, amount - amount // 2] * 2)) / math.sqrt(x.shape[1])


@torch.no_grad()
def test_numbers_computed_with_pythons_mathematics_are_stored(tmp_path):
    target = locate_feature(Padded().eval(), "second:1", IMAGES)
    folder.save_circuit(tmp_path, Circuit.full(target), extract_module(Circuit.full(target), target))
    assert "math.ceil" in (tmp_path / "circuit.json").read_text()
    _, again, _ = folder.load_circuit(tmp_path)
    for images in (IMAGES, IMAGES[..., :-1, :-1]):
        assert torch.equal(again(images).flatten(1), target.feature_map(images))


def test_what_a_recipe_cannot_hold_is_said(tmp_path):
    target = locate_feature(Special(Own).eval(), "logit:0", IMAGES)
    small = extract_module(Circuit.full(target), target)
    with pytest.raises(InputError, match="lgamma"):
        folder.save_circuit(tmp_path, Circuit.full(target), small)
    target = locate_feature(Special(Choosing).eval(), "own:0", IMAGES)
    with pytest.raises(InputError, match="own is a Choosing, which a recipe cannot hold"):
        folder.save_circuit(tmp_path, Circuit.full(target), extract_module(Circuit.full(target), target))
    assert not list(tmp_path.iterdir())


def test_the_kernels_can_be_read_without_the_module(tmp_path):
    target = TARGETS["residual"]
    circuit = top_k(baseline_scores(target, "random", 3), 0.4)
    folder.save_circuit(tmp_path, circuit, extract_module(circuit, target))
    (tmp_path / folder.TENSORS).unlink()
    read = folder.load_mask(tmp_path)
    assert read == circuit
    assert read.feature == target.feature
    assert read.total == target.relevant_count
    text = json.loads((tmp_path / folder.RECIPE).read_text())
    for change in ({"format": 9}, {"circuit": {}}, {"circuit": None}):
        (tmp_path / folder.RECIPE).write_text(json.dumps(text | change))
        with pytest.raises(FormatError, match=str(tmp_path)):
            folder.load_mask(tmp_path)
    with pytest.raises(FormatError, match="expected a circuit"):
        folder.load_mask(tmp_path / "none")


ARGUMENTS = [slice(1, None, 2), (Ellipsis, slice(None), 3), torch.float16, {"dim": (1, 2), "keepdim": True}, None, 0.5, "mean"]


@pytest.mark.parametrize("value", ARGUMENTS, ids=str)
def test_arguments_of_steps_come_back(value):
    assert folder._decoded(json.loads(json.dumps(folder._encoded(value))), {}) == value


def test_arguments_that_a_recipe_cannot_hold_are_refused():
    with pytest.raises(InputError, match=r"passes .* to a step, which a recipe cannot hold"):
        folder._encoded(torch.device("cpu"))
    with pytest.raises(FormatError, match="a value of kind code, which is not known"):
        folder._decoded({"code": "print()"}, {})
