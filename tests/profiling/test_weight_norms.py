"""Weight facts against definitions, and the affine way from read to cut point."""

import numpy as np
import pytest
import torch
from torch import nn

from channelscope.network.graph import memory_format
from channelscope.network.sites import consumers, sites
from channelscope.profiling.weight_norms import filters, following_batchnorm, weight_norms
from networks import NARROW, built


@pytest.mark.parametrize("name", NARROW)
def test_norms_and_distances(name):
    model, shape = built(name)
    found = sites(model, torch.randn(1, *shape))
    facts = weight_norms(found)
    for site in found:
        rows = model.get_submodule(site.name).weight.detach().double().reshape(site.channels, -1).numpy()
        np.testing.assert_allclose(facts[site.name]["l1"], np.abs(rows).sum(1))
        np.testing.assert_allclose(facts[site.name]["l2"], np.sqrt((rows**2).sum(1)))
        distances = [sum(np.linalg.norm(a - b) for b in rows) for a in rows[:3]]
        np.testing.assert_allclose(facts[site.name]["distances"][:3], distances, rtol=1e-6)
        norm = model.get_submodule(site.batchnorm) if site.batchnorm else None
        if isinstance(norm, nn.BatchNorm2d):
            np.testing.assert_allclose(facts[site.name]["gamma"], norm.weight.detach())
        assert filters(model.get_submodule(site.name)).shape == rows.shape


@pytest.mark.parametrize("cached", [1, 20, 300])
def test_sums_are_the_same_however_many_weights_are_summed_at_once(monkeypatch, cached):
    layers = (
        nn.Conv2d(3, 6, 3),
        nn.Conv2d(6, 6, 3, groups=6),
        nn.Conv2d(6, 10, 3, groups=2),
        nn.Flatten(),
        nn.Linear(40, 7),
        nn.Linear(7, 2),
    )
    found = sites(nn.Sequential(*layers).eval(), torch.zeros(1, 3, 8, 8))
    at_once = weight_norms(found)
    monkeypatch.setattr("channelscope.profiling.weight_norms.CACHED", cached)
    in_parts = weight_norms(found)
    assert all("outgoing" in facts for facts in at_once.values())
    for site, facts in at_once.items():
        torch.testing.assert_close(in_parts[site], facts)


def distances_of(rows: torch.Tensor) -> torch.Tensor:
    """Distances of a linear layer with these weights."""
    layer = nn.Linear(rows.shape[1], len(rows)).to(rows.dtype)
    layer.weight.data = rows
    image = torch.zeros(1, 1, 1, rows.shape[1], dtype=rows.dtype)
    found = sites(nn.Sequential(nn.Flatten(), layer, nn.ReLU(), nn.Linear(len(rows), 2, dtype=rows.dtype)).eval(), image)
    return weight_norms(found)["1"]["distances"]


