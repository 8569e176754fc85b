"""Random crops and flips of a whole batch at once, on whatever device it is."""

import torch
import torch.nn.functional as F
from torch import Tensor


def augment(pixels: Tensor, pad: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Randomly shifted and mirrored copies of a batch of images.

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

    Returns
    -------
    Tensor
        Of the shape, type and device of `pixels`.

    Examples
    --------
    >>> pixels = torch.tensor([[[[1, 2, 3]]]])
    >>> augment(pixels, 0, True, torch.Generator().manual_seed(0)).tolist()
    [[[[3, 2, 1]]]]
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
