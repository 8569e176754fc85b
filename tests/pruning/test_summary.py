"""The summary says what is there: the same images for all, costs that agree with the counter, latencies in turns."""

import numpy as np
import torch
from torch import nn

from channelscope.evaluation import evaluate_networks
from channelscope.network.removal.groups import groups
from channelscope.pruning.cut import cut, shrink
from channelscope.pruning.prune import LAYER_COLUMNS, compare_networks, kept_by_layer, prune
from channelscope.pruning.repair import repair
from channelscope.pruning.timing import latency_samples
from channelscope.ranking import Ranking
from channelscope.stats.tally import Tally


def net(width: int) -> nn.Module:
    torch.manual_seed(width)
    return nn.Sequential(nn.Conv2d(3, width, 3, bias=False), nn.Flatten(), nn.Linear(width * 36, 4)).eval()


def test_rows_are_networks_and_the_first_is_the_measure():
    images, labels = torch.randn(50, 3, 8, 8), torch.arange(50) % 4
    networks = {"original": net(8), "pruned": net(4)}
    tallies, _ = evaluate_networks(networks, [(images, labels)])
    frame = compare_networks(networks, tallies, (3, 8, 8)).set_index("state")
    assert frame.loc["original", "macs"] == 27 * 8 * 36 + 8 * 36 * 4
    assert list(frame["kept"]) == [1.0, 0.5]
    assert list(frame["parameters"]) == [27 * 8 + 8 * 36 * 4 + 4, 27 * 4 + 4 * 36 * 4 + 4]
    assert set(frame["images"]) == {50}
    for row in frame.itertuples():
        assert row.accuracy_low <= row.accuracy <= row.accuracy_high
        assert row.latency_low <= row.latency <= row.latency_high
        assert row.latency > 0


def test_latencies_are_quartiles_in_milliseconds(monkeypatch):
    monkeypatch.setattr("channelscope.pruning.prune.latency_samples", lambda networks, _: {"one": [0.002, 0.001, 0.005, 0.003, 0.004]})
    row = compare_networks({"one": net(4)}, {"one": Tally(4, 2, 1.0)}, (3, 8, 8)).iloc[0]
    assert [round(row[name], 9) for name in ("latency_low", "latency", "latency_high")] == [2.0, 3.0, 4.0]


def test_latencies_leave_modes_alone():
    model = net(4).train()
    taken = latency_samples({"one": model, "two": net(8)}, (3, 8, 8), runs=3)
    assert [len(each) for each in taken.values()] == [3, 3]
    assert model.training


@torch.no_grad()
def test_prune_is_cut_shrink_and_repair():
    model, images = net(8), torch.randn(30, 3, 8, 8)
    found = groups(model, images[:1])
    ranking = Ranking("planted", "", "high", {"0": np.arange(8.0)}, found.sites, (3, 8, 8))
    made = prune(ranking, model, [images], macs=0.6)
    kept = cut(ranking, model, macs=0.6)
    small = shrink(model, kept)
    repair(small, model, kept, [images])
    assert made.kept == kept
    assert torch.equal(made.model(images), small(images))
    assert made.repair.images == 30


def test_channels_kept_in_each_layer_and_what_holds_a_layer_whole():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.Flatten(), nn.Linear(32, 3)).eval()
    found = groups(model, torch.zeros(1, 3, 4, 4))
    kept = found.to_subset(np.array([True, False, False, True, True, False]))
    frame = kept_by_layer(found, kept)
    assert list(frame) == list(LAYER_COLUMNS)
    rows = frame[["site", "depth", "channels", "kept", "share", "reason"]].values.tolist()
    assert rows == [
        ["0", 0, 4, 2, 0.5, ""],
        ["2", 1, 2, 1, 0.5, ""],
    ]


def test_a_network_whose_kept_channels_never_vary_is_repaired_with_means():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.Flatten()).eval()
    with torch.no_grad():
        model[0].weight[[0, 2]] = -model[0].weight[[0, 2]].abs()
        model[0].bias[[0, 2]] = -1.0
    found = groups(model, torch.zeros(1, 3, 8, 8))
    ranking = Ranking("by hand", "", "high", {"0": np.array([3.0, 1.0, 4.0, 2.0])}, found.sites, (3, 8, 8))
    images = torch.rand(10, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    small = prune(ranking, found, [images], macs=0.5).model
    expected = model(images).unflatten(1, (2, 64)).mean((0, 2))
    assert torch.allclose(small(images).unflatten(1, (2, 64)).mean((0, 2)), expected, atol=1e-4)
