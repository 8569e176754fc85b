"""The input patches of a layer: sums over them, the patches themselves, and their geometry."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from channelscope.network.operations import Layout, WeightedLayer, layer_of, of_module
from channelscope.types import Float, Int, Tensor


def _layout(module: nn.Module) -> Layout | None:
    """How the table lays out the inputs of a layer; None where it has no layout."""
    entry = of_module(module)
    return None if entry is None else entry.layout


def followable(module: nn.Module) -> str:
    """Why the patches of a layer cannot be followed; empty when they can."""
    layout = _layout(module)
    if layout is None:
        return f"{type(module).__name__} is not a linear layer or a two-dimensional convolution"
    return layout.unfit(module)


def patch_products(
    module: nn.Conv2d | nn.Linear, inputs: Float[Tensor, "images ..."], outputs: Float[Tensor, "images ..."]
) -> Float[Tensor, "rows taps"]:
    """Σ over images and positions of output row × input patch: one row per channel of `outputs`, float64.

    For a convolution this is the backward pass of its weights, with `outputs` in the place of gradients: a row of taps is one
    filter, C_in/groups × kernel. Products are taken in the inputs' precision.
    """
    layout = _layout(module)
    assert layout is not None
    return layout.products(module, inputs, outputs)


def pooled_patches(
    module: nn.Conv2d | nn.Linear, inputs: Float[Tensor, "images ..."], size: tuple[int, ...]
) -> Float[Tensor, "images groups taps"]:
    """Average over the positions of each image of what the channels of each group see; `size` is the output's height and width."""
    layout = _layout(module)
    assert layout is not None
    return layout.pooled(module, inputs, size)


