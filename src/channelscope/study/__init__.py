"""Benchmark: every score through the same cut, removal, repair and evaluation, and what the differences are worth."""

from channelscope.study.analysis import analysis
from channelscope.study.bench import Bench
from channelscope.study.cell import Cell, Grid
from channelscope.study.run import benchmark

__all__ = ["Bench", "Cell", "Grid", "analysis", "benchmark"]
