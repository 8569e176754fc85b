"""Repair: what can be made up for is made up for exactly, in place, and nothing else changes."""

import copy
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from channelscope.errors import InputError, MismatchError, SampleError
from channelscope.network.removal.groups import groups
from channelscope.profiling.collect import collect
from channelscope.pruning.cut import shrink
from channelscope.pruning.peers import input_sites
from channelscope.pruning.repair import repair
from channelscope.subset import Subset
from channelscope.zoo.models import SmallResNet
from networks import built, lively

IMAGES = torch.randn(60, 3, 8, 8, generator=torch.Generator().manual_seed(5))
BATCHES = [(IMAGES[:40], torch.zeros(40).long()), (IMAGES[40:], torch.zeros(20).long())]


class Redundant(nn.Module):
    """A residual network in which channel 5 of every site is a combination of channels 0 and 1: repair can be exact."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.up, self.mid, self.down = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.last, self.head = nn.BatchNorm2d(6), nn.Linear(6, 4)

    def forward(self, x):
        x = self.norm(self.stem(x))
        x = x + self.last(self.down(self.mid(self.up(x))))
        return self.head(x.mean((2, 3)))


def redundant() -> nn.Module:
    torch.manual_seed(1)
    model = lively(Redundant())
    for layer in (model.stem, model.up, model.down):
        layer.weight.data[5] = 0.7 * layer.weight[0] - 0.4 * layer.weight[1]
    model.up.bias.data.zero_()
    for norm in (model.norm, model.mid, model.last):
        norm.weight.data[:] = (norm.running_var + norm.eps).sqrt()
        norm.bias.data[:] = norm.running_mean
    return model


def without_last(model: nn.Module):
    found = groups(model, IMAGES[:1])
    marks = {site.name: torch.arange(site.channels) != 5 for site in found.sites}
    return found, Subset(marks, found.sites, (3, 8, 8))


@torch.no_grad()
def gap(a: nn.Module, b: nn.Module) -> float:
    return float((a(IMAGES) - b(IMAGES)).norm() / b(IMAGES).norm())


def test_what_the_kept_channels_determine_comes_back_exactly():
    model = redundant()
    found, kept = without_last(model)
    small = shrink(found, kept)
    assert gap(small, model) > 0.01
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = repair(small, model, kept, BATCHES, ridge=1e-9)
    assert gap(small, model) < 1e-3
    assert (report.method, report.images, dict(report.skipped)) == ("least_squares", 60, {})
    assert set(report.relative_errors) == {"stem", "up", "down", "head"}
    assert all(after <= max(start, 1e-6) for start, after in report.relative_errors.values())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_peers_from_the_profile_alone_where_one_site_feeds_the_consumer():
    model = redundant()
    found, kept = without_last(model)
    profile = collect(model, BATCHES, readout="positions(all)")
    small = shrink(found, kept)
    report = repair(small, found, kept, profile, method="peers")
    assert report.method == "peers"
    assert set(report.skipped) == {"head"}
    assert "sum" in report.skipped["head"]
    inner = Subset({**kept.masks, "stem": torch.ones(6).bool(), "down": torch.ones(6).bool()}, found.sites, (3, 8, 8))
    small = shrink(found, inner)
    assert repair(small, found, inner, profile, method="peers", ridge=1e-9).skipped == {}
    inside = (slice(None), slice(None), slice(1, -1), slice(1, -1))
    x = F.batch_norm(
        model.stem(IMAGES), model.norm.running_mean, model.norm.running_var, model.norm.weight, model.norm.bias, eps=model.norm.eps
    )
    wide, narrow = (net.last(net.down(net.mid(net.up(x)))) for net in (model, small))
    torch.testing.assert_close(narrow[inside], wide[inside], rtol=1e-3, atol=1e-3)


def peers_slowly(model, kept, profile, ridge):
    """The consumer's new weights and constant, tap by tap, in plain numpy: `mid` reads what `first` writes."""
    moments = profile.record("first").activation
    covariance, mean = moments.covariance.numpy(), moments.mean.numpy()
    alive, gone = np.flatnonzero(kept["first"]), np.flatnonzero(~kept["first"])
    inner = covariance[np.ix_(alive, alive)] + ridge * np.mean(covariance[alive, alive]) * np.eye(len(alive))
    supply = covariance[np.ix_(gone, alive)] @ np.linalg.inv(inner)
    weights = model.second.weight.double().numpy()
    outputs = np.flatnonzero(kept["second"])
    fresh = np.zeros((len(outputs), len(alive), *weights.shape[2:]))
    constant = np.zeros(len(outputs))
    for row, output in enumerate(outputs):
        for i in range(weights.shape[2]):
            for j in range(weights.shape[3]):
                fresh[row, :, i, j] = weights[output, alive, i, j] + weights[output, gone, i, j] @ supply
                constant[row] += weights[output, gone, i, j] @ (mean[gone] - supply @ mean[alive])
    return fresh, constant


