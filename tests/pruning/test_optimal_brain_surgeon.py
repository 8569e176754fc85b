"""Reconstruction: costs are what brute-force refits cost, and redundant channels go first."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from channelscope.errors import InputError, SampleError
from channelscope.formulas.gaussian import ledoit_wolf_penalty
from channelscope.network.cost import MacCounter
from channelscope.network.removal.groups import groups
from channelscope.network.removal.labeled_graph import Layer
from channelscope.pruning.cut import cut, shrink
from channelscope.pruning.optimal_brain_surgeon import (
    MOST_RIDGE,
    InputMoments,
    Prices,
    RefittedLayer,
    inputs_and_output_gradients,
    optimal_brain_surgeon,
    optimal_brain_surgeons,
    with_signs,
)
from channelscope.pruning.prune import kl_divergence
from channelscope.pruning.repair import repair
from networks import built
from pencil_pruning import elimination_slowly

IMAGES = torch.randn(80, 3, 8, 8, generator=torch.Generator().manual_seed(5))


class Twins(nn.Module):
    """Channel 4 of the first layer is a copy of channel 1; channel 2 is read by nobody; channel 5 is not removable alone."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 3), nn.Linear(5, 4)

    def forward(self, x):
        return self.head(F.relu(self.second(F.relu(self.first(x)))).mean((2, 3)))


def twins() -> nn.Module:
    torch.manual_seed(3)
    model = Twins()
    model.first.weight.data[4] = model.first.weight[1]
    model.first.bias.data[4] = model.first.bias[1]
    model.second.weight.data[:, 2] = 0
    model.head.weight.data *= 5
    return model.eval().requires_grad_(False)


def test_a_copy_and_a_channel_nobody_reads_go_first():
    model = twins()
    ranking = optimal_brain_surgeon(model, IMAGES.split(30), exponent=1.0)
    first = np.argsort(ranking["first"])
    assert first[0] == 2
    assert first[1] in (1, 4)
    assert ranking.comparable_across_layers
    values = np.concatenate([ranking["first"], ranking["second"]])
    np.testing.assert_allclose(np.sort(values), np.arange(11) / 10)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_cut_takes_it_as_it_is():
    model = twins()
    found = groups(model, IMAGES[:1])
    ranking = optimal_brain_surgeon(found, IMAGES.split(30))
    assert ranking.input_shape == (3, 8, 8)
    kept = cut(ranking, found, macs=0.6)
    alive = found.kept(kept)
    order = np.argsort(np.concatenate([ranking["first"], ranking["second"]]))
    removed = np.flatnonzero(~alive[order])
    small = shrink(found, kept)
    before = float((small(IMAGES) - model(IMAGES)).square().mean())
    repair(small, found, kept, IMAGES.split(40))
    assert float((small(IMAGES) - model(IMAGES)).square().mean()) < 0.5 * before
    assert removed[0] == 0


def layer(inputs, outputs, taps=1) -> Layer:
    return Layer("x", "x", torch.tensor(inputs), torch.tensor(outputs), taps, 1)


@pytest.mark.parametrize("compacted_below", [0.0, 1.0])
@pytest.mark.parametrize("taps", [1, 4])
def test_costs_are_those_of_refits_by_brute_force(monkeypatch, taps, compacted_below):
    """Weighted error of ridge regressions on what is left, done anew for every candidate, in plain numpy."""
    monkeypatch.setattr("channelscope.pruning.optimal_brain_surgeon.COMPACTED_BELOW", compacted_below)
    draw = np.random.default_rng(0)
    width = 5 * taps
    root, weights, gradient = draw.normal(size=(width, width)), draw.normal(size=(3, width)), draw.normal(size=(3, 3))
    covariance, metric = root @ root.T, gradient @ gradient.T
    owner = np.array([0, 1, 2, 1, -1, 3, 4, 5])  # inputs 1 and 3 are one group, input 4 cannot go
    consumer = RefittedLayer(layer([0, 1, 2, 3, 4], [5, 6, 7]), owner, *map(torch.tensor, (weights, covariance, metric)), 0.1)
    loaded = covariance + 0.1 * np.mean(np.diag(covariance)) * np.eye(width)
    groups_of = np.repeat(owner[:5], taps)
    outputs = owner[5:]
    gone: list[int] = []
    for pick in (2, 4, 1):
        expected = elimination_slowly(loaded, metric, weights, groups_of, outputs, gone)
        received = consumer.costs(6)
        assert set(np.flatnonzero(received)) == {group for group, value in expected.items() if value}
        for group, value in expected.items():
            assert received[group] == pytest.approx(value, rel=1e-8, abs=1e-10)
        consumer.remove(pick)
        gone.append(pick)
    assert np.flatnonzero(consumer.costs(6)).tolist() == [0]
    assert consumer.weights.shape == ((2, 2 * taps) if compacted_below else (3, 5 * taps))


