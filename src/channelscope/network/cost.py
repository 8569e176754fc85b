"""Cost: multiply-adds and parameters of a network, layer by layer, and what they become when channels go."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from channelscope.network.module_state import eval_mode, frozen
from channelscope.network.operations import layer_of, layers_called
from channelscope.network.operations.opened import in_layers
from channelscope.network.removal.groups import Groups
from channelscope.network.tracing.recording import unwrapped
from channelscope.subset import Subset

Shape = Sequence[int]


def fused_kernels() -> dict[Any, Callable[..., int]]:
    """A count for each kernel, as `FlopCounterMode(custom_mapping=…)` takes them: from the shapes of a call to its operations.

    Returns
    -------
    dict
        Operator → function of its arguments, with shapes in the place of tensors.

    Examples
    --------
    >>> fused_kernels()[torch.ops.aten.mv]((3, 5), (5,))
    30
    """
    aten = torch.ops.aten
    known: dict[Any, Callable[..., int]] = {
        aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        aten._scaled_dot_product_fused_attention_overrideable: _attention,
        aten._native_multi_head_attention: _attention_layer,
        aten._transformer_encoder_layer_fwd: _encoder_layer,
        aten.mkldnn_rnn_layer: _recurrent_layer,
        aten._cudnn_rnn: _recurrent,
        aten.miopen_rnn: _recurrent,
        aten._trilinear: _trilinear,
        aten.mv: lambda matrix, _vector, **_: 2 * math.prod(matrix),
        aten.addmv: lambda _bias, matrix, _vector, **_: 2 * math.prod(matrix),
        aten.dot: lambda first, _second, **_: 2 * math.prod(first),
        aten.vdot: lambda first, _second, **_: 2 * math.prod(first),
        aten.addbmm: lambda _bias, first, second, **_: 2 * math.prod(first) * second[-1],
    }
    if hasattr(torch.ops.torchvision, "deform_conv2d"):
        known[torch.ops.torchvision.deform_conv2d] = _deformable
    return known


def _attention(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _attention_layer(query: Shape, key: Shape, *_: Any, **__: Any) -> int:
    """Projections of queries, keys, values and outputs, products of queries with keys, and of attention with values."""
    rows, columns, width = math.prod(query[:-1]), math.prod(key[:-1]), query[-1]
    return 2 * ((2 * rows + 2 * columns) * width**2 + 2 * rows * key[-2] * width)


def _encoder_layer(tokens: Shape, *rest: Any, **_: Any) -> int:
    """Self-attention, and two linear layers of which the first has the weight `rest[FIRST_LINEAR]`."""
    return _attention_layer(tokens, tokens) + 4 * math.prod(tokens[:-1]) * math.prod(rest[FIRST_LINEAR])


FIRST_LINEAR = 13
"""Place of the first linear layer's weight among the arguments of a fused encoder layer, after the tokens."""


def _recurrent_layer(steps: Shape, first: Shape, second: Shape, *_: Any, **__: Any) -> int:
    return 2 * math.prod(steps[:-1]) * (math.prod(first) + math.prod(second))


def _recurrent(steps: Shape, weights: Sequence[Shape], *_: Any, **__: Any) -> int:
    return 2 * math.prod(steps[:-1]) * sum(math.prod(weight) for weight in weights if len(weight) == 2)


def _trilinear(first: Shape, second: Shape, third: Shape, *expansions: Any, **_: Any) -> int:
    grown = []
    for shape, added in zip((first, second, third), expansions, strict=False):
        sizes = list(shape)
        for axis in sorted(added):
            sizes.insert(axis, 1)
        grown.append(sizes)
    return 2 * math.prod(max(sizes) for sizes in zip(*grown, strict=True))


def _deformable(_images: Shape, weight: Shape, *_: Any, out_shape: Shape, **__: Any) -> int:
    return 2 * math.prod(out_shape) * math.prod(weight[1:])


@dataclass(frozen=True)
class Cost:
    """What one image costs. One MAC is one multiply-add; torch.utils.flop_counter counts it as two operations."""

    macs: Mapping[str, int]
    """convolution or linear layer → MACs per image, over all its calls"""
    other_macs: int
    """MACs per image outside such layers, such as attention products"""
    parameters: Mapping[str, int]
    """module path → number of parameters it owns itself"""
    elsewhere: Mapping[str, int] = field(default_factory=dict)
    """module path → MACs per image of `other` that are carried out in its own forward pass"""

    @property
    def total_macs(self) -> int:
        """MACs per image of the whole network."""
        return sum(self.macs.values()) + self.other_macs

    @property
    def total_parameters(self) -> int:
        """Number of parameters of the whole network; shared ones count once."""
        return sum(self.parameters.values())


