"""Cost: multiply-adds and parameters of a network, layer by layer, and what they become when channels go."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from channelscope.net.graph import evaluating
from channelscope.net.groups import Groups
from channelscope.net.subset import Subset
from channelscope.network.wrapper import unwrapped


@dataclass(frozen=True)
class Cost:
    """What one image costs. One MAC is one multiply-add; torch.utils.flop_counter counts it as two operations."""

    macs: Mapping[str, int]
    """convolution or linear layer → MACs per image, over all its calls"""
    other: int
    """MACs per image outside such layers, such as attention products"""
    parameters: Mapping[str, int]
    """module path → number of parameters it owns itself"""

    @property
    def total_macs(self) -> int:
        """MACs per image of the whole network."""
        return sum(self.macs.values()) + self.other

    @property
    def total_parameters(self) -> int:
        """Number of parameters of the whole network; shared ones count once."""
        return sum(self.parameters.values())


def cost(model: nn.Module, example: Tensor | tuple[Tensor, ...]) -> Cost:
    """MACs per image and parameters of `model`, measured on the first image of `example`; no tracing needed.

    Source   torch.utils.flop_counter, halved, per layer and in total.
    """
    model = unwrapped(model)
    image = tuple(part[:1] for part in (example if isinstance(example, tuple) else (example,)))
    weighted = {name: module for name, module in model.named_modules() if isinstance(module, nn.modules.conv._ConvNd | nn.Linear)}
    macs: dict[str, int] = defaultdict(int)

    def watch(name: str):
        def count(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            macs[name] += _macs(module, inputs[0], output)

        return count

    handles = [module.register_forward_hook(watch(name)) for name, module in weighted.items()]
    counter = FlopCounterMode(display=False)
    try:
        with evaluating(model), torch.no_grad(), counter:
            model(*image)
    finally:
        for handle in handles:
            handle.remove()
    parameters: dict[str, int] = defaultdict(int)
    for name, parameter in model.named_parameters():
        parameters[name.rpartition(".")[0]] += parameter.numel()
    return Cost(dict(macs), counter.get_total_flops() // 2 - sum(macs.values()), dict(parameters))


def _macs(module: nn.Module, value: Tensor, output: Tensor) -> int:
    if isinstance(module, nn.Linear):
        return output.numel() * module.in_features
    taps = int(np.prod(module.kernel_size))  # type: ignore[arg-type]
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return value.numel() * taps * module.out_channels // module.groups
    return output.numel() * taps * module.in_channels // module.groups  # type: ignore[operator]


class Ledger:
    """MACs of a network while groups are removed and put back; nothing is rebuilt.

    A layer costs taps × positions × inputs × outputs (× 1/groups), so a group's price depends on what else is gone.
    """

    def __init__(self, groups: Groups, other: int = 0):
        weighted = [layer for layer in groups.layers if layer.taps]
        self.rates = [layer.taps * layer.positions for layer in weighted]
        self.grouped = [len(layer.inputs) // layer.groups if layer.groups > 1 else 0 for layer in weighted]
        self.inputs = [len(layer.inputs) for layer in weighted]
        self.outputs = [len(layer.outputs) for layer in weighted]
        self.total = other + sum(self._layer(index) for index in range(len(weighted)))
        counts: list[dict[int, list[int]]] = [defaultdict(lambda: [0, 0]) for _ in range(len(groups))]
        for index, layer in enumerate(weighted):
            for side, numbers in enumerate((layer.inputs.numpy(), layer.outputs.numpy())):
                owners = np.where(numbers >= 0, groups.owner[numbers], -1)
                for group, count in zip(*np.unique(owners[owners >= 0], return_counts=True), strict=True):
                    counts[group][index][side] += int(count)
        self.counts = counts

    def _layer(self, index: int) -> int:
        inputs = self.grouped[index] or self.inputs[index]
        return self.rates[index] * inputs * self.outputs[index]

    def _move(self, group: int, sign: int) -> int:
        """Change the counts by one group and return the change of the total."""
        before = after = 0
        for index, (inputs, outputs) in self.counts[group].items():
            before += self._layer(index)
            self.inputs[index] += sign * inputs
            self.outputs[index] += sign * outputs
            after += self._layer(index)
        self.total += after - before
        return after - before

    def remove(self, group: int) -> int:
        """Take a group out; MACs saved."""
        return -self._move(group, -1)

    def add(self, group: int) -> int:
        """Put a group back; MACs added."""
        return self._move(group, 1)


def macs(groups: Groups, kept: Subset, other: int = 0) -> int:
    """MACs per image of the network with only the kept channels, without building it.

    `other` is what lies outside convolutions and linear layers (`cost(…).other`) and stays as it is.
    """
    ledger = Ledger(groups, other)
    for group in np.flatnonzero(~groups.kept(kept)):
        ledger.remove(int(group))
    return ledger.total
