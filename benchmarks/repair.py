"""Repair: what least squares costs against one forward pass over the same images. `python benchmarks/repair.py [NETWORK] [IMAGES]`

Asked for: at most 12 forward passes for ResNet-18 (CIFAR stem) and 1,000 images, below 4 GB. Times are of the processor, not of the
wall, so that other work on the machine does not count; a third of the channels go, uniformly, by L2 norm; the network has its initial
weights, which costs what trained ones cost. Positions are drawn once for each size of map: asked for, under 2 % of the time on ResNet-20.
"""

import resource
import sys
import time
from collections.abc import Callable
from unittest.mock import patch

import numpy as np
import torch

from channelscope import zoo
from channelscope.network.removal.groups import groups
from channelscope.pruning import calibration
from channelscope.pruning.cut import cut, shrink
from channelscope.pruning.repair import repair
from channelscope.ranking import Ranking


def main(name: str = "resnet18", images: int = 1000) -> None:
    model = zoo.build(name, classes=100, channels=3, image_size=32).requires_grad_(False)
    pixels = torch.randn(images, 3, 32, 32, generator=torch.Generator().manual_seed(0)).split(100)
    found = groups(model, pixels[0][:1])
    values = {site.name: model.get_submodule(site.name).weight.flatten(1).norm(dim=1).double().numpy() for site in found.sites}
    ranking = Ranking("l2", "", "high", values, found.sites, (3, 32, 32))
    kept = cut(ranking, found, macs=0.5, allocation="uniform")
    small = shrink(found, kept)
    with torch.no_grad():
        begun = time.process_time()
        for batch in pixels:
            model(batch)
        forward = time.process_time() - begun
    begun = time.process_time()
    drawing = []
    with patch.object(calibration, "draw_positions", timed(calibration.draw_positions, drawing)):
        report = repair(small, found, kept, pixels)
    spent = time.process_time() - begun
    before, after = np.median(list(report.relative_errors.values()), axis=0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    print(
        f"{name}, {images:,} images: forward {forward:.1f} s, least squares {spent:.1f} s of processor time: {spent / forward:.1f} forward "
        f"passes; peak memory of the process {peak:.1f} GB; median layer error {before:.3f} → {after:.3f} on unseen images"
    )
    drawn = sum(drawing)
    print(f"{name}, {images:,} images: drawing positions {drawn:.3f} s in {len(drawing)} calls, {drawn / spent:.1%} of least squares")


def timed(function: Callable, seconds: list[float]) -> Callable:
    """The function, noting the processor time of each call."""

    def call(*args):
        begun = time.process_time()
        result = function(*args)
        seconds.append(time.process_time() - begun)
        return result

    return call


if __name__ == "__main__":
    main(*sys.argv[1:2], *map(int, sys.argv[2:3]))
