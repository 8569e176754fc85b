"""Recording: the steps are what the network did, whatever Python it is written in, and the network is left as it was."""

import copy
import math
import operator
import random
from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from channelscope.errors import TracingError
from channelscope.network import nest
from channelscope.network.graph import Graph, trace
from channelscope.network.tracing.recorder import Recording
from channelscope.network.tracing.recording import record
from channelscope.network.tracing.spelling import setitem


def images(n: int = 2, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, *(shape or (3, 6, 6)), generator=torch.Generator().manual_seed(seed))


class Net(nn.Module):
    """A network whose forward pass is given."""

    def __init__(self, way):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 3)
        self.heads, self.window = 2, (3, 2)
        self.shift = nn.Parameter(torch.arange(4.0).view(4, 1, 1))
        self.register_buffer("seen", torch.zeros(2))
        self.way = way

    def forward(self, x, *rest, **named):
        return self.way(self, x, *rest, **named)


def graph(model: nn.Module, recording: Recording) -> Graph:
    shapes = {name: tuple(value.shape) for name, value in recording.values.items() if isinstance(value, torch.Tensor)}
    return Graph(model, recording.steps, shapes, recording.constants, recording.output)


def replayed(way, *inputs, others=None, **named):
    """The steps of a network, after they gave its output on the inputs, on others, and on other numbers of images."""
    model, inputs = Net(way).eval(), inputs or (images(),)
    recording = record(model, inputs, named)
    steps = graph(model, recording)
    with torch.no_grad():
        for given in (inputs, others or tuple(images(5, *part.shape[1:], seed=7) for part in inputs)):
            expected = model(*(part.clone() for part in given), **named)
            torch.testing.assert_close(steps.run(*given), expected)
            torch.testing.assert_close(steps.run(*given, out_of_place=True), expected)
    return recording


def targets(recording: Recording) -> list:
    return [node.target for node in recording.steps.nodes if node.op in ("call_function", "call_method")]


def head(net, y):
    return net.fc(y.mean((2, 3)))


SUMS = {
    "x + y": lambda x, y: x + y,
    "torch.add": lambda x, y: torch.add(x, y),
    "torch.add(other=)": lambda x, y: torch.add(x, other=y),
    "torch.add(input=, other=)": lambda x, y: torch.add(input=x, other=y),
    "x.add": lambda x, y: x.add(y),
    "x.add(other=)": lambda x, y: x.add(other=y),
    "x.add_": lambda x, y: x.clone().add_(y),
    "out=": lambda x, y: torch.add(x, y, out=torch.empty_like(x)),
    "aten": lambda x, y: torch.ops.aten.add(x, y),
    "aten overload": lambda x, y: torch.ops.aten.add.Tensor(x, y),
}


@pytest.mark.parametrize("join", SUMS.values(), ids=SUMS)
def test_every_spelling_of_a_sum_is_one_operator(join):
    recording = replayed(lambda net, x: head(net, join(net.conv(x), net.shift)))
    assert operator.add in targets(recording)
    assert not {"add", "add_", torch.add} & set(targets(recording))


