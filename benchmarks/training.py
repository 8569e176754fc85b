"""What a step of training costs in bfloat16 with channels last, against float32; ratios of medians of interleaved steps.

`python benchmarks/training.py [NETWORKS]`. The networks for small images, batches of 128 random 32×32 images, two threads.
`train` makes the same comparison on the device at hand and takes the faster (`--precision auto`).
"""

import statistics
import sys
import time

import torch

from channelscope import zoo
from channelscope.network.module_state import channels_last
from channelscope.zoo.training import loss_and_logits

NETWORKS = ("resnet18", "vgg16_bn", "mobilenet_v2", "resnet20")
BATCH, ROUNDS = 128, 5


def main(names: tuple[str, ...] = NETWORKS) -> None:
    torch.set_num_threads(2)
    torch.manual_seed(0)
    x, y = torch.randn(BATCH, 3, 32, 32), torch.randint(0, 100, (BATCH,))
    print(f"images a second of forward and backward pass, batches of {BATCH}, {ROUNDS} interleaved rounds, 2 threads")
    print(f"{'network':14s} {'float32':>9s} {'channels last':>14s} {'bfloat16':>9s}   bfloat16 / float32")
    for name in names:
        model = zoo.build(name, 100, 3, 32).train()
        kinds = {"float32": ("float32", False), "channels last": ("float32", True), "bfloat16": ("bfloat16", True)}
        times: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(1 + ROUNDS):
            for kind, (precision, last) in kinds.items():
                with channels_last(model, last):
                    begun = time.perf_counter()
                    loss_and_logits(model, x.contiguous(memory_format=torch.channels_last) if last else x, y, precision)[0].backward()
                    times[kind].append(time.perf_counter() - begun)
                model.zero_grad()
        speed = {kind: BATCH / statistics.median(taken[1:]) for kind, taken in times.items()}
        one, last, low = speed.values()
        print(f"{name:14s} {one:9,.0f} {last:14,.0f} {low:9,.0f}   {low / one:.2f}×", flush=True)


if __name__ == "__main__":
    main(tuple(sys.argv[1:]) or NETWORKS)
