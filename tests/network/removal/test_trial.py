"""What a trial finds that the walk through the graph cannot know is kept whole, with the reason, before anything is ranked."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm

from channelscope.errors import InputError
from channelscope.network.edits import silence
from channelscope.network.removal.groups import groups
from channelscope.pruning.cut import shrink
from networks import NARROW, built


class Standardized(nn.Conv2d):
    """Weight standardization: fewer inputs change every weight."""

    def forward(self, x):
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 0.001)
        return F.conv2d(x, w, self.bias, self.stride, self.padding)


class Same(nn.Conv2d):
    """Pads by itself, as timm's convolutions for TensorFlow weights do: an ordinary convolution otherwise."""

    def forward(self, x):
        return F.conv2d(F.pad(x, [1, 1, 1, 1]), self.weight, self.bias)


class Chain(nn.Module):
    """Three layers, the middle one of any kind, and something in front of it."""

    def __init__(self, kind: type[nn.Conv2d] = nn.Conv2d, before=lambda h: h):
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Conv2d(3, 16, 3), kind(16, 12, 3), nn.Conv2d(12, 8, 1), nn.Conv2d(8, 4, 1)
        self.before = before

    def forward(self, x):
        return self.d(F.relu(self.c(F.relu(self.b(self.before(F.relu(self.a(x))))))))


def whole(model: nn.Module) -> dict[str, str]:
    found = groups(model.eval(), torch.zeros(1, 3, 16, 16))
    if len(found):
        alive = np.arange(len(found)) % 3 != 0
        alive[-1] = True
        shrink(found, found.to_subset(alive))
    return {name: reason for name, reason in found.unprunable.items() if name != "d"}


def test_ordinary_layers_stay_removable_whatever_class_they_are_of():
    assert whole(Chain()) == {}
    assert whole(Chain(Same)) == {}


def test_what_counts_channels_keeps_them():
    assert whole(Chain(before=lambda h: h / h.shape[1] ** 0.5)) == {
        "a": "16 of 16 channels: truediv() computes something else from fewer channels than from silenced ones"
    }


def test_weights_computed_from_all_inputs_are_folded():
    assert whole(Chain(Standardized)) == {}


def test_weights_computed_from_all_outputs_are_folded():
    class Centered(nn.Conv2d):
        def forward(self, x):
            return F.conv2d(x, self.weight - self.weight.mean(), self.bias)

    assert whole(Chain(Centered)) == {}


