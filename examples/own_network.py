"""Any nn.Module and any iterable of (images, labels): no data set of ours is needed."""

import torch
from torch import nn

import channelscope
from channelscope import scores

network = nn.Sequential(
    nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3, stride=2), nn.ReLU(),
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5),
)  # fmt: skip
batches = [(torch.randn(50, 3, 20, 20), torch.randint(0, 5, (50,))) for _ in range(4)]

profile = channelscope.collect(network, batches)
for site in profile.sites:
    print(site.name, site.kind, site.channels, "channels, cut point", site.activation)
print("skipped:", profile.skipped)

ranking = scores.support(profile)
print(ranking.name, ranking.keeps, "is kept:", ranking["3"].round(2))
