"""Kernel scores: additive over images, and contributions of kernels against their slow twins and the gate identity."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import pencil_circuits as pencil
from channelscope.circuits import kernel_scores
from channelscope.circuits.circuit import Circuit
from channelscope.circuits.criteria import CRITERIA, GateTraining, score_kernels
from channelscope.circuits.feature import locate_feature
from channelscope.circuits.kernel_scores import (
    PATH_POINTS,
    GradientOptions,
    KernelScores,
    actgrad,
    gate_scores,
    layer_gradients,
    magnitude,
    snip,
    with_positions,
)
from channelscope.circuits.selection import top_k
from channelscope.errors import InputError, MismatchError, NumericError, SampleError, TracingError
from channelscope.network.graph import trace
from channelscope.network.patches import LayerKernels
from pencil_circuits import LAST, NETWORKS, network, pictures

DIRECT = ("gate", "actgrad", "snip")


def close(a: KernelScores, b: KernelScores, tolerance: float = 1e-6) -> None:
    a_flat, b_flat = a.flatten(), b.flatten()
    assert float((a_flat - b_flat).abs().max()) <= tolerance * float(a_flat.max())


@pytest.mark.parametrize("criterion", [*DIRECT, "force", "iterated_gate", "iterated_actgrad", "magnitude", "random"])
@pytest.mark.parametrize("name", ["residual", "gated"])
def test_no_criterion_depends_on_the_batch_size(criterion, name):
    images = pictures(9)
    target = locate_feature(network(name), f"{LAST[name]}:1", images)
    whole = score_kernels(target, images, criterion, keep=12)
    for size in (1, 4):
        parts = score_kernels(target, list(images.split(size)), criterion, keep=12)
        close(whole, parts)
        assert top_k(whole, 12) == top_k(parts, 12)


def test_gates_are_learned_alike_whatever_the_batches():
    images = pictures(6)
    target = locate_feature(network("chain"), "c:1", images)
    whole, parts = (score_kernels(target, each, "learned", keep=8, training=GateTraining(steps=5)) for each in (images, images.split(2)))
    assert torch.equal(whole.flatten(), parts.flatten())


@pytest.mark.parametrize("criterion", [*DIRECT, "force", "iterated_gate", "learned", "magnitude", "random"])
def test_kernels_can_be_scored_inside_a_circuit(criterion):
    """The same as scoring the network whose other kernels are gone; and what is gone scores nothing."""
    images = pictures(5)
    target = locate_feature(network("residual"), f"{LAST['residual']}:1", images)
    room = top_k(score_kernels(target, images, "random", seed=4), 0.6)
    few = GateTraining(steps=5)
    inside = score_kernels(target, images, criterion, keep=9, gradient=GradientOptions(inside=room), training=few)
    for layer in room:
        assert not bool(inside[layer][~room[layer]].any())
    if criterion in DIRECT:
        with target.ablated((~room).masks):
            there = score_kernels(target, images, criterion)
        for layer in room:
            assert torch.allclose(inside[layer][room[layer]], there[layer][room[layer]], rtol=1e-5, atol=1e-7)
    assert (top_k(inside, 9) & room) == top_k(inside, 9) or int((inside.flatten() > 0).sum()) < 9
    everything = score_kernels(target, images, criterion, keep=9, gradient=GradientOptions(inside=Circuit.full(target)), training=few)
    close(everything, score_kernels(target, images, criterion, keep=9, training=few))


@pytest.mark.parametrize("criterion", ["force", "iterated_gate"])
def test_rounds_begin_with_the_circuit_that_kernels_are_scored_inside(criterion, monkeypatch):
    """Half of the kernels: every round prunes among these, and the schedule does not spend its first rounds on the others."""
    images = pictures(3)
    target = locate_feature(network("chain"), "c:1", images)
    room = top_k(score_kernels(target, images), 0.5)
    sizes = []
    monkeypatch.setitem(score_kernels.__globals__, "top_k", lambda found, size: sizes.append(size) or top_k(found, size))
    found = score_kernels(target, images, criterion, keep=5, gradient=GradientOptions(inside=room))
    assert sizes == pencil.schedule(room.count, 5)
    assert found.inside == room
    assert top_k(found, 5) & room == top_k(found, 5)


def test_the_published_snip_does_depend_on_it():
    images = pictures(8)
    target = locate_feature(network("chain"), "c:1", images)
    assert not torch.allclose(
        score_kernels(target, images, "snip_batch").flatten(), score_kernels(target, images.split(2), "snip_batch").flatten(), rtol=0.01
    )
    close(score_kernels(target, images.split(1), "snip_batch"), score_kernels(target, images, "snip"))


@pytest.mark.parametrize("criterion", DIRECT)
def test_disjoint_images_add_up(criterion):
    images = pictures(7)
    target = locate_feature(network("dense"), "narrow:2@max", images)
    parts = score_kernels(target, images[:3], criterion) + score_kernels(target, images[3:], criterion)
    close(score_kernels(target, images, criterion), parts)
    assert parts.images == 7
    with pytest.raises(MismatchError, match="different features"):
        parts + score_kernels(target, images, "random")


@pytest.mark.parametrize("name", NETWORKS)
def test_the_whole_pass_is_the_pencil_twin(name):
    """Gate and SNIP of every layer from weight gradients of one image at a time, by autograd on the untraced network."""
    model, images = network(name), pictures(4)
    target = locate_feature(model, f"{LAST[name]}:1", images)

    def value(net, image):
        out = {}
        handle = net.get_submodule(LAST[name]).register_forward_hook(lambda _, __, y: out.update(y=y))
        net(image)
        handle.remove()
        return out["y"][:, 1].sum()

    found, twin = score_kernels(target, images, "snip"), score_kernels(target, images, "gate")
    for layer in target.layers:
        np.testing.assert_allclose(found[layer], pencil.snip(model, layer, value, images), rtol=2e-4, atol=1e-6)
        weight = model.get_parameter(f"{layer}.weight")
        products = [weight.detach() * torch.autograd.grad(value(model, images[b : b + 1]), weight)[0] for b in range(4)]
        effects = torch.stack([p.flatten(2).sum(2) if p.dim() > 2 else p for p in products]).double()
        np.testing.assert_allclose(twin[layer], effects.abs().sum(0), rtol=2e-4, atol=1e-5)
        np.testing.assert_allclose(twin.signed_values[layer], effects.sum(0), rtol=2e-4, atol=1e-5)


def test_actgrad_of_the_whole_pass():
    model, images = network("chain").double(), pictures(3).double()
    target = locate_feature(model, "c:0@max", images)
    found = score_kernels(target, images, "actgrad")
    for layer, x, g in layer_gradients(target, images, target.selected_positions(images)):
        conv = model.get_submodule(layer)
        maps = pencil.contribution_maps(x.numpy(), conv.weight.detach().numpy(), conv.stride, conv.dilation, conv.padding, conv.groups)
        np.testing.assert_allclose(found[layer], pencil.actgrad(maps, g.numpy()), rtol=1e-6, atol=1e-12)


def test_force_is_snip_on_the_mask():
    """The last round by autograd on the mask itself: |w · dJ/d(w·m)| of kernels that are masked is not zero."""
    model, images = network("chain"), pictures(4)
    target = locate_feature(model, "c:1", images)
    kept = target.relevant_count // 3
    found = score_kernels(target, images, "force", keep=kept)
    marks = target.relevant
    for size in pencil.schedule(target.relevant_count, kept)[:-1]:
        marks = top_k(on_mask(target, images, marks), size).masks
    close(found, on_mask(target, images, marks), 1e-5)
    masked = ~torch.cat([marks[layer][target.relevant[layer]] for layer in target.layers])
    assert float(found.flatten()[masked].max()) > 0


def on_mask(target, images, marks) -> KernelScores:
    values = {layer: torch.zeros(relevant.shape, dtype=torch.float64) for layer, relevant in target.relevant.items()}
    own = target.original_weights()
    for b in range(len(images)):
        held = {n: (w * (marks[n] | ~target.relevant[n])[:, :, None, None]).requires_grad_() for n, w in own.items()}
        grads = torch.autograd.grad(target.feature_map(images[b : b + 1], held).sum(), list(held.values()))
        for (layer, weight), grad in zip(own.items(), grads, strict=True):
            values[layer] += (weight * grad).abs().mean((2, 3)).double() * target.relevant[layer]
    return KernelScores(target, "twin", values, len(images))


def test_kernels_that_are_not_relevant_score_zero():
    images = pictures(3)
    target = locate_feature(network("inception"), "three:0", images)
    for criterion in CRITERIA:
        found = score_kernels(target, images, criterion, keep=5, training=GateTraining(steps=3))
        for layer, marks in target.relevant.items():
            assert not found[layer][~marks].any()
        assert found.flatten().numel() == target.relevant_count
        assert found.flatten().min() >= 0


def test_positions_and_their_reduction():
    images = pictures(4)
    model = network("residual")
    graph = trace(model, images)
    everywhere = score_kernels(locate_feature(graph, "last:1"), images)
    mean = score_kernels(locate_feature(graph, "last:1"), images, gradient=GradientOptions("mean"))
    close(everywhere, KernelScores(everywhere.feature, "gate", {n: v * 4 for n, v in mean.values.items()}, 4))
    units = [score_kernels(locate_feature(graph, f"last:1@{r},{c}"), images) for r in range(2) for c in range(2)]
    summed = sum(unit.signed_values["stem"] for unit in units)
    assert torch.allclose(everywhere.signed_values["stem"], summed, atol=1e-4)
    best = locate_feature(graph, "last:1@max")
    (ready,) = with_positions(best, [images])
    for image in range(4):
        place = ready[1][image].item()
        unit = score_kernels(locate_feature(graph, f"last:1@{place // 2},{place % 2}"), images[image : image + 1])
        one = score_kernels(best, images[image : image + 1])
        assert torch.allclose(unit.flatten(), one.flatten())


@pytest.mark.parametrize("path", ["gates", "inputs"])
def test_paths_average_the_gradient(path):
    """A square: the gradient grows along the path, so the average over it is half (inputs) of the gradient at its end."""

    class Square(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(2, 2, 1, bias=False), nn.Conv2d(2, 1, 1, bias=False)

        def forward(self, x):
            return self.b(self.a(x) ** 2)

    torch.manual_seed(0)
    images = pictures(3)
    target = locate_feature(Square(), "b:0", images)
    end, mean = score_kernels(target, images), score_kernels(target, images, gradient=GradientOptions(path=path))
    shares = (torch.arange(PATH_POINTS) + 0.5) / PATH_POINTS
    factors = {"inputs": (shares.mean(), torch.ones(())), "gates": ((shares**2).mean(), (shares**2).mean())}[path]
    for layer, factor in zip("ab", factors, strict=True):
        assert torch.allclose(mean[layer], end[layer] * factor.double(), rtol=1e-4)


@pytest.mark.parametrize("name", ["chain", "residual"])
def test_effects_along_a_path_of_gates_add_up_to_what_the_kernels_do(name):
    """Against the integral by autograd on the gates themselves; and its sum is J with all kernels less J with none."""
    model, images = network(name).double(), pictures(2).double()
    target = locate_feature(model, f"{LAST[name]}:1", images)
    found = score_kernels(target, images, gradient=GradientOptions(path="gates"))
    twins = [
        pencil.integrated_gates(
            lambda weights, image=image: target.feature_map(image[None], weights).sum(), target.original_weights(), PATH_POINTS
        )
        for image in images
    ]
    for layer, relevant in target.relevant.items():
        np.testing.assert_allclose(found.signed_values[layer], sum(twin[layer] for twin in twins) * relevant.numpy(), rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(found[layer], sum(abs(twin[layer]) for twin in twins) * relevant.numpy(), rtol=1e-6, atol=1e-9)
    with torch.no_grad():
        none = target.feature_map(images, {layer: 0 * weight for layer, weight in target.original_weights().items()}).sum()
        gained = float(target.feature_map(images).sum() - none)
    fine = [
        pencil.integrated_gates(lambda w, image=image: target.feature_map(image[None], w).sum(), target.original_weights())
        for image in images
    ]
    assert sum(values.sum() for twin in fine for values in twin.values()) == pytest.approx(gained, rel=1e-2)
    assert sum(float(values.sum()) for values in found.signed_values.values()) == pytest.approx(gained, rel=0.1)


def test_a_linear_networks_effects_along_gates_are_halves_of_it():
    """J = b·a·x: each layer's integral is ∫ s ds of J, so that both together are J and not one and a half times J."""
    torch.manual_seed(0)
    images = pictures(3)
    target = locate_feature(nn.Sequential(nn.Conv2d(2, 2, 1, bias=False), nn.Conv2d(2, 1, 1, bias=False)), "1:0", images)
    found = score_kernels(target, images, gradient=GradientOptions(path="gates"))
    value = float(target.feature_map(images).detach().sum())
    assert [float(found.signed_values[layer].sum()) for layer in "01"] == pytest.approx([value / 2, value / 2], rel=1e-4)


