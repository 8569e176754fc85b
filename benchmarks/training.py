"""What a step of training costs in bfloat16 with channels last, against float32; ratios of medians of interleaved steps.

`python benchmarks/training.py [NETWORKS]`. The networks for small images, batches of 128 random 32×32 images, two threads.
`train` makes the same comparison on the device at hand and takes the faster (`--precision auto`). "As called" is bfloat16 by autocast
alone, without the gradients that `zoo.precision` takes another way.
"""

import statistics
import sys
import time

import torch
import torch.nn.functional as F

from channelscope import zoo
from channelscope.evaluation import logits_in
from channelscope.network.module_state import channels_last
from channelscope.zoo.precision import loss_and_logits

NETWORKS = ("resnet18", "vgg16_bn", "mobilenet_v2", "resnet20")
BATCH, ROUNDS = 128, 5


def as_called(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, precision: str) -> torch.Tensor:
    return F.cross_entropy(logits_in(model, x, precision).float(), y)


def as_trained(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, precision: str) -> torch.Tensor:
    return loss_and_logits(model, x, y, precision)[0]


KINDS = {
    "float32": (as_called, "float32", False),
    "channels last": (as_called, "float32", True),
    "as called": (as_called, "bfloat16", True),
    "bfloat16": (as_trained, "bfloat16", True),
}


def main(names: tuple[str, ...] = NETWORKS) -> None:
    torch.set_num_threads(2)
    torch.manual_seed(0)
    x, y = torch.randn(BATCH, 3, 32, 32), torch.randint(0, 100, (BATCH,))
    print(f"images a second of forward and backward pass, batches of {BATCH}, {ROUNDS} interleaved rounds, 2 threads")
    print(f"{'network':14s} {'float32':>9s} {'channels last':>14s} {'as called':>10s} {'bfloat16':>9s}   over float32, over as called")
    for name in names:
        model = zoo.build(name, 100, 3, 32).train()
        times: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for _ in range(1 + ROUNDS):
            for kind, (loss, precision, last) in KINDS.items():
                with channels_last(model, last):
                    begun = time.perf_counter()
                    loss(model, x.contiguous(memory_format=torch.channels_last) if last else x, y, precision).backward()
                    times[kind].append(time.perf_counter() - begun)
                model.zero_grad()
        speed = {kind: BATCH / statistics.median(taken[1:]) for kind, taken in times.items()}
        one, last, called, low = speed.values()
        print(f"{name:14s} {one:9,.0f} {last:14,.0f} {called:10,.0f} {low:9,.0f}   {low / one:.2f}×  {low / called:.2f}×", flush=True)


if __name__ == "__main__":
    main(tuple(sys.argv[1:]) or NETWORKS)
