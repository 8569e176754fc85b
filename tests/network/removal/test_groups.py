"""Groups: what lives or dies together, checked against torch-pruning's dependency graph and against planted structures."""

import copy
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from channelscope.errors import InputError, MismatchError, TracingError
from channelscope.network.cost import cost, macs
from channelscope.network.edits import silence
from channelscope.network.graph import trace
from channelscope.network.operations import Operation, register, unregister
from channelscope.network.removal import groups as grouping
from channelscope.network.removal.groups import Group, groups, labels_of
from channelscope.pruning.cut import cut, shrink
from channelscope.ranking import Ranking
from channelscope.subset import Subset
from networks import NARROW, built


def found(model: nn.Module, *shape: int):
    return groups(model.eval(), torch.zeros(1, *(shape or (3, 8, 8))))


def members(result) -> set[frozenset]:
    return {frozenset(group.members) for group in result.members}


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 1), nn.Conv2d(6, 4, 1)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = F.relu(self.a(x))
        x = F.relu(x + self.c(F.relu(self.b(x))))
        return self.head(x.mean((2, 3)))


def test_a_sum_ties_its_terms_and_nothing_else():
    result = found(Residual())
    tied = {frozenset({("a", channel), ("c", channel)}) for channel in range(4)}
    assert members(result) == tied | {frozenset({("b", channel)}) for channel in range(6)}
    assert result.unprunable == {}
    assert result.members[0] == Group((("a", 0), ("c", 0)))
    assert result.members[0].sites == ("a", "c")


def dependency_groups(model: nn.Module, shape: tuple[int, ...], names: set[str]) -> set[frozenset]:
    """The same question to torch-pruning: which output channels of which layers go with channel i of layer n."""
    import torch_pruning as tp

    model.requires_grad_(True)
    graph = tp.DependencyGraph().build_dependency(model, example_inputs=torch.zeros(1, *shape))
    modules = {module: name for name, module in model.named_modules()}
    answer = set()
    for name in names:
        module = model.get_submodule(name)
        prune = tp.prune_linear_out_channels if isinstance(module, nn.Linear) else tp.prune_conv_out_channels
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            prune = tp.prune_depthwise_conv_out_channels
        for channel in range(module.weight.shape[0]):
            tied = set()
            for dependency, idxs in graph.get_pruning_group(module, prune, idxs=[channel]):
                outputs = "out_channels" in dependency.handler.__name__
                target = modules.get(dependency.target.module)
                tied |= {(target, i) for i in idxs if outputs and target in names}
            answer.add(frozenset(tied))
    return answer


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "squeezenet1_1"])
def test_the_same_groups_as_torch_pruning(name):
    model, shape = built(name)
    result = groups(model, torch.zeros(1, *shape))
    few = {site.name for site in result.sites if site.channels <= 96 and site.name not in result.unprunable}
    mine = {frozenset(m for m in group.members if m[0] in few) for group in result.members} - {frozenset()}
    assert mine == dependency_groups(model, shape, few)


def test_depthwise_and_grouped_convolutions_tie_inputs_to_outputs():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4), nn.ReLU(), nn.Conv2d(4, 6, 1, groups=2), nn.ReLU())
    net = nn.Sequential(*net, nn.Conv2d(6, 2, 1), nn.Flatten())
    result = found(net)
    assert members(result) == {
        frozenset({("0", 0), ("0", 1), ("2", 0), ("2", 1), ("4", 0), ("4", 1), ("4", 2)}),
        frozenset({("0", 2), ("0", 3), ("2", 2), ("2", 3), ("4", 3), ("4", 4), ("4", 5)}),
    }


