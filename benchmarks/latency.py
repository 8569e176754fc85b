"""Measured speed of a smaller network next to the original: medians of interleaved runs, as a ratio taken in one run.

    python benchmarks/latency.py runs/small

prints, for the network that `prune` left in a folder, or for a ResNet-56 cut to .6 of its time where none is given, the time of a
pass as a fraction of that of the original: in eager PyTorch, under torch.compile where it works on this machine, and in onnxruntime
where the extra `onnx` is installed; one image at a time and 32.
"""

import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from channelscope import zoo
from channelscope.errors import ChannelscopeError
from channelscope.network.cost import cost
from channelscope.network.removal.groups import groups
from channelscope.pruning.budget import Budget
from channelscope.pruning.folder import Manifest, export, load_pruned
from channelscope.pruning.prune import prune
from channelscope.ranking import Ranking

RUNS = 25
BATCHES = (1, 32)

Pass = Callable[[torch.Tensor], object]


def eager(model: nn.Module, image_shape: tuple[int, ...]) -> Pass:
    return model


def compiled(model: nn.Module, image_shape: tuple[int, ...]) -> Pass:
    made = torch.compile(model)
    made(torch.zeros(1, *image_shape))
    return made


def onnx(model: nn.Module, image_shape: tuple[int, ...]) -> Pass:
    import onnxruntime  # an extra

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        export(model, path, image_shape)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images.numpy()})


@torch.no_grad()
def medians(passes: dict[str, Pass], images: torch.Tensor) -> dict[str, float]:
    """Median seconds of each, in turns."""
    taken: dict[str, list[float]] = {name: [] for name in passes}
    for turn in range(RUNS + 2):
        for name, run in passes.items():
            begun = time.perf_counter()
            run(images)
            if turn > 1:
                taken[name].append(time.perf_counter() - begun)
    return {name: float(np.median(each)) for name, each in taken.items()}


def pruned() -> tuple[dict[str, nn.Module], tuple[int, ...]]:
    """ResNet-56 with the weights it starts from, and what is left of it at .6 of the time of 32 images; only its shapes matter here."""
    model, shape = zoo.build("resnet56", classes=10, channels=3, image_size=32).eval().requires_grad_(False), (3, 32, 32)
    found = groups(model, torch.zeros(1, *shape))
    values = {site.name: model.get_submodule(site.name).weight.flatten(1).norm(dim=1).double().numpy() for site in found.sites}
    ranking = Ranking("l2", "", "high", values, found.sites, shape)
    made = prune(ranking, found, [torch.rand(20, *shape)], method="none", budget=Budget(0.6, "latency", batch=32, blocks=True))
    print(made.latency)
    return {"original": model, "small": made.model}, shape


def main(folder: str | None = None) -> None:
    if folder is None:
        networks, shape = pruned()
    else:
        manifest = Manifest.read(Path(folder) / "recipe.json")
        assert manifest.factory is not None, "the original was not made by the zoo"
        factory, shape = manifest.factory, manifest.kept.input_shape
        original = zoo.build(factory.name, factory.classes, factory.channels, factory.image_size).eval()
        networks = {"original": original, "small": load_pruned(folder)}
    spent = {name: cost(model, torch.zeros(1, *shape)).total_macs for name, model in networks.items()}
    print(f"multiply-adds: {spent['small'] / spent['original']:.3f} of {spent['original']:,}")
    print(f"{torch.get_num_threads()} threads, {RUNS} runs\nruntime   batch  original [ms]  small [ms]  ratio")
    for runtime in (eager, compiled, onnx):
        if runtime is onnx and importlib.util.find_spec("onnxruntime") is None:
            print("onnx      not installed: pip install 'channelscope[onnx]'")
            continue
        try:
            passes = {name: runtime(model, shape) for name, model in networks.items()}
        except (RuntimeError, ChannelscopeError) as error:
            print(f"{runtime.__name__:9} does not work here: {str(error).splitlines()[0][:90]}")
            continue
        for batch in BATCHES:
            took = medians(passes, torch.zeros(batch, *shape))
            ratio = took["small"] / took["original"]
            print(f"{runtime.__name__:9} {batch:5}  {1000 * took['original']:13.2f}  {1000 * took['small']:10.2f}  {ratio:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
