"""Patches: sums over what a layer's channels see, without ever forming the patches' covariance."""

from torch import nn

from channelscope.network.operations import of_module
from channelscope.network.operations.operation import Layout
from channelscope.types import Float, Tensor


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
