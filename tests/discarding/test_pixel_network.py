"""Views: pixels in, the layer asked for out."""

import pytest
import torch
from torch import nn

from channelscope.discarding.pixel_network import N_SPACED_LAYERS, PixelNetwork
from channelscope.errors import InputError, SiteError
from channelscope.zoo.models import build as zoo_network
from discarding import small


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