def test_absolute_values_are_taken_after_the_path():
    """ActGrad and SNIP along gates, from inputs and gradients at every point of the path."""
    model, images = network("chain").double(), pictures(2).double()
    target = locate_feature(model, "c:0", images)
    places, own = target.selected_positions(images), target.original_weights()
    points = [layer_gradients(target, images, places, {n: w * (p + 0.5) / PATH_POINTS for n, w in own.items()}) for p in range(PATH_POINTS)]
    acted, snipped = (score_kernels(target, images, criterion, gradient=GradientOptions(path="gates")) for criterion in ("actgrad", "snip"))
    for place, layer in enumerate(target.layers):
        conv = model.get_submodule(layer)
        shape = conv.weight.detach().numpy(), conv.stride, conv.dilation, conv.padding, conv.groups
        products = sum(
            pencil.contribution_maps(each[place][1].numpy(), *shape) * each[place][2].numpy()[:, :, None] / PATH_POINTS for each in points
        )
        np.testing.assert_allclose(acted[layer], np.abs(products).mean((3, 4)).sum(0) * target.relevant[layer].numpy(), atol=1e-12)
        slope = torch.zeros(2, *conv.weight.shape, dtype=torch.float64)
        for image in range(2):
            for each in points:
                _, x, g = each[place]
                slope[image] += nn.grad.conv2d_weight(
                    x[image : image + 1], conv.weight.shape, g[image : image + 1], conv.stride, conv.padding, conv.dilation
                )
        wanted = (conv.weight.detach() * slope / PATH_POINTS).abs().mean((3, 4)).sum(0) * target.relevant[layer]
        np.testing.assert_allclose(snipped[layer], wanted, atol=1e-12)


