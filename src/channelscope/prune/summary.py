"""summary: what a network can do and what it costs, before and after."""

import time
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
import torch
from torch import nn

from channelscope.evaluate import evaluate
from channelscope.net.cost import cost
from channelscope.net.edits import blank
from channelscope.net.graph import evaluating
from channelscope.tables import Column

RUNS = 15
COLUMNS = {
    "state": Column(meaning="the network: original, pruned as it is, repaired, fine-tuned"),
    "accuracy": Column("fraction", 4, "accuracy", low=0.0, high=1.0),
    "accuracy_low": Column("fraction", 4, "lower end of the 95 % Wilson interval of the accuracy", low=0.0, high=1.0),
    "accuracy_high": Column("fraction", 4, "upper end of it", low=0.0, high=1.0),
    "loss": Column("nats", 3, "mean cross-entropy"),
    "images": Column("images", 0, "labeled images evaluated on"),
    "macs": Column("MACs", 0, "multiply-adds per image"),
    "kept": Column("fraction", 4, "multiply-adds as a fraction of the original's", low=0.0, high=1.0),
    "parameters": Column("", 0, "parameters"),
    "latency": Column("ms", 2, "median time of one image on this machine, one thread setting for all"),
    "latency_low": Column("ms", 2, "first quartile of it"),
    "latency_high": Column("ms", 2, "third quartile of it"),
}


def summary(networks: Mapping[str, nn.Module], batches: Iterable, image_shape: tuple[int, ...]) -> pd.DataFrame:
    """One row a network; the first is the original. Latencies are measured in turns, so that all see the same machine.

    batches   labeled images to evaluate on; may be read more than once
    """
    rows = []
    taken = latencies(networks, image_shape)
    full = 0
    for state, model in networks.items():
        tally, spent = evaluate(model, batches), cost(model, blank(model, image_shape))
        full = full or spent.total_macs
        low, high = tally.accuracy_interval()
        first, middle, third = np.quantile(taken[state], [0.25, 0.5, 0.75]) * 1000
        rows.append(
            {
                "state": state,
                "accuracy": tally.accuracy,
                "accuracy_low": low,
                "accuracy_high": high,
                "loss": tally.loss,
                "images": int(tally.images),
                "macs": spent.total_macs,
                "kept": spent.total_macs / full,
                "parameters": spent.total_parameters,
                "latency": middle,
                "latency_low": first,
                "latency_high": third,
            }
        )
    return pd.DataFrame(rows)


@torch.no_grad()
def latencies(networks: Mapping[str, nn.Module], image_shape: tuple[int, ...], runs: int = RUNS) -> dict[str, list[float]]:
    """Seconds for one image, several times, in turns; on a CUDA device until it has finished."""
    taken: dict[str, list[float]] = {state: [] for state in networks}
    for turn in range(runs + 1):
        for state, model in networks.items():
            image = blank(model, image_shape)
            with evaluating(model):
                begun = time.perf_counter()
                model(image)
                if image.is_cuda:
                    torch.cuda.synchronize(image.device)
            if turn:  # the first turn warms up
                taken[state].append(time.perf_counter() - begun)
    return taken