def test_inputs_that_never_vary_cost_nothing():
    owner = np.arange(4)
    consumer = RefittedLayer(
        layer([0, 1], [2, 3]), owner, torch.ones(2, 2).double(), torch.zeros(2, 2).double(), torch.eye(2).double(), 0.1
    )
    assert np.isfinite(consumer.costs(4)).all()


@pytest.mark.parametrize("name", [pytest.param("mobilenet_v2", marks=pytest.mark.slow), "densenet121", "convnext_tiny"])
def test_every_architecture_gets_a_whole_order(name):
    model, shape = built(name)
    found = groups(model, torch.zeros(1, *shape))
    ranking = optimal_brain_surgeon(found, [torch.randn(6, *shape, generator=torch.Generator().manual_seed(0))], positions=4)
    for site in found.sites:
        values = ranking[site.name]
        owner = found.group_of[found.first_id[site.name] : found.first_id[site.name] + site.channels]
        assert (np.isinf(values) == (owner < 0)).all()
        assert set(ranking.notes.get(site.name, {})) == set(np.flatnonzero(owner < 0))
    assert cut(ranking, found, macs=0.6).fraction < 1


def test_the_same_seed_gives_the_same_order():
    first, second = (optimal_brain_surgeon(twins(), IMAGES.split(size)) for size in (30, 80))
    assert all(np.array_equal(first[name], second[name]) for name in first.values)
    assert first.name == "reconstruction(ridge=0.01, exponent=1.5)"


@pytest.mark.gpu
def test_a_gpu_gives_nearly_the_same_order():
    here, there = (
        optimal_brain_surgeon(twins(), IMAGES.split(30), positions=9),
        optimal_brain_surgeon(twins().cuda(), IMAGES.split(30), positions=9),
    )
    for name in here.values:
        assert np.corrcoef(here[name], there[name])[0, 1] > 0.99


def test_few_images_at_once_give_the_same_order(monkeypatch):
    """The signs do not depend on how many images fit into memory."""
    sizes, backward = [], torch.autograd.grad

    def watched(logits, *others, **options):
        sizes.append(len(logits))
        return backward(logits, *others, **options)

    monkeypatch.setattr(torch.autograd, "grad", watched)
    model = twins()
    whole = optimal_brain_surgeon(model, [IMAGES], seed=3)
    assert sizes == [80]
    monkeypatch.setattr("channelscope.pruning.optimal_brain_surgeon.GRADIENT_BYTES", 60_000)
    parts = optimal_brain_surgeon(model, [IMAGES], seed=3)
    assert sum(sizes[1:]) == 80
    assert max(sizes[1:]) < 30
    assert all(np.array_equal(whole[name], parts[name]) for name in whole.values)


@pytest.fixture
def odds():
    """A network whose logits are its four inputs, with unequal class probabilities, and their Fisher information."""
    model = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.Conv2d(4, 4, 1, bias=False), nn.Flatten()).eval()
    model[0].weight.data = model[1].weight.data = torch.eye(4).view(4, 4, 1, 1)
    logits = torch.tensor([4.0, 1.0, 0.0, -1.0])
    p = logits.softmax(0)
    return groups(model, logits.view(1, 4, 1, 1)), logits, torch.diag(p) - torch.outer(p, p)


