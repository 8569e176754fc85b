"""What a step of training and an evaluation cost with channels last in memory, and a step in bfloat16; medians of interleaved passes.

`python benchmarks/training.py [NETWORKS]`. The networks for small images, batches of 128 random 32×32 images, two threads. `train` takes
float32 with channels last on a CPU, or bfloat16 where a trial on the device at hand shows that it is faster (`--precision auto`). "As
called" is bfloat16 by autocast alone, without the gradients that `zoo.precision` takes another way.
"""

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from channelscope import zoo
from channelscope.evaluation import logits_in
from channelscope.network.module_state import channels_last
from channelscope.zoo.precision import loss_and_logits

NETWORKS = ("resnet18", "vgg16_bn", "mobilenet_v2", "resnet20")
BATCH, ROUNDS = 128, 5


def as_called(precision: str, model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    F.cross_entropy(logits_in(model, x, precision).float(), y).backward()


def as_trained(precision: str, model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    loss_and_logits(model, x, y, precision)[0].backward()


@torch.inference_mode()
def evaluated(model: torch.nn.Module, x: torch.Tensor, _: torch.Tensor) -> None:
    logits_in(model.eval(), x, "float32")
    model.train()


KINDS: dict[str, tuple[Callable[[torch.nn.Module, torch.Tensor, torch.Tensor], None], bool]] = {
    "training": (partial(as_trained, "float32"), False),
    "training, channels last": (partial(as_trained, "float32"), True),
    "evaluation": (evaluated, False),
    "evaluation, channels last": (evaluated, True),
    "training in bfloat16 as called": (partial(as_called, "bfloat16"), True),
    "training in bfloat16": (partial(as_trained, "bfloat16"), True),
}
"""Name → pass, and whether the images lie channels last in memory."""


def main(names: tuple[str, ...] = NETWORKS) -> None:
    torch.set_num_threads(2)
    torch.manual_seed(0)
    has_units = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    kinds = {name: kind for name, kind in KINDS.items() if has_units or "bfloat16" not in name}
    x, y = torch.randn(BATCH, 3, 32, 32), torch.randint(0, 100, (BATCH,))
    print(
        f"images a second, batches of {BATCH}, {ROUNDS} interleaved rounds, 2 threads" + ("" if has_units else "; no bfloat16 units here")
    )
    for name in names:
        model = zoo.build(name, 100, 3, 32).train()
        times: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(1 + ROUNDS):
            for kind, (run, last) in kinds.items():
                with channels_last(model, "bfloat16" in kind):
                    begun = time.perf_counter()
                    run(model, x.contiguous(memory_format=torch.channels_last) if last else x, y)
                    times[kind].append(time.perf_counter() - begun)
                model.zero_grad()
        speed = {kind: BATCH / statistics.median(taken[1:]) for kind, taken in times.items()}
        for kind, images in speed.items():
            over = "training, channels last" if "bfloat16" in kind else kind.removesuffix(", channels last")
            print(f"{name:14s}{kind:32s}{images:8,.0f}" + (f"   {images / speed[over]:.2f}× {over}" if over != kind else ""), flush=True)


if __name__ == "__main__":
    main(tuple(sys.argv[1:]) or NETWORKS)