def test_normalization_of_layers():
    target = locate_feature(network("chain"), "head:0", pictures(3))
    found = score_kernels(target, pictures(3))
    assert found.normalized_by_layer() is found
    for norm, power in (("l1", 1), ("l2", 2)):
        for values in found.normalized_by_layer(norm).values.values():
            assert abs(float(values.norm(p=power)) - 1) < 1e-12
    with pytest.raises(InputError, match="no norm of a layer is called max; there are: none, l1, l2"):
        found.normalized_by_layer("max")


def test_controls():
    images = pictures(2)
    target = locate_feature(network("chain"), "c:0", images)
    assert torch.equal(score_kernels(target, images, "random", seed=3).flatten(), score_kernels(target, images, "random", seed=3).flatten())
    assert not torch.equal(
        score_kernels(target, images, "random", seed=3).flatten(), score_kernels(target, images, "random", seed=4).flatten()
    )
    weight = target.graph.modules["b"].weight.detach().numpy()
    np.testing.assert_allclose(score_kernels(target, images, "magnitude")["b"], pencil.magnitude(weight), rtol=1e-6)


def test_the_model_is_left_as_it_was():
    model, images = network("residual").train(), pictures(4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    target = locate_feature(model, "last:0", images)
    for criterion in CRITERIA:
        score_kernels(target, images, criterion, keep=9, training=GateTraining(steps=3))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


class Straight(torch.autograd.Function):
    """Rounds, and lets gradients through."""

    @staticmethod
    def forward(ctx, x):
        return torch.round(x * 4) / 4

    @staticmethod
    def backward(ctx, g):
        return g


def reversing(x):
    x = x * 1
    if x.requires_grad:
        x.register_hook(lambda g: -2 * g)
    return x


class Quantized(nn.Module):
    def __init__(self, rounded):
        super().__init__()
        self.a, self.b, self.c, self.rounded = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 3, 3), nn.Linear(3, 2), rounded

    def forward(self, x):
        return self.c(self.rounded(torch.relu(self.b(self.rounded(torch.relu(self.a(x)))))).mean((2, 3)))


