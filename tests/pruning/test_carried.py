"""Carried: activations move forward once, in step with the layers changed on the way, and memory holds one place."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from channelscope.network.graph import ActivationCache, trace

IMAGES = torch.randn(10, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Branched(nn.Module):
    """A stem that two branches read, one of them twice, and an in-place activation that must not spoil it."""

    def __init__(self):
        super().__init__()
        self.stem, self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.act, self.head = nn.ReLU(inplace=True), nn.Linear(4, 2)

    def forward(self, x):
        x = self.stem(x)
        y = self.left(self.act(x))
        z = self.right(x) + y
        return self.head(F.relu_(z + x).mean((2, 3)))


def carried(parts=(4, 6)):
    torch.manual_seed(0)
    model = Branched().eval().requires_grad_(False)
    graph = trace(model, IMAGES[:1])
    return model, graph, ActivationCache(graph, [(part,) for part in IMAGES.split(list(parts))])


@torch.no_grad()
@pytest.mark.parametrize("parts", [(10,), (4, 6), (1,) * 10])
def test_the_end_is_what_the_network_gives(parts):
    model, graph, images = carried(parts)
    assert images.images == 10
    last = graph.steps.output_node().all_input_nodes[0].name
    torch.testing.assert_close(torch.cat(images(last)), model(IMAGES))


@torch.no_grad()
def test_every_step_on_the_way_is_what_a_plain_run_gives():
    _, graph, images = carried()
    for node in graph.steps.nodes:
        if node.op in ("call_module", "call_function", "call_method"):
            expected = graph.run(IMAGES, outputs=node.name, out_of_place=True)
            torch.testing.assert_close(torch.cat(images(node.name)), expected)


@torch.no_grad()
def test_no_step_is_run_twice():
    model, graph, images = carried()
    calls: dict[str, int] = {}
    for name, module in model.named_modules():
        if name:
            module.register_forward_hook(lambda module, inputs, output, name=name: calls.update({name: calls.get(name, 0) + 1}))
    for node in list(graph.steps.nodes)[1:-1]:
        images(node.name)
        images(node.name)
    assert calls == dict.fromkeys(("stem", "left", "right", "act", "head"), 2)


@torch.no_grad()
def test_a_layer_changed_on_the_way_acts_on_what_follows_and_on_nothing_before():
    model, _, images = carried()
    before = [value.clone() for value in images("stem")]
    model.left.weight.zero_()
    model.left.bias.fill_(3.0)
    assert all(torch.equal(value, old) for value, old in zip(images("stem"), before, strict=True))
    assert all(bool((value == 3).all()) for value in images("left"))


@torch.no_grad()
def test_what_nobody_needs_any_more_is_forgotten_unless_it_is_held():
    _, graph, images = carried()
    images.pin("left")
    last = graph.steps.output_node().all_input_nodes[0].name
    images("left")
    images(last)
    assert set(images.now[0]) == {"left", last}
    images.unpin("left")
    assert set(images.now[0]) == {last}
