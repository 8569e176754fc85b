"""Guide: what the picture itself says about where a layer looks, so that few passes need not find it out cell by cell."""

import torch

from channelscope.discarding.cells import Cells
from channelscope.discarding.shrinkage import blurred
from channelscope.types import Bool, Float, Tensor

CONTRAST, BRIGHTNESS = (0.0, 0.5, 1.0, 2.0, 4.0), (0.0, 1.0, 4.0)
"""widths, in cells, over which a picture's contrast and brightness are taken"""
QUANTUM = 1 / 255
"""smallest difference between two pixels of an 8-bit image: where there is no contrast, this much is taken"""
STEPS = 8
"""steps of the fit, each at most 1 in any coefficient"""


def guide(images: Float[Tensor, "images C H W"], cells: Cells) -> Float[Tensor, "images rows columns features"]:
    """Log contrast and brightness around each cell at several widths, and its place; each of mean 0 and mean square 1.

    What differs by less than one 8-bit step, or its share of a logarithm, is 0.

    Source   this library
    """
    pixels = cells.sum(torch.ones_like(images[0, 0]))
    mean, square = ((cells.sum(part) / pixels).unflatten(-1, cells.grid) for part in (images, images.square()))
    ones = torch.ones_like(mean)
    near = lambda plane, width: blurred(plane, width) / blurred(ones, width)  # noqa: E731
    contrast = [(near(square, width) - near(mean, width).square()).clamp(min=0).sum(1).add(QUANTUM**2).log() for width in CONTRAST]
    brightness = [near(mean, width).mean(1) for width in BRIGHTNESS]
    down, across = (torch.linspace(-1, 1, side, device=images.device, dtype=images.dtype) for side in cells.grid)
    place = [part.expand_as(contrast[0]) for part in (down[:, None], across, down[:, None].square(), across.square())]
    found = torch.stack([*contrast, *brightness, *place], -1)
    found = found - found.mean((1, 2), keepdim=True)
    scale = found.square().mean((1, 2), keepdim=True).sqrt()
    return torch.where(scale > QUANTUM, found / scale, 0)


def regressed(
    samples: Float[Tensor, "draws images rows columns"],
    start: Float[Tensor, "images rows columns"],
    seen: Bool[Tensor, "images rows columns"],
    features: Float[Tensor, "images rows columns features"],
) -> Float[Tensor, "images rows columns"]:
    """The start times exp(features · b), fitted to the samples of each image: what the picture explains of its own map.

    b solves the equations of a gamma regression with a logarithmic link, whose scatter is in proportion to the mean and
    which minds no negative sample; the penalty is that of one more cell with b = 0.

    Returns  the map; zero in cells not `seen`.
    Source   McCullagh & Nelder 1989 (gamma regression), ridge of Hoerl & Kennard 1970; checked by tests/pencil_discarding.py::regressed
    """
    design = torch.where(seen[..., None], torch.cat([torch.ones_like(features[..., :1]), features], -1), 0).flatten(1, 2).double()
    ratio = torch.where(seen, samples.mean(0) / start.where(seen, 1), 0).flatten(1).double()
    used = seen.flatten(1)
    level = ratio.sum(1) / used.sum(1).clamp(min=1)
    penalty = torch.ones_like(design[0, 0])
    penalty[0] = 0
    normal = design.transpose(1, 2) @ design + torch.diag(penalty + (used.sum(1) == 0).any())
    fit = torch.zeros_like(design[:, 0])
    for _ in range(STEPS):
        predicted = (design @ fit[..., None])[..., 0].exp() * level[:, None]
        score = torch.where(used, ratio / predicted - 1, 0)
        step = torch.linalg.solve(normal, (score[:, None] @ design)[:, 0] - penalty * fit)
        fit = fit + step / step.abs().amax(1, keepdim=True).clamp(min=1)
    return torch.where(seen, start * (design @ fit[..., None])[..., 0].exp().view_as(start).to(start), 0)