def test_the_gradients_have_the_fisher_information_of_the_output(odds):
    found, logits, fisher = odds
    images = logits.view(1, 4, 1, 1).expand(40_000, -1, -1, -1)
    ((batch, signs),) = with_signs(found, [(images,)], torch.Generator().manual_seed(0))
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    _, gradients = inputs_and_output_gradients(found, batch, ["_0"], [], signs)
    flat = gradients["_0"].flatten(1)
    torch.testing.assert_close(flat.T @ flat / len(flat), fisher, atol=0.003, rtol=0.02)
    assert flat.sum(1).abs().max() < 1e-5


def test_signs_vary_less_than_drawn_labels(odds):
    """The information of one image: with a label drawn for it, most of it is in the rare draws."""
    found, logits, fisher = odds
    ((batch, signs),) = with_signs(found, [(logits.view(1, 4, 1, 1).expand(4000, -1, -1, -1),)], torch.Generator().manual_seed(0))
    _, gradients = inputs_and_output_gradients(found, batch, ["_0"], [], signs)
    own = gradients["_0"].flatten(1).square().sum(1)
    labels = torch.multinomial(logits.softmax(0), 4000, replacement=True, generator=torch.Generator().manual_seed(0))
    drawn = (logits.softmax(0) - F.one_hot(labels, 4)).square().sum(1)
    assert float(drawn.mean()) == pytest.approx(float(fisher.trace()), rel=0.1)
    assert own.std() < 0.5 * drawn.std()


@pytest.mark.parametrize(("images", "positions"), [(20, 1), (20, 9), (400, 1)])
def test_few_images_are_no_evidence_that_inputs_replace_one_another(images, positions):
    """40 independent inputs cost what they are: 20 images have directions enough to explain each of them by the others."""
    of_image = torch.randn(images, 1, 40, generator=torch.Generator().manual_seed(0)).expand(-1, positions, -1)
    moments = InputMoments()
    for part in of_image.split(10):
        moments.add(part.reshape(1, -1, 40), len(part))
    covariance = moments.covariance()
    weights, owner = torch.eye(40).double(), np.arange(80)
    reader = layer(list(range(40)), list(range(40, 80)))
    counted = RefittedLayer(reader, owner, weights, covariance, torch.eye(40).double(), max(0.01, moments.ridge(covariance)))
    believed = RefittedLayer(reader, owner, weights, covariance, torch.eye(40).double(), 0.01)
    cost = np.median(counted.costs(80)[:40])
    if images == 400:
        assert 0.45 < cost < 0.8  # half of the variance
    else:
        assert cost > 0.5
        assert np.median(believed.costs(80)[:40]) < 0.05


class WideAndNarrow(nn.Module):
    """A head reads 40 channels with weights of .1, another 4 with .05, and the logits are their sum; all channels are independent."""

    def __init__(self):
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(44, 40, 1, bias=False), nn.Conv2d(44, 4, 1, bias=False)
        self.wide.weight.data, self.narrow.weight.data = torch.eye(44)[:40, :, None, None], torch.eye(44)[40:, :, None, None]
        self.heads = nn.ModuleList([nn.Linear(40, 2, bias=False), nn.Linear(4, 2, bias=False)])
        for head, weight in zip(self.heads, (0.1, 0.05), strict=True):
            head.weight.data = torch.tensor([[weight], [-weight]]).repeat(1, head.in_features)

    def forward(self, x):
        return self.heads[0](self.wide(x).flatten(1)) + self.heads[1](self.narrow(x).flatten(1))


@pytest.mark.parametrize("images", [20, 2000])
def test_of_few_images_and_of_many_the_channels_that_matter_least_go_first(images):
    """A wide channel costs four times a narrow one; on 20 images the other 39 explain it, which none of them does on more."""
    x = torch.randn(images, 44, 1, 1, generator=torch.Generator().manual_seed(0))
    ranking = optimal_brain_surgeon(WideAndNarrow().eval(), [x], exponent=0.0)
    assert sorted(ranking["narrow"])[1] < min(ranking["wide"])