def test_gradients_are_the_networks_own_or_refused():
    """A recorded autograd function keeps its backward pass; without it every kernel before the rounding would score zero."""
    torch.manual_seed(0)
    model, images = Quantized(Straight.apply).eval(), pictures(3)
    weight = model.a.weight
    products = [weight.detach() * torch.autograd.grad(model(image[None])[0, 1], weight)[0] for image in images]
    own = sum(product.sum((2, 3)).abs() for product in products).detach().double()
    target = locate_feature(model, "logit:1", images)
    assert torch.allclose(score_kernels(target, images)["a"], own, rtol=1e-3)
    hooked = Quantized(reversing).eval()
    with pytest.raises(TracingError, match=r"expected the network's own gradients.*register_hook"):
        score_kernels(locate_feature(hooked, "logit:1", images), images)
    spelled = Quantized(lambda x: x + (torch.round(x * 4) / 4 - x).detach()).eval()
    spelled.load_state_dict(model.state_dict())
    assert torch.allclose(score_kernels(locate_feature(spelled, "logit:1", images), images)["a"], own, rtol=1e-3)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_traced_pass_has_the_networks_gradients(name):
    for layer in (LAST[name], "logit"):
        assert locate_feature(network(name), f"{layer}:1", pictures(2)).slope_error < 1e-4


