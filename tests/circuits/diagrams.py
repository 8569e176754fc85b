"""Circuits to draw: a small one with everything in it, and wide ones of any size."""

from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

from channelscope.circuits import diagram_page
from channelscope.circuits.criteria import score_kernels
from channelscope.circuits.diagram_layout import DiagramLayout, lay_out
from channelscope.circuits.feature import locate_feature
from channelscope.circuits.pictures import PixelNormalization, top_patches
from channelscope.circuits.selection import connected_top_k
from pencil_circuits import LAST, network, pictures


def small(folder: Path) -> Path:
    """Twelve kernels of the residual network, with sums and pictures."""
    images = pictures(4)
    target = locate_feature(network("residual"), f"{LAST['residual']}:1", images)
    saliency = score_kernels(target, images)
    circuit = connected_top_k(saliency, 12)
    shots = top_patches(circuit, target, images, PixelNormalization((0.5, 0.5), (0.2, 0.2)))
    return diagram_page.write_diagram(folder, lay_out(circuit, saliency), shots, "A <small> circuit", "twelve & no more")


def wide(kernels: int) -> tuple[DiagramLayout, dict[str, tuple[bytes, ...]]]:
    """So many kernels of a chain of four layers."""
    torch.manual_seed(0)
    widths = (3, 24, 24, 24, 8)
    layers = [part for a, b in pairwise(widths) for part in (nn.Conv2d(a, b, 3, padding=1), nn.ReLU())]
    images = torch.randn(4, 3, 16, 16)
    target = locate_feature(nn.Sequential(*layers).eval(), "6:0", images)
    saliency = score_kernels(target, images)
    circuit = connected_top_k(saliency, kernels)
    return lay_out(circuit, saliency), top_patches(circuit, target, images, PixelNormalization((0.5,) * 3, (0.25,) * 3))