def input_patches(
    module: nn.Module, inputs: Tensor, output_shape: tuple[int, ...], where: Int[Tensor, "images positions"] | None
) -> Float[Tensor, "groups samples taps"]:
    """Rows of inputs, one per image and position, such that rows · weights' is the layer's output there (without bias).

    Padding the module does in its own forward (timm's `Conv2dSame`) is read off the output shape.

    Parameters
    ----------
    output_shape
        Shape of one image's output.
    where
        Flat output positions of each image; None for all.

    Returns
    -------
    Tensor
        (groups, images × positions, inputs per group × kernel), in the order of `weight.flatten(1)`.
    """
    layer = _layer(module)
    if layer.tokens:
        rows = inputs.reshape(len(inputs), -1, inputs.shape[-1])
        if where is not None:
            rows = rows.gather(1, where[:, :, None].expand(-1, -1, rows.shape[2]))
        return rows.reshape(1, -1, rows.shape[2])
    padded = _padded(layer, inputs, output_shape)
    grid = _patch_grid(layer, padded.shape[2:], output_shape[1:]).to(inputs.device)  # (positions, taps)
    index = grid.flatten().expand(len(inputs), -1) if where is None else grid[where].flatten(1)
    taken = padded.flatten(2).gather(2, index[:, None, :].expand(-1, padded.shape[1], -1))
    taken = taken.view(len(inputs), layer.groups, padded.shape[1] // layer.groups, -1, grid.shape[1])
    return taken.permute(1, 0, 3, 2, 4).reshape(layer.groups, -1, taken.shape[2] * taken.shape[4])


def patch_rows(
    layer: WeightedLayer, values: Tensor, where: Int[Tensor, "images positions"] | None
) -> Float[Tensor, "groups samples outputs"]:
    """Samples of a layer's output (or of what should be its output) at the same positions as `input_patches`."""
    flat = values.reshape(len(values), -1, values.shape[-1]) if layer.tokens else values.flatten(2).transpose(1, 2)
    if where is not None:
        flat = flat.gather(1, where[:, :, None].expand(-1, -1, flat.shape[2]))
    return flat.reshape(-1, layer.groups, flat.shape[2] // layer.groups).transpose(0, 1)


def _layer(module: nn.Module) -> WeightedLayer:
    layer = layer_of(module)
    assert layer is not None
    return layer


def _padded(layer: WeightedLayer, inputs: Tensor, output_shape: tuple[int, ...]) -> Tensor:
    amounts: list[int] = []
    for axis in reversed(range(len(layer.kernel))):
        reach = layer.dilation[axis] * (layer.kernel[axis] - 1) + 1
        total = max((output_shape[1 + axis] - 1) * layer.stride[axis] + reach - inputs.shape[2 + axis], 0)
        first = layer.pads[axis][0] if any(map(any, layer.pads)) else total // 2
        amounts += [first, max(total - first, 0)]
    return F.pad(inputs, amounts, mode=layer.mode)


def _patch_grid(layer: WeightedLayer, size: tuple[int, ...], outputs: tuple[int, ...]) -> Int[Tensor, "positions taps"]:
    """Flat index into the padded input for each output position and tap."""
    index = torch.zeros(1, 1, dtype=torch.long)
    for axis, length in enumerate(size):
        starts = torch.arange(outputs[axis]) * layer.stride[axis]
        steps = torch.arange(layer.kernel[axis]) * layer.dilation[axis]
        here = starts[:, None] + steps[None, :]
        index = (index[:, None, :, None] * length + here[None, :, None, :]).reshape(len(index) * len(starts), -1)
    return index


def patch_width(module: Any) -> int:
    """Values that one output of a layer is a sum over."""
    return module.weight[0].numel()


def patches_are_exact(module: Any, image: Tensor) -> bool:
    """Whether weights · patches is what the module computes, on one image."""
    output = module(image)
    expected = patch_rows(_layer(module), output, None)
    taken = input_patches(module, image, tuple(output.shape[1:]), None)
    received = taken @ module.weight.flatten(1).view(len(taken), -1, taken.shape[2]).transpose(1, 2)
    if module.bias is not None:
        received = received + module.bias.view(len(taken), 1, -1)
    return torch.allclose(received, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


BLOCK_NUMBERS = 2**24
"""Numbers in one block of unfolded input windows or of per-image weight gradients."""

Points = Tensor | tuple[Tensor, ...]
"""One tensor, or one for each point of a path."""


@dataclass(frozen=True)
class LayerKernels:
    """The kernels of a two-dimensional convolution or linear layer, and how they move over its input.

    Examples
    --------
    >>> kernels = LayerKernels.of(nn.Conv2d(4, 6, 3, padding=1, groups=2))
    >>> kernels.rows.shape, kernels.windows(torch.zeros(5, 4, 8, 8)).shape
    (torch.Size([2, 3, 2, 9]), torch.Size([5, 2, 2, 9, 64]))
    """

    weight: Float[Tensor, "outputs inputs *kernel"]
    """the kernels (detached; stays as it was when the network is masked)"""
    layer: WeightedLayer

    @classmethod
    def of(cls, module: nn.Module) -> "LayerKernels":
        """Kernels of a module that is a layer."""
        return cls(module.weight.detach(), _layer(module))  # type: ignore[union-attr,operator]

    @property
    def groups(self) -> int:
        """Groups of channels that do not see each other."""
        return self.layer.groups

    @property
    def taps(self) -> int:
        """Values of a kernel."""
        return math.prod(self.layer.kernel)

    def windows(self, inputs: Tensor) -> Float[Tensor, "images groups inputs taps positions"]:
        """The input values under each tap of each kernel."""
        layer = self.layer
        if layer.tokens:
            rows = inputs.reshape(len(inputs), -1, inputs.shape[-1]).transpose(1, 2)
            return rows[:, None, :, None, :]
        pads = [amount for axis in reversed(layer.pads) for amount in axis]
        maps = F.pad(inputs, pads, mode=layer.mode) if any(pads) else inputs
        if self.taps == 1:
            columns = maps[:, :, :: layer.stride[0], :: layer.stride[1]].flatten(2)
        else:
            columns = F.unfold(maps, layer.kernel, layer.dilation, 0, layer.stride)
        return columns.reshape(len(maps), layer.groups, self.weight.shape[1], self.taps, -1)

    def outputs(self, gradients: Tensor) -> Float[Tensor, "images groups outputs positions"]:
        """Output gradients with one axis of positions, split into groups."""
        if self.layer.tokens:
            return gradients.reshape(len(gradients), -1, gradients.shape[-1]).transpose(1, 2)[:, None]
        return gradients.flatten(2).reshape(len(gradients), self.layer.groups, -1, gradients[0, 0].numel())

    def split(self, inputs: Points, gradients: Points) -> Iterator[tuple[Tensor, Tensor]]:
        """Windows and gradients in blocks of images that fit in memory.

        The points of a path lie one after the other on the axis of positions, each gradient divided by their number.
        """
        xs, gs = (each if isinstance(each, tuple) else (each,) for each in (inputs, gradients))
        positions = len(gs) * gs[0][0].numel() // self.weight.shape[0]
        windows = self.weight.shape[1] * self.groups * self.taps * positions
        step = max(1, BLOCK_NUMBERS // max(1, windows, self.weight.numel()))
        for start in range(0, len(gs[0]), step):
            block = slice(start, start + step)
            if len(gs) == 1:
                yield self.windows(xs[0][block]), self.outputs(gs[0][block])
            else:
                yield torch.cat([self.windows(x[block]) for x in xs], -1), torch.cat([self.outputs(g[block]) / len(gs) for g in gs], -1)

    @property
    def rows(self) -> Float[Tensor, "groups outputs inputs taps"]:
        """The weights with one axis of taps, split into groups."""
        return self.layer.split(self.weight)
