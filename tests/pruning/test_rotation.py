"""Linear streams in another basis: the same function, fewer channels that matter, and nothing turned that cannot be."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import channelscope
from channelscope import zoo
from channelscope.errors import InputError
from channelscope.network.module_state import weights_hash
from channelscope.network.removal.groups import groups
from channelscope.network.tracing.recording import distance
from channelscope.pruning.rotation import linear_streams, rotate_streams


def awake(model: nn.Module) -> nn.Module:
    """Norms with statistics, factors and shifts of their own, so that nothing hides behind zeros and ones."""
    source = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            shape = module.running_mean.shape
            module.running_mean.copy_(torch.randn(shape, generator=source) / 10)
            module.running_var.copy_(torch.rand(shape, generator=source) + 0.5)
            if module.weight is not None:
                module.weight.data.copy_(torch.rand(shape, generator=source) + 0.5)
                module.bias.data.copy_(torch.randn(shape, generator=source) / 10)
    return model.eval()


class Bottlenecks(nn.Module):
    """Projections without an activation, a sum of two, a reader with borders, and one without a norm."""

    def __init__(self, last: nn.Module | None = None, affine: bool = True):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8, affine=affine)
        self.wide, self.narrow = nn.Conv2d(8, 24, 3, padding=1), nn.Conv2d(24, 8, 1)
        self.last = last or nn.Conv2d(8, 12, 3, padding=1, stride=2)
        self.drop, self.head = nn.Dropout(), nn.Linear(12, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        values = self.norm(self.stem(images))
        values = values + self.drop(self.narrow(self.wide(values).relu()))
        return self.head(self.last(values).relu().mean((2, 3)))


def images(count: int = 24, pixels: int = 16, channels: int = 3) -> torch.Tensor:
    return torch.randn(count, channels, pixels, pixels, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "pixels", "least"),
    [
        ("mobilenet_v2", 32, 7),
        ("timm:tf_efficientnet_lite0", 64, 7),
        ("timm:efficientnet_b0", 64, 7),
        ("timm:mnasnet_small", 64, 5),
        ("timm:mobilenetv3_small_050", 64, 4),
        ("timm:efficientnetv2_rw_t", 64, 3),
    ],
)
def test_public_networks_compute_the_same(name, pixels, least):
    torch.manual_seed(0)
    model = awake(zoo.build(name, classes=10, image_size=pixels)).double()
    given = images(6, pixels).double()
    found = groups(model, given[:1])
    before = weights_hash(model)
    rotated = rotate_streams(found, [given])
    streams = linear_streams(found)
    assert len(streams) >= least
    assert max(len(stream.writers) for stream in streams) > 1  # sums
    with torch.no_grad():
        assert distance(rotated(given), model(given))[0] < 1e-6
    changed = {each.layer.name for stream in streams for each in (*stream.writers, *stream.readers)}
    state, original = rotated.state_dict(), model.state_dict()
    assert all(not torch.allclose(state[f"{layer}.weight"], original[f"{layer}.weight"]) for layer in changed)
    assert weights_hash(model) == before


@pytest.mark.parametrize("affine", [True, False])
def test_biases_norms_without_factors_and_borders_stay_exact(affine):
    torch.manual_seed(0)
    model = awake(Bottlenecks(affine=affine)).double()
    given = images().double()
    (stream,) = linear_streams(groups(model, given[:1]))
    assert [each.layer.name for each in stream.writers] == ["stem", "narrow"]
    assert [each.layer.name for each in stream.readers] == ["wide", "last"]
    assert stream.channels == 8
    with torch.no_grad():
        assert distance(rotate_streams(model, [given])(given), model(given))[0] < 1e-9


def test_layers_that_compute_their_weights_are_written_with_plain_ones():
    torch.manual_seed(0)
    model = awake(Bottlenecks())
    for layer in (model.stem, model.wide, model.narrow, model.last):
        weight_norm(layer)
    rotated = rotate_streams(model, [images()])
    assert type(rotated.narrow) is nn.Conv2d
    assert not torch.allclose(rotated.narrow.weight, model.narrow.weight)
    with torch.no_grad():
        assert distance(rotated(images()), model(images()))[0] < 1e-4


def test_linear_layers_have_streams_too():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3)).double().eval()
    given = images(40, 2).double()
    (stream,) = linear_streams(groups(model, given[:1]))
    assert ([each.layer.name for each in stream.writers], [each.layer.name for each in stream.readers]) == (["1"], ["2"])
    with torch.no_grad():
        rotated = rotate_streams(model, [given])
        assert distance(rotated(given), model(given))[0] < 1e-9
        covariance = rotated[1](rotated[0](given)).T.cov()
    off = covariance - covariance.diag().diag()
    assert float(off.abs().max()) < 1e-6 * float(covariance.diagonal().max())
    assert bool((covariance.diagonal().diff() < 0).all())  # the dearest first


def test_a_stream_of_few_directions_is_cut_to_them_without_loss():
    """Eight channels that are mixtures of three: any cut of the channels loses something, one in the other basis nothing."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5)
    )
    model = model.double().eval()
    nn.init.zeros_(model[0].bias)
    given = images().double()
    found = groups(rotate_streams(model, [given]), given[:1])
    marks = {site.name: torch.ones(site.channels, dtype=torch.bool) for site in found.sites}
    marks["0"][3:] = False
    small = channelscope.shrink(found, channelscope.Subset(marks, found.sites, (3, 16, 16), groups=found))
    with torch.no_grad():
        assert small[0].out_channels == 3
        assert distance(small(given), model(given))[0] < 1e-3  # the smallest variance that is told from zero
        own = groups(model, given[:1])
        cut = channelscope.shrink(own, channelscope.Subset(marks, own.sites, (3, 16, 16), groups=own))
        assert distance(cut(given), model(given))[0] > 0.05


