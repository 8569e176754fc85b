"""Latencies: tables of times, cuts to a measured time, widths in multiples, and what is said where a target cannot be met."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from channelscope import zoo
from channelscope.errors import BudgetError, FormatError, InputError, MismatchError, NumericError
from channelscope.network.removal.groups import groups
from channelscope.pruning import latency, timing
from channelscope.pruning.budget import Budget, cut_to_latency
from channelscope.pruning.cut import remove_to_budget
from channelscope.pruning.latency import (
    LatencyTable,
    StepWidths,
    TimeCounter,
    latency_path,
    measure_latency,
)
from channelscope.pruning.prune import prune
from channelscope.pruning.timing import latency_samples
from channelscope.ranking import Ranking


def net(width=32):
    torch.manual_seed(0)
    layers = nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 4, 8)
    return nn.Sequential(*layers, nn.Flatten()).eval()


@pytest.fixture(scope="module")
def found():
    return groups(net(), torch.zeros(1, 3, 8, 8))


class Machine:
    """A device on which a pass takes a time that is proportional to parameters; its clock is moved by the passes themselves."""

    def __init__(self, monkeypatch, noise=0.0):
        self.now, self.noise, self.draws = 0.0, noise, np.random.default_rng(0)
        for module in (latency, timing):
            monkeypatch.setattr(module, "clock", lambda device: lambda: self.now)
        monkeypatch.setattr(timing, "SHORTEST", 0.0)
        for kind, rate in ((nn.Conv2d, 1e-6), (nn.ReLU, 0.0)):
            monkeypatch.setattr(kind, "forward", self.slowed(kind.forward, rate))

    def slowed(self, forward, rate):
        def run(module, x):
            self.now += rate * sum(each.numel() for each in module.parameters()) * len(x) * (1 + self.noise * self.draws.standard_cauchy())
            return forward(module, x)

        return run


def table_of(found, seconds, multiple=1):
    return LatencyTable("", "cpu", 1, 1, "float32", sum(points[-1][1] for points in seconds.values()), 0.0, multiple, seconds)


def test_the_table_has_the_times_of_the_device(found, monkeypatch):
    Machine(monkeypatch)
    table = measure_latency(found, batch=2, widths=(0.5,), runs=3)
    parameters = {name: sum(each.numel() for each in module.parameters()) for name, module in found.graph.model.named_children()}
    assert table.total == pytest.approx(2e-6 * sum(parameters.values()))
    assert {name: len(points) for name, points in table.seconds.items()} == {"_0": 2, "_1": 2, "_2": 2, "_3": 2, "_4": 2, "_5": 1}
    assert table.seconds["_2"][-1] == (1.0, pytest.approx(2e-6 * parameters["2"]))
    assert table.seconds["_2"][0] == (0.5, pytest.approx(2e-6 * (16 * 16 * 9 + 16)))
    assert table.seconds["_0"][0] == (pytest.approx(0.5**0.5), pytest.approx(2e-6 * (3 * 16 * 9 + 16)))
    assert table.noise < 1e-12


def test_noisy_times_are_refused_with_how_noisy(found, monkeypatch):
    Machine(monkeypatch, noise=0.3)
    with pytest.raises(NumericError, match=r"times on cpu are too noisy .*: the median of 30 passes has a standard error of \d+%"):
        measure_latency(found, runs=5)


def test_a_table_is_kept_and_told_apart(found, tmp_path, monkeypatch):
    Machine(monkeypatch)
    table = measure_latency(found, runs=2)
    path = latency_path(tmp_path, found, 1)
    table.save(path)
    assert LatencyTable.load(path) == table
    assert path.name.startswith(f"latency-{table.network[:8]}-cpu-")
    assert latency_path(tmp_path, groups(net(16), torch.zeros(1, 3, 8, 8)), 1) != path
    assert latency_path(tmp_path, found, 32) != path
    path.write_text(json.dumps({"seconds": 3}), encoding="utf-8")
    with pytest.raises(FormatError, match="no table of latencies"):
        LatencyTable.load(path)


def test_a_table_of_another_network_is_refused(found, monkeypatch):
    Machine(monkeypatch)
    other = measure_latency(groups(net(16), torch.zeros(1, 3, 8, 8)), runs=2)
    with pytest.raises(MismatchError, match="of another network"):
        TimeCounter(found, other)


def test_predicted_times_are_interpolated(found):
    seconds = {"_0": ((0.5, 1.0), (1.0, 3.0)), "_2": ((0.25, 1.0), (0.5, 2.0), (1.0, 10.0))}
    seconds |= dict.fromkeys(("_1", "_3", "_4", "_5"), ((1.0, 0.0),))
    counter = TimeCounter(found, table_of(found, seconds))
    assert counter.total == 13
    first = [index for index, group in enumerate(found.members) if group.sites == ("0",)]
    saved = sum(counter.remove(group) for group in first[:24])  # 8 of 32 channels are left of _0 and 32 of 32 of what _2 gives
    assert counter.widths.width("_0") == pytest.approx(0.25**0.5)
    assert counter.widths.width("_2") == pytest.approx(0.25**0.5)
    assert counter.total == pytest.approx(1.0 + 2.0)
    assert saved == pytest.approx(10.0)
    assert sum(counter.add(group) for group in first[:24]) == pytest.approx(10.0)
    assert list(counter.shares()) == ["_2", "_0"]


@pytest.mark.parametrize("multiple", [1, 4, 8])
def test_widths_are_multiples(found, multiple):
    scores = np.random.default_rng(0).random(len(found))
    counter = latency.TimeCounter(found, table_of(found, {f"_{index}": ((0.01, 0.01), (1.0, 1.0)) for index in range(6)}))
    kept = remove_to_budget(scores, found, counter, 0.6, multiple=multiple)
    widths = [int(kept[[group.sites == (name,) for group in found.members]].sum()) for name in ("0", "2")]
    assert all(width % multiple == 0 for width in widths)
    assert counter.total <= 0.6 * 6
    assert counter.total > 0.6 * 6 - multiple * 0.2


def test_the_measured_time_meets_the_target(found, monkeypatch):
    Machine(monkeypatch)
    model = found.graph.model
    wrong = {f"_{index}": ((0.1, 0.9), (1.0, 1.0)) for index in range(6)}  # a table that knows nothing of the device
    scores = np.random.default_rng(0).random(len(found))
    kept, report = cut_to_latency(scores, found, Budget(0.5, "latency"), model, table_of(found, wrong))
    assert report.is_met
    assert report.rounds > 1
    right = measure_latency(found, runs=2)
    _, report = cut_to_latency(scores, found, Budget(0.5, "latency", multiple=1), model, right)
    assert report.rounds == 1
    assert report.measured == pytest.approx(0.5, rel=0.05)
    assert report.predicted == pytest.approx(report.measured, rel=0.06)
    assert 0 < kept.sum() < len(found)


def test_a_target_out_of_reach_names_the_smallest(found, monkeypatch):
    Machine(monkeypatch)
    table = measure_latency(found, runs=2)
    scores = np.arange(float(len(found)))
    with pytest.raises(BudgetError, match=r"0.0001 of .* ms cannot be met by removing channels; the smallest that can is 0\.0\d\d"):
        cut_to_latency(scores, found, Budget(0.0001, "latency", multiple=1), found.graph.model, table)
    kept, report = cut_to_latency(scores, found, Budget(0.0001, "latency", multiple=1, closest=True), found.graph.model, table)
    assert report.measured < 0.1
    assert kept.sum() == 4  # two channels of each layer: the cap is 95 %


def test_prune_to_a_latency(found, monkeypatch):
    Machine(monkeypatch)
    values = {site.name: np.arange(float(site.channels)) for site in found.sites}
    ranking = Ranking("by place", "", "high", values, found.sites, (3, 8, 8))
    images = torch.rand(20, 3, 8, 8)
    result = prune(ranking, found, [images], budget=Budget(0.5, "latency", multiple=2))
    assert result.latency.is_met
    assert all(int(result.kept[name].sum()) % 2 == 0 for name in ("0", "2"))
    assert result.blocks == ()
    again = prune(ranking, found, [images], budget=Budget(0.5, "macs", multiple=8))
    assert again.latency is None
    assert all(int(again.kept[name].sum()) % 8 == 0 for name in ("0", "2"))


@pytest.mark.parametrize("budget", [Budget(0.5, "latency", multiple=4), Budget(0.5, multiple=4)], ids=["latency", "macs"])
def test_another_ranking_says_how_many_channels_of_each_layer_stay(found, monkeypatch, budget):
    Machine(monkeypatch)
    worth = {"0": 1.0, "2": 4.0}  # to the one ranking, channels of the second layer are worth four times as much
    values = {site.name: worth[site.name] * (1 + np.arange(float(site.channels))) for site in found.sites}
    mirrored = {name: each[::-1].copy() for name, each in values.items()}
    counts = Ranking("counts", "", "high", mirrored, found.sites, (3, 8, 8), comparable_across_layers=True)
    order = Ranking("order", "", "low", values, found.sites, (3, 8, 8))  # which keeps the first channels, and as many of each layer
    images = torch.rand(20, 3, 8, 8)

    def widths(ranking, allocation):
        kept = prune(ranking, found, [images], budget=budget, allocation=allocation).kept
        return kept, {name: int(kept[name].sum()) for name in worth}

    _, alone = widths(counts, "global")
    kept, both = widths(order, counts)
    assert both == alone != widths(order, "global")[1]
    assert both["0"] < both["2"]
    assert all(bool(kept[name][: both[name]].all()) for name in worth)


def test_blocks_go_where_they_give_nothing():
    torch.manual_seed(0)
    model = zoo.build("resnet20", classes=10, channels=1, image_size=8).eval()
    for block in (model.layer1[1], model.layer2[1], model.layer3[1]):
        nn.init.zeros_(block.bn2.weight)
    found = groups(model, torch.zeros(1, 1, 8, 8))
    values = {site.name: np.arange(float(site.channels)) for site in found.sites}
    ranking = Ranking("by place", "", "high", values, found.sites, (1, 8, 8))
    images = torch.rand(40, 1, 8, 8)
    result = prune(ranking, found, [images], budget=Budget(0.66, blocks=True))
    assert set(result.blocks) >= {"layer1.1", "layer2.1", "layer3.1"} - {"layer3.1"}
    assert not result.kept["layer1.1.conv1"].any()
    with torch.no_grad():
        assert float((result.model(images) - model(images)).abs().max()) < 0.05


def test_a_budget_out_of_range_is_refused():
    with pytest.raises(InputError, match="macs: expected a fraction of the multiply-adds above 0 and at most 1, received 0"):
        Budget(0)
    with pytest.raises(InputError, match="latency: expected a fraction of the time of a pass"):
        Budget(1.5, "latency")
    with pytest.raises(InputError, match="expected 1 or more, received 0 and 1"):
        Budget(0.5, multiple=0)


def test_batches_are_timed_whole(monkeypatch):
    Machine(monkeypatch)
    model = net(8)
    one, eight = (latency_samples({"": model}, (3, 8, 8), runs=2, batch=batch)[""] for batch in (1, 8))
    assert eight == pytest.approx([8 * each for each in one])


def test_step_widths_are_of_both_sides(found):
    kept = np.ones(len(found), dtype=bool)
    kept[[index for index, group in enumerate(found.members) if group.sites == ("2",)][:24]] = False
    widths = StepWidths(found, kept)
    assert [widths.width(name) for name in ("_0", "_1", "_2", "_3", "_4")] == [1, 1, 0.5, 0.25, 0.5]
