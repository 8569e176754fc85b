"""Circuits to draw: a small one with everything in it, and wide ones of any size."""

from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

from channelscope.circuits import diagram
from channelscope.circuits.drawing import Drawing, drawing
from channelscope.circuits.picture import Palette, patches
from channelscope.circuits.score import score
from channelscope.circuits.select import grown
from channelscope.circuits.target import locate
from pencil_circuits import LAST, network, pictures


def small(folder: Path) -> Path:
    """Twelve kernels of the residual network, with sums and pictures."""
    images = pictures(4)
    target = locate(network("residual"), f"{LAST['residual']}:1", images)
    saliency = score(target, images)
    circuit = grown(saliency, 12)
    shots = patches(circuit, target, images, Palette((0.5, 0.5), (0.2, 0.2)))
    return diagram.write(folder, drawing(circuit, saliency), shots, "A <small> circuit", "twelve & no more")


def wide(kernels: int) -> tuple[Drawing, dict[str, tuple[bytes, ...]]]:
    """So many kernels of a chain of four layers."""
    torch.manual_seed(0)
    widths = (3, 24, 24, 24, 8)
    layers = [part for a, b in pairwise(widths) for part in (nn.Conv2d(a, b, 3, padding=1), nn.ReLU())]
    images = torch.randn(4, 3, 16, 16)
    target = locate(nn.Sequential(*layers).eval(), "6:0", images)
    saliency = score(target, images)
    circuit = grown(saliency, kernels)
    return drawing(circuit, saliency), patches(circuit, target, images, Palette((0.5,) * 3, (0.25,) * 3))
