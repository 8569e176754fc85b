"""report: a run folder's tables as a page that opens offline, and as figures. How to add a part: see `report/sections/__init__.py`."""

from channelscope.report.chart import Chart
from channelscope.report.html import write
from channelscope.report.run import Run
from channelscope.report.section import Drawing, Section

__all__ = ["Chart", "Drawing", "Run", "Section", "write"]