def test_peers_from_images_know_sums_and_pooling():
    """The head reads the pooled sum of two sites: predicted from its pooled values, as plain numpy would."""
    model = redundant()
    found, kept = without_last(model)
    small = shrink(found, kept)
    assert repair(small, found, kept, BATCHES, method="peers", ridge=0.02).skipped == {}
    seen = []
    handle = model.head.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    with torch.no_grad():
        model(IMAGES)
    handle.remove()
    x = seen[0].double().numpy()
    covariance = np.cov(x.T, bias=True)
    inner = covariance[:5, :5] + 0.02 * np.mean(np.diag(covariance)[:5]) * np.eye(5)
    supply = covariance[5:, :5] @ np.linalg.inv(inner)
    weights, bias = model.head.weight.double().numpy(), model.head.bias.double().numpy()
    np.testing.assert_allclose(small.head.weight.numpy(), weights[:, :5] + weights[:, 5:] @ supply, rtol=1e-4, atol=1e-6)
    constant = weights[:, 5:] @ (x.mean(0)[5:] - supply @ x.mean(0)[:5])
    np.testing.assert_allclose(small.head.bias.numpy(), bias + constant, rtol=1e-4, atol=1e-6)


class Chain(nn.Module):
    def __init__(self, bias: bool):
        super().__init__()
        self.first, self.second, self.norm = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 3, bias=bias), nn.BatchNorm2d(5)
        self.head = nn.Linear(5 * 4, 3)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.norm(self.second(F.relu(self.first(x))))), 2)
        return self.head(torch.flatten(x, 1))


@pytest.mark.parametrize("bias", [True, False])
def test_peers_are_those_of_a_slow_loop(bias):
    torch.manual_seed(0)
    model = lively(Chain(bias))
    found = groups(model, IMAGES[:1])
    kept = Subset({"first": torch.arange(6) > 1, "second": torch.arange(5) != 3}, found.sites, (3, 8, 8))
    profile = collect(model, BATCHES)
    small = shrink(found, kept)
    inherited = copy.deepcopy(small)
    repair(small, model, kept, profile, method="peers", ridge=0.01)
    weights, constant = peers_slowly(model, kept, profile, 0.01)
    np.testing.assert_allclose(small.second.weight.numpy(), weights, rtol=1e-5, atol=1e-6)
    if bias:
        np.testing.assert_allclose((small.second.bias - inherited.second.bias).numpy(), constant, rtol=1e-4, atol=1e-6)
        assert torch.equal(small.norm.running_mean, inherited.norm.running_mean)
    else:
        np.testing.assert_allclose((inherited.norm.running_mean - small.norm.running_mean).numpy(), constant, rtol=1e-4, atol=1e-6)
    assert small.head.weight.shape == (3, 16)
    assert not torch.equal(small.head.weight, inherited.head.weight)


def test_normalizations_are_re_estimated_as_one_large_training_batch_would():
    model, shape = narrow(), (3, 16, 16)
    images = torch.randn(130, *shape)
    reference = copy.deepcopy(model).train()
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        reference(images)
    found = groups(model, images[:1])
    small = copy.deepcopy(model)
    report = repair(small, found, Subset.everything(found.sites, shape), [images[:33], images[33:]], method="batchnorm")
    assert (report.method, report.images, dict(report.skipped)) == ("batchnorm", 130, {})
    for name, value in reference.named_buffers():
        if "running" in name:
            torch.testing.assert_close(small.get_buffer(name), value, rtol=2e-3, atol=2e-3)
    for name, value in small.named_parameters():
        assert torch.equal(value, model.get_parameter(name))


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("resnet50", "regnety_002", "tf_efficientnet_lite0", "resnext50_32x4d")]


