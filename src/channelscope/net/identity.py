"""What identifies a network's weights and the images it was shown, so that profiles can be matched."""

import hashlib
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from channelscope.types import Float, Int


def weights_hash(model: nn.Module) -> str:
    """Fingerprint of the state dictionary: equal exactly when names, types, shapes and bytes are equal.

    Independent of the device, of the memory layout and of the order in which modules were registered.

    Returns  64 hexadecimal digits (SHA-256 over name, dtype, shape and little-endian bytes, in name order).
    """
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if not isinstance(value, torch.Tensor):
            continue  # extra state of quantized modules is not a weight
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def fingerprints(images: Float[Tensor, "images C H W"], index: Int[Tensor, "images"]) -> Int[Tensor, "images"]:
    """One number for each image, from its index and its pixels: two profiles that share one have seen the same image.

    Parameters
    ----------
    images
        Images as the network sees them, normalized.
    index
        Number of each image in its data set.

    Returns
    -------
    Tensor
        int64 on the CPU, in the order of the images: the sum, modulo 2⁶⁴, of the bits of every pixel and of the index, each times
        a fixed odd number (multilinear hashing, Lemire & Kaser 2014). The same on every device and for every batch size.

    Examples
    --------
    >>> one, other, again = fingerprints(torch.zeros(3, 1, 2, 2), torch.tensor([0, 1, 0])).tolist()
    >>> one == again, one == other
    (True, False)
    """
    flat = images.detach().flatten(1).contiguous()
    bits = flat.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.element_size()])
    odd = _odd(flat.shape[1] + 1)
    if flat.device.type == "cpu":
        numbers = odd[1:].numpy()
        sums = torch.tensor([int(np.dot(row.astype(np.int64), numbers)) for row in bits.numpy()], dtype=torch.int64)
    else:
        there = odd[1:].to(flat.device)
        sums = torch.stack([(row.long() * there).sum() for row in bits]).cpu()
    return sums + (index.cpu() + 1) * odd[0]


@lru_cache(maxsize=4)
def _odd(count: int) -> Int[Tensor, "count"]:
    """Fixed odd 64-bit numbers that look random (splitmix64, Steele, Lea & Flood 2014)."""
    with np.errstate(over="ignore"):
        z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return torch.from_numpy((z ^ (z >> np.uint64(31)) | np.uint64(1)).view(np.int64))
