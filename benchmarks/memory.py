"""Memory that a profile takes beside the network and its batch. `python benchmarks/memory.py [NETWORK …]`

Each network is profiled in a process of its own, with default options, on random images of 224 × 224 pixels. What the bare
forward pass of the same batches needs at most, the network and its values included, is subtracted from what `collect` and
`save` need at most.
"""

import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch

from channelscope import zoo
from channelscope.profiling.collect import collect, save
from channelscope.profiling.collector import MEMORY

NETWORKS = ("resnet50", "swin_t", "convnext_tiny", "efficientnet_v2_s", "vit_b_16")
IMAGES, BATCH = 16, 8
"""Memory does not grow with the images, once each shard has one, but for the means of the classes that occur."""


def peak() -> int:
    """Most bytes that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def one(name: str) -> None:
    """Profile one network and print its line."""
    torch.manual_seed(0)
    model = zoo.build(f"torchvision:{name}", 1000, 3, 224).eval()
    batches = [(torch.randn(BATCH, 3, 224, 224), torch.arange(BATCH) + start) for start in range(0, IMAGES, BATCH)]
    begun = time.process_time()
    with torch.no_grad():
        for images, _ in batches:
            model(images)
    bare, before = time.process_time() - begun, peak()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        profile = collect(model, batches)
    collected = peak()
    with tempfile.TemporaryDirectory() as folder:
        size = save(profile, Path(folder) / "profile").stat().st_size
    used, saved = (each - before for each in (collected, peak()))
    verdict = "" if max(used, saved) <= MEMORY else f"   more than {MEMORY / 1e9:g} GB"
    channels = sum(site.channels for site in profile.sites)
    print(
        f"{name:18s} {len(profile.sites):3d} sites, {channels:6,} channels, {profile.shards:2d} shards: "
        f"collect {used / 1e9:5.2f} GB, save {saved / 1e9:5.2f} GB, file {size / 1e9:5.2f} GB; bare pass {bare:.0f} s{verdict}",
        flush=True,
    )


def main(names: tuple[str, ...]) -> None:
    for name in names:
        subprocess.run([sys.executable, __file__, "--one", name], check=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(sys.argv[2])
    else:
        main(tuple(sys.argv[1:]) or NETWORKS)
