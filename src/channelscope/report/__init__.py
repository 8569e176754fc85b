"""The report: a run folder's tables as a page that opens offline, and as figures."""

from channelscope.report.page import write_report
from channelscope.report.section import Chart, Drawing, Section
from channelscope.tables.run_folder import RunFolder as Run

__all__ = [
    "Chart",
    "Drawing",
    "Run",
    "Section",
    "write_report",
]