@pytest.mark.parametrize("parametrized", [spectral_norm, orthogonal, weight_norm], ids=lambda each: each.__name__)
@pytest.mark.parametrize("training", [False, True], ids=["evaluating", "training"])
def test_parametrized_weights_are_folded_and_the_network_stays_as_it_was(parametrized, training):
    torch.manual_seed(0)
    model = Chain().train(training)
    parametrized(model.a)
    parametrized(model.b)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = groups(model, torch.zeros(1, 3, 16, 16))
    assert not found.unprunable
    small = shrink(found, found.to_subset(np.arange(len(found)) % 3 != 0))
    assert (small.a.out_channels, small.b.in_channels, small.b.out_channels) == (10, 10, 8)
    assert type(small.b) is nn.Conv2d or small.b.weight.shape == (8, 10, 3, 3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_network_is_shrunk_around_a_step_that_keeps_its_channels():
    table = torch.arange(15, -1, -1)
    for pick in (lambda h: h.index_select(1, table), lambda h: h.gather(1, h.argsort(1))):
        kept = whole(Chain(before=pick))
        assert set(kept) == {"a"}
        assert "may look at all its channels at once" in kept["a"]


def test_a_squeeze_that_takes_the_axis_of_a_single_image_along():
    class Squeezed(Chain):
        def __init__(self):
            super().__init__()
            self.d, self.e = nn.Conv2d(8, 12, 1), nn.Linear(12, 3)

        def forward(self, x):
            return self.e(F.adaptive_avg_pool2d(super().forward(x), 1).squeeze())

    found = groups(Squeezed().eval(), torch.zeros(1, 3, 16, 16))
    assert found.unprunable == {}
    assert shrink(found, found.to_subset(np.arange(len(found)) % 3 != 0)).d.out_channels == 8


def masked(layer: nn.Conv2d) -> None:
    prune.random_unstructured(layer, "weight", 0.3)


@pytest.mark.parametrize("hook", [nn.utils.weight_norm, nn.utils.spectral_norm, masked], ids=["weight_norm", "spectral_norm", "masks"])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_weights_that_a_hook_computes_are_cut(hook):
    model, images = Chain().eval(), torch.randn(5, 3, 16, 16)
    hook(model.b)
    found = groups(model, images[:1])
    assert found.unprunable == {}
    kept = found.to_subset(np.arange(len(found)) % 3 != 0)
    small = shrink(found, kept)
    assert type(small.b) is nn.Conv2d
    assert not small.b._forward_pre_hooks
    with silence(model, ~kept):
        assert torch.allclose(small(images), model(images), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_weights_of_other_modules_that_a_hook_computes_are_refused_with_what_makes_them_parameters():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.rows, self.b = nn.Conv2d(3, 8, 3), nn.LSTM(8, 6, batch_first=True), nn.Linear(6, 3)

        def forward(self, x):
            return self.b(self.rows(self.a(x).flatten(2).transpose(1, 2))[0][:, -1])

    model = Recurrent().eval()
    nn.utils.weight_norm(model.rows, "weight_hh_l0")
    with pytest.raises(InputError, match=r"rows\.weight_hh_l0: expected a parameter .* a hook computes .* remove_weight_norm"):
        groups(model, torch.zeros(1, 3, 16, 16))


def test_a_layer_that_asks_for_its_number_of_channels_is_rewritten():
    class Counted(nn.Conv2d):
        def forward(self, x):
            assert x.shape[1] == 16
            return super().forward(x)

    assert whole(Chain(Counted)) == {}


class Tied(nn.Module):
    """Two layers of one weight, or a weight that the pass also uses by itself."""

    def __init__(self, alone: bool):
        super().__init__()
        self.a, self.b, self.c, self.f = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 3), nn.Linear(16, 10)
        self.alone = alone
        if not alone:
            self.c.weight = self.b.weight

    def forward(self, x):
        h = torch.relu(self.b(torch.relu(self.a(x))))
        h = F.conv2d(h, self.b.weight.clone()) if self.alone else self.c(h)
        return self.f(torch.relu(h).mean((2, 3)))


def test_layers_that_share_a_parameter_stay_whole_and_tied():
    model = Tied(alone=False).eval()
    found = groups(model, torch.zeros(1, 3, 16, 16))
    assert set(found.unprunable.values()) == {"16 of 16 channels: b.weight and c.weight are one parameter"}
    small = shrink(found, found.to_subset(np.ones(0, dtype=bool)))
    assert small.b.weight is small.c.weight
    held = groups(Tied(alone=True).eval(), torch.zeros(1, 3, 16, 16)).unprunable
    assert "b.weight and the step b_weight are one parameter" in held["a"]


def test_a_per_channel_layer_called_twice_ties_what_enters_it():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.p, self.c = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.PReLU(16), nn.Linear(16, 5)

        def forward(self, x):
            return self.c(self.p(self.b(self.p(self.a(x)))).mean((2, 3)))

    assert whole(Twice()) == {}
    assert [group.members for group in groups(Twice().eval(), torch.zeros(1, 3, 16, 16)).members] == [
        (("a", channel), ("b", channel)) for channel in range(16)
    ]


def test_a_lazy_network_is_refused_and_untouched():
    model = nn.Sequential(nn.LazyConv2d(8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(10)).eval()
    with pytest.raises(InputError, match=r"received 0.weight without one: call the network on an image once"):
        groups(model, torch.zeros(1, 3, 16, 16))
    assert model(torch.zeros(2, 3, 16, 16)).shape == (2, 10)
    assert len(groups(model, torch.zeros(1, 3, 16, 16))) == 8


@pytest.mark.parametrize("name", NARROW)
def test_a_trial_keeps_nothing_of_a_network_that_can_be_followed(name):
    model, shape = built(name)
    reasons = groups(model, torch.zeros(1, *shape)).unprunable.values()
    assert not [reason for reason in reasons if "fewer channels" in reason or "one parameter" in reason]
