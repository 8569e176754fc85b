"""Propagation: influence by loops, correlations by residuals, chains in which everything or nothing is handed on."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import pencil_experiments as pencil
from channelscope import data, zoo
from channelscope.errors import MismatchError, SampleError
from channelscope.experiments.propagation import LOCAL, axis_propagation, connections
from channelscope.profiling.collect import collect
from channelscope.scores.score import lookup
from channelscope.scores.score_table import table as scored
from channelscope.tables import HEADLINE
from channelscope.zoo.models import SmallResNet


class Chain(nn.Module):
    """Two convolutions in a row; the second reads the first through `mixing` (readers, channels)."""

    def __init__(self, mixing):
        super().__init__()
        readers, channels = mixing.shape
        self.first, self.second = nn.Conv2d(3, channels, 1), nn.Conv2d(channels, readers, 1, bias=False)
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(readers, 4)
        with torch.no_grad():
            self.second.weight.copy_(mixing[:, :, None, None])

    def forward(self, x):
        return self.fc(self.pool(self.second(self.first(x))).flatten(1))


class Split(nn.Module):
    """A grouped and a depthwise convolution, and a linear layer behind a flattened map."""

    def __init__(self):
        super().__init__()
        self.first, self.grouped = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, groups=2, padding=1)
        self.depthwise, self.fc1, self.fc2 = nn.Conv2d(12, 12, 3, groups=12), nn.Linear(12 * 36, 10), nn.Linear(10, 3)

    def forward(self, x):
        x = self.depthwise(self.grouped(self.first(x).relu()).relu()).relu()
        return self.fc2(self.fc1(x.flatten(1)).relu())


def batches(images=96, side=8, classes=4, seed=0):
    source = torch.Generator().manual_seed(seed)
    pixels = torch.randn(images, 3, side, side, generator=source) + torch.randn(images, 3, 1, 1, generator=source)
    return [(pixels, torch.randint(classes, (images,), generator=source), torch.arange(images))]


def made(build, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build().eval()


def chained(mixing):
    model = made(lambda: Chain(mixing))
    return model, collect(model, batches(), shards=0)


@pytest.fixture(scope="module")
def residual():
    model = made(lambda: SmallResNet(8, classes=10, channels=1, width=8), 4)
    profile = collect(model, data.read_images("digits").calibration.take(150), shards=0)
    return model, profile, axis_propagation(model, profile, permutations=20)


def row(frame, **where):
    for column, value in where.items():
        frame = frame[frame[column] == value]
    assert len(frame) == 1
    return frame.iloc[0]


class TestPlanted:
    def test_copies_hand_on_what_they_have(self):
        """Each reader reads one channel and is twice it: all four quantities arrive as they were."""
        tables = axis_propagation(*chained(2 * torch.eye(16)), permutations=99)
        for name in ("capture", "relevance", "excess"):
            own = row(tables["propagation"], upstream=name, downstream=name)
            assert own.rho == pytest.approx(1)
            assert own.plain == pytest.approx(1)
            assert own.p == pytest.approx(0.01)
            assert own.n == 16

    def test_a_reader_of_all_channels_alike_receives_nothing(self):
        """With equal weights every reader has the same upstream mean, and a constant has no rank correlation."""
        model, profile = chained(torch.ones(12, 16))
        with pytest.raises(SampleError, match="nothing to follow"):
            axis_propagation(model, profile)

    def test_the_null_lies_around_zero(self):
        tables = axis_propagation(*chained(torch.randn(24, 24, generator=torch.Generator().manual_seed(1))), permutations=200)
        assert tables["propagation"].null_mean.abs().max() < 0.1
        assert tables["propagation"].p.between(1 / 201, 1).all()


class TestLinks:
    def test_influence_is_weights_times_spread(self):
        model = made(Split)
        profile = collect(model, batches(classes=3), shards=0)
        found = {(link.site.name, link.consumer.name): link for link in connections(model, profile)}
        assert set(found) == {("first", "grouped"), ("grouped", "depthwise"), ("depthwise", "fc1")}
        for (site, reader), seen in {
            ("first", "grouped"): range(8),
            ("grouped", "depthwise"): range(12),
            ("depthwise", "fc1"): np.repeat(np.arange(12), 36),
        }.items():
            module = model.get_submodule(reader)
            spread = profile.record(profile.sites[[s.name for s in profile.sites].index(site)]).activation.variance.sqrt().numpy()
            groups = module.groups if isinstance(module, nn.Conv2d) else 1
            weight = module.weight.detach().double().flatten(2).numpy() if module.weight.dim() > 2 else module.weight.detach().numpy()
            expected = pencil.influence(weight[..., None] if weight.ndim == 2 else weight, groups, spread, list(seen))
            np.testing.assert_allclose(found[site, reader].influence.numpy(), expected, rtol=1e-5)

    def test_a_residual_network_is_followed_through_its_graph(self, residual):
        model, profile, _ = residual
        found = {(link.site.name, link.consumer.name): link.summed for link in connections(model, profile)}
        assert found["layer1.0.conv1", "layer1.0.conv2"] is False
        assert found["layer1.0.conv2", "layer2.0.conv1"] is True
        assert found["layer1.0.conv2", "layer2.0.shortcut.0"] is True
        assert ("layer1.0.conv1", "layer2.0.conv1") not in found


class TestTables:
    def test_correlations_are_those_of_residuals_of_ranks(self, residual):
        model, profile, tables = residual
        scores = scored(profile, [one.name for one in lookup(HEADLINE)]).set_index("site")
        for link in list(connections(model, profile))[:2]:
            upstream, downstream = (scores.loc[each.name, list(HEADLINE)] for each in (link.site, link.consumer))
            there = upstream.notna().all(axis=1).to_numpy()
            means = {
                name: pencil.ranked(pencil.upstream_mean(link.influence.numpy()[there], upstream[name].to_numpy()[there]))
                for name in HEADLINE
            }
            for one in HEADLINE:
                held = HEADLINE[2:] if one in LOCAL else LOCAL
                for other in HEADLINE:
                    own = row(tables["propagation"], site=link.site.name, consumer=link.consumer.name, upstream=one, downstream=other)
                    columns = [means[one], pencil.ranked(downstream[other].to_numpy()), *(means[name] for name in held)]
                    assert own.rho == pytest.approx(pencil.partial_correlation(np.column_stack(columns)), abs=1e-6)
                    assert own.plain == pytest.approx(np.corrcoef(*columns[:2])[0, 1], abs=1e-6)

    def test_means_are_over_links(self, residual):
        _, _, tables = residual
        frame = tables["propagation"]
        for mean in tables["propagation_mean"].itertuples():
            own = frame[(frame.upstream == mean.upstream) & (frame.downstream == mean.downstream)]
            assert mean.rho == pytest.approx(own.rho.mean())
            assert mean.n == len(own)
            assert mean.low <= mean.rho <= mean.high
        assert set(tables["propagation_axes"]["axes"]) == {"local → local", "local → target", "target → local", "target → target"}

    def test_the_seed_is_of_the_null_alone(self, residual):
        model, profile, tables = residual
        again = axis_propagation(model, profile, permutations=20)
        for name, frame in tables.items():
            pd.testing.assert_frame_equal(frame, again[name])
        other = axis_propagation(model, profile, permutations=20, seed=1)["propagation"]
        np.testing.assert_array_equal(other.rho, tables["propagation"].rho)
        assert not np.array_equal(other.null_mean, tables["propagation"].null_mean)

    def test_residual_links_are_marked(self, residual):
        frame = residual[2]["propagation"].query("upstream == 'capture' and downstream == 'capture'")
        assert row(frame, site="layer1.0.conv2", consumer="layer2.0.conv1").note == "through a residual sum"
        assert row(frame, consumer="layer1.0.conv2").note == ""


class TestBadInput:
    def test_other_weights(self, residual):
        _, profile, _ = residual
        with pytest.raises(MismatchError, match="weights"):
            axis_propagation(made(lambda: SmallResNet(8, classes=10, channels=1, width=8), 5), profile)

    def test_layers_too_narrow_to_correlate(self):
        with pytest.raises(SampleError, match="at least 8 channels on both sides"):
            axis_propagation(*chained(torch.eye(6)))

    def test_a_single_layer_reads_nothing(self):
        toy = zoo.toys.exact_copy()
        with pytest.raises(SampleError, match="nothing to follow"):
            axis_propagation(toy.model, collect(toy.model, toy.batches, shards=0))
