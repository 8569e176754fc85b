"""What scoring kernels costs over a forward and backward pass on the same images; processor time, medians of interleaved runs."""

import resource
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from channelscope.circuits.criteria import score_kernels
from channelscope.circuits.feature import LocatedFeature, locate_feature
from channelscope.data.torchvision_cpu import models

ROUNDS = 3
CASES = (("AlexNet", models.alexnet, "features.10:0", 4, 224), ("SqueezeNet", models.squeezenet1_0, "features.9.expand3x3:0", 4, 224))


def seconds(run: Callable[[], object]) -> float:
    clock = time.process_time()
    run()
    return time.process_time() - clock


def megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def both_ways(target: LocatedFeature, images: torch.Tensor) -> None:
    """One forward and backward pass through what the feature depends on."""
    with torch.enable_grad():
        pictures = images.clone().requires_grad_()
        torch.autograd.grad(target.feature_map(pictures).sum(), pictures)


def main() -> None:
    torch.manual_seed(0)
    for name, make, feature, count, size in CASES:
        images = torch.randn(count, 3, size, size)
        target = locate_feature(make().eval(), feature, images[:1])
        both_ways(target, images)
        for criterion in ("gate", "actgrad"):
            before = megabytes()
            score_kernels(target, images, criterion)
            grown = megabytes() - before
            base_call, own_call = partial(both_ways, target, images), partial(score_kernels, target, images, criterion)
            pairs = [(seconds(base_call), seconds(own_call)) for _ in range(ROUNDS)]
            base, own = (statistics.median(column) for column in zip(*pairs, strict=True))
            shown = f"{name:10s} {feature:24s} {count} images  {criterion:8s}"
            print(f"{shown} {own:6.2f} s over {base:5.2f} s: {own / base:5.1f}×   peak memory +{grown:4.0f} MB")


if __name__ == "__main__":
    main()
