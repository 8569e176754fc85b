"""Sensitivity estimates against Jacobians known in full, and the network from pixels to a layer."""

import pytest
import torch
from torch import nn

from channelscope.discarding.jacobian import (
    N_SPACED_LAYERS,
    ORTHOGONAL_PROBES_UP_TO,
    PerImageRandom,
    PixelNetwork,
    SensitivityEstimator,
    rademacher,
    standard_normal,
)
from channelscope.discarding.noise import Cells
from channelscope.errors import InputError, NumericError, SiteError
from channelscope.zoo.models import build as zoo_network
from discarding import small

SHAPE = (2, 4, 4)
VALUES = 32


def linear(size, seed=0):
    """A linear feature of the images and its matrix (size, values)."""
    matrix = torch.randn(size, VALUES, generator=torch.Generator().manual_seed(seed))
    return (lambda images: images.flatten(1) @ matrix.T), matrix


def scene(feature, images=2, cells=None, varies=None, seed=0):
    batch = torch.rand(images, *SHAPE, generator=torch.Generator().manual_seed(5))
    varies = torch.ones(SHAPE, dtype=torch.bool) if varies is None else varies
    return SensitivityEstimator(feature, batch, cells or Cells.of((4, 4)), varies, PerImageRandom(seed, torch.arange(images)))


def per_cell(matrix, cells=None):
    """Squared Jacobian column norms summed over each cell's values."""
    return (cells or Cells.of((4, 4))).sum_by_cell(matrix.square().sum(0).view(SHAPE).sum(0))


def test_random_numbers_belong_to_the_image():
    both = standard_normal(PerImageRandom(3, torch.tensor([7, 9])).generators(4), (5,))
    assert torch.equal(both[1], standard_normal(PerImageRandom(3, torch.tensor([9])).generators(4), (5,))[0])
    for other in (
        PerImageRandom(3, torch.tensor([8])).generators(4),
        PerImageRandom(2, torch.tensor([7])).generators(4),
        PerImageRandom(3, torch.tensor([7])).generators(5),
    ):
        assert not torch.equal(both[0], standard_normal(other, (5,))[0])


def test_signs_are_fair_and_only_signs():
    drawn = rademacher(PerImageRandom(0, torch.arange(4)).generators(0), 4_000)
    assert drawn.abs().eq(1).all()
    assert drawn.mean().abs() < 0.05


