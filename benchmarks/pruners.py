"""Pruners side by side: torch-pruning's importances and torch-kirigami's metrics through their own pruners, and ours.

    python benchmarks/pruners.py [RESULTS.jsonl] [--network cifar100|lite0] [--budgets .7,.5] [--seeds 0,1,2] [--tests 10000]
                                 [--only ours,taylor,fpgm,l1,l2,bn,kirigami_taylor,kirigami_l1,kirigami_l2]

All at the same multiply-adds. The CIFAR-100 network of ../shared/data with 1,000 calibration images, or EfficientNet-Lite0 with 200 of
ImageNet; no training. torch-pruning: global pruning, the classifier's outputs kept, small steps until the budget holds. torch-kirigami:
its greedy choice for a budget of parameters at which the multiply-adds hold, to .01. Taylor has the labels of the same images. Each is
measured as it is, and with BatchNorm re-estimated on the calibration images. Ours: `reconstruction` and least squares, without labels.
A result already in the file is not measured again, so an interrupted run goes on.
"""

import argparse
import copy
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch_kirigami.pruning as kirigami
import torch_pruning
from allocation import add_result, results_in
from torch import nn
from torch.nn import functional as F
from torch_kirigami import DependencyGraph

from channelscope import data, zoo
from channelscope.data import images
from channelscope.evaluation import evaluate
from channelscope.network.cost import cost
from channelscope.network.removal.groups import groups
from channelscope.pruning.optimal_brain_surgeon import optimal_brain_surgeons
from channelscope.pruning.prune import prune

DATA = Path(__file__).parents[2] / "shared" / "data"
THEIRS = {
    "taylor": torch_pruning.importance.TaylorImportance,
    "fpgm": torch_pruning.importance.FPGMImportance,
    "l1": lambda: torch_pruning.importance.MagnitudeImportance(p=1),
    "l2": lambda: torch_pruning.importance.MagnitudeImportance(p=2),
    "bn": torch_pruning.importance.BNScaleImportance,
}
KIRIGAMI = {
    "kirigami_taylor": kirigami.WeightTaylor,
    "kirigami_l1": lambda: kirigami.GroupMagnitude(p=1),
    "kirigami_l2": lambda: kirigami.GroupMagnitude(p=2),
}
TRIES, CLOSE = 8, 0.01
"""Budgets of parameters that torch-kirigami is given, by interpolation, and how far below the budget a cut is good enough."""


@dataclass(frozen=True)
class Network:
    """A network, its images and weights in ../shared/data, and in how many steps torch-pruning takes its channels away."""

    name: str
    data: str
    weights: str
    calibration: int
    batch_size: int
    steps: int
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def opened(self, seed: int) -> tuple[nn.Module, images.ImageSplits]:
        """The network with its weights, and images split by a seed."""
        source = data.ImageSource(f"hf:{DATA / self.data}", self.batch_size, seed, self.calibration, mean=self.mean, std=self.std)
        return zoo.load(self.name, source, DATA / "weights" / f"{self.weights}.safetensors")


NETWORKS = {
    "cifar100": Network(
        f"{DATA / 'archs.py'}:ResNetSmall",
        "cifar100",
        "cifar100_resnetsmall20",
        1000,
        250,
        400,
        (0.507, 0.487, 0.441),
        (0.267, 0.256, 0.276),
    ),
    "lite0": Network("timm:tf_efficientnet_lite0.in1k", "ilsvrc_val400", "imagenet_efficientnet_lite0", 200, 25, 100),
}


def theirs(model: nn.Module, images: data.ImageSplits, name: str, budget: float, steps: int) -> nn.Module:
    """torch-pruning's own pruner, stepped until the network costs at most the budget."""
    small = copy.deepcopy(model).requires_grad_(True)
    example = next(iter(images.calibration))[0][:1]
    head = [module for module in small.modules() if isinstance(module, nn.Linear)][-1]
    if name == "taylor":
        add_gradients(small, images)
    options = {"pruning_ratio": 0.9, "max_pruning_ratio": 0.95, "iterative_steps": steps, "global_pruning": True}
    pruner = torch_pruning.pruner.MetaPruner(small, example, THEIRS[name](), ignored_layers=[head], **options)
    full = cost(model, example).total_macs
    while cost(small, example).total_macs > budget * full:
        pruner.step()
    return small.eval().requires_grad_(False)