OPERATORS = {
    "sub": (lambda x: 1 - x, lambda x: torch.rsub(x, 1), lambda x: x.neg().sub(-1), operator.sub),
    "mul": (lambda x: 2 * x, lambda x: torch.mul(x, other=2), lambda x: torch.multiply(2, x), operator.mul),
    "truediv": (lambda x: x / 3, lambda x: x.div(3), lambda x: torch.true_divide(x, 3), operator.truediv),
    "pow": (lambda x: x**2, lambda x: x.pow(2), lambda x: torch.pow(x, exponent=2), operator.pow),
    "floordiv": (lambda x: x // 2, lambda x: x.floor_divide(2), lambda x: torch.floor_divide(x, 2), operator.floordiv),
    "gt": (lambda x: (x > 0) * x, lambda x: x.gt(0) * x, lambda x: torch.gt(x, 0) * x, operator.gt),
}


@pytest.mark.parametrize("spellings", OPERATORS.values(), ids=OPERATORS)
def test_operators_have_one_form(spellings):
    *ways, expected = spellings
    for way in ways:
        assert expected in targets(replayed(lambda net, x, way=way: head(net, way(net.conv(x)))))


def test_options_that_change_the_arithmetic_stay():
    recording = replayed(lambda net, x: head(net, torch.add(x, x, alpha=3)[:, :1] + torch.div(net.conv(x), 0.1, rounding_mode="floor")))
    assert {torch.add, torch.div} <= set(targets(recording))


def augmented(net, x):
    y = net.conv(x)
    kept = y.clone()
    y += 1
    y -= net.shift
    y *= 2
    y /= 3
    y **= 2
    y[:, 1:, ::2] = 0.5
    F.relu(y, inplace=True)
    torch.sigmoid_(y)
    y.clamp_(0.1, 0.9).masked_fill_(kept > 0, 0.3)
    return head(net, y * kept)


def test_augmented_and_in_place_spellings_are_ordinary_operators():
    found = targets(replayed(augmented))
    ordinary = ["clone", operator.add, operator.sub, operator.mul, operator.truediv, operator.pow, setitem, F.relu, torch.sigmoid, "clamp"]
    assert found[: len(ordinary)] == ordinary
    assert not [name for name in found if isinstance(name, str) and name.endswith("_")]


def test_values_are_those_of_their_step_although_the_network_wrote_over_them():
    model = Net(lambda net, x: head(net, net.conv(x).mul_(0).add_(1))).eval()
    recording = record(model, (images(),))
    with torch.no_grad():
        torch.testing.assert_close(recording.values["conv"], model.conv(images()))
    assert recording.values["mul"].abs().max() == 0
    assert bool((recording.values["add"] == 1).all())


def summed_into_a_part(net, x):
    y = net.conv(x)
    both = y.new_zeros(y.shape[0], 8, *y.shape[2:])
    both[:, :4] = y
    both[:, 4:] += 2 * y
    return net.fc(both.unflatten(1, (2, 4)).sum(1).mean((2, 3)))


def kept_elsewhere(net, x):
    y = net.conv(x)
    apart = copy.deepcopy(y).type(torch.float64)
    whole = torch.empty_like(y)
    whole.copy_(y)
    y.zero_()
    return net.fc((whole + apart.type_as(y) + y).mean((2, 3)))


@pytest.mark.parametrize("way", [summed_into_a_part, kept_elsewhere], ids=lambda way: way.__name__)
def test_what_is_written_into_a_tensor_is_followed(way):
    assert not replayed(way).constants


def test_what_in_place_keeps_its_type_does_so_in_the_steps():
    recording = replayed(lambda net, x: (net.conv(x).half().mul_(torch.full((4, 1, 1), 1.5)).add_(net.shift)).float().mean((2, 3)))
    assert [recording.values[name].dtype for name in ("mul_", "add_", "output")] == [torch.float16, torch.float16, torch.float32]


def followed_view(net, x):
    x = net.conv(x)
    return x.view(x.size(0), -1)


def computed_pad(net, x):
    small, large = F.max_pool2d(net.conv(x), 2), net.conv(x)
    high, wide = large.size()[2] - small.size()[2], large.shape[3] - small.shape[3]
    small = F.pad(small, [wide // 2, wide - wide // 2, high // 2, high - high // 2])
    return head(net, torch.cat([large[:, :2], small[:, 2:]], 1))


def heads(net, x):
    batch, channels, high, wide = x.shape
    y = net.conv(x).view(batch, net.heads, -1, high // net.window[0], net.window[0], wide * high // high)
    return y.sum((2, 3, 4, 5)) * channels**-0.5 + len(net.window) + torch.arange(net.heads, device=x.device, dtype=x.dtype)


def scaled_by_a_root(net, x):
    y = net.conv(x)
    return head(net, y / math.sqrt(y.shape[1]) + math.log(net.heads))


def test_a_root_of_a_width_is_a_step():
    found = targets(replayed(scaled_by_a_root))
    assert {math.sqrt, math.log} <= set(found)


@pytest.mark.parametrize("way", [followed_view, computed_pad, heads], ids=lambda way: way.__name__)
def test_numbers_are_followed_from_shapes_and_attributes(way):
    replayed(way, images(2), others=(images(5, seed=3),))


def test_shapes_and_attributes_are_steps():
    recording = record(Net(heads), (images(),))
    view = next(node for node in recording.steps.nodes if node.target == "view")
    assert [recording.values[part.name] if isinstance(part, torch.fx.Node) else part for part in view.args[1:]] == [2, 2, -1, 2, 3, 6]
    assert [part.op for part in view.args[1:] if isinstance(part, torch.fx.Node)] == ["call_function", "get_attr", *["call_function"] * 3]
    assert {node.target for node in recording.steps.nodes if node.op == "get_attr"} == {"heads", "window"}


def test_a_size_used_late_does_not_keep_its_tensor():
    def late(net, x):
        y = net.conv(x)
        batch = y.size(0)
        return net.conv(x).relu().mean((2, 3)).view(batch, -1)

    names = [node.name for node in record(Net(late), (images(),)).steps.nodes]
    assert names.index("size") == names.index("conv") + 1


def test_the_number_of_images_is_nowhere_written_out():
    model = Net(computed_pad).eval()
    steps = graph(model, record(model, (images(2),)))
    for n in (1, 3, 7):
        assert steps.run(images(n)).shape == (n, 3)


def test_keyword_tensors_and_optional_parameters():
    class Options(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x, mask=None, *, scale=None, features_only=False):
            x = x if mask is None else x * mask
            y = x if features_only else self.fc(x)
            return y if scale is None else y * scale

    model, x, mask, scale = Options().eval(), images(2, 3), images(2, 3, seed=1), images(2, 1, seed=2)
    alone = record(model, (x,))
    assert [node.target for node in alone.steps.nodes if node.op == "placeholder"] == ["x"]
    named = record(model, (x,), {"mask": mask, "scale": scale})
    assert [node.target for node in named.steps.nodes if node.op == "placeholder"] == ["x", "mask", "scale"]
    with torch.no_grad():
        torch.testing.assert_close(graph(model, named).run(x + 1, mask, scale), model(x + 1, mask=mask, scale=scale))
    only = record(model, (x,), {"features_only": True})
    assert [node.op for node in only.steps.nodes] == ["placeholder", "output"]


def test_inputs_in_containers():
    class Nested(nn.Module):
        def forward(self, pair, *, more):
            return pair[0] - pair[1] * more["a"]

    recording = record(Nested(), ((images(), images(seed=1)),), {"more": {"a": images(seed=2)}})
    assert [node.target for node in recording.steps.nodes if node.op == "placeholder"] == ["pair_0", "pair_1", "more_a"]
    assert graph(Nested(), recording).run((torch.ones(1), torch.ones(1)), {"a": torch.ones(1)}) == 0


def test_the_same_tensor_twice_is_two_inputs():
    class Both(nn.Module):
        def forward(self, x, y):
            return x - 2 * y

    x = images()
    assert float(graph(Both(), record(Both(), (x, x))).run(torch.tensor(5.0), torch.tensor(1.0))) == 3


@dataclass
class Answer:
    """What a network answers."""

    logits: torch.Tensor
    maps: tuple[torch.Tensor, ...]
    count: int = 0


class Named(OrderedDict):
    """A mapping with a class of its own."""


Pair = namedtuple("Pair", "first second")


class Plain:
    """An object with tensors as attributes."""

    def __init__(self, logits):
        self.logits = logits


OUTPUTS = {
    "tuple": lambda y: (y, (y + 1, None)),
    "list": lambda y: [y, 3],
    "dict": lambda y: {"a": y, "b": {"c": [y * 2]}},
    "dataclass": lambda y: Answer(y, (y + 1, y * 2), 2),
    "mapping": lambda y: Named(a=y, b=y + 1),
    "namedtuple": lambda y: Pair(y, {"k": y - 1}),
    "object": lambda y: Plain(y * 3),
}


@pytest.mark.parametrize("answer", OUTPUTS.values(), ids=OUTPUTS)
def test_outputs_come_back_as_the_network_gives_them(answer):
    model = Net(lambda net, x: answer(head(net, net.conv(x)))).eval()
    steps = graph(model, record(model, (images(),)))
    with torch.no_grad():
        received, expected = steps.run(images(3, seed=5)), model(images(3, seed=5))
    assert type(received) is type(expected)
    torch.testing.assert_close(nest.opened(received), nest.opened(expected))


class Straight(torch.autograd.Function):
    """Rounds, and lets gradients pass."""

    @staticmethod
    def forward(ctx, x, steps=4):
        return torch.round(x * steps) / steps

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


class Modern(torch.autograd.Function):
    """The same with its own setup."""

    @staticmethod
    def forward(x):
        return x.sign()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2


taken = Straight.apply


@pytest.mark.parametrize("function", [Straight.apply, taken, Modern.apply], ids=["apply", "taken", "modern"])
def test_an_autograd_function_is_one_step_with_its_own_gradient(function):
    recording = replayed(lambda net, x: head(net, function(net.conv(x))))
    assert [getattr(target, "__name__", target) for target in targets(recording)] == ["apply", "mean"]
    model = Net(lambda net, x: head(net, function(net.conv(x)))).eval()
    steps = graph(model, record(model, (images(),)))
    model(images()).sum().backward()
    expected = model.conv.weight.grad.clone()
    model.zero_grad()
    steps.run(images()).sum().backward()
    torch.testing.assert_close(model.conv.weight.grad, expected)
    assert expected.abs().sum() > 0


def test_blocks_without_gradients_stay_so():
    def way(net, x):
        with torch.no_grad():
            y = net.conv(x)
        return net.fc((y * net.shift).mean((2, 3)))

    model = Net(way).eval()
    steps = graph(model, record(model, (images(),)))
    steps.run(images()).sum().backward()
    assert model.conv.weight.grad is None
    assert model.shift.grad.abs().sum() > 0


def test_mixed_precision_inside_the_network_stays_there():
    def mixed(net, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = net.conv(x)
        with torch.autocast("cpu", enabled=False):
            return net.fc(y.float().mean((2, 3)))

    recording = replayed(mixed)
    assert recording.values["conv"].dtype == torch.bfloat16
    assert [node.name for node in recording.steps.nodes if node.meta["autocast"]] == ["conv"]


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_are_entered(reentrant):
    recording = replayed(lambda net, x: head(net, torch.utils.checkpoint.checkpoint(net.conv, x, use_reentrant=reentrant)))
    assert [node.name for node in recording.steps.nodes] == ["x", "conv", "mean", "fc", "output"]


def test_a_layer_called_with_other_weights_is_entered():
    def doubled(net, x):
        return head(net, torch.func.functional_call(net.conv, {"weight": 2 * net.conv.weight}, (x,)))

    assert targets(replayed(doubled))[:2] == [operator.mul, F.conv2d]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_scripted_functions_are_followed():
    @torch.jit.script
    def gate(x: torch.Tensor, times: int):
        return x * torch.sigmoid(x) * times

    recording = replayed(lambda net, x: head(net, gate(net.conv(x), net.heads)))
    assert targets(recording)[:3] == [torch.ops.aten.sigmoid.default, operator.mul, operator.mul]


def test_parametrized_and_standardized_convolutions_are_entered():
    class Standardized(nn.Conv2d):
        def forward(self, x):
            weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            return F.conv2d(x, weight, self.bias, self.stride, self.padding)

    model = nn.Sequential(Standardized(3, 4, 3), nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 2, 1)), nn.Flatten()).eval()
    recording = record(model, (images(),))
    assert [node.target for node in recording.steps.nodes if node.op == "call_module"] == ["2"]
    assert [node.target for node in recording.steps.nodes if node.target is F.conv2d] == [F.conv2d] * 2
    with torch.no_grad():
        torch.testing.assert_close(graph(model, recording).run(images(4)), model(images(4)))
    held = {
        node.target for node in recording.steps.nodes if node.op == "get_attr" and isinstance(recording.values[node.name], torch.Tensor)
    }
    assert held == {"0.weight", "0.bias", "1.bias", "1.parametrizations.weight.original0", "1.parametrizations.weight.original1"}


def test_a_layer_alone_is_its_function():
    model = nn.Conv2d(3, 2, 3)
    recording = record(model, (images(),))
    assert [node.op for node in recording.steps.nodes] == ["placeholder", "get_attr", "get_attr", "call_function", "output"]
    torch.testing.assert_close(graph(model, recording).run(images(3)), model(images(3)))


def test_transformer_layers_are_entered_and_attention_is_one_step():
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    recording = record(model, (torch.randn(2, 5, 8),))
    steps = [node.name for node in recording.steps.nodes if node.op == "call_module" and "dropout" not in node.name]
    assert steps == ["self_attn", "norm1", "linear1", "linear2", "norm2"]
    assert recording.owner["self_attn"] == recording.owner["linear1"] == ""
    x = torch.randn(3, 5, 8)
    with torch.no_grad():
        torch.testing.assert_close(graph(model, recording).run(x), model(x))


def test_owners_are_the_modules_whose_forward_made_the_step():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return x + self.conv(x).relu()

    model = nn.Sequential(Block(), nn.Sequential(Block()))
    owner = record(model, (images(),)).owner
    assert {name: owner[name] for name in ("_0_conv", "relu", "add", "_1_0_conv", "add_1")} == {
        "_0_conv": "0", "relu": "0", "add": "0", "_1_0_conv": "1.0", "add_1": "1.0",
    }  # fmt: skip


def test_steps_know_their_line():
    recording = record(Net(computed_pad), (images(),))
    places = {node.meta["place"] for node in recording.steps.nodes if node.op in ("call_module", "call_function")}
    first = computed_pad.__code__.co_firstlineno
    assert {place.rpartition("/")[2] for place in places} <= {
        *(f"test_recorder.py:{first + line} (computed_pad)" for line in range(1, 5)),
        f"test_recorder.py:{head.__code__.co_firstlineno + 1} (head)",
    }
    plain = record(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), (images(),))
    assert {node.meta["place"] for node in plain.steps.nodes if node.op == "call_module"} == {""}


def test_tensors_from_elsewhere_are_constants():
    table = torch.arange(4.0).view(4, 1, 1)
    recording = replayed(lambda net, x: head(net, net.conv(x) * table + torch.linspace(0, 1, 6)))
    assert list(recording.constants.values()) == [table]


def on_pixels(net, x):
    y = net.conv(x)
    return head(net, y if y.mean() > 0 else -y)


def by_item(net, x):
    y = net.conv(x)
    return head(net, y * y.abs().max().item())


def by_equal(net, x):
    y = net.conv(x)
    return head(net, y + torch.equal(y, -y))


def by_numpy(net, x):
    y = net.conv(x)
    return head(net, y + float(np.abs(y.detach().numpy()).max()))


@pytest.mark.parametrize("way", [on_pixels, by_item, by_equal, by_numpy], ids=lambda way: way.__name__)
def test_what_python_decides_from_pixels_is_refused(way):
    with pytest.raises(TracingError, match="values of a tensor"):
        record(Net(way), (images(),))


def test_what_python_decides_from_parameters_and_shapes_is_not():
    def way(net, x):
        y = net.conv(x)
        if net.shift.sum() > 0 and y.shape[1] == 4 and y.size(-1) > 2 and torch.zeros_like(y).sum() == 0:
            y = y + 1
        return head(net, y)

    assert operator.add in targets(replayed(way))


def writing(net, x):
    net.seen += 1
    net.extra = x.shape[0]
    net.cache.append(x)
    net.table["x"] = x
    net.conv.training = True
    torch.rand(1), random.random(), np.random.rand()
    if net.fails:
        raise RuntimeError("cancelled")
    return head(net, net.conv(x))


@pytest.mark.parametrize("fails", [False, True])
def test_the_network_is_left_as_it_was(fails):
    model = Net(writing).train()
    model.cache, model.table, model.fails, model.fc.training = [], {}, fails, False
    model.conv.weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict()), {path: dict(vars(part)) for path, part in model.named_modules()}
    numbers = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    x = images()
    if fails:
        with pytest.raises(RuntimeError, match="cancelled"):
            record(model, (x,))
    else:
        record(model, (x,))
    assert all(torch.equal(value, before[0][name]) for name, value in model.state_dict().items())
    for path, part in model.named_modules():
        assert vars(part).keys() == before[1][path].keys()
        assert all(vars(part)[key] is value for key, value in before[1][path].items())
    assert (model.cache, model.table, type(model.heads)) == ([], {}, int)
    assert [part.training for part in (model, model.conv, model.fc)] == [True, True, False]
    assert [part.requires_grad for part in (model.conv.weight, model.fc.weight)] == [False, True]
    assert torch.equal(torch.get_rng_state(), numbers[0])
    assert random.getstate() == numbers[1]
    assert np.array_equal(np.random.get_state()[1], numbers[2])
    assert torch.equal(x, images())
    assert nn.Module.__call__ is nn.Module._wrapped_call_impl
    assert "super" not in vars(torch.autograd.function)


class Limited(nn.Conv2d):
    """A convolution whose filters have at most unit length, written back in every pass (Lawhern et al. 2018)."""

    def forward(self, x):
        self.weight.data = torch.renorm(self.weight.data, 2, 0, 1)
        self.bias.data[1:].clamp_(-0.1, 0.1)
        return super().forward(x)


def test_a_pass_that_writes_to_its_parameters_leaves_them():
    model = nn.Sequential(Limited(3, 4, 5), nn.ReLU(), nn.Flatten()).eval()
    model[0].weight.data *= 10
    before, places = copy.deepcopy(model.state_dict()), [part.data_ptr() for part in model.parameters()]
    steps = trace(model, images(2))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [part.data_ptr() for part in model.parameters()] == places
    assert [node.target for node in steps.nodes.values() if node.op == "call_module"] == ["0", "1", "2"]
    torch.testing.assert_close(steps.run(images(3)), copy.deepcopy(model)(images(3)))


def test_what_a_network_keeps_for_its_next_call_is_not_a_constant():
    def remembering(net, x):
        if net.kept is None or len(net.kept) != len(x):
            net.kept = torch.ones(len(x), 1, 1, 1) * x.shape[-1]
        return head(net, net.conv(x) * net.kept[:1])

    model = Net(remembering).eval()
    model.kept = None
    steps = trace(model, images(2))
    assert not steps.constants
    assert model.kept is None
    torch.testing.assert_close(steps.run(images(3)), model(images(3)))


def test_a_lazy_network_is_refused_and_untouched():
    model = nn.Sequential(nn.LazyConv2d(8, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4)).eval()
    with pytest.raises(TracingError, match=r"no weights yet at 0\.weight.*run it once on a batch"):
        record(model, (images(),))
    assert type(model[0]) is nn.LazyConv2d
    assert model(images()).shape == (2, 4)
