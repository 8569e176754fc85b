"""Numbers read off the weights once per profile: filter distances in blocks of float32 against one float64 product; random weights."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from channelscope.data.torchvision_cpu import models
from channelscope.network.sites import Sites, sites
from channelscope.profiling.weight_norms import filters, weight_norms

NETWORKS = ("vgg16_bn", "resnet50")


def float64_distances(rows: Tensor) -> Tensor:
    """Sum of the Euclidean distances of each row to all rows, from one product in float64."""
    rows = rows.double()
    squares = rows.square().sum(1)
    return (squares[:, None] + squares - 2 * rows @ rows.T).clamp(min=0).sqrt().fill_diagonal_(0).sum(1)


def seconds(run: Callable[[], object]) -> tuple[float, object]:
    """Processor time of a call, and what it returns."""
    begin = time.process_time()
    result = run()
    return time.process_time() - begin, result


def plain(found: Sites) -> dict[str, Tensor]:
    """Distances of the filters of every site by `float64_distances`."""
    return {site.name: float64_distances(filters(found.graph.modules[site.name])) for site in found}


def main() -> None:
    torch.set_num_threads(1)
    for name in NETWORKS:
        torch.manual_seed(0)
        image = torch.zeros(1, 3, 224, 224)
        found = sites(models.get_model(name, weights=None).eval(), image)
        before, expected = seconds(lambda: plain(found))
        after, norms = seconds(lambda: weight_norms(found, image))
        error = max(float((norms[site]["distances"] / values - 1).abs().max()) for site, values in expected.items())
        print(f"{name:10s} float64 distances alone {before:6.1f} s   all weight norms {after:6.1f} s   largest difference {error:.0e}")


if __name__ == "__main__":
    main()
