"""Benchmark: every score through the same cut, removal, repair and evaluation, and the differences between scores with their intervals."""

from channelscope.benchmark.analysis import analyze
from channelscope.benchmark.run import benchmark
from channelscope.benchmark.trial import Grid, Setup, Trial

__all__ = [
    "Grid",
    "Setup",
    "Trial",
    "analyze",
    "benchmark",
]
