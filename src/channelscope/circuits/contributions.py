"""What each kernel contributes to the feature: closed forms over one layer's inputs X, output gradients G and weights.

Kernel (o, i) puts the map A[o,i] = W[o,i] ∗ X[i] into output channel o, and dJ = Σ A·G. Every function takes one batch and
returns sums over its images, so that results add up whatever the batches. X and G may be tuples, one tensor for each point
of a path: A·G is then averaged over the points before any absolute value is taken.
"""

from collections.abc import Iterator

import torch

from channelscope.network.patches import LayerKernels, Points
from channelscope.types import Float, Tensor

CHUNK_NUMBERS = 2**21
"""Numbers in one block of contribution maps; a block stays in the processor's cache."""


def gate_scores(inputs: Points, gradients: Points, layer: LayerKernels) -> tuple[Tensor, Tensor]:
    """Effect of scaling each kernel: |Σ_positions A·G| summed over images, and the same without the absolute value.

    Σ_positions A·G = Σ_taps w · dJ_b/dw, so one matrix product per image takes the place of the contribution maps.

    Parameters
    ----------
    inputs
        X (images, inputs, ...), or one for each point of a path.
    gradients
        G (images, outputs, ...), or one for each point of a path.
    layer
        Weight and geometry of the layer.

    Returns
    -------
    tuple[Tensor, Tensor]
        Float64 (outputs, inputs per group), twice.

    Examples
    --------
    Two images whose effects, 2 · 1 and 2 · (−1), cancel in the signed sum.

    >>> layer = torch.nn.Linear(1, 1, bias=False)
    >>> _ = torch.nn.init.constant_(layer.weight, 2.0)
    >>> size, signed = gate_scores(torch.tensor([[1.0], [-1.0]]), torch.ones(2, 1), LayerKernels.of(layer))
    >>> size.tolist(), signed.tolist()
    ([[4.0]], [[0.0]])

    References
    ----------
    This library; checked by tests/pencil_circuits.py::gate.
    """
    single = layer.taps == 1 and gradients[0].numel() == layer.weight.shape[0] and layer.groups == 1
    if isinstance(inputs, Tensor) and isinstance(gradients, Tensor) and single:
        x, g = inputs.reshape(len(inputs), -1), gradients.reshape(len(gradients), -1)  # one position: |A·G| is a product of sizes
        weight = layer.weight.flatten(1).double()
        return (g.abs().T @ x.abs()).double() * weight.abs(), (g.T @ x).double() * weight
    size, signed = _zeros(layer), _zeros(layer)
    for effect in _effects(inputs, gradients, layer):
        size += effect.abs().sum(0, dtype=torch.float64)
        signed += effect.sum(0, dtype=torch.float64)
    return size, signed


def _effects(inputs: Points, gradients: Points, layer: LayerKernels) -> Iterator[Float[Tensor, "images outputs inputs"]]:
    """Σ_positions A·G of every image and kernel."""
    for x, g in layer.split(inputs, gradients):
        if layer.taps == 1:
            yield (g @ x.squeeze(3).transpose(-1, -2)).flatten(1, 2) * layer.weight.flatten(1)
            continue
        slopes = g @ x.flatten(2, 3).transpose(-1, -2)
        slopes = slopes.reshape(len(x), *layer.rows.shape)
        yield slopes.mul_(layer.rows).sum(-1).flatten(1, 2)


def snip(inputs: Points, gradients: Points, layer: LayerKernels, per_batch: bool = False) -> Tensor:
    """SNIP: |w · dJ_b/dw| of each weight, mean over the kernel, summed over images.

    Parameters
    ----------
    inputs
        X (images, inputs, ...), or one for each point of a path.
    gradients
        G (images, outputs, ...), or one for each point of a path.
    layer
        Weight and geometry of the layer.
    per_batch
        Take the absolute value after summing the batch, as the published scripts do; depends on the batch size.

    Returns
    -------
    Tensor
        Float64 (outputs, inputs per group).

    Examples
    --------
    >>> layer = torch.nn.Linear(1, 1, bias=False)
    >>> _ = torch.nn.init.constant_(layer.weight, 2.0)
    >>> inputs, gradients = torch.tensor([[1.0], [-1.0]]), torch.ones(2, 1)
    >>> [snip(inputs, gradients, LayerKernels.of(layer), per_batch).tolist() for per_batch in (False, True)]
    [[[4.0]], [[0.0]]]

    References
    ----------
    Lee, Ajanthan, Torr 2019; Hamblin, Konkle, Alvarez 2022; checked by tests/pencil_circuits.py::snip.
    """
    total, batch = _zeros(layer), torch.zeros_like(layer.rows)
    for x, g in layer.split(inputs, gradients):
        slopes = (g @ x.flatten(2, 3).transpose(-1, -2)).reshape(len(x), *layer.rows.shape).mul_(layer.rows)
        if per_batch:
            batch += slopes.sum(0)
        else:
            total += slopes.abs_().mean(-1).sum(0, dtype=torch.float64).flatten(0, 1)
    return batch.abs().mean(-1).double().flatten(0, 1) if per_batch else total


