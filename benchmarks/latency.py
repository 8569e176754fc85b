"""Measured speed of a smaller network next to the original: medians of interleaved runs, as a ratio taken in one run.

    python benchmarks/latency.py runs/small

prints, for the network that `prune` left in a folder, or for a ResNet-56 cut to .6 of its time where none is given, the time of a
pass as a fraction of that of the original: in eager PyTorch, under torch.compile where it works on this machine, and in onnxruntime
where the extra `onnx` is installed; one image at a time and 32. `prune --speed` measures the same.
"""

import sys
from pathlib import Path

import torch
from torch import nn

from channelscope import zoo
from channelscope.network.cost import cost
from channelscope.network.removal.groups import groups
from channelscope.pruning.budget import Budget
from channelscope.pruning.folder import Manifest, load_pruned
from channelscope.pruning.prune import prune
from channelscope.pruning.timing import compare_runtimes
from channelscope.ranking import Ranking
from channelscope.report.sections.pruning import speed_sentences


def pruned() -> tuple[nn.Module, nn.Module, tuple[int, ...]]:
    """ResNet-56 with the weights it starts from, and what is left of it at .6 of the time of 32 images; only its shapes matter here."""
    model, shape = zoo.build("resnet56", classes=10, channels=3, image_size=32).eval().requires_grad_(False), (3, 32, 32)
    found = groups(model, torch.zeros(1, *shape))
    values = {site.name: model.get_submodule(site.name).weight.flatten(1).norm(dim=1).double().numpy() for site in found.sites}
    ranking = Ranking("l2", "", "high", values, found.sites, shape)
    made = prune(ranking, found, [torch.rand(20, *shape)], method="none", budget=Budget(0.6, "latency", batch=32, blocks=True))
    print(made.latency)
    return made.model, model, shape


def main(folder: str | None = None) -> None:
    if folder is None:
        small, original, shape = pruned()
    else:
        manifest = Manifest.read(Path(folder) / "recipe.json")
        assert manifest.factory is not None, "the original was not made by the zoo"
        factory, shape = manifest.factory, manifest.kept.input_shape
        original = zoo.build(factory.name, factory.classes, factory.channels, factory.image_size).eval()
        small = load_pruned(folder)
    spent = [cost(model, torch.zeros(1, *shape)).total_macs for model in (small, original)]
    print(f"multiply-adds: {spent[0] / spent[1]:.3f} of {spent[1]:,}; {torch.get_num_threads()} threads")
    for sentence in speed_sentences(compare_runtimes(small, original, shape)):
        print(sentence)


if __name__ == "__main__":
    main(*sys.argv[1:])
