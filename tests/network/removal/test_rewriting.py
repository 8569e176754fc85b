"""Numbers in the forward pass: found by running, set as attributes, or written anew in one module or in the whole network."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from channelscope.network.operations.numbers import Edit, Number
from channelscope.network.removal.finishing import Setting, calls, settings
from channelscope.network.removal.narrowing import Removal, corrections, cut, narrow
from removals import assert_exact, drawn, graph_of, lively


class Numbered(nn.Module):
    """A convolution, something with numbers in it, and a linear layer; the numbers are attributes or written out."""

    def __init__(self, body, into, **attributes):
        super().__init__()
        self.body = body
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Linear(into, 4)
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x):
        return self.b(self.body(self, self.a(x)))


LITERAL = {
    "reshape": (lambda m, x: x.reshape(-1, 128), 128),
    "view of a tuple": (lambda m, x: x.view((x.shape[0], 128)), 128),
    "expand": (lambda m, x: (x.mean((2, 3)).unsqueeze(1).expand(-1, 3, 8)).flatten(1), 24),
    "unflatten": (lambda m, x: x.flatten(1).unflatten(1, (8, 16)).mean(2), 8),
    "slice": (lambda m, x: x[:, 2:6].flatten(1), 64),
    "last slice": (lambda m, x: x[:, -3:].flatten(1), 48),
    "narrow": (lambda m, x: x.narrow(1, 1, 5).flatten(1), 80),
    "one position": (lambda m, x: x[:, 3].flatten(1) + x[:, 5].flatten(1), 16),
    "split": (lambda m, x: torch.cat([part.mean((2, 3)) * place for place, part in enumerate(x.split([3, 5], 1))], 1), 8),
    "split into thirds": (lambda m, x: torch.cat([part.mean((2, 3)) for part in x.split(4, 1)[::-1]], 1), 8),
    "repeat": (lambda m, x: x.mean((2, 3)).repeat(1, 2), 16),
    "grouped function": (lambda m, x: F.conv2d(x, torch.ones(8, 1, 3, 3, dtype=x.dtype), groups=8).flatten(1), 32),
}


@pytest.mark.parametrize("name", LITERAL)
def test_numbers_written_out(name):
    torch.manual_seed(0)
    body, into = LITERAL[name]
    graph = graph_of(lively(Numbered(body, into)), 3, 4, 4)
    assert len(graph.groups) >= 2
    assert_exact(graph, drawn(graph, 0.6, 3), seen=name != "one position")
    if name == "one position":
        assert graph.union.reason(3) == "getitem() takes nothing else"


ATTRIBUTES = {
    "one": (lambda m, x: x.reshape(-1, m.width * 16), {"width": 8}),
    "its product": (lambda m, x: x.reshape(-1, m.width * m.area), {"width": 8, "area": 16}),
    "a list": (lambda m, x: x.reshape(-1, m.sizes[1] * 16), {"sizes": [3, 8, 4]}),
    "a nested tuple": (lambda m, x: x.reshape(-1, m.sizes[0][1] * 16), {"sizes": ((3, 8), 4)}),
    "half of it": (lambda m, x: x.reshape(-1, m.width // 2 * 16), {"width": 16}),
}


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_numbers_from_attributes(name):
    torch.manual_seed(0)
    body, attributes = ATTRIBUTES[name]
    graph = graph_of(lively(Numbered(body, 128, **attributes)), 3, 4, 4)
    small = assert_exact(graph, graph.gone([1, 2, 5]))
    assert type(small) is Numbered
    assert vars(graph.model).items() >= attributes.items()
    assert vars(small)["width" if "width" in attributes else "sizes"] != attributes.get("width", attributes.get("sizes"))


def test_attributes_are_set_inside_lists_and_tuples():
    model = nn.Module()
    model.sizes, model.inner = (1, [2, 3]), nn.Module()
    model.inner.width = 7
    Setting("sizes", (1, 0), 9).apply(model)
    Setting("inner.width", (), 5).apply(model)
    assert model.sizes == (1, [9, 3])
    assert model.inner.width == 5


def test_a_number_that_comes_from_no_attribute_has_no_setting():
    graph = graph_of(lively(Numbered(lambda m, x: x.reshape(-1, 128), 128)), 3, 4, 4)
    assert settings(graph, [Number(128, 128, 96)], {}) is None
    assert settings(graph, [], {}) == []


def test_an_edit_lists_its_numbers_wherever_they_stand():
    one, two, three = (Number(None, place, 0) for place in range(3))
    assert Edit((one, (4, [two])), {"index": (slice(three, None, None),)}).numbers() == [one, two, three]
    assert Edit((1, 2), {}).numbers() == []


class Literal(nn.Module):
    """A block with its width written out, and an attribute that its surroundings read."""

    def __init__(self, width=8):
        super().__init__()
        self.scale, self.inner = nn.Parameter(torch.ones(width)), nn.Conv2d(width, width, 1)
        self.stride = 2

    def forward(self, x, gain=2.0, *, shift=0.5):
        n, _, h, w = x.shape
        return (self.inner(x).reshape(n, 8, h * w) * self.scale.view(8, 1)).reshape(n, 8, h, w) * gain + shift


class Around(nn.Module):
    def __init__(self, times=1):
        super().__init__()
        self.a, self.block, self.b, self.times = nn.Conv2d(3, 8, 1), Literal(), nn.Conv2d(8, 4, 1), times

    def forward(self, x):
        x = self.a(x)
        for _ in range(self.times):
            x = self.block(x, shift=0.25)
        return self.b(x[:, :, :: self.block.stride])


def around(times=1):
    torch.manual_seed(0)
    return graph_of(lively(Around(times)), 3, 4, 4)


def inner(graph, *places):
    """Marks of some channels of the block."""
    found = [index for index, group in enumerate(graph.groups) if group[0][0] == "block.inner"]
    return graph.gone([found[place] for place in places])


def test_only_the_block_is_rewritten():
    graph = around()
    small = assert_exact(graph, drawn(graph))
    assert type(small) is Around
    assert isinstance(small.block, torch.fx.GraphModule)
    assert small.block.stride == 2
    assert set(small.state_dict()) == set(graph.model.state_dict())
    assert small.block.scale.shape == (small.block.inner.out_channels,)


def test_a_rewritten_block_is_called_as_before_and_holds_for_other_sizes():
    graph = around()
    small = assert_exact(graph, inner(graph, 0))
    x = torch.randn(2, 8, 3, 5, dtype=torch.float64)
    assert small.block(x).shape == (2, 7, 3, 5)
    kept = [1, 2, 3, 4, 5, 6, 7]
    assert torch.allclose(small.block(x, shift=0.25), graph.model.block(x, shift=0.25)[:, kept])
    assert torch.equal(small.block(x), small.block(x, gain=2.0))


def test_copies_and_pickles_of_a_rewritten_network_compute_the_same():
    graph = around()
    small = assert_exact(graph, inner(graph, 0, 2))
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    for other in (copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        assert torch.equal(other(x), small(x))
        assert other.block.stride == 2


def test_a_block_that_is_called_twice_makes_the_whole_network_its_recorded_steps():
    graph = around(times=2)
    small = assert_exact(graph, graph.gone([0, 2]))
    assert isinstance(small, torch.fx.GraphModule)
    assert set(small.state_dict()) == set(graph.model.state_dict())


def test_calls_of_modules_are_seen_as_they_were_made():
    graph = around(times=2)
    made = calls(graph, {"block"})["block"]
    assert len(made) == 2
    assert torch.equal(made[0].output, made[1].args[0])
    assert made[0].kwargs == {"shift": 0.25}
    assert not graph.model.block._forward_hooks


def test_corrections_name_the_steps_that_change():
    graph = around()
    removal = Removal(graph, inner(graph, 0, 2))
    found = corrections(graph, removal, cut(graph.model, graph, removal))
    assert [node.name for node in found.edits] == ["reshape", "view", "reshape_1"]
    assert found.folded == {}
    assert all(number.want == 6 for each in found.edits.values() for number in each.numbers())


class Typed(nn.Module):
    """A block that makes a tensor in the type and on the device of what it is given, with its width written out."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        ramp = torch.arange(4, device=x.device, dtype=x.dtype)
        return (self.inner(x).reshape(len(x), 8, 4, 4) + ramp).reshape(-1, 8, 4, 4)


