"""What a profile costs on top of the bare forward pass. `python benchmarks/collect.py [IMAGES ROUNDS]`

ResNet-18 with its stem for small images; ratios of medians of interleaved runs on one thread, in processor time, which other
programs on the machine change little.
"""

import statistics
import sys
import time

import torch

from channelscope import zoo
from channelscope.profiling.collect import collect

BATCH = 128
ROUNDS = {256: 5, 2048: 3}
"""Images → interleaved rounds."""


def compare(images: int, rounds: int) -> None:
    """Print the ratios for so many images."""
    model = zoo.build("resnet18", 100, 3, 32).eval()
    batches = [
        (torch.randn(BATCH, 3, 32, 32), torch.randint(0, 100, (BATCH,)), torch.arange(BATCH) + start) for start in range(0, images, BATCH)
    ]

    def bare(layout: torch.memory_format) -> None:
        with torch.no_grad():
            for x, *_ in batches:
                model(x.contiguous(memory_format=layout))

    runs = {
        "bare forward pass": lambda: bare(torch.contiguous_format),
        "the same, channels last": lambda: bare(torch.channels_last),
        "collect, positions(16)": lambda: collect(model, batches),
        "collect, positions(all)": lambda: collect(model, batches, "positions(all)"),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            begun = time.process_time()
            run()
            times[name].append(time.process_time() - begun)
    middle = {name: statistics.median(taken) for name, taken in times.items()}
    print(f"{images:,} images, {rounds} interleaved rounds, {torch.get_num_threads()} thread")
    for name, taken in middle.items():
        first, last = taken / middle["bare forward pass"], taken / middle["the same, channels last"]
        print(f"{name:26s} {taken:7.2f} s   {first:5.2f}× the pass as called   {last:5.2f}× in channels_last", flush=True)


def main(rounds: dict[int, int]) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for images, count in rounds.items():
        compare(images, count)


if __name__ == "__main__":
    main({int(sys.argv[1]): int(sys.argv[2])} if len(sys.argv) > 2 else ROUNDS)
