"""What identifies a network's weights, so that a profile can be matched to the network it was measured on."""

import hashlib

import torch
from torch import nn


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