def test_frozen_networks_can_be_scored():
    images = pictures(3)
    free = score_kernels(locate_feature(network("dense"), "head:0", images), images)
    frozen = score_kernels(locate_feature(network("dense").requires_grad_(False), "head:0", images), images)
    assert torch.equal(free.flatten(), frozen.flatten())
    learned = score_kernels(
        locate_feature(network("dense").requires_grad_(False), "head:0", images), images, "learned", keep=5, training=GateTraining(steps=3)
    )
    assert learned.flatten().isfinite().all()


def test_criteria_of_this_library_are_not_ascribed_to_others():
    ours = {name for name, each in CRITERIA.items() if each.source.startswith("this library")}
    assert ours == {"gate", "iterated_gate", "iterated_actgrad", "learned"}
    assert CRITERIA["actgrad"].source == "Hamblin, Konkle, Alvarez 2022"


def test_bad_input():
    images = pictures(2)
    target = locate_feature(network("chain"), "c:0", images)
    with pytest.raises(InputError, match="no criterion is called taylor; there are: gate, actgrad"):
        score_kernels(target, images, "taylor")
    with pytest.raises(InputError, match="pass keep"):
        score_kernels(target, images, "force")
    with pytest.raises(InputError, match="there are: sum, mean"):
        score_kernels(target, images, gradient=GradientOptions("max"))
    with pytest.raises(InputError, match="there are: gates, inputs"):
        score_kernels(target, images, gradient=GradientOptions(path="weights"))
    with pytest.raises(SampleError, match="at least one image"):
        score_kernels(target, [])
    with pytest.raises(NumericError, match=r"saliency \(gate\) of c:0 at a is not finite"):
        score_kernels(target, images * float("nan"))


EVEN = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # PyTorch says that it has to copy


@st.composite
def layers(draw, modes=("zeros",)):
    """A convolution of any stride, dilation, groups and padding, an input and a gradient."""
    groups = draw(st.sampled_from([1, 2, 3]))
    inputs, outputs = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))
    kernel = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    stride = (draw(st.integers(1, 3)), draw(st.integers(1, 2)))
    dilation = (draw(st.integers(1, 2)), draw(st.integers(1, 3)))
    mode = draw(st.sampled_from(modes))
    padding = (
        draw(st.sampled_from(["same", "valid"]) if stride == (1, 1) else st.nothing()) if draw(st.booleans()) and stride == (1, 1) else None
    )
    padding = padding or (draw(st.integers(0, 2)), draw(st.integers(0, 2)))
    torch.manual_seed(draw(st.integers(0, 1000)))
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, padding_mode=mode).double()
    x = torch.randn(3, inputs, draw(st.integers(7, 9)), draw(st.integers(7, 9)), dtype=torch.float64)
    return conv, x, torch.randn_like(conv(x))


