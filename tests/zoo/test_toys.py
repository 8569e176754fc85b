"""The toys are what they claim: their closed forms are measured on their images, their ties are seen in their outputs."""

import numpy as np
import pytest
import torch

from channelscope.network.module_state import weights_hash
from channelscope.zoo import toys

LINEAR = (toys.exact_copy, toys.dead_channel, toys.independent_channels, toys.suppressor_pair)
TIED = (toys.residual_pair, toys.depthwise_block, toys.shared_activation)


def channels(toy, site="conv", after=None):
    """Every channel value of every position, as rows, and the logits."""
    seen, hook = [], None
    hook = toy.model.get_submodule(after or site).register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        logits = torch.cat([toy.model(x) for x, _, _ in toy.batches])
    hook.remove()
    maps = torch.cat(seen).double()
    return maps.permute(0, 2, 3, 1).numpy(), logits.double().numpy()


def margin(toy, logits):
    labels = torch.cat([y for _, y, _ in toy.batches]).numpy()
    rows = np.arange(len(labels))
    rest = logits.copy()
    rest[rows, labels] = -np.inf
    return logits[rows, labels] - rest.max(1)


@pytest.mark.parametrize("make", toys.TOYS, ids=lambda make: make.__name__)
def test_a_toy_is_deterministic_and_well_formed(make):
    first, again, other = make(images=64), make(images=64), make(images=64, seed=1)
    assert first.images == 64
    assert weights_hash(first.model) == weights_hash(again.model)
    assert not first.model.training
    assert all(torch.equal(a, b) for one, two in zip(first.batches, again.batches, strict=True) for a, b in zip(one, two, strict=True))
    assert not torch.equal(first.batches[0][0], other.batches[0][0])
    for x, y, index in first.batches:
        assert x.dtype == torch.float32
        assert y.dtype == index.dtype == torch.int64
        assert len(x) == len(y) == len(index)
    assert torch.equal(torch.cat([index for _, _, index in first.batches]), torch.arange(64))


@pytest.mark.parametrize("make", toys.TOYS, ids=lambda make: make.__name__)
def test_making_a_toy_leaves_the_images_countable_in_batches(make):
    toy = make(images=200)
    assert [len(y) for _, y, _ in toy.batches] == [64, 64, 64, 8]


@pytest.mark.parametrize("make", LINEAR, ids=lambda make: make.__name__)
def test_a_linear_toy_has_the_covariances_it_claims_at_every_position(make):
    toy = make()
    maps, logits = channels(toy)
    target = margin(toy, logits)
    for row, column in ((0, 0), (3, 1)):
        values = maps[:, row, column]
        np.testing.assert_allclose(np.cov(values.T, bias=True), toy.truth["covariance"], atol=1e-4)
        centred = values - values.mean(0)
        np.testing.assert_allclose(centred.T @ (target - target.mean()) / len(target), toy.truth["margin_covariance"], atol=1e-4)
    assert target.var() == pytest.approx(toy.truth["margin_variance"], abs=1e-4)


@pytest.mark.parametrize("make", LINEAR, ids=lambda make: make.__name__)
def test_the_task_information_of_a_linear_toy(make):
    toy = make()
    maps, logits = channels(toy)
    target = margin(toy, logits)
    for channel, expected in enumerate(toy.truth["task_information"]):
        values = maps[:, 0, 0, channel]
        if values.std() == 0:
            assert np.isnan(expected)
            continue
        rho = np.corrcoef(values, target)[0, 1]
        assert -0.5 * np.log(1 - rho**2) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("make", [*LINEAR, toys.label_channel], ids=lambda make: make.__name__)
def test_the_relu_of_a_linear_toy_never_cuts(make):
    toy = make()
    before, _ = channels(toy)
    after, _ = channels(toy, after="act")
    np.testing.assert_array_equal(before, after)


def test_the_copy_is_an_exact_multiple():
    toy = toys.exact_copy()
    maps, _ = channels(toy)
    ((one, two),) = toy.truth["copies"]
    np.testing.assert_array_equal(maps[..., two], 2 * maps[..., one])
    correlation = np.corrcoef(maps[:, 0, 0].T)
    assert correlation[0, 1] == pytest.approx(np.sqrt(0.5), abs=1e-5)
    assert correlation[1, 2] == pytest.approx(0.5, abs=1e-5)


def test_the_dead_channel_is_silent_at_both_points_and_the_others_are_not():
    toy = toys.dead_channel()
    for after in (None, "act"):
        maps, _ = channels(toy, after=after)
        silent = [channel for channel in range(maps.shape[-1]) if not maps[..., channel].any()]
        assert silent == toy.truth["dead"]
        assert (maps.std(0) > 0.5).sum((0, 1)).tolist() == [16, 0, 16, 16]


