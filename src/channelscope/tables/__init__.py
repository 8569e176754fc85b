"""Tables: pandas frames with the unit, digits, meaning and source of every column, on disk and in print."""

from channelscope.tables.frame import (
    EARLIER_NAMES,
    describe,
    fill,
    format_interval,
    format_number,
    format_percent,
    plain_values,
    read,
    table,
    write,
    write_json,
)
from channelscope.tables.quantities import COLUMNS, HEADLINE, QUANTITIES, Column, Quantity, Schema

__all__ = [
    "COLUMNS",
    "EARLIER_NAMES",
    "HEADLINE",
    "QUANTITIES",
    "Column",
    "Quantity",
    "Schema",
    "describe",
    "fill",
    "format_interval",
    "format_number",
    "format_percent",
    "plain_values",
    "read",
    "table",
    "write",
    "write_json",
]
