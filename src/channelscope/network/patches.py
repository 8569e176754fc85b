"""What one position depends on: the input patches of a layer, with sums over them, and the receptive field of a step in the image."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from channelscope.network.channel_tracing import upstream
from channelscope.network.graph import Graph
from channelscope.network.module_state import eval_mode
from channelscope.network.operations import Call, Layout, WeightedLayer, call_of, layer_of, of_module
from channelscope.types import Float, Int, Tensor


def _layout(module: nn.Module) -> Layout | None:
    """How the table lays out the inputs of a layer; None where it has no layout."""
    entry = of_module(module)
    return None if entry is None else entry.layout


def followable(module: nn.Module) -> str:
    """Why the patches of a layer cannot be followed; empty when they can.

    Examples
    --------
    >>> followable(nn.Conv2d(3, 8, 3)), followable(nn.ReLU())
    ('', 'ReLU is not a linear layer or a two-dimensional convolution')
    """
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

    Examples
    --------
    >>> inputs, outputs = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0], [10.0]])
    >>> patch_products(nn.Linear(2, 1), inputs, outputs).tolist()
    [[31.0, 42.0]]
    """
    layout = _layout(module)
    assert layout is not None
    return layout.products(module, inputs, outputs)


def pooled_patches(
    module: nn.Conv2d | nn.Linear, inputs: Float[Tensor, "images ..."], size: tuple[int, ...]
) -> Float[Tensor, "images groups taps"]:
    """Average over the positions of each image of what the channels of each group see; `size` is the output's height and width.

    Examples
    --------
    >>> pooled_patches(nn.Conv2d(1, 1, 1), torch.tensor([[[[1.0, 3.0]]]]), (1, 2)).tolist()
    [[[2.0]]]
    """
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

    Examples
    --------
    >>> picture = torch.arange(6.0).view(1, 1, 2, 3)
    >>> input_patches(nn.Conv2d(1, 1, 2), picture, (1, 1, 2), None).tolist()
    [[[0.0, 1.0, 3.0, 4.0], [1.0, 2.0, 4.0, 5.0]]]
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
    """Samples of a layer's output (or of what should be its output) at the same positions as `input_patches`.

    Examples
    --------
    >>> maps = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]])  # two channels at two positions
    >>> patch_rows(_layer(nn.Conv2d(1, 2, 1)), maps, None).tolist()
    [[[1.0, 3.0], [2.0, 4.0]]]
    """
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
    """Values that one output of a layer is a sum over.

    Examples
    --------
    >>> patch_width(nn.Conv2d(3, 8, 5))
    75
    """
    return module.weight[0].numel()


def patches_are_exact(module: Any, image: Tensor) -> bool:
    """Whether weights · patches is what the module computes, on one image.

    Examples
    --------
    >>> with torch.no_grad():
    ...     patches_are_exact(nn.Conv2d(3, 8, 3, padding=1), torch.rand(1, 3, 4, 4))
    True
    """
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


IMAGE_AXES = 4


@dataclass(frozen=True)
class AxisReceptiveField:
    """Along one axis, position p sees the pixels from `stride`·p + `low` to `stride`·p + `high`, both included."""

    stride: int = 1
    """pixels between neighboring positions"""
    low: int = 0
    """first pixel of position 0; negative where it sees padding"""
    high: int = 0
    """last pixel of position 0"""

    def through(self, size: int, stride: int, before: int, dilation: int) -> "AxisReceptiveField":
        """After a window of `size` taps that moves by `stride`, with `before` positions of padding."""
        return AxisReceptiveField(
            self.stride * stride, self.low - self.stride * before, self.high + self.stride * (dilation * (size - 1) - before)
        )

    def pixels(self, position: int, size: int) -> tuple[int, int]:
        """First pixel seen and the one after the last, inside an image of `size` pixels."""
        start, stop = self.stride * position + self.low, self.stride * position + self.high + 1
        return max(0, min(start, size - 1)), max(1, min(stop, size))


ReceptiveField = tuple[AxisReceptiveField, AxisReceptiveField]
"""rows and columns"""


def receptive_fields(graph: Graph, step: str) -> dict[str, ReceptiveField | None]:
    """Step → what a position of its maps sees, for a step and everything before it; None stands for the whole image.

    Examples
    --------
    >>> from torch import nn
    >>> from channelscope.network.graph import trace
    >>> graph = trace(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3, stride=2)), torch.zeros(1, 1, 9, 9))
    >>> receptive_fields(graph, "_1")["_1"][0]
    AxisReceptiveField(stride=2, low=0, high=4)

    References
    ----------
    Composition of windows (Dumoulin & Visin 2016); checked by tests/network/test_receptive_field.py against gradients.
    """
    found: dict[str, ReceptiveField | None] = {}
    for node in upstream(graph, step):
        found[node.name] = _field_of(graph, node, found)
    return found


def _field_of(graph: Graph, node: fx.Node, known: Mapping[str, ReceptiveField | None]) -> ReceptiveField | None:
    shapes = graph.shapes
    if len(shapes.get(node.name, ())) != IMAGE_AXES:
        return None
    if node.op == "placeholder":
        return AxisReceptiveField(), AxisReceptiveField()
    call = call_of(node, graph.modules)
    window = call.entry.window(call) if call.entry.window is not None else None
    parents = [parent for parent in node.all_input_nodes if parent.op != "get_attr" and len(shapes.get(parent.name, ())) == IMAGE_AXES]
    if (
        not parents
        or (window is None and not _local(graph, call))
        or (window is None and any(shapes[parent.name][2:] != shapes[node.name][2:] for parent in parents))
    ):
        return None
    before = [known[parent.name] for parent in parents]
    rows, columns = [], []
    for field in before:
        if field is None or (field[0].stride, field[1].stride) != (before[0][0].stride, before[0][1].stride):  # type: ignore[index]
            return None
        rows.append(field[0])
        columns.append(field[1])
    own = _union(rows), _union(columns)
    if window is None:
        return own
    return own[0].through(*window[0]), own[1].through(*window[1])


def _local(graph: Graph, call: Call) -> bool:
    """Whether a step without a window leaves every position where it is."""
    if call.entry.normalizes and call.module is not None and not call.entry.local:
        return _positionwise(graph, call.node, call.module)
    return call.entry.local


@torch.no_grad()
def _positionwise(graph: Graph, node: fx.Node, module: nn.Module) -> bool:
    """Whether a normalization leaves all other positions as they are when one position of its maps changes."""
    shape = graph.shapes[node.all_input_nodes[0].name][1:]
    maps = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0)).to(next(graph.model.parameters(), torch.zeros(())))
    other = maps.clone()
    other[..., 0, 0] += 1
    with eval_mode(module):
        changed = module(maps) != module(other)
    changed[..., 0, 0] = False
    return not bool(changed.any())


def _union(parts: list[AxisReceptiveField]) -> AxisReceptiveField:
    return AxisReceptiveField(parts[0].stride, min(part.low for part in parts), max(part.high for part in parts))