def test_independent_channels_have_unit_rayleigh_quotients():
    toy = toys.independent_channels()
    maps, _ = channels(toy)
    variance = maps[:, 0, 0].var(0)
    norms = toy.model.conv.weight.detach().flatten(1).norm(dim=1).numpy()
    np.testing.assert_allclose(norms, toy.truth["weight_norms"])
    np.testing.assert_allclose(variance / norms**2, 1, atol=1e-4)
    np.testing.assert_allclose(np.corrcoef(maps[:, 0, 0].T), np.eye(5), atol=1e-5)


def test_the_suppressor_tells_nothing_alone_and_much_together():
    toy = toys.suppressor_pair()
    maps, logits = channels(toy)
    target, values = margin(toy, logits), maps[:, 0, 0]
    assert abs(np.corrcoef(values[:, 1], target)[0, 1]) < 1e-5
    design = np.column_stack([np.ones(len(values)), values[:, :2]])
    left = target - design @ np.linalg.lstsq(design, target, rcond=None)[0]
    pair = -0.5 * np.log(left.var() / target.var())
    alone = -0.5 * np.log(1 - np.corrcoef(values[:, 0], target)[0, 1] ** 2)
    assert pair - alone == pytest.approx(toy.truth["excess"][0, 1], abs=1e-4)
    assert alone == pytest.approx(toy.truth["task_information"][0], abs=1e-5)


def test_the_label_channel_alone_carries_the_label():
    toy = toys.label_channel()
    maps, logits = channels(toy)
    labels = torch.cat([y for _, y, _ in toy.batches]).numpy()
    values = maps[:, 0, 0]
    within = np.mean([values[labels == label].var(0) for label in (0, 1)], 0)
    np.testing.assert_allclose(0.5 * np.log(values.var(0) / within), toy.truth["label_information"], atol=1e-5)
    assert labels.mean() == 0.5
    assert (logits.argmax(1) == labels).mean() == pytest.approx(toy.truth["accuracy"], abs=1e-9)
    assert toy.truth["accuracy"] > 0.9


def test_the_xor_pair_says_nothing_channel_by_channel_and_everything_together():
    toy = toys.xor_pair()
    maps, logits = channels(toy)
    labels = torch.cat([y for _, y, _ in toy.batches]).numpy()
    one, two = toy.truth["pair"]
    a, b = maps[:, 0, 0, one], maps[:, 0, 0, two]
    for values in (a, b):
        assert values[labels == 0].mean() == values[labels == 1].mean() == 0
        assert values[labels == 0].var() == values[labels == 1].var() == 1
    np.testing.assert_array_equal(a * b < 0, labels == 1)
    assert (logits.argmax(1) == labels).mean() == toy.truth["accuracy"] == 1
    assert toy.truth["discrete_information"] == pytest.approx(np.log(2))


@pytest.mark.parametrize("make", TIED, ids=lambda make: make.__name__)
def test_the_sites_of_a_tied_toy_are_its_convolutions_in_execution_order(make):
    toy, order = make(), []
    modules = {name: module for name, module in toy.model.named_modules() if isinstance(module, torch.nn.Conv2d)}
    hooks = [module.register_forward_hook(lambda *_, name=name: order.append(name)) for name, module in modules.items()]
    with torch.no_grad():
        toy.model(toy.batches[0][0])
    for hook in hooks:
        hook.remove()
    assert order == toy.truth["sites"]
    assert set(toy.truth["free"]) | {site for group in toy.truth["tied"] for site in group} == set(order)


def test_a_residual_channel_lives_until_both_its_convolutions_are_silent():
    toy = toys.residual_pair()
    x = toy.batches[0][0]
    seen = []
    toy.model.pool.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        for norms in ((), ("stem_bn",), ("outer_bn",)):
            for norm in norms:
                toy.model.get_submodule(norm).weight[0] = toy.model.get_submodule(norm).bias[0] = 0
            toy.model(x)
    assert seen[0][:, 0].any()
    assert seen[1][:, 0].any()
    assert not seen[2][:, 0].any()


def test_a_depthwise_channel_is_made_of_its_own_expansion_alone():
    toy = toys.depthwise_block()
    x = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    changed = x.clone()
    changed[:, 2] += 1
    moved = (toy.model.depthwise(x) != toy.model.depthwise(changed)).flatten(2).any(2).all(0)
    assert moved.nonzero().flatten().tolist() == [2]


def test_the_shared_activation_is_a_function_not_a_module():
    toy = toys.shared_activation()
    assert not [module for module in toy.model.modules() if isinstance(module, torch.nn.ReLU)]
    maps, _ = channels(toy, "second")
    assert (maps < 0).any()


@pytest.mark.parametrize("make", TIED, ids=lambda make: make.__name__)
def test_structural_toys_have_no_identity_normalizations(make):
    for name, value in make().model.named_buffers():
        if value.is_floating_point():
            assert value.unique().numel() == value.numel(), name
