"""The report: a run folder's tables as a page that opens offline, and as figures."""

from channelscope.report.page import write_report
from channelscope.report.run import Run
from channelscope.report.section import Chart, Drawing, Section

__all__ = [
    "Chart",
    "Drawing",
    "Run",
    "Section",
    "write_report",
]
