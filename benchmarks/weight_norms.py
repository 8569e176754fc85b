"""Numbers read off the weights once per profile: filter distances in blocks of float32 against one float64 product; random weights."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from channelscope.data.torchvision_cpu import models
from channelscope.network.sites import sites
from channelscope.profiling.weight_norms import filter_distances, filters, weight_norms

NETWORKS = ("vgg16_bn", "resnet50")


def float64_distances(rows: Tensor) -> Tensor:
    """Sum of the Euclidean distances of each row to all rows, from one product in float64."""
    rows = rows.double()
    squares = rows.square().sum(1)
    return (squares[:, None] + squares - 2 * rows @ rows.T).clamp(min=0).sqrt().fill_diagonal_(0).sum(1)


def seconds(run: Callable[[], dict]) -> tuple[float, dict]:
    """Processor time of a call, and what it returns."""
    begin = time.process_time()
    result = run()
    return time.process_time() - begin, result


def compare(name: str) -> None:
    """Print both times of one network, and by how much the distances differ."""
    torch.manual_seed(0)
    image = torch.zeros(1, 3, 224, 224)
    found = sites(models.get_model(name, weights=None).eval(), image)
    blocks = {site.name: filters(found.graph.modules[site.name]) for site in found}
    reference, expected = seconds(lambda: {site: float64_distances(rows) for site, rows in blocks.items()})
    blocked, distances = seconds(lambda: {site: filter_distances(rows, rows.double().square().sum(1)) for site, rows in blocks.items()})
    everything, _ = seconds(lambda: weight_norms(found))
    error = max(float((distances[site] / values - 1).abs().max()) for site, values in expected.items())
    print(
        f"{name:10s} distances: float64 {reference:5.1f} s, blocks {blocked:5.1f} s, {reference / blocked:4.1f}×, "
        f"largest relative difference {error:.0e}; all weight norms {everything:5.1f} s"
    )


def main() -> None:
    torch.set_num_threads(1)
    for name in NETWORKS:
        compare(name)


if __name__ == "__main__":
    main()
