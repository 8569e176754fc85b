"""A small network, its profile and the samples the profile was made of, for the tests of scores."""

from functools import cache

import numpy as np
import torch
from torch import nn

from channelscope.profiling.collect import collect
from channelscope.stats.profile import Profile

CHANNELS, IMAGES, CLASSES, SHARDS = 7, 90, 3, 6


def network() -> nn.Module:
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(2, CHANNELS, 3, padding=1),
        nn.BatchNorm2d(CHANNELS),
        nn.ReLU(),
        nn.Conv2d(CHANNELS, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 9, CLASSES),
    ).double()
    nn.init.uniform_(model[1].weight, -1.5, 1.5)
    nn.init.normal_(model[1].running_mean, 0, 0.3)
    nn.init.uniform_(model[1].running_var, 0.5, 2)
    return model.eval()


@cache
def images() -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(2)
    labels = torch.randint(CLASSES, (IMAGES,), generator=source)
    pixels = torch.randn(IMAGES, 2, 5, 5, generator=source, dtype=torch.float64)
    pixels[:, 0] += 0.7 * labels[:, None, None]
    return pixels, labels


@cache
def profile() -> Profile:
    pixels, labels = images()
    return collect(network(), [(pixels, labels)], "positions(all)", shards=SHARDS, sensitivity=True, maps=True)


@cache
def maps(after: int = 0) -> np.ndarray:
    """Values behind a module: images × channels × positions."""
    with torch.no_grad():
        return network()[: after + 1](images()[0]).flatten(2).numpy()


@cache
def margins() -> np.ndarray:
    pixels, labels = images()
    with torch.no_grad():
        logits = network()(pixels).numpy()
    return np.array([row[y] - max(value for k, value in enumerate(row) if k != y) for row, y in zip(logits, labels.tolist(), strict=True)])


def pooled() -> np.ndarray:
    """Images × channels."""
    return maps().mean(2)


def positions() -> np.ndarray:
    """Images · positions × channels."""
    return maps().transpose(0, 2, 1).reshape(-1, CHANNELS)


def target_rho() -> np.ndarray:
    return np.array([np.corrcoef(column, margins())[0, 1] for column in pooled().T])
