"""Who feeds whom is known for chains, sums, concatenations, shuffles and gates: checked by changing one channel at a time."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from channelscope.circuits.feature import locate_feature
from channelscope.data.torchvision_cpu import load_torchvision
from channelscope.network.channel_graph import KernelEdges, Merge, channels_behind
from channelscope.network.channel_tracing import ChannelTracer, channel_graph
from channelscope.network.graph import trace
from channelscope.zoo.models import build as published
from networks import built
from pencil_circuits import LAST, NETWORKS, network, pictures


def step_of(graph, layer: str) -> str:
    return next(node.name for node in graph.steps.nodes if node.target == layer)


def influences(graph, source: str, sink: str) -> np.ndarray:
    """Which output channels of one layer change the input channels of another when no other layer passes anything on."""
    between = [node.name for node in graph.steps.nodes if isinstance(graph.modules.get(str(node.target)), nn.Conv2d | nn.Linear)]
    inputs = graph.nodes[sink].all_input_nodes[0].name
    found = []
    channels = graph.shapes[source][1]
    for channel in [None, *range(channels)]:
        noise = torch.Generator().manual_seed(0)

        def fresh(value, noise=noise):
            return torch.rand(value.shape, generator=noise) + 1

        def changed(value, noise=noise, channel=channel):
            value = torch.rand(value.shape, generator=noise) + 1
            if channel is not None:
                value[:, channel] += 1
            return value

        after = {name: changed if name == source else fresh for name in between}
        maps = graph.run(pictures(1), hooks=after, outputs=inputs, out_of_place=True)
        found.append(maps[0].flatten(1).sum(1) if maps.dim() > 2 else maps[0])
    return np.stack([(row != found[0]).numpy() for row in found[1:]], axis=1)


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_direct_wires_are_what_changing_a_channel_shows(name):
    graph = trace(network(name), pictures(2))
    wiring = channel_graph(graph, step_of(graph, LAST[name]))
    calls = list(wiring.calls)
    nothing = {call.layer: torch.zeros(call.sources.shape, dtype=torch.bool) for call in calls}
    for early, late in [(a, b) for n, b in enumerate(calls) for a in calls[:n]]:
        truth = influences(graph, early.step, late.step)
        groups = graph.modules[late.layer].groups if isinstance(graph.modules[late.layer], nn.Conv2d) else 1
        outputs, inputs = late.sources.shape
        for channel in range(groups * inputs):
            group, column = divmod(channel, inputs)
            need = wiring.ancestors(nothing, late.sources[group * (outputs // groups), column : column + 1])
            assert (need[early.outputs] >= truth[channel]).all()
            if name != "gated":  # a normalization over channels is taken to mix everything
                assert (need[early.outputs] == truth[channel]).all()


def test_a_channel_is_reached_by_marked_kernels_from_reached_channels_only():
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(), nn.Conv2d(3, 2, 1)).eval()
    graph = trace(model, torch.zeros(2, 2, 4, 4))
    wiring = channel_graph(graph, step_of(graph, "2"))
    every = {"0": torch.ones(3, 2, dtype=torch.bool), "2": torch.ones(2, 3, dtype=torch.bool)}
    assert wiring.reached(every)[1:].all(), "all but the node that stands for none"
    some = {
        "0": torch.tensor([[False, True], [False, False], [False, False]]),
        "2": torch.tensor([[True, False, False], [False, True, True]]),
    }
    first, second = (part.outputs for part in wiring.operations if isinstance(part, KernelEdges))
    found = wiring.reached(some)
    assert found[first].tolist() == [True, False, False]
    assert found[second].tolist() == [True, False]
    assert not wiring.reached({"0": every["0"], "2": torch.zeros(2, 3, dtype=torch.bool)})[second].any()


def test_relevant_kernels_of_alexnet():
    model = published("alexnet", 10, 3, 96)
    graph = trace(model, torch.zeros(1, 3, 96, 96))
    for layer, kernels in (("features.6", 12_672), ("features.8", 86_592), ("features.10", 184_768)):
        target = locate_feature(graph, f"{layer}:5")
        assert target.relevant_count == kernels
        assert target.shortest_path == len(target.layers)
    assert target.layers == ("features.0", "features.3", "features.6", "features.8", "features.10")
    assert not target.relevant["features.10"][4].any()
    assert target.relevant["features.10"][5].all()


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "squeezenet1_1", "densenet121", "googlenet", "regnety_002", "convnext_tiny"])
def test_published_networks_are_wired_from_image_to_logit(name):
    model, shape = built(name)
    target = locate_feature(model, "logit:3", torch.zeros(2, *shape))
    assert target.relevant[target.layers[0]].all()
    assert int(target.relevant[target.layers[-1]].any(1).sum()) == 1
    assert not target.channel_graph.opaque
    assert target.shortest_path >= 2


def test_a_residual_path_is_shorter_than_the_network():
    target = locate_feature(network("residual"), "last:0", pictures(1))
    assert target.shortest_path == 3  # stem, projected shortcut, last
    assert len(target.layers) == 7
    assert locate_feature(network("inception"), "last:0", pictures(1)).shortest_path == 2  # stem, pooled branch, last


def test_flattening_gives_every_pixel_its_channel():
    graph = trace(network("chain"), pictures(2))
    wiring = channel_graph(graph, step_of(graph, "head"))
    head, conv = list(wiring.calls)[-1], list(wiring.calls)[-2]
    assert (head.sources == np.repeat(conv.outputs, 4)).all()


def test_the_first_channels_of_concatenations_and_chunks():
    graph = trace(network("dense"), pictures(2))
    wiring = channel_graph(graph, step_of(graph, "narrow"))
    stem, one, two, narrow = wiring.calls
    assert (narrow.sources[0] == np.concatenate([stem.outputs, one.outputs, two.outputs])).all()
    graph = trace(network("gated"), pictures(2))
    wiring = channel_graph(graph, step_of(graph, "last"))
    stem, _, excite, left, right, _ = wiring.calls
    nothing = {call.layer: torch.zeros(call.sources.shape, dtype=torch.bool) for call in wiring.calls}
    need = wiring.ancestors(nothing, left.sources[0])
    assert need[stem.outputs].tolist() == need[excite.outputs].tolist() == [True, True, False, False]
    need = wiring.ancestors(nothing, right.sources[0])
    assert need[stem.outputs].tolist() == [False, False, True, True]


def test_means_are_followed_by_whatever_name_of_their_axes():
    class Mean(nn.Module):
        def __init__(self, axes):
            super().__init__()
            self.a, self.b, self.axes = nn.Conv2d(2, 3, 1), nn.Conv2d(3, 2, 1), axes

        def forward(self, x):
            return self.b(self.a(x).mean(**self.axes))

    for axes in ({"dim": (2, 3), "keepdim": True}, {"axis": (2, 3), "keepdims": True}, {"axis": (2, 3), "keepdim": True}):
        wiring = channel_graph(trace(Mean(axes), pictures(1)), "b")
        first, last = wiring.calls
        assert (last.sources == first.outputs).all()


def test_padding_in_space_and_over_channels():
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(2, 3, 1), nn.Conv2d(5, 1, 1)

        def forward(self, x):
            x = nn.functional.pad(self.a(x), (1, 0, 2, 0), value=-7.0)
            return self.b(nn.functional.pad(x, (0, 0, 0, 0, 1, 1)))

    target = locate_feature(Padded(), "b:0", pictures(1))
    assert target.relevant["b"].tolist() == [[False, True, True, True, False]]  # the first and last channel are constants
    assert target.relevant_count == 6 + 3


def test_a_layer_used_twice_counts_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 1, 1)

        def forward(self, x):
            return self.b(torch.relu(self.a(torch.relu(self.a(x)))))

    target = locate_feature(Twice(), "b:0", pictures(1))
    assert target.layers == ("a", "b")
    assert len(list(target.channel_graph.calls)) == 3
    assert target.shortest_path == 3
    assert target.relevant_count == 6


def test_layers_without_kernels_are_named():
    class Transposed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.up, self.b = nn.Conv2d(2, 3, 1), nn.ConvTranspose2d(3, 4, 2, 2), nn.Conv2d(4, 1, 1)

        def forward(self, x):
            return self.b(self.up(self.a(x)))

    target = locate_feature(Transposed(), "b:0", pictures(1))
    assert "ConvTranspose2d" in target.channel_graph.opaque["up"]
    assert target.relevant_count == 6 + 4


def test_what_the_pass_makes_of_nothing_is_no_channel():
    class Ramp(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.conv(x) + torch.linspace(1, 40, 6)

    wiring = channel_graph(trace(Ramp(), torch.zeros(1, 3, 8, 8)), "add")
    assert np.array_equal(wiring.channel_nodes["add"], wiring.channel_nodes["conv"])


def test_channels_behind_sums_and_mixtures_by_hand():
    total = Merge("add", np.array([[1, 4], [2, 5]]), np.array([6, 7]))
    mixed = Merge("mix", np.array([[6, 7, 3]]), np.array([8]))
    again = Merge("add_1", np.array([[8, 6], [9, 5], [5, 4]]), np.array([10, 11, 12]))
    marks = channels_behind([total, mixed, again], np.array([1, 2, 3]), np.array([6, 7, 8, 10, 11, 12, 3]))
    assert marks.int().tolist() == [[1, 0, 1, 1, 0, 0, 0], [0, 1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 0, 0, 1]]
    same = channels_behind([total], np.array([1, 1, 2]), np.array([6, 7]))
    assert same.int().tolist() == [[1, 0], [1, 0], [0, 1]]
    layer = KernelEdges("conv", "conv", np.array([[6]]), np.array([13]))
    assert not channels_behind([total, layer], np.array([1, 2]), np.array([13])).any()


def test_nodes_behind_one_another_are_joined_row_by_row():
    tracer = ChannelTracer(trace(nn.Conv2d(3, 2, 1), torch.zeros(1, 3, 4, 4)), [])
    source = np.random.default_rng(0)
    rows = source.integers(0, 4, (60, 3)) * source.integers(0, 2, (60, 3))
    start, met = tracer.size, [sorted(set(row) - {0}) for row in rows.tolist()]
    joined = tracer.one_each(SimpleNamespace(name="concat"), torch.from_numpy(rows).double()).tolist()
    several = [place for place, nodes in enumerate(met) if len(nodes) > 1]
    assert [joined[place] for place in several] == list(range(start, tracer.size)), "one new node for each, in the rows' order"
    assert all(joined[place] == sum(nodes) for place, nodes in enumerate(met) if len(nodes) < 2)
    members = {node: one.tolist() for part in tracer.parts for node, one in zip(part.outputs, part.members, strict=True)}
    assert members == {joined[place]: met[place] for place in several}
    assert len(tracer.parts) == len({len(met[place]) for place in several}), "one operation for each number of nodes that meet"


def test_a_class_token_makes_few_operations():
    options = {"num_layers": 3, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 48}
    model = load_torchvision().models.VisionTransformer(16, 8, **options).eval()
    graph = trace(model, torch.zeros(1, 3, 16, 16))
    nodes = [node for node in graph.steps.nodes if node.op != "output"]
    assert len(ChannelTracer(graph, nodes, own_layers=True, structural=True).parts) < len(nodes)


class Heads(nn.Module):
    """Two heads of attention over positions, by one function or in steps."""

    def __init__(self, whole: bool):
        super().__init__()
        self.q, self.k, self.v, self.last, self.whole = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 2), whole

    def forward(self, x):
        q, k, v = (layer(x.flatten(2).mT).unflatten(2, (2, 2)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v) if self.whole else (q @ k.mT).softmax(-1) @ v
        return self.last(mixed.transpose(1, 2).flatten(2)).mean(1)


@pytest.mark.parametrize("whole", [True, False])
def test_heads_of_attention_stay_apart(whole):
    wiring = channel_graph(trace(Heads(whole).eval(), torch.zeros(1, 3, 4, 4)), "last")
    q, k, v, last = wiring.calls
    heads = np.kron(np.eye(2, dtype=bool), np.ones((2, 2), dtype=bool))
    for layer, expected in ((q, heads), (k, heads), (v, np.eye(4, dtype=bool))):
        assert np.array_equal(channels_behind(wiring.operations, layer.outputs, last.sources[0]).numpy(), expected)


def test_a_softmax_over_numbers_without_an_axis_of_images():
    class Weighted(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 3, 1)

        def forward(self, x):
            y = self.a(x)
            return self.b(y * y.mean((0, 2, 3)).softmax(0).view(1, 2, 1, 1))

    graph = trace(Weighted().eval(), torch.zeros(1, 1, 2, 2))
    assert channel_graph(graph, "b").layers == ("a", "b")
