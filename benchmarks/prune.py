"""What `prune` costs beside evaluation, in forward passes over the calibration images, and the memory that it takes.

    python benchmarks/prune.py [resnetsmall|resnet18|resnet50] [IMAGES]

The CIFAR-100 network of ../shared/data (1,000 images), ResNet-18 with a stem for small images (1,000) or torchvision's ResNet-50 at
224 × 224 pixels (256), cut to half the multiply-adds by `reconstruction` and repaired by least squares, as the command does it; random
images, on which nothing takes another time. One thread and processor time, which other programs on the machine change little; the
forward pass, in chunks of 100 images and without gradients, is timed before and after. Memory is the most that the process ever held.
"""

import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from channelscope import zoo
from channelscope.network.removal.groups import groups
from channelscope.pruning.folder import save_pruned
from channelscope.pruning.optimal_brain_surgeon import optimal_brain_surgeons
from channelscope.pruning.prune import prune

DATA = Path(__file__).parents[2] / "shared" / "data"
NETWORKS = {
    "resnetsmall": (f"{DATA / 'archs.py'}:ResNetSmall", 100, 32, 1000),
    "resnet18": ("resnet18", 100, 32, 1000),
    "resnet50": ("torchvision:resnet50", 1000, 224, 256),
}
"""Name → network, classes, pixels of a side, images."""

CHUNK = 100

T = TypeVar("T")


def main(name: str = "resnetsmall", count: str = "") -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network, classes, side, images = NETWORKS[name]
    images = int(count or images)
    model = zoo.build(network, classes, 3, side).eval()
    batches = list(torch.randn(images, 3, side, side).split(CHUNK))

    @torch.no_grad()
    def forward() -> None:
        for batch in batches:
            model(batch)

    spent: dict[str, float] = {}

    def stage(name: str, run: Callable[[], T]) -> T:
        """The result; its processor time is noted and printed."""
        begun = time.process_time()
        result = run()
        spent[name] = time.process_time() - begun
        print(f"{name:27s} {spent[name]:8.2f} s  {spent[name] / spent['forward pass']:7.2f}", flush=True)
        return result

    model(batches[0][:2])
    print(f"{name}: {images:,} images, {torch.get_num_threads()} thread; seconds, and forward passes", flush=True)
    stage("forward pass", forward)
    found = stage("groups of channels", lambda: groups(model, batches[0][:1]))
    rankings = stage("reconstruction ranking", lambda: optimal_brain_surgeons(found, batches))
    made = stage("removal, choice and repair", lambda: prune(rankings, found, batches, macs=0.5))
    with tempfile.TemporaryDirectory() as folder:
        stage("saved, loaded and compared", lambda: save_pruned(made.model, model, made.kept, Path(folder) / "small"))
    stage("forward pass again", forward)
    first, last = spent.pop("forward pass"), spent.pop("forward pass again")
    total, memory = sum(spent.values()), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"all: {total:.1f} s, {2 * total / (first + last):.1f} forward passes; most memory {memory / 1e9:.2f} GB")


if __name__ == "__main__":
    main(*sys.argv[1:])
