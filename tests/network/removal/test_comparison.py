"""The comparison after shrinking: a right network passes, whatever was cut; one wrong channel never does."""

from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from channelscope.data.torchvision_cpu import models
from channelscope.errors import MismatchError, OutOfMemoryError
from channelscope.network.nest import leaves
from channelscope.network.removal.comparison import check_same, kept_ids
from channelscope.network.removal.groups import groups
from channelscope.network.removal.narrowing import narrow_pair
from channelscope.network.tracing.recording import distance
from channelscope.pruning.cut import shrink
from networks import NARROW, built, lively


def resnet18() -> nn.Module:
    """An eighth of the width."""
    model = models.ResNet(models.resnet.BasicBlock, [2, 2, 2, 2], num_classes=10)
    for name, module in list(model.named_modules()):
        parent, _, leaf = name.rpartition(".")
        made: nn.Module | None = None
        if isinstance(module, nn.Conv2d):
            inputs = max(module.in_channels // 8, 3)
            made = nn.Conv2d(inputs, module.out_channels // 8, module.kernel_size, module.stride, module.padding, bias=False)
        elif isinstance(module, nn.BatchNorm2d):
            made = nn.BatchNorm2d(module.num_features // 8)
        elif isinstance(module, nn.Linear):
            made = nn.Linear(module.in_features // 8, 10)
        if made is not None:
            setattr(model.get_submodule(parent), leaf, made)
    return model


NETWORKS = {
    "resnet18": resnet18,
    "mobilenet_v2": NARROW["mobilenet_v2"][1],
    "densenet121": NARROW["densenet121"][1],
    "vit": lambda: models.VisionTransformer(32, 8, num_layers=3, num_heads=2, hidden_dim=16, mlp_dim=48, num_classes=10),
}
TRIES = {"resnet18": 60, "mobilenet_v2": 30, "densenet121": 50, "vit": 60}
CUTS = {"resnet18": 15, "mobilenet_v2": 8, "densenet121": 15, "vit": 22}


@lru_cache
def found_in(name: str):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return groups(lively(NETWORKS[name]()), torch.zeros(1, 3, 32, 32))


def sliced(found, kept) -> nn.Module:
    """`shrink` without its comparison."""
    return narrow_pair(found.labeled, ~kept_ids(found, kept)[:-1], checked=False)[0]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_neighbor_of_the_right_channel_is_never_accepted(name):
    found = found_in(name)
    pairs = [(index, index + 1) for index in range(len(found) - 1) if found.members[index].sites == found.members[index + 1].sites]
    draws = np.random.default_rng(0)
    for right, wrong in draws.permutation(pairs)[: TRIES[name]]:
        small = sliced(found, found.to_subset(np.arange(len(found)) != wrong))
        with pytest.raises(MismatchError, match="away from the silenced one"):
            check_same(small, found.to_subset(np.arange(len(found)) != right), found)


def random_cuts(found, count: int, seed: int, monkeypatch) -> list[float]:
    """How far each smaller network is from the silenced one, as `shrink` compares them."""
    draws, errors = np.random.default_rng(seed), []
    monkeypatch.setattr("channelscope.pruning.cut.check_same", lambda *given: errors.append(check_same(*given)))
    for _ in range(count):
        alive = draws.random(len(found)) < draws.uniform(0.3, 1)
        for family in {group.sites for group in found.members}:
            alive[next(index for index, group in enumerate(found.members) if group.sites == family)] = True
        kept = found.to_subset(alive)
        small = shrink(found, kept)
        assert sum(part.numel() for part in small.parameters()) <= sum(part.numel() for part in found.graph.model.parameters())
    assert len(errors) == count
    return errors


@pytest.mark.parametrize("name", NETWORKS)
def test_a_right_network_is_refused_in_none_of_sixty_random_cuts(name, monkeypatch):
    random_cuts(found_in(name), CUTS[name], 1, monkeypatch)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", [*NARROW, "vit"])
def test_a_right_network_is_refused_in_none_of_a_thousand_random_cuts(name, monkeypatch):
    if name == "vit":
        found = found_in(name)
    else:
        model, shape = built(name)
        found = groups(model, torch.zeros(1, *shape))
    errors = random_cuts(found, 72, 2, monkeypatch)
    print(f"\n| {name} | {len(errors)} | {max(errors):.1e} |")


@dataclass(eq=False)
class Heads:
    out: torch.Tensor
    aux: tuple

    def __eq__(self, other):
        return torch.equal(self.out, other.out)

    __hash__ = None


class ModelOutput(OrderedDict):
    """As in transformers: a dictionary that is a class of its own."""


NESTED = {
    "dict": lambda a, b: {"aux": a, "out": b},
    "tuple": lambda a, b: (a, [b, None]),
    "dataclass": lambda a, b: Heads(a, (b, 3)),
    "model output": lambda a, b: ModelOutput(first=a, second=b),
}


class Nested(nn.Module):
    """Two heads; the second counts the channels of its input."""

    def __init__(self, kind: str, wrong: bool):
        super().__init__()
        self.a, self.first, self.second = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 4, 1), nn.Conv2d(12, 4, 1)
        self.kind, self.wrong = kind, wrong

    def forward(self, x):
        h = F.relu(self.a(x))
        second = self.second(h)
        return NESTED[self.kind](self.first(h), second * (12.0 / self.a.out_channels) if self.wrong else second)


@pytest.mark.parametrize("kind", NESTED)
def test_every_tensor_of_a_nested_output_is_compared(kind):
    right, wrong = Nested(kind, wrong=False).eval(), Nested(kind, wrong=True).eval()
    for model in (right, wrong):
        found = groups(model, torch.zeros(1, 3, 8, 8))
        kept = found.to_subset(np.arange(len(found)) >= 3)
        small = sliced(found, kept)
        if model is right:
            check_same(small, kept, found)
        else:
            with pytest.raises(MismatchError, match=r"is 0\.33 \(relative\) away from the silenced one at output[^ ]+ on noise"):
                check_same(small, kept, found)


def test_an_output_that_cannot_be_listed_is_refused():
    assert [path for path, _ in leaves(Heads(torch.zeros(1), (torch.zeros(2), "b")))] == ["output.out", "output.aux[0]", "output.aux[1]"]
    with pytest.raises(MismatchError, match="output is of type object, whose tensors cannot be listed"):
        list(leaves(object()))


def test_distances_by_hand():
    nan, inf = float("nan"), float("inf")
    assert distance(torch.tensor([1.0, nan]), torch.tensor([2.0, nan])) == (0.5, "output")
    assert distance(torch.tensor([nan, 1.0]), torch.tensor([1.0, nan]))[0] == inf
    assert distance(torch.tensor([inf]), torch.tensor([-inf]))[0] == inf
    assert distance(torch.tensor([1, 2]), torch.tensor([1, 3]))[0] == inf
    assert distance({"a": torch.zeros(2)}, {"a": torch.zeros(3)}) == (inf, "output['a']")
    assert distance((torch.zeros(1),), (torch.zeros(1), torch.zeros(1))) == (inf, "output[1]")
    assert distance(torch.zeros(1), torch.zeros(1)) == (0, "output")
    assert distance(torch.tensor([0.5]), torch.tensor([0.0]), floor=2.0) == (0.25, "output")


class Casting(nn.Module):
    """Part of the pass is in single precision, whatever the weights are."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 64, 3), nn.Conv2d(64, 8, 3)

    def forward(self, x):
        return (self.b(F.relu(self.a(x))).float() * 0.7).mean((2, 3))


class Typed(Casting):
    """A constant of single precision that the pass multiplies with."""

    def forward(self, x):
        return self.b(F.relu(self.a(x))).mean((2, 3)) @ torch.ones(8, 2)


@pytest.mark.parametrize("kind", [Casting, Typed])
def test_a_pass_that_needs_single_precision_is_allowed_its_rounding_and_no_more(kind):
    torch.manual_seed(0)
    found = groups(kind().eval(), torch.zeros(1, 3, 8, 8))
    kept = found.to_subset(np.arange(64) >= 30)
    small = shrink(found, kept)
    assert small.a.weight.dtype == found.graph.model.a.weight.dtype == torch.float32
    small.b.bias.data += 0.001
    with pytest.raises(MismatchError, match=r"away from the silenced one at (b|output) on noise"):
        check_same(small, kept, found)


class Told(Casting):
    """Its code asks for single precision by name; the recorded steps take it for the images' own."""

    def __init__(self):
        super().__init__()
        self.c = nn.Conv2d(1, 64, 1)

    def forward(self, x):
        zeros = torch.zeros(8, dtype=x.dtype)
        ramp = torch.ones(8, 8, dtype=torch.bool).cumsum(1, dtype=torch.float32) / 7
        x = self.a(x) + self.c(ramp.sin().to(self.c.weight.dtype)[None, None])[:, :, 1:7, 1:7]
        return self.b(F.relu(x)).mean((2, 3)) + zeros


def test_code_that_rounds_where_its_steps_do_not_is_compared_in_its_own_precision():
    torch.manual_seed(0)
    found = groups(Told().eval(), torch.zeros(1, 3, 8, 8))
    kept = found.to_subset(np.arange(64) >= 30)
    small = shrink(found, kept)
    small.b.bias.data += 0.001
    with pytest.raises(MismatchError, match=r"away from the silenced one at (b|output) on noise"):
        check_same(small, kept, found)


class Remembering(nn.Module):
    """Keeps a table in the precision of its first pass."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.table = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1), None

    def forward(self, x):
        if self.table is None:
            self.table = torch.ones(2, 2, dtype=x.dtype)
        return self.b(F.relu(self.a(x))).mean((2, 3)) @ self.table


def test_tables_that_a_pass_keeps_are_forgotten_after_the_comparison():
    model = Remembering().eval()
    found = groups(model, torch.zeros(1, 3, 4, 4))
    small = shrink(found, found.to_subset(np.arange(6) > 1))
    assert small.table is None
    assert model.table is None
    assert small(torch.zeros(1, 3, 4, 4)).dtype == torch.float32


def test_real_images_are_compared_on_where_they_are_given():
    class Bright(nn.Module):
        """Another branch where the image is bright, which noise never is."""

        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)

        def forward(self, x):
            h = self.b(F.relu(self.a(x)))
            return h * torch.where(x.mean((1, 2, 3), keepdim=True) > 50, 6.0 / self.a.out_channels, 1.0)

    found = groups(Bright().eval(), torch.zeros(1, 3, 4, 4))
    kept = found.to_subset(np.arange(6) > 1)
    small = shrink(found, kept)
    with pytest.raises(MismatchError, match="at output on real images"):
        check_same(small, kept, found, (torch.full((5, 3, 4, 4), 100.0),))


def test_the_comparison_leaves_both_networks_as_they_were():
    model, shape = built("mobilenet_v2")
    found = groups(model, torch.zeros(1, *shape))
    before = {name: (value.clone(), value.data_ptr()) for name, value in model.state_dict().items()}
    kept = found.to_subset(np.arange(len(found)) != 3)
    small = shrink(found, kept)
    assert all(value.dtype in (torch.float32, torch.int64) for value in small.state_dict().values())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name][0])
        assert value.data_ptr() == before[name][1]
    assert not any(module._forward_hooks for network in (model, small) for module in network.modules())


def test_constants_that_the_pass_makes_in_single_precision_are_allowed_their_rounding():
    class Placed(nn.Module):
        def __init__(self):
            super().__init__()
            self.place, self.conv, self.head = nn.Linear(4, 6), nn.Conv2d(3, 6, 1), nn.Linear(6, 3)

        def forward(self, x):
            dtype = self.place.weight.dtype  # while the network is in double precision, the next line is in single precision
            rows = torch.ones(8, 4, dtype=torch.bool).cumsum(0, dtype=torch.float32).div(7).sin().to(dtype)
            return self.head((self.conv(x).mean((2, 3)) + self.place(rows).mean(0)).relu())

    torch.manual_seed(0)
    found = groups(Placed().eval(), torch.zeros(1, 3, 4, 4))
    small = shrink(found, found.to_subset(np.arange(len(found)) != 1))
    assert small.conv.out_channels == small.place.out_features == 5


class Chaotic(nn.Module):
    """A sum over channels, whose order depends on their number, and iterations of the logistic map, each of which doubles differences."""

    def __init__(self, iterations: int):
        super().__init__()
        self.iterations = iterations
        self.first, self.last = nn.Conv2d(3, 96, 3), nn.Conv2d(1, 4, 1)
        self.weight = nn.Parameter(torch.randn(96, 1, 1) / 10)

    def forward(self, x):
        h = torch.sigmoid((torch.tanh(self.first(x)) * self.weight).sum(1, keepdim=True))
        for _ in range(self.iterations):
            h = 4 * h * (1 - h)
        return self.last(h).mean((2, 3))


def chaotic(iterations: int):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = groups(Chaotic(iterations).eval(), torch.zeros(1, 3, 8, 8))
    return found, np.array([group.sites == ("first",) for group in found.members])


def test_rounding_that_a_network_amplifies_is_no_difference():
    found, first = chaotic(26)
    before = {name: part.clone() for name, part in found.graph.model.state_dict().items()}
    for part in range(8):
        small = shrink(found, found.to_subset(~(first & (np.arange(len(found)) % 8 == part))))
        assert small.first.out_channels == 84
    assert all(torch.equal(part, before[name]) for name, part in found.graph.model.state_dict().items())


def test_amplified_rounding_excuses_no_wrong_channel():
    found, first = chaotic(26)
    for right in np.flatnonzero(first)[:-1:6]:
        small = sliced(found, found.to_subset(np.arange(len(found)) != right + 1))
        with pytest.raises(MismatchError, match="away from the silenced one"):
            check_same(small, found.to_subset(np.arange(len(found)) != right), found)


def test_a_network_that_is_nothing_but_rounding_cannot_be_compared():
    found, first = chaotic(60)
    kept = found.to_subset(~(first & (np.arange(len(found)) % 2 == 0)))
    with pytest.raises(MismatchError, match="away from the silenced one"):
        check_same(sliced(found, kept), kept, found)


class Wasteful(nn.Module):
    """Asks for more memory than there is, in float64 alone."""

    def forward(self, x):
        return x + torch.empty(1 << 50, dtype=x.dtype)[0] if x.dtype == torch.float64 else x


def test_a_lack_of_memory_is_said_and_not_taken_for_code_of_another_precision():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), Wasteful(), nn.Flatten(), nn.Linear(4, 2)).eval()
    found = groups(net, torch.zeros(1, 3, 1, 1))
    with pytest.raises(OutOfMemoryError, match="there is not enough memory"):
        shrink(found, found.to_subset(np.array([True, False, True, True])))