def test_distances_of_more_filters_than_a_block_holds():
    rows = torch.randn(1030, 3, generator=torch.Generator().manual_seed(0))
    expected = torch.cdist(rows.double(), rows.double(), compute_mode="donot_use_mm_for_euclid_dist").sum(1)
    torch.testing.assert_close(distances_of(rows), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("apart", [2.0**-10, 2.0**-14])
def test_distances_of_nearly_equal_filters_keep_their_digits(apart):
    rows = torch.ones(520, 7)
    rows[0, 0] = rows[519, 0] = 1 + apart
    expected = torch.full((520,), 2 * apart, dtype=torch.float64)
    expected[0] = expected[519] = 518 * apart
    torch.testing.assert_close(distances_of(rows), expected, rtol=1e-6, atol=0)


def test_distances_of_float64_filters_are_exact():
    rows = torch.tensor([[3.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    assert distances_of(rows).tolist() == [5.0, 5.0]


def outgoing(*layers: nn.Module, shape: tuple[int, ...] = (3, 8, 8)) -> torch.Tensor:
    """Of the first layer."""
    model = nn.Sequential(*layers).eval()
    image = torch.zeros(1, *shape)
    return weight_norms(sites(model, image))["0"]["outgoing"]


def first(channels: int = 6) -> tuple[nn.Module, ...]:
    return nn.Conv2d(3, channels, 3, padding=1), nn.ReLU()


HEAD = (nn.AdaptiveAvgPool2d(1), nn.Flatten())


def column_norms(layer: nn.Module) -> torch.Tensor:
    return layer.weight.detach().double().flatten(2).square().sum((0, 2)).sqrt()


def test_outgoing_weights_of_a_convolution():
    reader = nn.Conv2d(6, 5, 3)
    torch.testing.assert_close(outgoing(*first(), reader, *HEAD, nn.Linear(5, 2)), column_norms(reader))


def test_outgoing_weights_of_a_transposed_convolution():
    reader = nn.ConvTranspose2d(6, 5, 3)
    expected = reader.weight.detach().double().square().sum((1, 2, 3)).sqrt()
    torch.testing.assert_close(outgoing(*first(), reader, *HEAD, nn.Linear(5, 2)), expected)


def test_outgoing_weights_of_groups_and_depthwise():
    reader = nn.Conv2d(6, 4, 3, groups=2)
    squares = reader.weight.detach().double().square()  # 4 × 3: outputs 0, 1 read channels 0 … 2, outputs 2, 3 read 3 … 5
    expected = torch.cat([squares[:2].sum((0, 2, 3)), squares[2:].sum((0, 2, 3))]).sqrt()
    torch.testing.assert_close(outgoing(*first(), reader, *HEAD, nn.Linear(4, 2)), expected)
    deep = nn.Conv2d(6, 6, 3, groups=6)
    expected = deep.weight.detach().double().square().sum((1, 2, 3)).sqrt()
    torch.testing.assert_close(outgoing(*first(), deep, *HEAD, nn.Linear(6, 2)), expected)


@pytest.mark.parametrize(
    "between",
    [
        [nn.MaxPool2d(2)],
        [nn.AvgPool2d(2), nn.BatchNorm2d(6), nn.Dropout(0.5)],
        [nn.GroupNorm(2, 6)],
        [nn.InstanceNorm2d(6)],
        [nn.ReflectionPad2d(1)],
    ],
    ids=lambda between: type(between[0]).__name__,
)
def test_outgoing_weights_behind_what_passes_channels_on(between):
    reader = nn.Conv2d(6, 5, 3)
    torch.testing.assert_close(outgoing(*first(), *between, reader, *HEAD, nn.Linear(5, 2)), column_norms(reader))


def test_outgoing_weights_of_a_flattened_map():
    reader = nn.Linear(6 * 16, 2)
    expected = reader.weight.detach().double().view(2, 6, 16).square().sum((0, 2)).sqrt()
    torch.testing.assert_close(outgoing(*first(), nn.MaxPool2d(2), nn.Flatten(), reader), expected)


class Branching(nn.Module):
    """A stem read by two layers, whose sum is read by a third."""

    def __init__(self):
        super().__init__()
        self.stem, self.one, self.two, self.fc = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 2)

    def forward(self, x):
        x = self.stem(x).relu()
        return self.fc((self.one(x) + self.two(x)).mean((2, 3)))


def test_outgoing_weights_of_several_readers_add_up_and_lead_through_sums():
    model, image = Branching(), torch.zeros(1, 3, 8, 8)
    facts = weight_norms(sites(model, image))
    both = column_norms(model.one).square() + column_norms(model.two).square()
    torch.testing.assert_close(facts["stem"]["outgoing"], both.sqrt())
    for name in ("one", "two"):
        torch.testing.assert_close(facts[name]["outgoing"], model.fc.weight.detach().double().norm(dim=0))


class Lined(nn.Module):
    """Two branches side by side, one of which a layer reads reversed."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.mix, self.fc = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 5, 1), nn.Conv2d(8, 4, 1), nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(self.mix(torch.cat([self.b(x).relu().flip(1), self.a(x).relu()], 1)).mean((2, 3)))


def test_outgoing_weights_find_their_place_in_a_concatenation():
    model, image = Lined(), torch.zeros(1, 3, 8, 8)
    facts, norms = weight_norms(sites(model, image)), column_norms(model.mix)
    torch.testing.assert_close(facts["a"]["outgoing"], norms[5:])
    torch.testing.assert_close(facts["b"]["outgoing"], norms[:5].flip(0))


class Mixing(nn.Module):
    """Pairs of channels are added before a layer reads them."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 1), nn.Linear(3, 2)

    def forward(self, x):
        x = self.conv(x).relu().mean((2, 3))
        return self.fc(x[:, :3] + x[:, 3:])


def test_an_input_made_of_several_channels_counts_for_each():
    model, image = Mixing(), torch.zeros(1, 3, 8, 8)
    norms = model.fc.weight.detach().double().norm(dim=0)
    torch.testing.assert_close(weight_norms(sites(model, image))["conv"]["outgoing"], norms.repeat(2))


class Attending(nn.Module):
    """Positions attend to each other: a layer makes queries, keys and values of two heads, another one reads their mixture."""

    def __init__(self):
        super().__init__()
        self.conv, self.qkv, self.proj, self.fc = nn.Conv2d(3, 4, 1), nn.Linear(4, 12), nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x):
        x = self.conv(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(x).unflatten(2, (3, 2, 2)).permute(2, 0, 3, 1, 4).unbind(0)
        x = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.fc(self.proj(x.transpose(1, 2).flatten(2)).mean(1))


def test_queries_and_keys_of_a_head_are_read_by_all_its_inputs_and_each_value_by_one():
    model, image = Attending(), torch.zeros(1, 3, 4, 4)
    found = sites(model, image)
    squares = model.proj.weight.detach().double().square().sum(0)
    heads = squares.view(2, 2).sum(1).repeat_interleave(2)
    torch.testing.assert_close(weight_norms(found)["qkv"]["outgoing"], torch.cat([heads, heads, squares]).sqrt())


class Bare(nn.Module):
    """Its classifier is a parameter, no layer."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)
        self.head = nn.Parameter(torch.randn(5, 2))

    def forward(self, x):
        return self.b(self.a(x).relu()).relu().mean((2, 3)) @ self.head


def test_where_no_layer_reads_there_are_no_outgoing_weights():
    model, image = Bare(), torch.zeros(1, 3, 8, 8)
    facts = weight_norms(sites(model, image))
    torch.testing.assert_close(facts["a"]["outgoing"], column_norms(model.b))
    assert "outgoing" not in facts["b"]


@pytest.mark.parametrize("name", NARROW)
def test_every_site_that_a_layer_reads_has_outgoing_weights(name):
    model, shape = built(name)
    image = torch.zeros(1, *shape)
    found = sites(model, image)
    facts = weight_norms(found)
    for site in found:
        assert bool(consumers(found.graph, site)) == ("outgoing" in facts[site.name])
        assert facts[site.name]["outgoing"].shape == (site.channels,)
        assert bool((facts[site.name]["outgoing"] > 0).all())


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_the_affine_way(affine, bias):
    norm = nn.BatchNorm2d(4, affine=affine)
    nn.init.normal_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=bias), norm, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
    found = sites(model, torch.zeros(1, 3, 6, 6))
    factor, shift = following_batchnorm(found.graph, found["0"])
    x = torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        torch.testing.assert_close(
            model[:2](x).double(), model[0](x).double() * factor.view(4, 1, 1) + shift.view(4, 1, 1), rtol=1e-4, atol=1e-5
        )


def test_normalization_by_the_batch_is_not_affine():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten(), nn.Linear(64, 2)).eval()
    assert not sites(model, torch.randn(2, 3, 6, 6))["0"].activation_is_affine


def test_the_layout_is_channels_last_where_the_network_can_run_so():
    model, shape = built("resnet18")
    image = torch.randn(1, *shape)
    assert memory_format(model, image) is torch.channels_last

    class Viewing(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 1), nn.Linear(4 * 36, 2)

        def forward(self, x):
            return self.fc(self.conv(x).view(-1, 4 * 36))

    image = torch.randn(1, 3, 6, 6)
    assert memory_format(Viewing(), image) is torch.contiguous_format

    class Reading(Viewing):
        def forward(self, x):
            values = self.conv(x)
            as_it_lies = torch.as_strided(values, (len(x), 4 * 36), (4 * 36, 1))
            return self.fc(as_it_lies)

    assert memory_format(Reading(), image) is torch.contiguous_format


def test_finding_the_layout_leaves_a_training_network_as_it_was():
    model, shape = built("resnet18")
    model.train()
    before = model.bn1.running_mean.clone()
    image = torch.randn(1, *shape)
    memory_format(model, image)
    assert torch.equal(model.bn1.running_mean, before)
    assert model.training
