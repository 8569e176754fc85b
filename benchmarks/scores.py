"""Whole-layer formulas against loops over channels and pairs, and all scores of a network against its forward pass; ratios of medians."""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from channelscope import scores, zoo
from channelscope.formulas.information import correlation_information
from channelscope.formulas.regression import RIDGE, support
from channelscope.formulas.task_information import excess, pair_information
from channelscope.profiling.collect import collect

CHANNELS, ROUNDS, PAIRS, SOLVES = 512, 5, 2000, 40
UNCOLLECTED = ("bn_scale", "taylor_weight", "taylor_activation", "fisher", "hrank", "chip")
"""Scores that need a pass of another kind, or a normalization behind every site."""


def seconds(run: Callable[[], object]) -> float:
    """Processor time, which other programs on the machine change little."""
    clock = time.process_time()
    run()
    return time.process_time() - clock


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    formulas()
    network()


def network() -> None:
    """Scores of ResNet-18 from its profile against the forward pass of 100 images."""
    model = zoo.build("resnet18", 100, 3, 32).eval()
    images, labels = torch.randn(640, 3, 32, 32), torch.arange(640) % 100
    profile = collect(model, zip(images.split(128), labels.split(128), strict=True))
    every = [name for name in scores.REGISTRY if name not in UNCOLLECTED]

    def forward() -> None:
        with torch.no_grad():
            model(images[:100])

    runs = {
        "forward pass of 100 images": forward,
        f"the {len(scores.DEFAULT_SCORES)} scores of a table": lambda: scores.table(replace(profile)),
        f"{len(every)} scores, hulls and elimination among them": lambda: scores.table(replace(profile), every),
        "the same, asked one by one": lambda: [scores.REGISTRY[name](fresh[0]) for name in every],
    }
    times = {name: [] for name in runs}
    fresh = [profile]
    for _ in range(ROUNDS):
        fresh[0] = replace(profile)  # what was computed of it stays with the other
        for name, run in runs.items():
            times[name].append(seconds(run))
    bare = statistics.median(times["forward pass of 100 images"])
    for name, spent in times.items():
        print(f"ResNet-18: {name:46s} {statistics.median(spent):6.2f} s   {statistics.median(spent) / bare:5.2f}×")


def formulas() -> None:
    """Target excess and peer support of one layer against loops."""
    rho = torch.corrcoef(torch.randn(CHANNELS + 1, 4000, dtype=torch.float64))
    target, peers = rho[-1, :-1], rho[:-1, :-1].contiguous()

    def matrix() -> None:
        excess(pair_information(target, peers), correlation_information(target))

    def pair_by_pair() -> None:
        for number in range(PAIRS):
            i, j = number % CHANNELS, (number * 7 + 1) % CHANNELS
            a, b, r = target[i], target[j], peers[i, j]
            joint = (a * a + b * b - 2 * a * b * r) / (1 - r * r)
            single = max(-0.5 * torch.log1p(-a * a), -0.5 * torch.log1p(-b * b))
            _ = -0.5 * torch.log1p(-joint) - single

    def channel_by_channel() -> None:
        for i in range(SOLVES):
            rest = torch.arange(CHANNELS) != i
            inner = peers[rest][:, rest] + RIDGE * torch.eye(CHANNELS - 1, dtype=torch.float64)
            _ = peers[i, rest] @ torch.linalg.solve(inner, peers[rest, i])

    couples = CHANNELS * (CHANNELS - 1) / 2
    runs = {
        "target excess S": (matrix, pair_by_pair, couples / PAIRS),
        "peer support E": (lambda: support(peers), channel_by_channel, CHANNELS / SOLVES),
    }
    for name, (whole, loop, scale) in runs.items():
        times = [(seconds(whole), seconds(loop) * scale) for _ in range(ROUNDS)]
        fast, slow = (statistics.median(column) for column in zip(*times, strict=True))
        print(f"{name:16s} whole layer {fast:7.3f} s   loop {slow:7.1f} s (extrapolated)   {slow / fast:6.0f}×")


if __name__ == "__main__":
    main()
