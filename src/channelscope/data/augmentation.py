"""Random crops, flips and erased squares of a whole batch at once, on whatever device it is."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from channelscope.data.splits import Split


class AugmentedBatches:
    """Normalized images of a split, without labels, shuffled, shifted and mirrored anew in every pass.

    The draws of a pass depend on the seed and on how many passes there were before it.

    Parameters
    ----------
    split
        The images; its batch size is kept.
    pad, flip
        As in `augment`.
    seed
        Of all draws.

    Examples
    --------
    >>> from channelscope.data.images import read_images
    >>> batches = AugmentedBatches(read_images("digits").test.take(10).with_batch_size(4), pad=0, flip=False)
    >>> [len(batch) for batch in batches]
    [4, 4, 2]
    """

    def __init__(self, split: Split, pad: int, flip: bool, seed: int = 0):
        self.split, self.pad, self.flip, self.seed = split, pad, flip, seed
        self.passes = 0

    def __iter__(self) -> Iterator[Tensor]:
        """Batches of float32 images (B, C, H, W)."""
        draw = torch.Generator().manual_seed(self.seed * 1_000_003 + self.passes)
        self.passes += 1
        for places in torch.randperm(len(self.split), generator=draw).split(self.split.batch_size):
            yield self.split.normalized(augment(self.split.pixels(places), self.pad, self.flip, draw))


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