@pytest.mark.parametrize("name", ["mobilenet_v2", "densenet121", "convnext_tiny", *SLOW])
def test_a_network_that_lost_nothing_is_left_as_it_is(name):
    model, shape = built(name)
    found = groups(model, torch.zeros(1, *shape))
    small = copy.deepcopy(model)
    images = torch.randn(12, *shape)
    report = repair(small, found, Subset.everything(found.sites, shape), images.split(5))
    with torch.no_grad():
        torch.testing.assert_close(small(images), model(images), rtol=1e-3, atol=1e-3 * float(model(images).abs().max()))
    assert len(report.relative_errors) + len(report.skipped) == sum(1 for layer in found.layers if layer.taps)
    assert report.skipped == {}


def narrow(seed=0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return lively(SmallResNet(8, width=8), seed)


def pruned(seed=0):
    """A residual network with a third of its groups gone."""
    source = torch.Generator().manual_seed(seed)
    images = F.interpolate(torch.randn(400, 3, 8, 8, generator=source), scale_factor=2, mode="bilinear")
    model, shape = narrow(), (3, 16, 16)
    for module in model.train().modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            module.reset_running_stats()
    with torch.no_grad():
        model(images)  # as after training, normalizations hold the statistics of the images
    model.eval()
    found = groups(model, torch.zeros(1, *shape))
    draw = np.random.default_rng(seed)
    kept = found.to_subset(draw.random(len(found)) < 0.66)
    return model, found, kept, images


@torch.no_grad()
def test_every_step_of_the_ladder_helps():
    model, found, kept, images = pruned()
    errors = {}
    for method in ("none", "batchnorm", "peers", "least_squares"):
        small = shrink(found, kept)
        repair(small, found, kept, images[:200].split(50), method=method)
        errors[method] = float((small(images[200:]) - model(images[200:])).square().mean())
    assert errors["least_squares"] < 0.8 * errors["peers"]
    assert errors["peers"] < 0.7 * errors["batchnorm"] < errors["none"]


@torch.no_grad()
def test_few_images_do_not_make_it_worse():
    """The penalty is chosen on images not fitted to: sixteen images are few for up to 288 weights, and still help."""
    model, found, kept, images = pruned()
    errors = {}
    for penalty, method in ((None, "batchnorm"), (None, "least_squares"), (0.001, "least_squares")):
        small = shrink(found, kept)
        report = repair(small, found, kept, [images[:16]], method=method, ridge=penalty)
        errors[method, penalty] = float((small(images[200:]) - model(images[200:])).square().mean())
        assert report.images == 16
    assert errors["least_squares", None] < 0.7 * errors["batchnorm", None]
    assert errors["least_squares", None] < 0.9 * errors["least_squares", 0.001]


@torch.no_grad()
def test_the_result_depends_on_neither_batches_nor_modes_and_only_weights_change():
    _, found, kept, images = pruned()
    results = []
    for batches, mode in ((images.split(50), False), (images.split(37), True)):
        small = shrink(found, kept).train(mode)
        keys = small.state_dict().keys()
        repair(small, found, kept, [(batch, None) for batch in batches])
        assert small.training == mode
        assert not any(parameter.requires_grad for parameter in small.parameters())
        assert small.state_dict().keys() == keys
        results.append(small.eval()(images[:20]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-4 * float(results[0].abs().max()))


@torch.no_grad()
def test_normalizations_hold_the_statistics_of_what_they_now_see():
    _, found, kept, images = pruned()
    small = shrink(found, kept)
    repair(small, found, kept, images.split(50), positions=10_000)
    expected = copy.deepcopy(small)
    repair(expected, found, kept, images.split(50), method="batchnorm")
    for name, value in expected.named_buffers():
        if "running_var" in name:
            torch.testing.assert_close(small.get_buffer(name), value, rtol=0.05, atol=0.01)


def test_layers_without_a_constant_or_in_tokens_are_fitted_too():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 2, 2, bias=False), nn.Flatten(2), Turned(), nn.Linear(8, 6, bias=False), nn.GELU(), nn.Linear(6, 8)
    )
    model = nn.Sequential(*model, nn.Flatten(), nn.Linear(128, 3)).eval().requires_grad_(False)
    found = groups(model, IMAGES[:1])
    assert set(found.unprunable) == {"0", "5"} or found.unprunable == {}
    kept = found.to_subset(np.arange(len(found)) % 4 != 1)
    small = shrink(found, kept)
    before = gap(small, model)
    report = repair(small, found, kept, BATCHES)
    assert report.skipped == {}
    assert gap(small, model) < 0.7 * before


