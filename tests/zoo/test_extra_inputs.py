"""A network of several inputs becomes one of images alone, and stays itself in everything else."""

import copy

import pytest
import torch
from torch import nn

from channelscope.errors import InputError
from channelscope.network.graph import trace
from channelscope.network.module_state import weights_hash, zero_batch
from channelscope.network.removal.groups import groups
from channelscope.zoo.loading import bind_extra_inputs, extra_inputs


class Guided(nn.Module):
    """Images, one guide image for all of them, a row of class priors, and a temperature."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.guide = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(1, 6, 3, padding=1)
        self.b, self.head = nn.Conv2d(6, 8, 3, padding=1), nn.Linear(8, 10)

    def forward(self, x, guide, prior, temperature=1.0):
        """Logits."""
        hidden = torch.relu(self.a(x) + self.guide(guide))
        return self.head(torch.relu(self.b(hidden)).mean((2, 3))) / temperature + prior


@pytest.fixture
def example():
    generator = torch.Generator().manual_seed(1)
    return {"guide": torch.randn(1, 1, 8, 8, generator=generator), "prior": torch.randn(10, generator=generator)}


@pytest.fixture
def images():
    return torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(2))


def test_the_pass_is_the_same_with_the_inputs_in_it(example, images):
    plain = Guided()
    expected = plain(images, example["guide"].expand(5, -1, -1, -1), example["prior"])
    torch.testing.assert_close(bind_extra_inputs(Guided(), example)(images), expected)
    torch.testing.assert_close(
        bind_extra_inputs(Guided(), {**example, "temperature": torch.tensor(2.0)})(images), (expected + example["prior"]) / 2
    )


def test_names_weights_and_fingerprint_stay(example):
    plain, fixed = Guided(), bind_extra_inputs(Guided(), example)
    assert [name for name, _ in fixed.named_modules()] == [name for name, _ in plain.named_modules()]
    assert list(fixed.state_dict()) == list(plain.state_dict())
    assert weights_hash(fixed) == weights_hash(plain)
    assert isinstance(fixed, Guided)


def test_inputs_follow_copies_and_devices(example, images):
    fixed = copy.deepcopy(bind_extra_inputs(Guided(), example)).double()
    assert fixed(images.double()).dtype == torch.float64
    kept = extra_inputs(fixed)
    assert set(kept) == {"guide", "prior"}
    torch.testing.assert_close(kept["guide"], example["guide"].double())
    assert extra_inputs(Guided()) == {}


def test_it_can_be_traced_for_any_number_of_images(example, images):
    fixed = bind_extra_inputs(Guided(), example).eval()
    graph = trace(fixed, zero_batch(fixed, (1, 8, 8)))
    torch.testing.assert_close(graph.run(images), fixed(images))


def test_channels_that_meet_the_guide_go_together(example):
    fixed = bind_extra_inputs(Guided(), example).eval()
    found = groups(fixed, zero_batch(fixed, (1, 8, 8)))
    assert any({"a", "guide"} <= set(group.sites) for group in found.members)


@pytest.mark.parametrize(
    ("given", "said"),
    [(("guide",), "lacks prior"), ((), "lacks guide, prior"), (("guide", "prior", "mask"), "has mask"), (("Guide", "prior"), "has Guide")],
)
def test_an_example_that_does_not_fit_is_refused(given, said):
    with pytest.raises(InputError, match=said) as error:
        bind_extra_inputs(Guided(), {name: torch.zeros(1) for name in given})
    assert "takes images and guide, prior, temperature" in str(error.value)


def test_a_network_of_images_alone_stays_what_it_is():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    assert type(bind_extra_inputs(model, {})) is nn.Sequential
    assert not dict(model.named_buffers())
