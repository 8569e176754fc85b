"""Benchmark: every score through the same cut, removal, repair and evaluation, and what the differences are worth."""

from channelscope.benchmark.analysis import analysis
from channelscope.benchmark.bench import Bench
from channelscope.benchmark.cell import Cell, Grid
from channelscope.benchmark.run import benchmark

__all__ = ["Bench", "Cell", "Grid", "analysis", "benchmark"]