def actgrad(inputs: Points, gradients: Points, layer: LayerKernels) -> Tensor:
    """ActGrad: mean over positions of |A·G|, summed over images; at most one block of maps is in memory.

    Parameters
    ----------
    inputs
        X (images, inputs, ...), or one for each point of a path.
    gradients
        G (images, outputs, ...), or one for each point of a path.
    layer
        Weight and geometry of the layer.

    Returns
    -------
    Tensor
        Float64 (outputs, inputs per group).

    Examples
    --------
    One image with two positions: the mean of |2 · 1| and |2 · (−3)|.

    >>> layer = torch.nn.Conv2d(1, 1, 1, bias=False)
    >>> _ = torch.nn.init.constant_(layer.weight, 2.0)
    >>> actgrad(torch.tensor([[[[1.0, -3.0]]]]), torch.ones(1, 1, 1, 2), LayerKernels.of(layer)).tolist()
    [[4.0]]

    References
    ----------
    Hamblin, Konkle, Alvarez 2022; checked by tests/pencil_circuits.py::actgrad.
    """
    total, points = _zeros(layer), len(gradients) if isinstance(gradients, tuple) else 1
    for x, g in layer.split(inputs, gradients):
        positions = g.shape[-1] // points
        if layer.taps == 1 and points == 1:
            part = (g.abs() @ x.abs().squeeze(3).transpose(-1, -2)).flatten(1, 2) * layer.weight.flatten(1).abs()
            total += part.sum(0, dtype=torch.float64) / positions
            continue
        for image in range(len(x)):
            for group in range(layer.groups):
                block = slice(group * g.shape[2], (group + 1) * g.shape[2])
                total[block] += _positions(x[image, group], g[image, group], layer.rows[group], points) / positions
    return total


def _positions(x: Tensor, gradients: Tensor, weights: Tensor, points: int) -> Tensor:
    """Σ over positions of |A·G| of one image and group, A·G summed over the points of a path, a block of input channels at a time.

    x (inputs, taps, points · positions), gradients (outputs, points · positions), weights (outputs, inputs, taps)
    """
    step = max(1, CHUNK_NUMBERS // gradients.numel())
    parts = []
    for start in range(0, len(x), step):
        maps = torch.bmm(weights[:, start : start + step].transpose(0, 1), x[start : start + step])
        if points == 1:
            parts.append((maps.abs_().transpose(0, 1) @ gradients.abs()[:, :, None]).squeeze(-1))
        else:
            parts.append(maps.mul_(gradients).unflatten(-1, (points, -1)).sum(2).abs_().sum(2).T)
    return torch.cat(parts, dim=1)


def magnitude(layer: LayerKernels) -> Tensor:
    """Mean |w| over each kernel, the same for every feature.

    Parameters
    ----------
    layer
        Weight and geometry of the layer.

    Returns
    -------
    Tensor
        Float64 (outputs, inputs per group).

    Examples
    --------
    >>> layer = torch.nn.Conv2d(1, 1, (1, 2), bias=False)
    >>> layer.weight.data = torch.tensor([[[[1.0, -3.0]]]])
    >>> magnitude(LayerKernels.of(layer)).tolist()
    [[2.0]]

    References
    ----------
    Hamblin, Konkle, Alvarez 2022 (control); checked by tests/pencil_circuits.py::magnitude.
    """
    return layer.weight.double().abs().flatten(2).mean(2) if layer.weight.dim() > 2 else layer.weight.double().abs()


def _zeros(layer: LayerKernels) -> Tensor:
    return torch.zeros(layer.weight.shape[:2], dtype=torch.float64, device=layer.weight.device)