class TwoReaders(nn.Module):
    """A stream that something else than a layer reads as well."""

    def __init__(self, other):
        super().__init__()
        self.first, self.second, self.other, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), other, nn.Linear(4, 3)

    def forward(self, x):
        values = self.first(x)
        return self.head(self.second(values).relu().mean((2, 3))) + self.other(values).mean((1, 2, 3)).unsqueeze(1)


@pytest.mark.parametrize(
    "other",
    [nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.MaxPool2d(2), nn.Identity(), nn.BatchNorm2d(8), nn.ConvTranspose2d(8, 4, 2)],
    ids=lambda each: type(each).__name__,
)
def test_what_reads_single_channels_keeps_the_basis(other):
    assert linear_streams(groups(TwoReaders(other).eval(), images(1))) == []


def test_shared_weights_and_repeated_layers_keep_the_basis():
    shared = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.Flatten())
    shared[2].weight = shared[1].weight
    assert [each.channels for each in linear_streams(groups(shared.eval(), images(1)))] == []
    layer = nn.Conv2d(4, 4, 1)
    repeated = nn.Sequential(nn.Conv2d(3, 4, 1), layer, layer, nn.ReLU(), nn.Conv2d(4, 2, 1), nn.Flatten())
    assert linear_streams(groups(repeated.eval(), images(1))) == []


def test_a_norm_with_an_activation_inside_keeps_the_basis():
    """timm's BatchNormAct2d behind an expansion is none, behind a projection it has no activation."""
    found = groups(zoo.build("timm:efficientnet_b0", classes=10, image_size=64).eval(), images(1, 64))
    writers = {each.layer.name for stream in linear_streams(found) for each in stream.writers}
    assert {"blocks.0.0.conv_pw", "blocks.1.0.conv_pwl"} <= writers
    assert not {"conv_stem", "blocks.1.0.conv_pw", "conv_head"} & writers


def test_networks_without_streams_or_logits_are_refused():
    with pytest.raises(InputError, match="no stream that layers alone write and read"):
        rotate_streams(zoo.build("resnet20", classes=10).eval(), [torch.zeros(4, 3, 32, 32)])
    maps = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1), nn.ReLU())
    with pytest.raises(InputError, match="expected images × classes"):
        rotate_streams(maps.eval(), [images()])


def test_what_matters_comes_before_what_varies():
    """Of two values the first varies ten times as much, and the layer that reads them hardly looks at it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2), nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 3)).double().eval()
    model[1].weight.data = torch.diag(torch.tensor([10.0, 1.0]).double())
    model[2].weight.data[:, 0] *= 0.001
    given = images(200, 1, channels=2).double()
    with torch.no_grad():
        first = rotate_streams(model, [given])[1](given.flatten(1))[:, 0]
    assert float(torch.stack([first, given[:, 1, 0, 0]]).corrcoef()[0, 1].abs()) > 0.99


class Shifted(nn.Module):
    """A number is added to a stream: in another basis it would be another vector."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.second(self.first(x) + 1.0).relu().mean((2, 3)))


def test_a_number_that_is_added_keeps_the_basis():
    assert linear_streams(groups(Shifted().eval(), images(1))) == []
