"""Layout: the order in memory in which a network runs and shows its maps at the least cost."""

import torch
from torch import Tensor

from channelscope.net.graph import Graph, evaluating


def layout(graph: Graph, image: Tensor) -> torch.memory_format:
    """Channels last where the network can run so, on a CPU; otherwise the usual order.

    Convolutions take equally long in both, but channels last keeps the channels of a position together, and positions
    are what is collected. A network that uses `view` across channels and positions cannot run so. On other devices
    float32 convolutions may be slower in that order.
    """
    if image.dim() != 4 or image.device.type != "cpu":
        return torch.contiguous_format
    try:
        with evaluating(graph.model), torch.no_grad():
            graph.run(image.contiguous(memory_format=torch.channels_last))
    except RuntimeError:
        return torch.contiguous_format
    return torch.channels_last