def test_one_cycle_of_orthogonal_probes_knows_a_linear_feature():
    feature, matrix = linear(5)
    seen = scene(feature)
    sigma = torch.full((2, 16), 0.1)
    draws = [seen.jacobian_sample(sigma, draw) for draw in range(5)]
    mean = torch.cat([each.sensitivity for each in draws]).mean(0)
    torch.testing.assert_close(mean, per_cell(matrix).expand(2, -1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(seen.mean_jacobian.flatten(2), matrix.expand(2, -1, -1), rtol=1e-4, atol=1e-4)
    exact = (sigma.square() * per_cell(matrix)).sum(1)
    torch.testing.assert_close(seen.response(sigma, 99), exact, rtol=1e-4, atol=1e-6)  # nothing random is left


def test_sign_probes_are_unbiased_where_the_feature_is_large():
    feature, matrix = linear(ORTHOGONAL_PROBES_UP_TO + 40)
    seen = scene(feature)
    draws = [seen.jacobian_sample(torch.full((2, 16), 0.1), draw, probes=8) for draw in range(25)]
    samples = torch.cat([each.sensitivity for each in draws])
    error = samples.std(0) / len(samples) ** 0.5
    assert ((samples.mean(0) - per_cell(matrix)).abs() < 4.5 * error).all()
    assert seen.mean_jacobian is None


def test_response_and_effective_sensitivity_of_a_linear_feature():
    feature, matrix = linear(ORTHOGONAL_PROBES_UP_TO + 40)
    seen = scene(feature, images=1)
    sigma = torch.linspace(0.05, 0.2, 16)[None]
    draws = [seen.effective_sample(sigma, draw) + seen.effective_sample(sigma, draw, mirrored=True) for draw in range(250)]
    response = torch.cat([each.response for each in draws])
    exact = (sigma.square() * per_cell(matrix)).sum()
    assert abs(float(response.mean() - exact)) < 4.5 * float(response.std()) / 250**0.5
    effective = torch.cat([each.effective for each in draws])[:, 0]
    error = effective.std(0) / 250**0.5
    assert ((effective.mean(0) - per_cell(matrix)).abs() < 4.5 * error).all()
    spent = torch.cat([each.spent for each in draws])
    torch.testing.assert_close(spent, response, rtol=1e-4, atol=1e-6)  # a linear feature's shares make up the whole


def test_effective_sensitivity_follows_curvature():
    """f = x² on one value: E|Δf|² = 4x²σ² + 3σ⁴, so ½ dE/dln σ / σ² = 4x² + 6σ²."""
    images, dice = torch.full((1, 1, 1, 1), 0.3), PerImageRandom(0, torch.zeros(1, dtype=torch.long))
    many = ORTHOGONAL_PROBES_UP_TO + 1
    seen = SensitivityEstimator(
        lambda x: x.square().expand(-1, many, -1, -1) / many**0.5, images, Cells.of((1, 1)), torch.ones(1, 1, 1).bool(), dice
    )
    sigma = torch.full((1, 1), 0.4)
    draws = [seen.effective_sample(sigma, draw) for draw in range(1_000)]
    effective = torch.cat([each.effective for each in draws]).flatten()
    assert abs(float(effective.mean()) - (4 * 0.09 + 6 * 0.16)) < 4.5 * float(effective.std()) / 1_000**0.5


def test_constant_values_get_no_noise():
    feature, matrix = linear(5)
    varies = torch.ones(SHAPE, dtype=torch.bool)
    varies[:, 0, 0] = False
    varies[1, 2, 2] = False
    seen = scene(feature, varies=varies)
    assert seen.values[0] == 0
    assert seen.values[10] == 1
    draws = [seen.jacobian_sample(torch.full((2, 16), 0.1), draw) for draw in range(5)]
    expected = Cells.of((4, 4)).sum_by_cell((matrix.square().sum(0).view(SHAPE) * varies).sum(0))
    torch.testing.assert_close(torch.cat([each.sensitivity for each in draws]).mean(0)[0], expected, rtol=1e-4, atol=1e-4)


def test_cells_of_several_pixels_add_up():
    feature, matrix = linear(5)
    cells = Cells.of((4, 4), 2)
    seen = scene(feature, cells=cells)
    draws = [seen.jacobian_sample(torch.full((2, 4), 0.1), draw) for draw in range(5)]
    assert seen.values.tolist() == [8, 8, 8, 8]
    torch.testing.assert_close(torch.cat([d.sensitivity for d in draws]).mean(0)[0], per_cell(matrix, cells), rtol=1e-4, atol=1e-4)


def test_every_pass_is_counted():
    feature, _ = linear(ORTHOGONAL_PROBES_UP_TO + 1)
    seen = scene(feature)
    assert seen.passes == 1
    seen.jacobian_sample(torch.full((2, 16), 0.1), 0, probes=3)
    assert seen.passes == 1 + 1 + 3
    seen.jacobian_sample(torch.full((2, 16), 0.1), 3, probes=1, curvature=True)
    assert seen.passes == 5 + 1 + 1 + 1
    seen.effective_sample(torch.full((2, 16), 0.1), 1)
    assert seen.passes == 10
    seen.response(torch.full((2, 16), 0.1), 2)
    assert seen.passes == 11


def test_batching_changes_nothing():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 40, 3, padding=1), nn.Tanh()).requires_grad_(False)
    images = torch.rand(3, *SHAPE)
    sigma = torch.rand(3, 16) * 0.1 + 0.05
    cells, varies = Cells.of((4, 4)), torch.ones(SHAPE).bool()
    both = SensitivityEstimator(net, images, cells, varies, PerImageRandom(1, torch.arange(3))).jacobian_sample(sigma, 0, 2, curvature=True)
    alone = SensitivityEstimator(net, images[2:], cells, varies, PerImageRandom(1, torch.tensor([2]))).jacobian_sample(
        sigma[2:], 0, 2, curvature=True
    )
    for name in ("response", "sensitivity", "effective"):
        torch.testing.assert_close(vars(both)[name][:, 2:], vars(alone)[name], rtol=1e-4, atol=1e-6)


