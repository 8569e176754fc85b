"""Numbers read off the weights once per profile: filter distances in blocks of float32 against one float64 product, and all of
them, with the layers that read each channel, against the forward pass of 256 images; random weights."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from channelscope.data.torchvision_cpu import models
from channelscope.network.sites import sites
from channelscope.profiling.weight_norms import filter_distances, filters, weight_norms

NETWORKS = ("vgg16_bn", "resnet50", "swin_t", "vit_b_16")
IMAGES, TIMED = 256, 4
"""Images of a profile, and those whose forward pass is timed"""


def float64_distances(rows: Tensor) -> Tensor:
    """Sum of the Euclidean distances of each row to all rows, from one product in float64."""
    rows = rows.double()
    squares = rows.square().sum(1)
    return (squares[:, None] + squares - 2 * rows @ rows.T).clamp(min=0).sqrt().fill_diagonal_(0).sum(1)


def seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    """Processor time of a call, and what it returns."""
    begin = time.process_time()
    result = run()
    return time.process_time() - begin, result


def compare(name: str) -> None:
    """Print both times of one network, and by how much the distances differ."""
    torch.manual_seed(0)
    image = torch.zeros(1, 3, 224, 224)
    model = models.get_model(name, weights=None).eval()
    found = sites(model, image)
    blocks = {site.name: filters(found.graph.modules[site.name]) for site in found}
    reference, expected = seconds(lambda: {site: float64_distances(rows) for site, rows in blocks.items()})
    blocked, distances = seconds(lambda: {site: filter_distances(rows, rows.double().square().sum(1)) for site, rows in blocks.items()})
    everything, _ = seconds(lambda: weight_norms(found))
    with torch.no_grad():
        forward, _ = seconds(lambda: model(image.expand(TIMED, -1, -1, -1)))
    error = max(float((distances[site] / values - 1).abs().max()) for site, values in expected.items())
    print(
        f"{name:10s} distances: float64 {reference:5.1f} s, blocks {blocked:5.1f} s, {reference / blocked:4.1f}×, "
        f"largest relative difference {error:.0e}; all weight norms {everything:5.1f} s, "
        f"{everything / forward * TIMED / IMAGES:.3f} of the forward pass of {IMAGES} images"
    )


def main() -> None:
    torch.set_num_threads(1)
    for name in NETWORKS:
        compare(name)


if __name__ == "__main__":
    main()