def cost(model: nn.Module, example: Tensor | tuple[Tensor, ...]) -> Cost:
    """MACs per image and parameters of `model`, measured on the first image of `example`; no tracing needed.

    Everything that is carried out counts, inside modules that cannot be followed too: convolutions, linear layers, products of
    matrices and vectors, attention and recurrent layers, also where one fused kernel does them.

    Parameters
    ----------
    model
        The network.
    example
        A batch of images, or a tuple of all inputs.

    Returns
    -------
    Cost
        MACs of the first image by layer, and parameters by module.

    Examples
    --------
    >>> cost(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 5)), torch.zeros(1, 3, 4, 4)).macs
    {'0': 432, '2': 80}

    References
    ----------
    torch.utils.flop_counter, halved, with the fused kernels that it does not know.
    """
    given = dict(unwrapped(model).named_modules())
    model = in_layers(given[""])
    image = tuple(part[:1] for part in (example if isinstance(example, tuple) else (example,)))
    spent, counter = _Spent(), FlopCounterMode(display=False, custom_mapping=fused_kernels())
    fast = torch.backends.mha.get_fastpath_enabled()
    handles: list[Any] = []
    try:
        for name, module in model.named_modules():
            if not isinstance(module, torch.jit.ScriptModule):
                handles += [
                    module.register_forward_pre_hook(spent.enter(counter)),
                    module.register_forward_hook(spent.leave(name, counter)),
                ]
        torch.backends.mha.set_fastpath_enabled(False)  # a kernel for a whole encoder layer would hide its products
        with eval_mode(model), frozen(model), torch.no_grad(), layers_called(model), counter:
            model(*image)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for handle in handles:
            handle.remove()
    parameters: dict[str, int] = defaultdict(int)
    for name, parameter in model.named_parameters():
        parameters[name.rpartition(".")[0]] += parameter.numel()
    for name, module in model.named_modules():
        if name in given and layer_of(module) is not None and type(given[name]) is not type(module):  # its weight is computed from these
            parameters[name] = sum(parameter.numel() for parameter in given[name].parameters())
    weighted = {name for name, module in model.named_modules() if layer_of(module) is not None}
    macs = {name: operations // 2 for name, operations in spent.own.items() if name in weighted}
    elsewhere = {name: operations // 2 for name, operations in spent.own.items() if operations and name not in weighted}
    return Cost(macs, counter.get_total_flops() // 2 - sum(macs.values()), dict(parameters), elsewhere)


class _Spent:
    """Operations of each module's own forward pass, without those of the modules it calls."""

    def __init__(self) -> None:
        self.own: dict[str, int] = {}
        self.open: list[tuple[int, int]] = []

    def enter(self, counter: FlopCounterMode) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any) -> None:
            self.open.append((counter.get_total_flops(), 0))

        return hook

    def leave(self, name: str, counter: FlopCounterMode) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, _output: Any) -> None:
            start, inside = self.open.pop()
            every = counter.get_total_flops() - start
            self.own[name] = self.own.get(name, 0) + every - inside
            if self.open:
                outer, before = self.open[-1]
                self.open[-1] = outer, before + every

        return hook


class MacCounter:
    """MACs of a network while groups are removed and put back; nothing is rebuilt.

    A layer costs taps × positions × inputs × outputs (× 1/groups), so a group's price depends on what else is gone.
    """

    def __init__(self, groups: Groups, other: int | None = None):
        """`other` is what lies outside convolutions and linear layers; None: as executed.

        Layers that cannot be followed stay as they are and count as executed.
        """
        weighted = [layer for layer in (*groups.layers, *groups.products) if layer.taps]
        self.names = [layer.name for layer in weighted]
        self.modules = sum(bool(layer.taps) for layer in groups.layers)
        self.rates = [layer.taps * layer.positions for layer in weighted]
        self.grouped = [len(layer.inputs) // layer.groups if layer.groups > 1 else 0 for layer in weighted]
        self.inputs = [len(layer.inputs) for layer in weighted]
        self.outputs = [len(layer.outputs) for layer in weighted]
        self.spent = cost(groups.graph.model, groups.example)
        followed = sum(self._layer(index) for index in range(len(weighted)))
        unfollowed = sum(amount for name, amount in self.spent.macs.items() if name not in set(self.names))
        rest = self.spent.total_macs - followed if other is None else unfollowed + other
        self.total = followed + rest
        counts: list[dict[int, list[int]]] = [defaultdict(lambda: [0, 0]) for _ in range(len(groups))]
        for index, layer in enumerate(weighted):
            for side, numbers in enumerate((layer.inputs.numpy(), layer.outputs.numpy())):
                owners = np.where(numbers >= 0, groups.group_of[numbers], -1)
                for group, count in zip(*np.unique(owners[owners >= 0], return_counts=True), strict=True):
                    counts[group][index][side] += int(count)
        self.counts = counts

    def shares(self) -> dict[str, float]:
        """What each layer, and each module that computes by itself, costs of the total as it is now; largest first."""
        now = {name: self._layer(index) for index, name in enumerate(self.names[: self.modules])}
        now |= {name: amount for name, amount in self.spent.macs.items() if name not in now}
        for name, amount in self.spent.elsewhere.items():
            now[name or "the network itself"] = amount
        return {name: amount / self.total for name, amount in sorted(now.items(), key=lambda pair: -pair[1]) if amount}

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


def macs(groups: Groups, kept: Subset, other: int | None = None) -> int:
    """MACs per image of the network with only the kept channels, without building it.

    Parameters
    ----------
    groups
        The network's `groups`.
    kept
        The channels that are kept.
    other
        MACs outside convolutions and linear layers, which stay as they are; None: as executed.

    Returns
    -------
    int
        What `cost` gives for the smaller network.

    Examples
    --------
    >>> from channelscope.network.removal.groups import groups
    >>> found = groups(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.Flatten()).eval(), torch.zeros(1, 3, 5, 5))
    >>> [macs(found, found.to_subset(np.array(kept))) for kept in ([True] * 4, [True, False, False, False])]
    [500, 125]
    """
    ledger = MacCounter(groups, other)
    for group in np.flatnonzero(~groups.kept(kept)):
        ledger.remove(int(group))
    return ledger.total