def weight_gradients(module: nn.Module, x: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """dJ_b/dw of every image by autograd, one image at a time."""
    return torch.stack([torch.autograd.grad((module(x[b : b + 1]) * g[b : b + 1]).sum(), module.weight)[0] for b in range(len(x))])


@EVEN
@settings(max_examples=60, deadline=None)
@given(layers(modes=("zeros", "circular", "reflect", "replicate")))
def test_gate_identity(case):
    conv, x, g = case
    products = (conv.weight.detach() * weight_gradients(conv, x, g)).sum((3, 4))
    size, signed = gate_scores(x, g, LayerKernels.of(conv))
    assert torch.allclose(size, products.abs().sum(0), rtol=1e-9, atol=1e-12)
    assert torch.allclose(signed, products.sum(0), rtol=1e-9, atol=1e-10)


@EVEN
@settings(max_examples=25, deadline=None)
@given(layers())
def test_rules_are_their_pencil_twins(case):
    conv, x, g = case
    layer = LayerKernels.of(conv)
    maps = np.concatenate([explicit_maps(conv, x[b : b + 1]) for b in range(len(x))])
    size, signed = gate_scores(x, g, layer)
    np.testing.assert_allclose(size, pencil.gate(maps, g.numpy()), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(signed, pencil.signed_gate(maps, g.numpy()), rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(actgrad(x, g, layer), pencil.actgrad(maps, g.numpy()), rtol=1e-9, atol=1e-12)
    slopes = conv.weight.detach() * weight_gradients(conv, x, g)
    np.testing.assert_allclose(snip(x, g, layer), slopes.abs().mean((3, 4)).sum(0), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(snip(x, g, layer, per_batch=True), slopes.sum(0).abs().mean((2, 3)), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(magnitude(layer), pencil.magnitude(conv.weight.detach().numpy()), rtol=1e-12)


def explicit_maps(conv: nn.Conv2d, x: torch.Tensor) -> np.ndarray:
    """Contribution maps of one image by loops; 'same' padding is put around the image first."""
    padding = conv.padding
    if padding == "same":
        reach = [step * (size - 1) for step, size in zip(conv.dilation, conv.kernel_size, strict=True)]
        x = nn.functional.pad(x, (reach[1] // 2, reach[1] - reach[1] // 2, reach[0] // 2, reach[0] - reach[0] // 2))
    padding = (0, 0) if isinstance(padding, str) else padding
    return pencil.contribution_maps(x.numpy(), conv.weight.detach().numpy(), conv.stride, conv.dilation, padding, conv.groups)


def test_maps_sum_to_the_output():
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, 2, 1, groups=2).double()
    x = torch.randn(2, 4, 7, 7, dtype=torch.float64)
    maps = explicit_maps(conv, x).sum(2) + conv.bias.detach().numpy()[:, None, None]
    np.testing.assert_allclose(maps, conv(x).detach(), rtol=1e-10)


@pytest.mark.parametrize("shape", [(5, 6), (5, 4, 6), (5, 1, 6)])
def test_a_linear_layer_is_a_convolution_of_one_tap(shape):
    torch.manual_seed(0)
    linear = nn.Linear(6, 3).double()
    x = torch.randn(*shape, dtype=torch.float64)
    g = torch.randn_like(linear(x))
    conv = nn.Conv2d(6, 3, 1).double()
    conv.weight.data = linear.weight.data[:, :, None, None]
    maps, slopes = (part.reshape(5, -1, part.shape[-1]).transpose(1, 2)[..., None] for part in (x, g))
    for rule in (gate_scores, actgrad, snip):
        flat, folded = rule(x, g, LayerKernels.of(linear)), rule(maps, slopes, LayerKernels.of(conv))
        for a, b in zip(flat, folded, strict=True) if isinstance(flat, tuple) else [(flat, folded)]:
            assert torch.allclose(a, b, rtol=1e-10)
    products = linear.weight.detach() * weight_gradients(linear, x, g)
    assert torch.allclose(gate_scores(x, g, LayerKernels.of(linear))[0], products.abs().sum(0), rtol=1e-10)


@pytest.mark.parametrize("rule", [gate_scores, actgrad, snip])
def test_small_blocks_give_the_same(rule, monkeypatch):
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, 1, 1, groups=2).double()
    x, g = torch.randn(5, 4, 7, 7, dtype=torch.float64), torch.randn(5, 6, 7, 7, dtype=torch.float64)
    whole = rule(x, g, LayerKernels.of(conv))
    monkeypatch.setattr("channelscope.network.patches.BLOCK_NUMBERS", 2000)
    monkeypatch.setattr(kernel_scores, "CHUNK_NUMBERS", 200)
    parts = rule(x, g, LayerKernels.of(conv))
    for a, b in zip(whole, parts, strict=True) if isinstance(whole, tuple) else [(whole, parts)]:
        assert torch.allclose(a, b, rtol=1e-12)


def test_sums_hide_what_cancels():
    """Two positions that pull in opposite directions: nothing for the gate, something for ActGrad."""
    conv = nn.Conv2d(1, 1, 1, bias=False)
    conv.weight.data.fill_(2.0)
    x, g = torch.tensor([[[[1.0, 1.0]]]]), torch.tensor([[[[1.0, -1.0]]]])
    layer = LayerKernels.of(conv)
    assert gate_scores(x, g, layer)[0].item() == 0
    assert snip(x, g, layer).item() == 0
    assert actgrad(x, g, layer).item() == 2
    two = torch.cat([x, x]), torch.cat([g.abs(), -g.abs()])
    assert gate_scores(*two, layer)[0].item() == 8
    assert gate_scores(*two, layer)[1].item() == 0
    assert snip(*two, layer).item() == 8
    assert snip(*two, layer, per_batch=True).item() == 0