def test_a_feature_that_is_not_finite_is_refused():
    with pytest.raises(NumericError, match="not finite"):
        scene(lambda images: images.flatten(1) / 0)


def test_pixels_undo_the_normalization():
    view, (images, _, _) = small.view(), small.batches(3)[0]
    torch.testing.assert_close(view.denormalize(images), small.pixels(3))


def test_a_layer_is_a_modules_output_or_a_step():
    model, (images, _, _) = small.network(), small.batches(3)[0]
    view = small.view(model)
    seen = {}
    handle = model.down.register_forward_hook(lambda _, __, output: seen.update(down=output))
    model(images)
    handle.remove()
    down, logits = view.layers(["down", "head"])
    torch.testing.assert_close(view.layer_value(down)(view.denormalize(images)), seen["down"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(view.layer_values(view.denormalize(images), [logits])[0], model(images), rtol=1e-4, atol=1e-5)


def test_a_block_ends_with_its_last_step_and_nothing_in_place_spoils_it():
    model = small.network()
    view = small.view(model)
    (block,) = view.layers(["block"])
    images = small.batches(3)[0][0]
    stem = torch.relu(model.stem(images))
    torch.testing.assert_close(view.layer_value(block)(view.denormalize(images)), torch.relu(model.block[0](stem)), rtol=1e-4, atol=1e-5)


def test_layers_come_in_order_of_depth():
    names = [layer.name for layer in small.view().layers(["head", "stem", "down"])]
    assert names == ["stem", "down", "head"]


def test_spaced_layers_are_passed_by_everything():
    """Inside the residual block the shortcut goes past, so no layer is chosen there."""
    found = small.view().layers()
    assert len(found) == N_SPACED_LAYERS
    assert not {layer.name for layer in found} & {"block", "block.0", "block.1"}
    assert [layer.depth for layer in found] == sorted(layer.depth for layer in found)


def test_spaced_layers_of_a_residual_network():
    model = zoo_network("resnet20", 10, 3, 32, 0)
    assert len(PixelNetwork(model, (3, 32, 32), (0.0,) * 3, (1.0,) * 3).layers()) == N_SPACED_LAYERS


def test_spaced_layers_are_modules_where_there_are_enough():
    model = zoo_network("resnet20", 10, 3, 32, 0)
    found = PixelNetwork(model, (3, 32, 32), (0.0,) * 3, (1.0,) * 3).layers()
    assert {layer.name for layer in found} <= {name for name, _ in model.named_modules()}


def test_a_number_taken_early_and_used_late_does_not_count_as_passing_by():
    class Counted(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x):
            count = x.shape[0]
            return torch.relu(self.b(torch.relu(self.a(x)))).view(count, -1)

    view = PixelNetwork(Counted(), (3, 8, 8), (0.5,) * 3, (0.5,) * 3)
    assert [layer.name for layer in view.layers()] == ["a", "relu", "b", "relu_1"]


def test_unknown_layers_name_near_matches():
    with pytest.raises(SiteError, match="no layer is called dawn; near matches: down"):
        small.view().layers(["dawn"])
    with pytest.raises(SiteError, match="there are: "):
        small.view().layers(["zzzzzz"])


def test_the_same_place_twice_is_refused():
    with pytest.raises(InputError, match="two that are the same place"):
        small.view().layers(["block", "block.1"])


def test_a_network_without_maps_needs_names():
    view = PixelNetwork(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), small.SHAPE, (0.0,) * 3, (1.0,) * 3)
    with pytest.raises(SiteError, match="name the layers"):
        view.layers()
