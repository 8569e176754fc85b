"""A small network and batches for the tests of this room; not a test file."""

import torch
from torch import nn

from channelscope.discarding.jacobian import PixelNetwork

SHAPE = (3, 8, 8)
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


class Small(nn.Module):
    """Two stages with a residual sum, a pool and a classifier."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(inplace=True))
        self.down = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = x + self.block(x)
        x = torch.relu(self.down(x))
        return self.head(x.mean((2, 3)))


def network(seed=0):
    torch.manual_seed(seed)
    return Small().eval().requires_grad_(False)


def view(model=None, mean=MEAN, std=STD):
    return PixelNetwork(model or network(), SHAPE, mean, std)


def pixels(count, seed=0):
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


def batches(count=6, size=3, seed=0, mean=MEAN, std=STD, first=0):
    """Normalized batches (images, labels, index)."""
    normal = (pixels(count, seed) - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
    index = torch.arange(first, first + count)
    return list(zip(normal.split(size), torch.zeros(count).long().split(size), index.split(size), strict=True))
