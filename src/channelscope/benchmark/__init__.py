"""Benchmark: every score through the same cut, removal, repair and evaluation, and the differences between scores with their intervals."""

from channelscope.benchmark.analysis import analyze
from channelscope.benchmark.grid import Grid, Trial
from channelscope.benchmark.run import benchmark
from channelscope.benchmark.setup import Setup

__all__ = [
    "Grid",
    "Setup",
    "Trial",
    "analyze",
    "benchmark",
]