def test_blocks_take_type_and_device_from_their_own_input():
    torch.manual_seed(0)
    graph = graph_of(lively(nn.Sequential(nn.Conv2d(3, 8, 1), Typed(), nn.ReLU(), Typed(), nn.Conv2d(8, 4, 1))), 3, 4, 4)
    found = [index for index, group in enumerate(graph.groups) if group[0][0] in ("1.inner", "3.inner")]
    small = narrow(graph, graph.gone([found[0], found[9], found[12]]))
    assert type(small) is nn.Sequential
    assert [isinstance(part, torch.fx.GraphModule) for part in small] == [False, True, False, True, False]
    assert small.float()(torch.zeros(1, 3, 4, 4)).dtype == torch.float32


class Sized(nn.Module):
    """A block that is told the height and width of its maps, and has its width written out."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Conv1d(8, 8, 1)

    def forward(self, x, size):
        return self.inner(x).reshape(-1, 8, size[0] * size[1]).unflatten(2, size)


class Told(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.block, self.b = nn.Conv2d(3, 8, 1), Sized(), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = self.a(x)
        return self.b(self.block(x.flatten(2), tuple(x.shape[2:])))


def test_numbers_inside_arguments_stay_arguments():
    torch.manual_seed(0)
    graph = graph_of(lively(Told()), 3, 4, 6)
    found = [index for index, group in enumerate(graph.groups) if group[0][0] == "block.inner"]
    small = assert_exact(graph, graph.gone([found[1], found[6]]))
    assert type(small) is Told
    assert isinstance(small.block, torch.fx.GraphModule)
    assert small(torch.zeros(2, 3, 6, 3, dtype=torch.float64)).shape == (2, 4, 6, 3)
