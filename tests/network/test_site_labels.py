"""The labels of a traced network: the same values at the steps that belong together, however the pass is recorded."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from channelscope.errors import InputError, TracingError
from channelscope.network.graph import trace
from channelscope.network.operations import Operation, register, unregister
from channelscope.network.removal import site_labels
from channelscope.network.removal.groups import groups
from channelscope.network.removal.site_labels import labels_of
from channelscope.pruning.cut import shrink
from networks import NARROW, built


class Standardized(nn.Conv2d):
    """One step of a traced network, several of a labeled one."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, padding=1)


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
    monkeypatch.setattr(site_labels, "record", refusing)
    graph, labeled, steps = assert_same_values(Entered(), 3, 6, 6)
    assert labeled.steps is graph.steps
    assert steps["norm"] is graph.nodes["norm"]
    found = groups(Entered().eval(), torch.zeros(1, 3, 6, 6))
    assert set(found.unprunable) == {"a"}
    assert found.unprunable["a"] == "6 of 6 channels: b computes something else from fewer channels than from silenced ones"
    assert shrink(found, found.to_subset(np.arange(8) > 2)).fc.in_features == 5


def test_recordings_that_go_different_ways_are_not_matched(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(site_labels, "_entered", lambda _graph: True)
    model, other = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval(), nn.Sequential(nn.Conv2d(3, 4, 1)).eval()
    record = site_labels.record
    monkeypatch.setattr(site_labels, "record", lambda _model, image, whole: record(other, image, whole=whole))
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
