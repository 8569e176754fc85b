"""The greedy partition of a layer's graph against that of networkx. `python benchmarks/communities.py [CHANNELS …]`

A tenth of all pairs are edges, weighted; the partitions are compared.
"""

import sys
import time

import networkx
import torch

from channelscope.formulas.clustering import communities, strongest_edges
from channelscope.formulas.information import correlation_information


def main(*sizes: int) -> None:
    for channels in sizes or (64, 256, 640):
        samples = torch.randn(max(channels // 6, 10), channels, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        pairs = correlation_information(torch.corrcoef(samples.T))
        begun = time.perf_counter()
        found = communities(pairs)
        ours = time.perf_counter() - begun
        edges, weights = strongest_edges(pairs)
        graph = networkx.Graph()
        graph.add_weighted_edges_from((i, j, weight) for (i, j), weight in zip(edges.tolist(), weights.tolist(), strict=True))
        begun = time.perf_counter()
        expected = networkx.community.greedy_modularity_communities(graph, weight="weight")
        theirs = time.perf_counter() - begun
        assert set(map(frozenset, found.members)) == set(map(frozenset, expected))
        print(f"{channels} channels, {len(edges):,} edges: networkx {theirs:.2f} s, here {ours:.3f} s: {theirs / ours:.0f}×", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