def test_a_gate_goes_with_what_it_gates():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.squeeze, self.gate, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            x = F.relu(self.conv(x))
            gate = torch.sigmoid(self.gate(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
            return self.head(x * gate).flatten(1)

    result = found(Gated())
    gated = {frozenset({("conv", channel), ("gate", channel)}) for channel in range(4)}
    assert members(result) == gated | {frozenset({("squeeze", channel)}) for channel in range(2)}


def test_concatenation_and_flattening_keep_channels_apart():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(5, 4, 1)
            self.head = nn.Linear(4 * 64, 2)

        def forward(self, x):
            x = self.c(torch.cat([F.relu(self.a(x)), F.relu(self.b(x))], 1))
            return self.head(torch.flatten(F.relu(x), 1))

    result = found(Branches())
    assert len(result) == 2 + 3 + 4
    reads = {layer.name: layer for layer in result.layers}
    assert reads["c"].inputs.tolist() == [0, 1, 2, 3, 4]
    assert reads["head"].inputs.tolist() == [5] * 64 + [6] * 64 + [7] * 64 + [8] * 64


class Block(nn.Module):
    """Two convolutions with something between them."""

    def __init__(self, between, width=4, head=4):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(head, 2, 1)
        self.between = between if isinstance(between, nn.Module) else None
        self.function = between

    def forward(self, x):
        x = F.relu(self.first(x))
        return self.last(self.function(x)).flatten(1)


REASONS = {
    "LayerNorm": (lambda: Block(nn.LayerNorm((4, 8, 8))), "LayerNorm"),
    "softmax": (lambda: Block(lambda x: F.softmax(x, 1)), "softmax"),
    "pool over channels": (lambda: Block(lambda x: F.max_pool2d(x.transpose(1, 3), 2).transpose(1, 3), head=2), "size|several channels"),
}


@pytest.mark.parametrize("name", REASONS)
def test_what_cannot_be_removed_is_kept_whole_with_a_reason(name):
    make, reason = REASONS[name]
    result = found(make())
    assert len(result) == 0
    assert re.search(reason, result.unprunable["first"]), result.unprunable
    assert result.unprunable["first"].startswith("4 of 4 channels: ")


ALONE = [[0], [1], [2], [3]]
LABELED = {
    "LayerNorm along a row": (lambda: Block(nn.LayerNorm(8)), ALONE, (0, 1, 2, 3)),
    "GroupNorm": (lambda: Block(nn.GroupNorm(2, 4)), [[0, 1], [2, 3]], (0, 1)),
    "BatchNorm after a pool": (lambda: Block(nn.Sequential(nn.MaxPool2d(2), nn.BatchNorm2d(4))), ALONE, (0, 1, 2, 3)),
    "f(0) is not 0": (lambda: Block(lambda x: torch.sigmoid(F.max_pool2d(x, 2))), ALONE, (0, 1, 2, 3)),
    "a constant added": (lambda: Block(lambda x: F.max_pool2d(x, 2) + 1.0), ALONE, (0, 1, 2, 3)),
    "a constant made from the image": (lambda: Block(lambda x: x + x.new_ones(1)[0]), ALONE, (0, 1, 2, 3)),
    "mean over channels": (lambda: Block(lambda x: x - x.mean(1, keepdim=True)), ALONE, (0, 1, 2, 3)),
    "two halves": (lambda: Block(lambda x: x.chunk(2, 1)[0] + x.chunk(2, 1)[1], head=2), [[0, 2], [1, 3]], (0, 1)),
    "a shuffle": (
        lambda: Block(lambda x: x.view(x.shape[0], 2, 2, 8, 8).transpose(1, 2).reshape(x.shape[0], 4, 8, 8)),
        [[0, 1], [2, 3]],
        (0, 1),
    ),
    "a number in view": (lambda: Block(lambda x: x.view(-1, 4, 8, 8)), [[0], [1], [2], [3]], (0, 1, 2, 3)),
}


@pytest.mark.parametrize("name", LABELED)
def test_what_labels_follow_is_removed_and_equals_the_silenced_network(name):
    make, members, part = LABELED[name]
    model = make().eval()
    result = found(model)
    assert [[channel for _, channel in group.members] for group in result.members] == members
    assert result.parts == (part,)
    assert result.unprunable == {}
    marks = np.arange(len(members)) != 0
    kept = result.to_subset(marks)
    small = shrink(result, kept)
    assert small.first.out_channels == 4 - len(members[0])
    assert type(small.last) is nn.Conv2d
    images = torch.randn(3, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        received = small.double()(images)
        with silence(model.double(), ~kept):
            assert torch.allclose(received, model(images), rtol=1e-12, atol=1e-12)
    model.float()
    assert cost(small.float(), torch.zeros(1, 3, 8, 8)).total_macs == macs(result, kept)


def test_a_shift_that_is_zero_by_chance_is_silent_with_its_channels():
    model = Block(None)
    model.shift = nn.Parameter(torch.zeros(4, 1, 1))
    model.function = lambda x: F.max_pool2d(x, 2).view(-1, 4, 4, 4) + model.shift
    result = found(model)
    assert {step: labels.flatten().tolist() for step, labels in result.waking.items()} == {"add": [0, 1, 2, 3]}
    model.shift.data += 5
    kept = result.to_subset(np.arange(4) != 1)
    small = shrink(result, kept).double()
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad(), silence(model.double(), ~kept):
        assert torch.allclose(small(images), model(images), rtol=1e-12, atol=1e-12)


class Identity(nn.Module):
    """Three branches, one of them a norm alone, as in RepVGG; and a norm behind a concatenation, as in DenseNet."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b, self.norm = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.joined, self.head = nn.BatchNorm2d(8), nn.Linear(8, 2)

    def forward(self, x):
        x = F.relu(self.stem(x))
        y = F.relu(self.a(x) + self.b(x) + self.norm(x))
        return self.head(self.joined(torch.cat([x, y], 1)).relu().mean((2, 3)))


def test_silent_groups_stay_silent_behind_norms_that_have_no_layer_of_their_own():
    torch.manual_seed(0)
    model = Identity().eval()
    for norm in (model.norm, model.joined):
        nn.init.uniform_(norm.bias, 0.5, 1)
    result = found(model)
    assert result.unprunable == {}
    assert len(result) == 4
    assert {step: labels.flatten().tolist() for step, labels in result.waking.items()} == {
        "norm": [0, 1, 2, 3], "joined": [0, 1, 2, 3, 4, 5, 6, 7]
    }  # fmt: skip
    kept = result.to_subset(np.array([True, False, True, True]))
    small = shrink(result, kept).double()
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    for network in (model.double(), copy.deepcopy(model)):
        with torch.no_grad(), silence(network, ~kept):
            assert torch.allclose(small(images), network(images), rtol=1e-12, atol=1e-12)
    one = ~Subset.everything(kept.sites, kept.input_shape)
    one["a"][1] = True
    with torch.no_grad(), silence(model, replace(one, groups=result)):  # not the whole group: the norm keeps its value
        part = model(images)
    with torch.no_grad(), silence(model, one):
        assert torch.equal(part, model(images))


class Halves(nn.Module):
    """The second half of the channels is read by a layer of its own."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 5, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        a, b = F.relu(self.first(x)).split([3, 3], 1)
        return self.last(torch.cat([a, self.second(b)], 1)).flatten(1)


def test_a_part_of_a_value_is_never_emptied():
    model = Halves().eval()
    result = found(model)
    assert (3, 4, 5) in result.parts
    marks = np.ones(len(result), dtype=bool)
    marks[3:6] = False
    with pytest.raises(InputError, match="at least one"):
        shrink(result, result.to_subset(marks))
    values = {"first": np.array([9.0, 8.0, 7.0, 1.0, 2.0, 3.0]), "second": np.array([9.0, 8.0, 7.0, 6.0, 5.0])}
    ranking = Ranking("by hand", "", "high", values, result.sites, (3, 8, 8))
    kept = cut(ranking, result, macs=0.5)
    assert kept["first"].tolist()[3:] == [False, False, True]
    assert shrink(result, kept)(torch.zeros(2, 3, 8, 8)).shape == (2, 128)


def test_a_layer_called_twice_is_kept_whole():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 3, 1)

        def forward(self, x):
            return self.c(F.relu(self.b(F.relu(self.b(F.relu(self.a(x))))))).flatten(1)

    result = found(Twice())
    assert len(result) == 0
    assert "several places" in result.unprunable["a"]


def test_spatial_padding_is_harmless_and_channel_padding_ties_by_position():
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = nn.Conv2d(3, 2, 1), nn.Conv2d(2, 4, 1, stride=2), nn.Linear(4, 2)

        def forward(self, x):
            x = F.pad(F.relu(self.a(x)), (1, 1, 1, 1))
            return self.head(F.relu(self.b(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1))).mean((2, 3)))

    result = found(Padded())
    assert members(result) == {frozenset({("a", 0), ("b", 1)}), frozenset({("a", 1), ("b", 2)})}
    assert "2 of 4 channels" in result.unprunable["b"]


def test_frozen_and_training_networks_give_the_same_groups_and_stay_as_they_are():
    model = Residual()
    expected = members(found(model))
    model.requires_grad_(False).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert members(groups(model, torch.zeros(1, 3, 8, 8))) == expected
    assert model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_subsets_and_groups_translate_both_ways():
    result = found(Residual())
    kept = result.to_subset(torch.arange(10).numpy() % 2 == 0)
    assert kept["a"].tolist() == kept["c"].tolist() == [True, False, True, False]
    assert kept["b"].tolist() == [True, False] * 3
    assert result.kept(kept).tolist() == [True, False] * 5
    split = Subset({**kept.masks, "a": ~kept["a"]}, kept.sites, kept.input_shape)
    with pytest.raises(InputError, match=r"live or die together are split: a\[0\], c\[0\]"):
        result.kept(split)
    with pytest.raises(MismatchError, match="no site x"):
        result.kept(Subset({"x": torch.ones(3, dtype=torch.bool)}))
    with pytest.raises(MismatchError, match="3 channels at a"):
        result.kept(Subset({"a": torch.ones(3, dtype=torch.bool)}))
    whole = found(Block(nn.LayerNorm((4, 8, 8))))
    with pytest.raises(InputError, match="channel 0 of first cannot be removed: 4 of 4 channels: between"):
        whole.kept(Subset({"first": torch.zeros(4, dtype=torch.bool)}))


def test_networks_of_several_inputs_and_of_tokens():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = nn.Conv2d(3, 4, 1), nn.Linear(5, 4), nn.Linear(4, 2)

        def forward(self, x, y):
            return self.head(F.relu(self.a(x)).mean((2, 3)) + F.relu(self.b(y)))

    result = groups(Two().eval(), (torch.zeros(1, 3, 8, 8), torch.zeros(1, 5)))
    assert members(result) == {frozenset({("a", channel), ("b", channel)}) for channel in range(4)}

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch, self.up, self.down, self.head = nn.Conv2d(3, 4, 2, 2), nn.Linear(4, 8), nn.Linear(8, 4), nn.Linear(4, 2)

        def forward(self, x):
            x = self.patch(x).flatten(2).transpose(1, 2)
            return self.head((x + self.down(F.gelu(self.up(x)))).mean(1))

    result = found(Tokens())
    tied = {frozenset({("patch", channel), ("down", channel)}) for channel in range(4)}
    assert members(result) == tied | {frozenset({("up", channel)}) for channel in range(8)}


class Standardized(nn.Conv2d):
    """One step of a traced network, several of a labeled one."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, padding=2)


class Activated(nn.BatchNorm2d):
    """A norm with an activation inside, as in timm."""

    def forward(self, x):
        return F.relu(super().forward(x))


class Entered(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b, self.width = Standardized(3, 6, 3), Activated(6), Standardized(6, 8, 3), 8
        self.fc = nn.Linear(8, 2)

    def forward(self, x):
        x = self.b(self.norm(self.a(x)))
        return self.fc(F.relu(x).reshape(-1, self.width, x.shape[2] * x.shape[3]).mean(2))


def assert_same_values(model: nn.Module, *shape: int) -> tuple:
    image = (torch.randn(1, *shape, generator=torch.Generator().manual_seed(1)),)
    graph = trace(model.eval(), image[0])
    labeled, steps = labels_of(graph, image)
    assert set(steps) >= {name for name in graph.shapes if graph.nodes[name].op != "get_attr"}
    names = tuple(name for name in steps if name in graph.shapes)
    with torch.no_grad():
        ours = graph.run(*image, outputs=names, out_of_place=True)
        theirs = labeled.executor.run(*image, outputs=tuple(steps[name].name for name in names), out_of_place=True)
    for name, one, other in zip(names, ours, theirs, strict=True):
        torch.testing.assert_close(one, other, msg=name)
    return graph, labeled, steps


@pytest.mark.parametrize("name", NARROW)
def test_steps_that_belong_together_have_the_same_values(name):
    model, shape = built(name)
    assert_same_values(model, *shape)


def test_modules_of_their_own_kind_are_entered():
    torch.manual_seed(0)
    graph, labeled, steps = assert_same_values(Entered(), 3, 6, 6)
    assert graph.numbers == 1
    assert graph.nodes["norm"].op == "call_module"
    assert steps["norm"].name == "relu"
    assert steps["a"].target is F.conv2d
    assert [node.op for node in labeled.steps.nodes].count("call_module") == 1


def test_the_channels_of_entered_modules_are_removed_and_attributes_set():
    torch.manual_seed(0)
    model = Entered().eval()
    found = groups(model, torch.zeros(1, 3, 6, 6))
    assert found.unprunable == {}
    small = shrink(found, found.to_subset(np.arange(14) % 3 != 0))
    assert type(small) is Entered
    assert small.width == small.fc.in_features == 5
    assert small.norm.num_features == 4
    assert model.width == 8


def test_a_pass_that_cannot_be_recorded_finer_is_labeled_as_traced(monkeypatch):
    def refusing(*_args, **_options):
        raise TracingError("a module of its own kind")

    torch.manual_seed(0)
    monkeypatch.setattr(grouping, "record", refusing)
    graph, labeled, steps = assert_same_values(Entered(), 3, 6, 6)
    assert labeled.steps is graph.steps
    assert steps["norm"] is graph.nodes["norm"]
    found = groups(Entered().eval(), torch.zeros(1, 3, 6, 6))
    assert set(found.unprunable) == {"a"}
    assert found.unprunable["a"] == "6 of 6 channels: b computes something else from fewer channels than from silenced ones"
    assert shrink(found, found.to_subset(np.arange(8) > 2)).fc.in_features == 5


def test_recordings_that_go_different_ways_are_not_matched(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(grouping, "_entered", lambda _graph: True)
    model, other = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval(), nn.Sequential(nn.Conv2d(3, 4, 1)).eval()
    record = grouping.record
    monkeypatch.setattr(grouping, "record", lambda _model, image, whole: record(other, image, whole=whole))
    graph, labeled, _ = assert_same_values(model, 3, 4, 4)
    assert labeled.steps is graph.steps


class Positions(nn.Module):
    """A linear layer that mixes positions, so that it has no channels of its own."""

    def __init__(self):
        super().__init__()
        self.conv, self.mix, self.fc = nn.Conv2d(3, 4, 1), nn.Linear(16, 16), nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(F.relu(self.mix(F.relu(self.conv(x)).flatten(2))).mean(2))


def test_a_layer_that_mixes_positions_stays_and_the_channels_before_it_go():
    model = Positions().eval()
    found = groups(model, torch.zeros(1, 3, 4, 4))
    assert found.unprunable == {"mix": "16 of 16 channels: the channels of mix cannot be told apart"}
    assert [group.members for group in found.members] == [(("conv", channel),) for channel in range(4)]
    kept = found.to_subset(np.array([True, False, True, True]))
    assert bool(kept["mix"].all())
    small = shrink(found, kept)
    assert (small.conv.out_channels, small.mix.out_features, small.fc.in_features) == (3, 16, 3)
    broken = found.to_subset(np.ones(4, dtype=bool))
    broken["mix"][3] = False
    with pytest.raises(InputError, match="channel 3 of mix cannot be removed: 16 of 16 channels: the channels of mix cannot be told apart"):
        shrink(found, broken)


class Scaled(nn.Module):
    def forward(self, x):
        return x * 2


def test_an_entry_that_does_not_know_a_call_keeps_its_channels():
    def failing(step):
        raise IndexError("an argument that is not there")

    register(Operation("scaled", failing, modules=(Scaled,)))
    try:
        model = nn.Sequential(nn.Conv2d(3, 4, 1), Scaled(), nn.Conv2d(4, 5, 1), nn.ReLU(), nn.Conv2d(5, 2, 1)).eval()
        found = groups(model, torch.zeros(1, 3, 4, 4))
    finally:
        unregister("scaled")
    assert found.unprunable == {"0": "4 of 4 channels: 1 (Scaled) may look at all its channels at once"}
    assert len(found) == 5


def test_values_that_depend_on_the_image_are_not_kept():
    model, shape = built("resnet18")
    labeled = groups(model, torch.zeros(1, *shape)).labeled
    kept = {name: value.device.type for name, value in labeled.values.items() if isinstance(value, torch.Tensor)}
    assert kept["x"] == "cpu"
    assert {device for name, device in kept.items() if name != "x"} == {"meta"}


class MixtureOfKernels(nn.Module):
    """Two convolutions around a depthwise one whose kernels are mixed for each image, computed as one convolution for all images."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 5, 1)
        self.experts, self.route = nn.Parameter(torch.randn(2, 6 * 9)), nn.Linear(6, 2)

    def forward(self, x):
        x = self.first(x).relu()
        images, channels, rows, columns = x.shape
        kernels = (self.route(x.mean((2, 3))).sigmoid() @ self.experts).view(images * channels, 1, 3, 3)
        x = F.conv2d(x.reshape(1, images * channels, rows, columns), kernels, padding=1, groups=images * channels)
        return self.last(x.view(images, channels, rows, columns).relu()).mean((2, 3))


def test_a_convolution_with_kernels_of_its_own_for_each_image_keeps_its_channels():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), MixtureOfKernels()).eval()
    grouping = groups(net, torch.randn(2, 3, 6, 6))
    assert [group.members[0][0] for group in grouping.members] == ["0"] * 3 + ["2.route"] * 2
    assert "the weights of conv2d() in 2 depend on the image" in grouping.unprunable["2.first"]
