"""Random crops and flips of a whole batch at once, on whatever device it is."""

import torch
import torch.nn.functional as F
from torch import Tensor


def augment(pixels: Tensor, pad: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Every image (B, C, H, W) moved by up to `pad` pixels, black coming in, and half of them mirrored left to right.

    The choices are drawn from a CPU generator, so that they do not depend on the device.
    """
    count, channels, height, width = pixels.shape
    if pad == 0 and not flip:
        return pixels
    top, left = torch.randint(2 * pad + 1, (2, count, 1), generator=generator)
    rows = top + torch.arange(height)
    columns = left + torch.arange(width)
    if flip:
        mirrored = torch.rand(count, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    padded = F.pad(pixels, (pad, pad, pad, pad))
    image = torch.arange(count, device=pixels.device).view(-1, 1, 1, 1)
    channel = torch.arange(channels, device=pixels.device).view(1, -1, 1, 1)
    rows, columns = rows.to(pixels.device), columns.to(pixels.device)
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]
