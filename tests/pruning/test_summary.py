"""The summary says what is there: the same images for all, costs that agree with the counter, latencies in turns."""

import numpy as np
import torch
from torch import nn

from channelscope.network.removal.groups import groups
from channelscope.pruning.cut import cut
from channelscope.pruning.prune import compare_networks, latency_samples, prune
from channelscope.pruning.recovery.repair import repair
from channelscope.pruning.shrink import shrink
from channelscope.ranking import Ranking


def net(width: int) -> nn.Module:
    torch.manual_seed(width)
    return nn.Sequential(nn.Conv2d(3, width, 3, bias=False), nn.Flatten(), nn.Linear(width * 36, 4)).eval()


def test_rows_are_networks_and_the_first_is_the_measure():
    images, labels = torch.randn(50, 3, 8, 8), torch.arange(50) % 4
    frame = compare_networks({"original": net(8), "pruned": net(4)}, [(images, labels)], (3, 8, 8)).set_index("state")
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
    row = compare_networks({"one": net(4)}, [(torch.zeros(4, 3, 8, 8), torch.zeros(4).long())], (3, 8, 8)).iloc[0]
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
