"""Whole-layer formulas against loops over channels and pairs, at 512 channels; ratios of medians of interleaved runs."""

import statistics
import time
from collections.abc import Callable

import torch

from channelscope.formulas.information import correlation_information, excess, pair_information
from channelscope.formulas.support import RIDGE, support

CHANNELS, ROUNDS, PAIRS, SOLVES = 512, 5, 2000, 40


def seconds(run: Callable[[], object]) -> float:
    clock = time.perf_counter()
    run()
    return time.perf_counter() - clock


def main() -> None:
    torch.set_num_threads(2)
    torch.manual_seed(0)
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
