"""tables: pandas frames that know the unit, digits, meaning and source of every column, on disk and in print."""

from channelscope.tables.column import Column, Quantity
from channelscope.tables.columns import COLUMNS
from channelscope.tables.frame import described, read, table, write, write_json
from channelscope.tables.quantities import HEADLINE, QUANTITIES
from channelscope.tables.rounding import interval, percent, shown
from channelscope.tables.whole import whole

__all__ = [
    "COLUMNS",
    "HEADLINE",
    "QUANTITIES",
    "Column",
    "Quantity",
    "described",
    "interval",
    "percent",
    "read",
    "shown",
    "table",
    "whole",
    "write",
    "write_json",
]
