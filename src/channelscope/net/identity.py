"""What identifies a network's weights and the images it was shown, so that profiles can be matched."""

import hashlib

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
        int64 on the CPU, the first 64 bits of a SHA-256, in the order of the images.

    Examples
    --------
    >>> one, other, again = fingerprints(torch.zeros(3, 1, 2, 2), torch.tensor([0, 1, 0])).tolist()
    >>> one == again, one == other
    (True, False)
    """
    found = []
    for number, pixels in zip(index.tolist(), images.detach().cpu().contiguous(), strict=True):
        digest = hashlib.sha256(f"{number}\0{pixels.dtype}\0{tuple(pixels.shape)}\0".encode())
        digest.update(pixels.reshape(-1).view(torch.uint8).numpy().data)
        found.append(digest.digest()[:8])
    return torch.from_numpy(np.frombuffer(b"".join(found), dtype="<i8").astype(np.int64))
