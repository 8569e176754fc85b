"""BatchNorm re-estimation: normalizations see the statistics of what now reaches them, one after the other."""

from typing import Any

import torch

from channelscope.net.find import BATCH_NORMS
from channelscope.repair.carried import Carried


@torch.no_grad()
def batchnorm(small: Carried) -> dict[str, str]:
    """Set every running mean and variance to those of its input over all images, in forward order.

    The statistics are exact over the set, each behind the already re-estimated ones before it, so neither batch size nor
    order matters. Variances are unbiased, as in training.

    Returns  module path → why it was left as it was.
    """
    skipped: dict[str, str] = {}
    calls: dict[str, int] = {}
    graph = small.graph
    for node in graph.steps.nodes:
        if node.op != "call_module" or not isinstance(graph.modules[str(node.target)], BATCH_NORMS):
            continue
        name = str(node.target)
        norm: Any = graph.modules[name]
        calls[name] = calls.get(name, 0) + 1
        if norm.running_mean is None or norm.running_var is None or calls[name] > 1:
            skipped[name] = "called in several places" if calls[name] > 1 else "keeps no running statistics"
            continue
        count, mean, scatter = 0, torch.zeros(()), torch.zeros(())
        for values in small(node.all_input_nodes[0].name):
            flat = values.movedim(1, 0).flatten(1)
            here = flat.mean(1).double()
            gap, more = here - mean, flat.shape[1]
            scatter = scatter + (flat - here[:, None].to(flat)).square().sum(1).double() + gap.square() * count * more / (count + more)
            mean = mean + gap * more / (count + more)
            count += more
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(scatter / max(count - 1, 1))
    return skipped
