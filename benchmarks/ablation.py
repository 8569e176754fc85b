"""Ablations: how much faster when the pass before a site is computed once. `python benchmarks/ablation.py [NETWORK] [IMAGES]`

Sites are sampled equally: the same number of channels at each. The two ways alternate within one run, so that their ratio
does not depend on what else the machine does, and processor time is taken; the logits of every ablation are compared.
"""

import sys
import time

import torch

from channelscope import zoo
from channelscope.network.edits import edit, zero_channels
from channelscope.network.graph import partial_forwards
from channelscope.network.sites import sites

REPEATS, CHANNELS = 3, 2


def main(name: str = "resnet20", images: int = 125) -> None:
    model = zoo.build(name, classes=100)
    batch = torch.randn(images, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = sites(model, batch[:1])
    ratios, furthest = [], 0.0
    with torch.no_grad():
        for _ in range(REPEATS):
            whole = reused = 0.0
            begun = time.process_time()
            for stop in partial_forwards(found.graph, found, batch):
                for channel in range(CHANNELS):
                    maps = stop.maps.clone()
                    maps.select(stop.site.channel_axis + 1, channel).zero_()
                    quick = stop.finish(maps)
                    reused += time.process_time() - begun
                    begun = time.process_time()
                    with edit(
                        found.graph,
                        {stop.site.activation: zero_channels(torch.arange(stop.site.channels) == channel, stop.site.channel_axis)},
                    ):
                        slow = model(batch)
                    whole += time.process_time() - begun
                    furthest = max(furthest, float((quick - slow).abs().max()))
                    begun = time.process_time()
            ratios.append(whole / reused)
            count = CHANNELS * len(found)
            print(
                f"{name}: {count} ablations of {images} images, all of it {whole:6.2f} s, from the site {reused:6.2f} s: {ratios[-1]:.2f}×"
            )
    print(f"{name}: {sorted(ratios)[len(ratios) // 2]:.2f}× (median of {REPEATS}; at least 1.6 is asked for), logits within {furthest:.1e}")


if __name__ == "__main__":
    main(*(kind(text) for kind, text in zip((str, int), sys.argv[1:], strict=False)))
