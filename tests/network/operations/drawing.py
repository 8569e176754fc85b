"""Random removals for the tests of the table of operations."""

from collections import Counter, defaultdict

import numpy as np
import torch
from torch import nn

from channelscope.network.channel_graph import ChannelGraph


def drawn(graph: ChannelGraph, fraction: float = 0.4, seed: int = 0, cap: float = 0.9) -> torch.Tensor:
    """Marks of the channels of randomly drawn groups; no layer loses all its inputs or outputs."""
    draw = np.random.default_rng(seed)
    spare = {name: min(int(cap * count), count - 1) for name, (_, count) in graph.sites.items()}
    inputs = [layer.inputs for layer in graph.layers if bool((layer.inputs >= 0).all())]
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