def by_kirigami(model: nn.Module, images: data.ImageSplits, name: str, budget: float) -> nn.Module:
    """torch-kirigami's own pruner at a number of parameters with which the network costs the budget or little less."""
    example = next(iter(images.calibration))[0][:1]
    full, total = cost(model, example).total_macs, sum(each.numel() for each in model.parameters())
    low, high, found = (0.0, 0.0), (1.0, 1.0), None  # shares of parameters, and of multiply-adds
    for _ in range(TRIES):
        wanted = low[0] + (budget - CLOSE / 2 - low[1]) / (high[1] - low[1]) * (high[0] - low[0])
        small = copy.deepcopy(model).requires_grad_(True)
        if name == "kirigami_taylor":
            add_gradients(small, images)
        pruner = kirigami.Pruner(small, graph=DependencyGraph.build(small, args=(example,)))
        candidates, strategy = pruner.discover_candidates(), kirigami.Greedy(KIRIGAMI[name]())
        pruner.prune(candidates, budget=kirigami.ParameterBudget(max_params=int(wanted * total)), strategy=strategy)
        share = cost(small, example).total_macs / full
        low, high, found = ((wanted, share), high, small) if share <= budget else (low, (wanted, share), found)
        if budget - CLOSE <= share <= budget:
            break
    if found is None:
        raise SystemExit(f"{name}: above {budget} of the multiply-adds at every budget that was tried")
    return found.eval().requires_grad_(False)


def add_gradients(model: nn.Module, images: data.ImageSplits) -> None:
    """Add up the gradients of the loss on the calibration images in the parameters."""
    for pixels, labels, *_ in images.calibration:
        F.cross_entropy(model(pixels), labels).backward()


def re_estimated(model: nn.Module, images: data.ImageSplits) -> nn.Module:
    """BatchNorm statistics as the average over the calibration batches, by PyTorch's own means."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    model.train()
    with torch.no_grad():
        for pixels, *_ in images.calibration:
            model(pixels)
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="?", default=Path("runs/pruners.jsonl"))
    parser.add_argument("--network", choices=NETWORKS, default="cifar100")
    parser.add_argument("--budgets", default=".7,.5")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--tests", type=int, default=10_000)
    parser.add_argument("--only", default=",".join(("ours", *THEIRS, *KIRIGAMI)))
    asked = parser.parse_args()
    if not DATA.is_dir():
        print(f"pruners: not measured, for there are no images in {DATA}")
        return
    done = results_in(asked.results)
    network = NETWORKS[asked.network]
    seen = {(row["network"], row["pruner"], row["budget"], row["repair"], row["seed"], row["images"]) for row in done}
    for seed in map(int, asked.seeds.split(",")):
        model, images = network.opened(seed)
        test = images.test.take(asked.tests)
        example = next(iter(images.calibration))[0][:1]
        full = cost(model, example).total_macs
        ranked = None
        for name in asked.only.split(","):
            for budget in map(float, asked.budgets.split(",")):
                wanted = ["least_squares"] if name == "ours" else ["none", "batchnorm"]
                missing = [each for each in wanted if (asked.network, name, budget, each, seed, asked.tests) not in seen]
                if not missing:
                    continue
                begun = time.process_time()
                if name == "ours":
                    found = groups(model, example)
                    ranked = ranked or optimal_brain_surgeons(found, images.calibration)
                    made = prune(ranked, found, images.calibration, macs=budget)
                    small, chosen = made.model, made.ranking.name
                elif name in KIRIGAMI:
                    small, chosen = by_kirigami(model, images, name, budget), name
                else:
                    small, chosen = theirs(model, images, name, budget, network.steps), name
                for each in missing:
                    tally = evaluate(re_estimated(small, images) if each == "batchnorm" else small, test)
                    low, high = tally.accuracy_interval()
                    row = {"network": asked.network, "pruner": name, "budget": budget, "repair": each, "seed": seed, "images": asked.tests}
                    row |= {"accuracy": tally.accuracy, "low": low, "high": high, "loss": tally.loss}
                    row |= {"macs": cost(small, example).total_macs / full, "ranking": chosen, "seconds": time.process_time() - begun}
                    add_result(asked.results, row)


if __name__ == "__main__":
    main()