@pytest.mark.parametrize("positions", [1, 9, 60])
def test_the_penalty_is_that_of_the_images_about_their_mean(positions):
    """In parts of 10 images, about a mean that is known only at the end, it is off by a few percent."""
    draw = torch.Generator().manual_seed(1)
    x = 3 + torch.randn(200, 1, 40, generator=draw) * torch.arange(1.0, 41.0) + torch.randn(200, positions, 40, generator=draw)
    moments = InputMoments()
    for part in x.split(10):
        moments.add(part.reshape(1, -1, 40), len(part))
    centred = (x - x.mean((0, 1))).double()
    each = torch.einsum("npi,npj->nij", centred, centred) / positions
    torch.testing.assert_close(moments.covariance(), each.mean(0), rtol=1e-4, atol=1e-3)
    expected = ledoit_wolf_penalty(each.mean(0), float(each.square().sum((1, 2)).mean()), 200)
    assert moments.ridge(moments.covariance()) == pytest.approx(expected, rel=0.1)


def test_inputs_that_never_vary_have_the_largest_penalty():
    nothing = InputMoments()
    nothing.add(torch.zeros(1, 4, 3), 2)
    assert nothing.ridge(nothing.covariance()) == MOST_RIDGE


class Tokens(nn.Module):
    """Two layers over 16 tokens, in windows of so many of them, and a bias that a hidden layer makes of a table."""

    def __init__(self, window: int, table: bool):
        super().__init__()
        torch.manual_seed(0)
        self.window = window
        self.register_buffer("table", torch.randn(1, 20, 2) if table else None)
        self.first, self.second, self.head = nn.Linear(3, 12), nn.Linear(12, 8), nn.Linear(8, 4)
        self.hidden, self.bias = nn.Linear(2, 6), nn.Linear(6, 8)

    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        windows = tokens.reshape(-1, self.window, 3)
        value = self.second(F.relu(self.first(windows)))
        if self.table is not None:
            value = value + self.bias(F.relu(self.hidden(self.table))).mean(1)
        return self.head(F.relu(value).reshape(len(x), 16, 8).mean(1))


