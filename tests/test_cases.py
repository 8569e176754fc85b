"""Small inputs that once gave wrong numbers without a word, or an error of Python's: each gives the right value or one sentence."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import channelscope
from channelscope import scores, zoo
from channelscope.data.images import read_images
from channelscope.data.sources import ImageSource
from channelscope.errors import InputError
from channelscope.formulas.ranks import partial_correlation
from channelscope.network.cost import cost, fused_kernels, macs


def executed(model: nn.Module, image: torch.Tensor) -> int:
    """Multiply-adds as PyTorch counts them."""
    counter = FlopCounterMode(display=False, custom_mapping=fused_kernels())
    with counter, torch.no_grad():
        model(image)
    return counter.get_total_flops() // 2


class Hybrid(nn.Module):
    """A convolutional stem and a transformer layer."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3, 2, 1))
        self.enc = nn.TransformerEncoderLayer(24, 4, 96, batch_first=True)
        self.fc = nn.Linear(24, 10)

    def forward(self, x):
        return self.fc(self.enc(self.stem(x).flatten(2).transpose(1, 2)).mean(1))


@pytest.mark.parametrize("share", [0.9, 0.7])
def test_budget_opaque_module(share):
    torch.manual_seed(0)
    model, image = Hybrid().eval(), torch.randn(1, 3, 16, 16)
    found = channelscope.groups(model, image)
    ranking = scores.l2(channelscope.collect(model, [torch.randn(40, 3, 16, 16)]))
    full = cost(model, image).total_macs
    kept = channelscope.cut(ranking, found, macs=share)
    small = channelscope.shrink(found, kept)
    assert macs(found, kept) == cost(small, image).total_macs
    assert share * full - 0.02 * full < cost(small, image).total_macs <= share * full


def test_positions_bias():
    toy = zoo.toys.exact_copy()
    profile = channelscope.collect(toy.model, toy.batches)
    for readout in ("pooled", "positions"):
        plain = scores.relevance(profile, corrected=False, target_readout=readout)["conv"]
        bias = plain - scores.relevance(profile, target_readout=readout)["conv"]
        assert bias[np.isfinite(bias)] == pytest.approx(1 / (2 * profile.images), rel=1e-4)
    above = scores.overlap(profile, ceiling=4.1)["conv"] - scores.overlap(profile, ceiling=3.1)["conv"]
    copies = np.isinf(scores.overlap(profile)["conv"])
    assert above[copies] == pytest.approx(1 / (len(copies) - 1))
    assert above[~copies] == pytest.approx(0)
    with pytest.raises(InputError, match="no option is called ceilng; there are: target, "):
        scores.table(profile, ["relevance"], ceilng=3.1)


def test_seeds_without_train_part(tmp_path):
    draws = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(20):
            Image.fromarray(draws.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(tmp_path / name / f"{number}.png")
    splits = [read_images(ImageSource(f"folder:{tmp_path}", images=12, seed=seed)) for seed in (0, 1)]
    first, second = ([set(part.indices.tolist()) for part in (split.test, split.calibration)] for split in splits)
    assert first[0] == second[0]
    assert first[1] != second[1]
    assert not first[0] & (first[1] | second[1])


@pytest.mark.parametrize("value", [0.1, 0.3, 0.7, 1.1])
@pytest.mark.parametrize("rows", [7, 13, 50])
def test_constant_columns(value, rows):
    noise = torch.randn(rows, generator=torch.Generator().manual_seed(0)).double()
    constant = torch.full((rows,), value).double()
    assert partial_correlation(torch.stack([constant, noise], 1)).isnan()
    assert partial_correlation(torch.stack([noise, noise + torch.arange(rows)], 1)).isfinite()


class Tied(nn.Module):
    """Two convolutions with one weight."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.f = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 10)
        self.c.weight = self.b.weight

    def forward(self, x):
        return self.f(torch.relu(self.c(torch.relu(self.b(torch.relu(self.a(x)))))).mean((2, 3)))


def test_tied_parameters():
    model = Tied().eval()
    found = channelscope.groups(model, torch.zeros(1, 3, 12, 12))
    assert "b.weight and c.weight are one parameter" in found.unprunable["b"]
    small = channelscope.shrink(found, found.to_subset(np.ones(len(found), dtype=bool)))
    assert small.b.weight is small.c.weight
    assert sum(part.numel() for part in small.parameters()) == sum(part.numel() for part in model.parameters())


class Up(nn.Module):
    """A step up beside a shortcut, padded by what is lacking."""

    def __init__(self):
        super().__init__()
        self.e, self.f = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.up, self.o = nn.ConvTranspose2d(16, 8, 2, stride=2), nn.Conv2d(16, 4, 1)

    def forward(self, x):
        a = F.relu(self.e(x))
        b = self.up(F.relu(self.f(F.max_pool2d(a, 2))))
        dy, dx = a.size()[2] - b.size()[2], a.size()[3] - b.size()[3]
        return self.o(torch.cat([a, F.pad(b, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2])], dim=1)).mean((2, 3))


@pytest.mark.parametrize("size", [9, 12])
def test_pad_computed(size):
    model, images = Up().eval(), torch.randn(2, 3, size, size)
    found = channelscope.groups(model, images[:1])
    assert {site for group in found.members for site in group.sites} == {"e", "f"}
    kept = found.to_subset(np.arange(len(found)) % 3 != 0)
    small = channelscope.shrink(found, kept)
    assert small.e.out_channels + small.f.out_channels == 16
    with torch.no_grad(), channelscope.silence(model, ~kept):
        expected = model(images)
    torch.testing.assert_close(small(images), expected)


class Optional(nn.Module):
    """A forward pass with an optional second parameter."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.f = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x, features_only=False):
        x = self.b(self.a(x).relu()).relu()
        return x if features_only else self.f(x.mean((2, 3)))


@pytest.mark.parametrize("labeled", [True, False])
def test_optional_parameter(labeled):
    torch.manual_seed(0)
    model = Optional().eval()
    batches = [(torch.randn(16, 3, 8, 8), torch.arange(16) % 5) for _ in range(4)]
    ranking = scores.l2(channelscope.collect(model, batches))
    small = channelscope.prune(ranking, model, batches if labeled else [images for images, _ in batches], macs=0.6).model
    assert small(batches[0][0], features_only=True).shape == (16, small.b.out_channels, 8, 8)
    assert executed(small, batches[0][0][:1]) <= 0.6 * executed(model, batches[0][0][:1])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "share"), [("mobilevit_xxs", 0.8), ("eca_nfnet_l0", 0.8)])
def test_timm_rows(name, share):
    model, image = zoo.build(f"timm:{name}", classes=10, image_size=64).eval(), torch.randn(1, 3, 64, 64)
    found = channelscope.groups(model, image)
    ranking = scores.l2(channelscope.collect(model, [torch.randn(4, 3, 64, 64)], shards=0))
    small = channelscope.shrink(found, channelscope.cut(ranking, found, macs=share))
    assert share - 0.02 < executed(small, image) / executed(model, image) <= share
