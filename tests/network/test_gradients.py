"""Gradients of the traced network are the network's own, or it is refused."""

import pytest
import torch
from torch import nn

from channelscope import scores
from channelscope.errors import TracingError
from channelscope.network.sites import sites
from channelscope.profiling.collect import collect
from channelscope.profiling.collector import check_gradients
from networks import NARROW, built

IMAGES, LABELS = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3


class Straight(torch.autograd.Function):
    """Rounds, and lets gradients through as they are."""

    @staticmethod
    def forward(ctx, x):
        return torch.round(x * 4) / 4

    @staticmethod
    def backward(ctx, slope):
        return slope


class Scaled(torch.autograd.Function):
    """Changes nothing, and reverses gradients."""

    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, slope):
        return -slope


def unwatched(x):
    with torch.no_grad():
        return x * 2


def detached(x):
    return x + (torch.round(x * 4) / 4 - x).detach()


class Net(nn.Module):
    """Two convolutions with a step of choice between them."""

    def __init__(self, step):
        super().__init__()
        self.step, self.a, self.b, self.c = step, nn.Conv2d(3, 5, 3), nn.Conv2d(5, 4, 3), nn.Linear(4, 3)

    def forward(self, x):
        x = self.step(torch.relu_(self.a(x)))
        return self.c(torch.relu(self.b(x)).mean((2, 3)))


def made(step) -> nn.Module:
    torch.manual_seed(0)
    return Net(step).eval()


def hooked(x):
    x = x * 1
    if x.requires_grad:
        x.register_hook(lambda slope: -slope)
    return x


def test_gradients_that_tracing_would_change_are_refused():
    with pytest.raises(TracingError, match=r"at a: expected the network's own gradients.* \(register_hook\).*sensitivity=True"):
        collect(made(hooked), [(IMAGES, LABELS)], sensitivity=True)
    assert set(collect(made(hooked), [(IMAGES, LABELS)]).weight_norms) == {"a", "b"}


STEPS = {"straight": Straight.apply, "reversed": Scaled.apply, "no_grad": unwatched, "detached": detached}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_gradients_are_the_networks_own(step):
    model = made(step)
    ranking = scores.taylor_weight(collect(model, [(IMAGES, LABELS)], sensitivity=True))
    nn.functional.cross_entropy(model(IMAGES), LABELS).backward()
    for name in ("a", "b"):
        weight = model.get_submodule(name).weight
        slope = torch.zeros_like(weight) if weight.grad is None else weight.grad
        own = (weight * slope).sum((1, 2, 3)).abs().detach().double().numpy()
        assert ranking[name] == pytest.approx(own, rel=1e-4, abs=1e-7)


def test_gradients_that_the_graph_changes_are_refused():
    found, images = sites(made(Straight.apply), IMAGES), IMAGES[:2]
    run = found.graph.run
    found.graph.run = lambda *inputs, **options: run(*inputs, **options).detach() + run(inputs[0].detach() * 2, out_of_place=True)
    with pytest.raises(TracingError, match=r"at b: expected the network's own gradients.*sensitivity=True"):
        check_gradients(found, images)


@pytest.mark.parametrize("name", NARROW)
def test_ordinary_networks_pass(name):
    model, shape = built(name)
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    check_gradients(sites(model, images), images)


def test_the_check_leaves_no_trace():
    model = made(detached).train()
    hooks = [len(module._forward_hooks) for module in model.modules()]
    check_gradients(sites(model, IMAGES), IMAGES)
    assert model.training
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert all(weight.grad is None for weight in model.parameters())
