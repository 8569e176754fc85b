"""Train the papers' networks on CIFAR-100 where they are missing: `make papers`.

Seed 0 of ResNet-18, VGG-16-BN and MobileNetV2 first, then the other seeds, one after the other. A run that is finished is left alone; one
that was interrupted goes on where it was at most five minutes before. Each folder of runs/papers keeps the initialization, about six
checkpoints and the log. Some hours a network on two cores; with `nice -n 19` the other work of the machine is hardly slowed.
"""

import argparse
import fcntl
from dataclasses import replace
from pathlib import Path

import torch

from channelscope import zoo
from channelscope.data.sources import ImageSource
from channelscope.errors import FormatError
from channelscope.zoo.precision import PRECISIONS, TrainingPrecision
from channelscope.zoo.training_run import History

NETWORKS = {"resnet18": "bfloat16", "vgg16_bn": "bfloat16", "mobilenet_v2": "bfloat16"}
"""network → the precision that is faster on a CPU with bfloat16 units, by benchmarks/training.py; a second run is the same"""

EPOCHS, CHECKPOINTS = 15, 5
ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data" / "cifar100"


def finished(folder: Path) -> bool:
    """Whether the run of a folder has been tested, which is the last thing a run does."""
    try:
        return History.read(folder).test_images > 0
    except FormatError:
        return False


def train(network: str, seed: int, folder: Path, data: str, epochs: int, precision: TrainingPrecision) -> None:
    """Train one network, or go on with it; nothing is done where it is finished or another process is at it."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{folder}: another process trains it", flush=True)
            return
        if finished(folder):
            print(f"{folder}: finished, {History.read(folder).test_accuracy:.1%} of the test images", flush=True)
            return
        torch.manual_seed(seed)
        model, images = zoo.load(network, ImageSource(data, label_column="fine_label", seed=seed), seed=seed)
        schedule = replace(zoo.default_schedule(network, data), epochs=epochs, every=max(1, epochs // CHECKPOINTS), seed=seed)
        history = zoo.train(model, images, folder, schedule, precision=precision)
        print(f"{folder}: {history.precision}, {history.test_accuracy:.1%} of {history.test_images:,} test images", flush=True)


def main() -> None:
    """Train what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--precision", choices=PRECISIONS, help="by default the one that is faster with bfloat16 units")
    parser.add_argument("--data", default=f"hf:{DATA}")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "papers")
    options = parser.parse_args()
    for seed in options.seeds:
        for network in options.networks:
            folder, precision = options.out / f"{network}_seed{seed}", options.precision or NETWORKS.get(network, "auto")
            train(network, seed, folder, options.data, options.epochs, precision)


if __name__ == "__main__":
    main()
