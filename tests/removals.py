"""Random removals for the tests of the table of operations."""

from collections import Counter, defaultdict

import numpy as np
import torch
from torch import nn

from channelscope.network.operations import of_module
from channelscope.network.operations.opened import in_layers
from channelscope.network.removal.finishing import outputs
from channelscope.network.removal.labeled_graph import Heads, LabeledGraph
from channelscope.network.removal.narrowing import narrow, silenced
from channelscope.network.tracing.recording import one_step, record


def drawn(graph: LabeledGraph, fraction: float = 0.4, seed: int = 0, cap: float = 0.9) -> torch.Tensor:
    """Marks of the channels of randomly drawn groups; no layer loses all its inputs or outputs."""
    draw = np.random.default_rng(seed)
    spare = {name: min(int(cap * count), count - 1) for name, (_, count) in graph.sites.items()}
    inputs = [layer.inputs for layer in graph.layers if bool((layer.inputs >= 0).all())]
    inputs += [torch.tensor(numbers) for numbers in graph.parts]
    readers: dict[int, list[int]] = defaultdict(list)
    for index, numbers in enumerate(inputs):
        for number in numbers.unique().tolist():
            readers[number].append(index)
    left = [len(numbers.unique()) for numbers in inputs]
    chosen = []
    for index in draw.permutation(len(graph.groups)).tolist():
        group = graph.groups[index]
        sizes = Counter(name for name, _ in group)
        lost = Counter(reader for name, channel in group for reader in readers[graph.sites[name][0] + channel])
        fits = all(spare[name] >= count for name, count in sizes.items()) and all(left[reader] > count for reader, count in lost.items())
        if draw.random() < fraction and fits:
            chosen.append(index)
            spare = {name: count - sizes[name] for name, count in spare.items()}
            for reader, count in lost.items():
                left[reader] -= count
    return graph.gone(chosen)


def lively(model: nn.Module, seed: int = 0) -> nn.Module:
    """Parameters and statistics as training leaves them: at initialization, shifts are zero and scales one."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None:
                module.running_mean.normal_(0, 0.3, generator=source)
                module.running_var.uniform_(0.5, 2, generator=source)
        for parameter in model.parameters():
            if parameter.squeeze().dim() <= 1:
                parameter.add_(torch.randn(parameter.shape, generator=source) * 0.2)
            elif float(parameter.abs().max()) < 0.01:
                parameter.add_(torch.randn(parameter.shape, generator=source) * 0.1)
    return model.eval().requires_grad_(False)


def graph_of(model: nn.Module, *shape: int, heads: Heads = "whole") -> LabeledGraph:
    """The channel graph of a network in float64, recorded on one random image."""
    model = in_layers(model.double().eval().requires_grad_(False))
    image = torch.randn(1, *shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return LabeledGraph(record(model, (image,), whole=whole), model, heads)


def whole(module: nn.Module) -> bool:
    """What the recorder takes as one step: layers of torch, and modules that a test has registered."""
    entry = of_module(module)
    return one_step(module) or (entry is not None and type(module) in entry.modules and not type(module).__module__.startswith("torch."))


def assert_exact(graph: LabeledGraph, gone: torch.Tensor, tolerance: float = 1e-9, seen: bool = True) -> nn.Module:
    """The smaller network computes what the silenced one does, on other images and in another batch; `seen`: the output changed."""
    before = {name: value.clone() for name, value in graph.model.state_dict().items()}
    small = narrow(graph, gone)
    first = next(node for node in graph.steps.nodes if node.op == "placeholder")
    images = torch.randn(3, *graph.values[first.name].shape[1:], generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    with torch.no_grad():
        received, expected, full = (outputs(value) for value in (small(images), silenced(graph, gone, images), graph.model(images)))
    for one, other in zip(received, expected, strict=True):
        assert one.shape == other.shape
        assert float((one - other).abs().max()) <= tolerance * float(other.abs().max())
    assert not seen or any(
        float((one - other).abs().max()) > 0.001 * float(one.abs().max()) for one, other in zip(full, expected, strict=True)
    )
    assert all(torch.equal(value, before[name]) for name, value in graph.model.state_dict().items())
    assert sum(value.numel() for value in small.parameters()) < sum(value.numel() for value in graph.model.parameters())
    return small