@pytest.mark.parametrize("window", [4, 2])
def test_windows_of_an_image_are_positions_of_it(window):
    images = torch.randn(30, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    whole, parted = (optimal_brain_surgeon(Tokens(size, False).eval(), [images], positions=5) for size in (16, window))
    assert {"first", "second"} <= set(whole.values)
    for name, values in whole.values.items():
        np.testing.assert_array_equal(parted[name], values)


def test_a_layer_that_reads_no_image_is_taken_whole():
    """Twenty rows of a table, seven images, one position of each."""
    model = Tokens(16, True).eval()
    images = torch.randn(7, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    found = groups(model, images[:1])
    assert any(layer.name == "bias" and (layer.inputs >= 0).any() for layer in found.layers)
    ranking = optimal_brain_surgeon(found, [images], positions=1)
    assert np.isfinite(ranking["first"]).all()


def test_a_network_without_logits_is_refused():
    maps = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    with pytest.raises(InputError, match="images × classes, received 1 × 4 × 5 × 5"):
        optimal_brain_surgeon(groups(maps, torch.randn(1, 3, 5, 5)), [torch.randn(2, 3, 5, 5)])


def test_without_images():
    with pytest.raises(SampleError, match="no calibration images"):
        optimal_brain_surgeon(twins(), [])


def test_several_exponents_are_the_rankings_each_alone_gives():
    model = twins()
    together = optimal_brain_surgeons(model, [IMAGES], exponents=(0.5, 1.5))
    for ranking, exponent in zip(together, (0.5, 1.5), strict=True):
        alone = optimal_brain_surgeon(model, [IMAGES], exponent=exponent)
        assert ranking.name == alone.name
        for site, values in alone.values.items():
            np.testing.assert_array_equal(ranking.values[site], values)


def test_a_generator_loses_no_batch():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    images = [torch.randn(6, 1, 8, 8) for _ in range(3)]
    once, listed = optimal_brain_surgeon(model, (batch for batch in images)), optimal_brain_surgeon(model, images)
    assert {site: once[site].tolist() for site in once.values} == {site: listed[site].tolist() for site in listed.values}


def test_of_groups_of_which_one_stays_the_last_is_ranked_after_all_that_can_go():
    """Channel 2 is read by nobody and goes first, unless its part has lost all others; the order of the rest does not change."""
    found = groups(twins(), IMAGES[:1])
    free = optimal_brain_surgeon(found, [IMAGES], exponent=1.0)["first"]
    held = optimal_brain_surgeon(replace(found, parts=((1, 2, 4),)), [IMAGES], exponent=1.0)["first"]
    assert free.argmin() == held.argmin() == 2
    assert max(free[[1, 2, 4]]) < 1
    assert max(held[[1, 2, 4]]) == 1
    alone = optimal_brain_surgeon(replace(found, parts=((2,), (4,))), [IMAGES], exponent=1.0)["first"]
    assert sorted(alone[[2, 4]].tolist()) == [0.9, 1.0]


class Adding(nn.Module):
    """Two heads read the first two channels, one head the last two, and the logits are their sum."""

    def __init__(self, twice: float, once: float):
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 2, 1, bias=False), nn.Conv2d(4, 2, 1, bias=False)
        self.heads = nn.ModuleList([nn.Linear(2, 2, bias=False) for _ in range(3)])
        self.first.weight.data, self.second.weight.data = torch.eye(4).view(2, 2, 4, 1, 1)
        for head, weight in zip(self.heads, (twice, twice, once), strict=True):
            head.weight.data = torch.tensor([[weight, 2.0], [-weight, -2.0]])

    def forward(self, x):
        first, second = self.first(x).flatten(1), self.second(x).flatten(1)
        return self.heads[0](first) + self.heads[1](first) + self.heads[2](second)


def test_what_two_consumers_change_adds_up():
    """Two heads give a channel .2 each, together more than the .3 of another, though the sum of their squares is less."""
    images = torch.randn(400, 4, 1, 1, generator=torch.Generator().manual_seed(0))
    model = Adding(0.2, 0.3).eval()
    ranking = optimal_brain_surgeon(model, [images], exponent=0.0)
    assert ranking["second"][0] < ranking["first"][0] < min(ranking["first"][1], ranking["second"][1])
    without = {name: Adding(*weights).eval() for name, weights in {"first": (0.0, 0.3), "second": (0.2, 0.0)}.items()}
    assert kl_divergence(without["second"], model, [images]) < kl_divergence(without["first"], model, [images])


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "mobilenet_v2"])
def test_what_a_group_saves_is_up_to_date_after_every_removal(name):
    model, shape = built(name)
    found = groups(model, torch.zeros(1, *shape))
    counter = MacCounter(found)
    prices, left = Prices(found, MacCounter(found)), np.ones(len(found), dtype=bool)
    for pick in np.random.default_rng(0).permutation(len(found))[:40]:
        expected = []
        for group in np.flatnonzero(left):
            expected.append(max(counter.remove(int(group)), 1))
            counter.add(int(group))
        assert prices.powers(left, 1.0)[left].tolist() == expected
        prices.remove(int(pick))
        counter.remove(int(pick))
        left[pick] = False


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(sys.platform != "linux", reason="the C libraries of other systems have no call for it")
def test_memory_that_was_freed_before_a_ranking_ends_is_given_back():
    model = twins()
    blocks = [torch.ones(25_000) for _ in range(3000)]  # 300 MB in blocks too small for pages of their own
    last = torch.ones(25_000)  # holds the end of the heap
    del blocks
    before = resident()
    optimal_brain_surgeon(model, [IMAGES])
    assert before - resident() > 200e6
    assert last.all()
