"""What a profile costs on top of the bare forward pass, ResNet-18 with its stem for small images; ratios of medians of interleaved runs."""

import statistics
import time

import torch

from channelscope import zoo
from channelscope.profiling.collect import collect

IMAGES, BATCH, ROUNDS = 2048, 128, 3


def main() -> None:
    torch.set_num_threads(2)
    torch.manual_seed(0)
    model = zoo.build("resnet18", 100, 3, 32).eval()
    batches = [
        (torch.randn(BATCH, 3, 32, 32), torch.randint(0, 100, (BATCH,)), torch.arange(BATCH) + start) for start in range(0, IMAGES, BATCH)
    ]

    def bare(layout: torch.memory_format) -> None:
        with torch.no_grad():
            for images, *_ in batches:
                model(images.contiguous(memory_format=layout))

    runs = {
        "bare forward pass": lambda: bare(torch.contiguous_format),
        "the same, channels last": lambda: bare(torch.channels_last),
        "collect, positions(16)": lambda: collect(model, batches),
        "collect, positions(all)": lambda: collect(model, batches, "positions(all)"),
    }
    wall: dict[str, list[float]] = {name: [] for name in runs}
    processor: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            clock, cpu = time.perf_counter(), time.process_time()
            run()
            wall[name].append(time.perf_counter() - clock)
            processor[name].append(time.process_time() - cpu)
    print(f"{IMAGES} images, {ROUNDS} interleaved rounds, 2 threads")
    for name in runs:
        ratios = [statistics.median(times[name]) / statistics.median(times["bare forward pass"]) for times in (wall, processor)]
        print(f"{name:26s} {statistics.median(wall[name]):7.2f} s   {ratios[0]:5.2f}× wall   {ratios[1]:5.2f}× processor")


if __name__ == "__main__":
    main()
