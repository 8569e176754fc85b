"""What a position sees, against gradients of networks in which nothing is ever cut off."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from channelscope.network.graph import trace
from channelscope.network.patches import AxisReceptiveField, receptive_fields
from pencil_circuits import network


def seen(model: nn.Module, size: int, row: int, column: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """First row and column of the image with a gradient, and the ones after the last; all weights made positive first."""
    for parameter in model.parameters():
        parameter.data = parameter.data.abs() + 0.1
    image = torch.rand(1, 2, size, size, dtype=torch.float64, requires_grad=True)
    model.double()(image)[0, :, row, column].sum().backward()
    touched = image.grad[0].abs().sum(0) > 0
    rows, columns = touched.any(1).nonzero().flatten().tolist(), touched.any(0).nonzero().flatten().tolist()
    return (rows[0], rows[-1] + 1), (columns[0], columns[-1] + 1)


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 2, (3, 5), stride=(2, 1), padding=(1, 0)), nn.Conv2d(2, 2, 3, dilation=2, padding="same")

    def forward(self, x):
        x = F.avg_pool2d(torch.relu(self.a(x)), 2)
        return F.avg_pool2d(self.b(x), 3, stride=1, padding=1)


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 5, padding=2), nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x):
        return torch.cat([self.a(x) + self.c(x), self.b(x)], 1)


CHAINS = {
    "conv": lambda: nn.Sequential(nn.Conv2d(2, 3, 3, padding=1)),
    "strides": lambda: nn.Sequential(nn.Conv2d(2, 3, 3, 2, 1), nn.ReLU(), nn.AvgPool2d(3, 2), nn.Conv2d(3, 2, 2, dilation=2)),
    "depthwise": lambda: nn.Sequential(nn.Conv2d(2, 4, 3, 1, 1), nn.BatchNorm2d(4).eval(), nn.Conv2d(4, 4, 5, 1, 2, groups=4)),
    "functional": Functional,
    "branches": Branches,
}


@pytest.mark.parametrize("place", [(0, 0), (2, 1), (2, 2)])
@pytest.mark.parametrize("name", CHAINS)
def test_fields_are_where_gradients_reach(name, place):
    torch.manual_seed(0)
    model = CHAINS[name]().eval()
    graph = trace(model, torch.zeros(1, 2, 24, 24))
    last = next(node for node in graph.steps.nodes if node.op == "output").args[0].name
    rows, columns = receptive_fields(graph, last)[last]
    found = rows.pixels(place[0], 24), columns.pixels(place[1], 24)
    exact = seen(model, 24, *place)
    assert found == exact


def test_after_a_head_the_whole_image_is_seen():
    graph = trace(network("chain"), torch.zeros(1, 2, 8, 8))
    found = receptive_fields(graph, "head")
    assert found["head"] is None
    assert found["flat"] is None
    assert found["c"] == (AxisReceptiveField(4, -2, 4), AxisReceptiveField(4, -2, 4))
    gated = trace(network("gated"), torch.zeros(1, 2, 8, 8))
    last = [node.name for node in gated.steps.nodes][-2]
    assert receptive_fields(gated, last)[last] is None  # squeeze and excitation looks everywhere


class Pooled(nn.Module):
    def __init__(self, pool):
        super().__init__()
        self.pool = pool

    def forward(self, x):
        return self.pool(x)


@pytest.mark.parametrize(
    ("pool", "field"),
    [
        (lambda x: F.avg_pool2d(x, 3, 1, 1, False), AxisReceptiveField(1, -1, 1)),  # the fifth argument is ceil_mode
        (lambda x: F.max_pool2d(x, 3, 2, 1, 2), AxisReceptiveField(2, -1, 3)),
        (lambda x: F.lp_pool2d(x, 2, 3, 2), AxisReceptiveField(2, 0, 2)),
    ],
)
def test_windows_of_functions(pool, field):
    graph = trace(Pooled(pool), torch.rand(1, 2, 9, 9))
    last = [node.name for node in graph.steps.nodes][-2]
    assert receptive_fields(graph, last)[last] == (field, field)


@pytest.mark.parametrize("pool", [lambda x: F.adaptive_avg_pool2d(x, 3), lambda x: F.avg_pool2d(x, x.shape[-1] // 3)])
def test_windows_that_follow_the_images_are_not_known(pool):
    graph = trace(Pooled(pool), torch.rand(1, 2, 9, 9))
    last = [node.name for node in graph.steps.nodes][-2]
    assert receptive_fields(graph, last)[last] is None


@pytest.mark.parametrize(("norm", "known"), [(nn.InstanceNorm2d(2), False), (nn.GroupNorm(1, 2), False), (nn.BatchNorm2d(2), True)])
def test_a_norm_over_positions_sees_the_whole_image(norm, known):
    graph = trace(nn.Sequential(norm).eval(), torch.rand(1, 2, 9, 9))
    assert (receptive_fields(graph, "_0")["_0"] is not None) is known


def test_what_is_not_known_to_stay_in_place_sees_everything():
    graph = trace(nn.Conv2d(2, 3, 3, padding=1), torch.zeros(1, 2, 8, 8))  # a functional convolution
    last = [node.name for node in graph.steps.nodes][-2]
    assert receptive_fields(graph, last)[last] is None


class PerPosition(nn.LayerNorm):
    """A normalization over the channels of each position of (C, rows, columns)."""

    def forward(self, x):
        return F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    ("norm", "local"),
    [
        (nn.GroupNorm(2, 4), False),
        (nn.InstanceNorm2d(4), False),
        (nn.LayerNorm((4, 12, 12)), False),
        (nn.LayerNorm(12), False),
        (nn.InstanceNorm2d(4, track_running_stats=True), True),
        (nn.BatchNorm2d(4), True),
        (PerPosition(4), True),
    ],
    ids=["group", "instance", "layer", "rows", "instance with running statistics", "batch", "layer over channels"],
)
def test_normalizations_over_positions_see_the_whole_image(norm, local):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), norm, nn.Conv2d(4, 2, 3, padding=1)).eval()
    graph = trace(model, torch.zeros(1, 2, 12, 12))
    image = torch.randn(1, 2, 12, 12, requires_grad=True)
    model(image)[0, :, 6, 6].sum().backward()
    reached = int((image.grad[0].abs().sum(0) > 0).sum())
    last = next(node for node in graph.steps.nodes if node.op == "output").args[0].name
    found = receptive_fields(graph, last)[last]
    assert (found is not None) == local == (reached == 25)


def test_windows_stay_inside_the_image():
    reach = AxisReceptiveField().through(7, 2, 3, 1)
    assert reach == AxisReceptiveField(2, -3, 3)
    assert reach.pixels(0, 10) == (0, 4)
    assert reach.pixels(2, 10) == (1, 8)
    assert reach.pixels(4, 10) == (5, 10)
    assert reach.pixels(9, 10) == (9, 10)  # far outside, still a pixel
