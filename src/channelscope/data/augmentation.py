"""Random crops, flips and erased squares of a whole batch at once, on whatever device it is."""

import torch
import torch.nn.functional as F
from torch import Tensor


def augment(pixels: Tensor, pad: int, flip: bool, generator: torch.Generator, erase: float = 0.0) -> Tensor:
    """Randomly shifted and mirrored copies of a batch of images, with a black square on each where that is asked for.

    Parameters
    ----------
    pixels
        (images, channels, height, width) of any type, on any device.
    pad
        Largest shift in pixels along each axis; pixels from outside are 0.
    flip
        Whether each image is mirrored left to right with probability one half.
    generator
        CPU generator of all draws, so that they do not depend on the device.
    erase
        Side of the black square, as a fraction of the image's shorter side. Its center is drawn among all pixels, so squares at the
        border are cut off; 0 for none.

    Returns
    -------
    Tensor
        Of the shape, type and device of `pixels`.

    Examples
    --------
    >>> pixels = torch.tensor([[[[1, 2, 3]]]])
    >>> augment(pixels, 0, True, torch.Generator().manual_seed(0)).tolist()
    [[[[3, 2, 1]]]]

    References
    ----------
    DeVries & Taylor 2017 for the erased squares (Cutout).
    """
    if pad or flip:
        pixels = _shifted(pixels, pad, flip, generator)
    return _erased(pixels, round(erase * min(pixels.shape[2:])), generator) if erase else pixels


def _shifted(pixels: Tensor, pad: int, flip: bool, generator: torch.Generator) -> Tensor:
    count, channels, height, width = pixels.shape
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


def _erased(pixels: Tensor, side: int, generator: torch.Generator) -> Tensor:
    count, _, height, width = pixels.shape

    def covered(length: int) -> Tensor:
        start = torch.randint(length, (count, 1), generator=generator) - side // 2
        places = torch.arange(length)
        return (places >= start) & (places < start + side)

    rows, columns = covered(height), covered(width)
    square = (rows[:, None, :, None] & columns[:, None, None, :]).to(pixels.device)
    return pixels.masked_fill(square, 0)