class Turned(nn.Module):
    def forward(self, x):
        return x.transpose(1, 2)


class Rebiased(nn.Module):
    """A linear network whose second layer is carried out with another bias than its own."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1), nn.Linear(5, 2)

    def forward(self, x):
        return self.head(F.conv2d(self.first(x), self.second.weight, 3 * self.second.bias).mean((2, 3)))


@pytest.mark.parametrize("method", ["least_squares", "peers"])
def test_a_bias_that_a_function_replaces_stays_and_the_weights_make_up_for_the_rest(method):
    torch.manual_seed(0)
    model = Rebiased().eval()
    model.first.weight.data[3], model.first.bias.data[3] = 2 * model.first.weight[0], 2 * model.first.bias[0]
    found = groups(model, IMAGES[:1])
    kept = found.to_subset([("first", 3) not in group.members for group in found.members])
    small = shrink(found, kept)
    assert gap(small, model) > 0.1
    repair(small, found, kept, BATCHES, method=method, ridge=1e-6)
    assert torch.equal(small.second.bias, model.second.bias)
    assert gap(small, model) < 1e-3


def test_what_cannot_be_fitted_is_left_with_a_reason():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.up, self.b = nn.Conv2d(3, 6, 1), nn.ConvTranspose2d(6, 4, 2, 2), nn.Conv2d(4, 4, 1)
            self.head = nn.Conv2d(4, 2, 1)

        def forward(self, x):
            x = F.relu(self.up(F.relu(self.a(x))))
            return self.head(self.b(F.relu(self.b(x)))).mean((2, 3))

    model = Odd().eval()
    found = groups(model, IMAGES[:1])
    kept = found.to_subset(np.arange(len(found)) != 1)
    report = repair(shrink(found, kept), found, kept, BATCHES)
    assert "transposed" in report.skipped["up"]
    assert "several places" in report.skipped["b"]
    assert set(report.relative_errors) == {"a", "head"}


def test_none_does_nothing():
    model, found, kept, _images = pruned()
    small = shrink(found, kept)
    before = copy.deepcopy(small.state_dict())
    assert repair(small, model, kept, method="none").images == 0
    assert all(torch.equal(value, before[name]) for name, value in small.state_dict().items())


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["batchnorm", "peers", "least_squares"])
def test_a_gpu_gives_the_same(method):
    model, _, kept, images = pruned()
    results = []
    for device in ("cpu", "cuda"):
        there = groups(copy.deepcopy(model).to(device), images[:1].to(device))
        small = shrink(there, kept)
        repair(small, there, kept, images[:100].split(50), method=method, ridge=0.1, positions=16)
        with torch.no_grad():
            results.append(small(images[200:].to(device)).cpu())
    torch.testing.assert_close(results[1], results[0], rtol=1e-2, atol=1e-2 * float(results[0].abs().max()))


def test_bad_input():
    model, found, kept, images = pruned()
    small = shrink(found, kept)
    with pytest.raises(InputError, match="no method of repair is called best"):
        repair(small, found, kept, [images], method="best")
    with pytest.raises(InputError, match="least_squares needs calibration images"):
        repair(small, found, kept)
    with pytest.raises(InputError, match=r"peers needs calibration images.*or, for peers, the original's profile"):
        repair(small, found, kept, method="peers")
    with pytest.raises(InputError, match="ridge: expected a share above 0"):
        repair(small, found, kept, [images], ridge=0.0)
    with pytest.raises(SampleError, match="at least two images"):
        repair(small, found, kept, [images[:1]])
    with pytest.raises(SampleError, match="no calibration images"):
        repair(small, found, kept, [])
    with pytest.raises(MismatchError, match=r"the subset keeps \d+"):
        repair(model, found, kept, [images])
    with pytest.raises(MismatchError, match="no layer"):
        repair(nn.Sequential(nn.Conv2d(3, 3, 1)), found, kept, [images])
    other = narrow(1)
    foreign = collect(other, [(images[:10], torch.zeros(10).long())])
    with pytest.raises(MismatchError, match="other weights"):
        repair(small, found, kept, foreign, method="peers")
    bare = Subset({name: kept[name] for name in kept})
    with pytest.raises(InputError, match="input shape"):
        repair(small, model, bare, [images])


class Headed(nn.Module):
    """A site, something in between, and a head; channel 3 is twice channel 0 plus one."""

    def __init__(self, between, bias: bool = True, width: int = 4):
        super().__init__()
        self.a, self.head, self.between = nn.Conv2d(3, 4, 8), nn.Linear(width, 2, bias=bias), between
        self.a.weight.data[3] = 2 * self.a.weight[0]
        self.a.bias.data[3] = 2 * self.a.bias[0] + 1

    def forward(self, x):
        return self.head(self.between(self.a(x)))


def repaired(model: nn.Module, source):
    found = groups(model.eval().requires_grad_(False), IMAGES[:1])
    assert len(found) == 4
    kept = found.to_subset(np.arange(4) != 3)
    small = shrink(found, kept)
    return small, repair(small, found, kept, source(model), method="peers", ridge=1e-9)


@pytest.mark.parametrize(
    "between", [lambda h: h.view(h.shape[0], -1), lambda h: h.reshape(h.shape[0], -1), lambda h: h.squeeze(3).squeeze(2)]
)
def test_peers_see_through_reshaping(between):
    torch.manual_seed(0)
    small, report = repaired(Headed(between), lambda model: collect(model, BATCHES))
    assert report.skipped == {}
    torch.manual_seed(0)
    assert gap(small, Headed(between).eval()) < 1e-3


def test_peers_say_what_stands_between_and_take_no_activation_for_nothing():
    cases = [
        (lambda h: h.flatten(1).cumsum(1), "what cumsum makes of a site"),
        (lambda h: h.flatten(1) * h.squeeze(3).squeeze(2), "sum or product"),
        (lambda h: torch.cat([h.flatten(1), h.flatten(1).tanh()], 1)[:, 2:6], "what tanh makes of a site"),
        (lambda h: torch.nn.functional.instance_norm(h.expand(-1, -1, 2, 2)).amax((2, 3)), "what instance_norm makes of a site"),
    ]
    for between, reason in cases:
        model = Headed(between).eval().requires_grad_(False)
        found = groups(model, IMAGES[:1])
        site = found.graph.nodes["head"].all_input_nodes[0]
        assert reason in str(input_sites(site, found))


def test_peers_leave_channels_that_are_read_in_another_order():
    _, report = repaired(Headed(lambda h: h.flatten(1).flip(1)), lambda model: collect(model, BATCHES))
    reason = "it reads the channels before it in another order, which a profile's covariance does not know"
    assert report.skipped == {"head": reason}


@pytest.mark.parametrize("where", ["profile", "images"])
def test_a_consumer_without_a_place_for_a_constant_is_predicted_through_zero(where):
    torch.manual_seed(0)
    model = Headed(lambda h: h.flatten(1), bias=False)
    small, report = repaired(model, lambda model: collect(model, BATCHES) if where == "profile" else BATCHES)
    assert report.skipped == {}
    x = model.a(IMAGES).flatten(1).double().numpy()
    through_zero = np.linalg.lstsq(x[:, :3], x[:, 3], rcond=None)[0]
    expected = model.head.weight[:, :3].double().numpy() + np.outer(model.head.weight[:, 3].double().numpy(), through_zero)
    np.testing.assert_allclose(small.head.weight.double().numpy(), expected, rtol=1e-3, atol=1e-4)


def test_least_squares_says_where_peers_did_not_apply(monkeypatch):
    monkeypatch.setattr(sys.modules["channelscope.pruning.peers"], "MAX_FAN_IN", 3)
    model = Headed(lambda h: h.flatten(1)).eval().requires_grad_(False)
    found = groups(model, IMAGES[:1])
    kept = found.to_subset(np.arange(4) != 3)
    report = repair(shrink(found, kept), found, kept, BATCHES)
    reason = "it reads 4 channels, more than 3: their covariance is not formed"
    assert dict(report.notes) == {"head": f"re-fitted toward its inherited weights, not those of peers: {reason}"}
    assert report.skipped == {}


@pytest.mark.parametrize("method", ["peers", "least_squares"])
def test_inputs_that_are_all_silent_have_no_peers(method):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.Flatten()).eval()
    with torch.no_grad():
        model[0].bias[:2] = -100
    images = torch.rand(8, 3, 4, 4)
    found = groups(model, images[:1])
    kept = found.to_subset(np.array([True, True, False, False]))
    report = repair(shrink(found, kept), found, kept, [images], method=method)
    reasons = report.skipped if method == "peers" else report.notes
    assert reasons["2"].endswith("no channel that stays of its inputs varies")


@pytest.mark.parametrize("reason", ["its values are the same for every image", "the rows of its input do not belong to one image each"])
def test_windows_of_an_image_are_in_one_half_and_constants_stay_as_they_are(reason):
    class Windows(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.inside, self.bias, self.head = nn.Conv2d(3, 4, 1), nn.Linear(4, 6), nn.Linear(1, 6), nn.Linear(6, 3)
            self.register_buffer("one", torch.ones(1, 1))

        def forward(self, x):
            x = self.conv(x).unflatten(2, (2, -1)).unflatten(4, (2, -1)).permute(0, 2, 4, 3, 5, 1)
            x = self.inside(x.flatten(3, 4).flatten(0, 2)) + self.bias(self.one if "every" in reason else x.new_ones(1, 1))
            return self.head(x.relu().unflatten(0, (-1, 4)).mean((1, 2)))

    torch.manual_seed(0)
    model, images = Windows().eval(), torch.randn(12, 3, 12, 12)
    found = groups(model, images[:1])
    kept = found.to_subset(np.array([site != "conv" or channel for group in found.members for site, channel in group.members[:1]]) != 0)
    small = shrink(found, kept)
    before = small.bias.weight.clone()
    report = repair(small, found, kept, [images], method="least_squares", positions=5)
    assert report.skipped == {"bias": f"{reason}: weights stay as inherited"}
    assert torch.equal(small.bias.weight, before)
    exact = nn.functional.mse_loss
    with torch.no_grad():
        assert exact(small(images), model(images)) < exact(shrink(found, kept)(images), model(images)) / 2


def test_layers_that_read_the_same_map_are_fitted_although_a_sum_comes_after_both():
    class TwoPaths(nn.Module):
        def __init__(self):
            super().__init__()
            self.short, self.stem = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 6, 1)
            self.added, self.joined, self.head = nn.Conv2d(6, 4, 1), nn.Conv2d(6, 4, 1), nn.Linear(8, 3)

        def forward(self, x):
            short, stem = self.short(x).relu(), self.stem(x).relu()
            added, joined = self.added(stem), self.joined(stem)
            return self.head(torch.cat([short + added, joined], 1).relu().mean((2, 3)))

    torch.manual_seed(0)
    model = TwoPaths().eval()
    images = torch.randn(64, 3, 4, 4)
    found = groups(model, images[:1])
    marks = {site.name: torch.ones(site.channels, dtype=torch.bool) for site in found.sites}
    marks["stem"][:3] = False
    kept = Subset(marks, found.sites, (3, 4, 4))
    small = shrink(found, kept)
    report = repair(small, found, kept, [images])
    for name in ("added", "joined"):
        before, after = report.relative_errors[name]
        assert after < before
