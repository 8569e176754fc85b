"""Tracing: the graph computes what the network computes, on any batch, or says why it cannot."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from channelscope.errors import InputError, TracingError
from channelscope.network.edits import edit
from channelscope.network.graph import trace
from channelscope.network.module_state import eval_mode
from networks import NARROW, built


def images(n: int, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", NARROW)
def test_the_graph_is_the_network_on_other_images_and_batches(name):
    model, shape = built(name)
    graph = trace(model, images(1, shape))
    for n in (1, 3):
        with torch.no_grad():
            expected = model(images(n, shape, seed=n))
            torch.testing.assert_close(graph.run(images(n, shape, seed=n)), expected)
            torch.testing.assert_close(graph.run(images(n, shape, seed=n), out_of_place=True), expected)


@pytest.mark.parametrize("name", NARROW)
def test_tracing_leaves_no_trace(name):
    model, shape = built(name)
    model.train()
    state = copy.deepcopy(model.state_dict())
    attributes = {path: set(vars(part)) for path, part in model.named_modules()}
    trace(model, images(2, shape))
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert {path: set(vars(part)) for path, part in model.named_modules()} == attributes
    assert all(part.training for part in model.modules())


class Net(nn.Module):
    """A small network whose forward pass is given."""

    def __init__(self, forward):
        super().__init__()
        self.conv, self.relu, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Linear(4, 3)
        self.scale = nn.Parameter(torch.tensor([0.5, 1.0, 2.0, 4.0]).view(4, 1, 1))
        self.way = forward

    def forward(self, x):
        return self.way(self, x)


def traced(forward):
    torch.manual_seed(0)
    model = Net(forward).eval()
    return model, trace(model, images(1, (3, 6, 6)))


def shape_branch(net, x):
    y = net.conv(x)
    if y.shape[-1] > 3 and len(y) > 0:
        y = F.max_pool2d(y, 2)
    return net.fc(y.mean((2, 3)))


def batch_view(net, x):
    return net.fc(net.conv(x).view(x.size(0), 4, -1).mean(-1))


def in_place(net, x):
    y = net.conv(x)
    y += 1
    y.mul_(2)
    return net.fc(net.relu(y).mean((2, 3)))


def attribute(net, x):
    return net.fc((net.conv(x) * net.scale).mean((2, 3)))


def unpacked(net, x):
    one, two = net.conv(x).chunk(2, 1)
    batch, _, high, wide = x.shape
    return net.fc(torch.cat([one, two], 1).reshape(batch, 4, high * wide).mean(2))


def constant(net, x):
    return net.fc((net.conv(x) + torch.linspace(0, 1, 6)).mean((2, 3)))


def functional(net, x):
    return F.linear(F.relu(F.conv2d(x, net.conv.weight, padding=1), inplace=True).mean((2, 3)), net.fc.weight)


def loop(net, x):
    for factor in range(3):
        x = x + factor * x.mean()
    return net.fc(net.conv(x).mean((2, 3)))


def in_place_aside(net, x):
    """Later uses of a tensor see what was done to it, whatever the result is called."""
    y = net.conv(x)
    z = net.relu(y)
    F.relu(y.sub_(0.1), inplace=True)
    torch.relu_(y)
    return net.fc((y + z).mean((2, 3)))


def through_a_view(net, x):
    y = net.conv(x)
    flat = y.flatten(2)
    y[:, :2].mul_(0)
    y.chunk(2, 1)[1].add_(1)
    flat.relu_()
    return net.fc((y + flat.view_as(y)).mean((2, 3)))


def lengths(net, x):
    y = net.conv(x)
    return net.fc(y.reshape(len(y), 4, -1).mean(2))


def numbers_that_python_made(net, x):
    y = net.conv(x)[: int(x.shape[0])]
    return net.fc(y.reshape(2 * int(y.size(0)), 2, -1).mean(2).reshape(int(x.shape[0]), 4))


FOLLOWED = [
    lengths,
    numbers_that_python_made,
    shape_branch,
    batch_view,
    in_place,
    in_place_aside,
    through_a_view,
    attribute,
    unpacked,
    constant,
    functional,
    loop,
]


@pytest.mark.parametrize("forward", FOLLOWED, ids=lambda forward: forward.__name__)
def test_what_can_be_followed(forward):
    model, graph = traced(forward)
    for n in (1, 2, 5):
        with torch.no_grad():
            expected = model(images(n, (3, 6, 6), n))
            torch.testing.assert_close(graph.run(images(n, (3, 6, 6), n)), expected)
            torch.testing.assert_close(graph.run(images(n, (3, 6, 6), n), out_of_place=True), expected)


def value_branch(net, x):
    return net.fc(net.conv(x if x.mean() > 0 else -x).mean((2, 3)))


def value_item(net, x):
    return net.fc(net.conv(x)[:, :, : int(x.abs().max().item()) + 1].mean((2, 3)))


def value_index(net, x):
    return net.fc(net.conv(x).mean((2, 3)))[: int(x.abs().max())]


@pytest.mark.parametrize("forward", [value_branch, value_item, value_index], ids=lambda forward: forward.__name__)
def test_what_depends_on_pixels_is_refused_with_its_line(forward):
    with pytest.raises(TracingError, match=rf"test_graph\.py:{forward.__code__.co_firstlineno + 1} \({forward.__name__}\)"):
        traced(forward)


def batch_dependent(net, x):
    return net.fc(net.conv(x).mean((2, 3))) * (2.0 if x.shape[0] > 1 else 1.0)


def test_what_depends_on_the_batch_size_is_refused_with_its_line():
    with pytest.raises(TracingError, match=r"at .*test_graph\.py:\d+ \(batch_dependent\): its forward pass depends on the batch size"):
        traced(batch_dependent)


def half_of_them(net, x):
    y = net.conv(x).mean((2, 3))
    return net.fc(y[: int(x.shape[0]) // 2 + 1])


def each_of_them(net, x):
    return torch.stack([net.fc(net.conv(image[None]).mean((2, 3)))[0] for image in x])


@pytest.mark.parametrize("forward", [half_of_them, each_of_them], ids=lambda forward: forward.__name__)
def test_numbers_and_steps_that_change_with_the_number_of_images_are_refused_with_their_line(forward):
    with pytest.raises(TracingError, match=rf"fails on another batch size at .*test_graph\.py:\d+ \({forward.__name__}\): "):
        traced(forward)


def noisy(net, x):
    return net.fc(F.dropout(net.conv(x), 0.5).mean((2, 3)))


def test_a_random_network_is_refused_with_its_line():
    with pytest.raises(TracingError, match=r"output is random, .*test_graph\.py:\d+ \(noisy\): give F.dropout training=self.training"):
        traced(noisy)


def test_a_lazy_network_is_refused_and_can_still_be_used():
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten(), nn.LazyLinear(2))
    with pytest.raises(TracingError, match=r"^the network has no weights yet at 0\.weight, 0\.bias, 2\.weight"):
        trace(model, images(1, (3, 6, 6)))
    assert model(images(2, (3, 6, 6))).shape == (2, 2)
    assert len(trace(model, images(1, (3, 6, 6))).nodes) == 5


def unused_noise(net, x):
    y = net.conv(x)
    torch.rand(3)
    return net.fc(y.mean((2, 3)))


def test_random_numbers_that_reach_no_output_are_no_matter():
    model, graph = traced(unused_noise)
    torch.testing.assert_close(graph.run(images(2, (3, 6, 6))), model(images(2, (3, 6, 6))))


def test_an_error_without_a_message_is_a_sentence():
    def bare(net, x):
        raise AssertionError

    with pytest.raises(InputError, match=r"cannot run on images of shape 3×6×6 \(AssertionError, .*test_graph.py:\d+\)"):
        traced(bare)


def test_the_image_compared_on_is_another_than_those_recorded():
    def first(net, x):
        return net.fc(net.conv(x).mean((2, 3)) + torch.from_numpy(x.detach().clone().numpy()).mean())

    with pytest.raises(TracingError, match="values of a tensor"):
        traced(first)
    seen = []

    def remembering(net, x):
        seen.append(x.clone())
        return net.fc(net.conv(x).mean((2, 3)))

    traced(remembering)
    compared, recorded = seen
    assert len(compared) == 1
    assert not any(torch.equal(compared[0], image) for image in recorded)


def through_other_axes(net, x):
    y = net.conv(x)
    y.permute(0, 2, 3, 1).mul_(2)
    return net.fc(y.mean((2, 3)))


def test_a_change_that_no_step_says_is_refused():
    with pytest.raises(TracingError, match=r"test_graph\.py:\d+ \(through_other_axes\): the pass changes a tensor through a view"):
        traced(through_other_axes)


def test_a_network_that_cannot_take_the_images():
    model, _ = traced(batch_view)
    with pytest.raises(InputError, match="cannot run on images of shape 5×6×6"):
        trace(model, images(1, (5, 6, 6)))


def test_a_run_starts_midway_and_ends_early():
    model, graph = traced(in_place)
    x = images(2, (3, 6, 6))
    with torch.no_grad():
        whole, middle = graph.run(x, outputs=("output", "conv"), out_of_place=True)
        torch.testing.assert_close(middle, model.conv(x))
        torch.testing.assert_close(graph.run(known={"conv": middle}, out_of_place=True), whole)
        torch.testing.assert_close(graph.run(known={"conv": middle}, out_of_place=True), whole)  # pure: the value given is as it was


def test_only_what_is_needed_runs():
    model, graph = traced(attribute)
    calls = []
    handle = model.fc.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        graph.run(images(1, (3, 6, 6)), outputs="conv")
        assert not calls
        graph.run(images(1, (3, 6, 6)))
    handle.remove()
    assert len(calls) == 1


def test_values_are_changed_and_watched_on_the_way():
    model, graph = traced(attribute)
    seen = []
    x = images(2, (3, 6, 6))
    with torch.no_grad():
        result = graph.run(x, hooks={"conv": lambda maps: maps * 0, "fc": lambda logits: seen.append(logits)})
    torch.testing.assert_close(result, model.fc.bias.expand(2, 3))
    assert len(seen) == 1


def test_unknown_steps_have_near_matches():
    _, graph = traced(attribute)
    with pytest.raises(InputError, match=r"no step is called conb; near matches: conv"):
        graph.run(images(1, (3, 6, 6)), outputs="conb")
    with pytest.raises(InputError, match=r"no step is called nothing"):
        graph.run(images(1, (3, 6, 6)), hooks={"nothing": lambda maps: None})
    with pytest.raises(InputError, match="needs an input named x"):
        graph.run()


def test_shapes_are_those_of_the_steps():
    _, graph = traced(shape_branch)
    assert graph.shapes["conv"][1:] == (4, 6, 6)
    assert graph.shapes["max_pool2d"][1:] == (4, 3, 3)
    assert graph.shapes["fc"][1:] == (3,)


def test_a_network_called_with_keywords_inside_an_edit():
    class Options(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x, y, features_only=False):
            return x if features_only else self.fc(x - y)

    model, x, y = Options().eval(), torch.randn(2, 3), torch.randn(2, 3)
    graph = trace(model, (x, y))
    with torch.no_grad(), edit(graph, {"fc": lambda value: value + 1}):
        torch.testing.assert_close(model(y=y, x=x), model.fc(x - y) + 1)
        torch.testing.assert_close(model(x, y, features_only=False), model.fc(x - y) + 1)
        with pytest.raises(InputError, match="traced with features_only=False, received features_only=True"):
            model(x, y, features_only=True)


def test_two_inputs_and_defaults():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(2, 4)

        def forward(self, x, y, gain=2.0):
            return (self.a(x) + self.b(y)) * gain

    model = Two().eval()
    graph = trace(model, (torch.randn(1, 3), torch.randn(1, 2)))
    x, y = torch.randn(5, 3), torch.randn(5, 2)
    torch.testing.assert_close(graph.run(x, y), model(x, y))


def test_evaluating_gives_each_module_its_own_mode_back():
    model = nn.Sequential(nn.BatchNorm2d(2), nn.Dropout(), nn.ReLU())
    model[1].eval()
    with eval_mode(model):
        assert not any(part.training for part in model.modules())
    assert [part.training for part in model] == [True, False, True]
    with pytest.raises(RuntimeError, match="cancelled"), eval_mode(model):
        raise RuntimeError("cancelled")
    assert [part.training for part in model] == [True, False, True]
