"""Column, Quantity and Schema: the description of a table's column, of a quantity per channel, and of a table."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from channelscope.ranking import Keeps

OURS = "this library"
"""source of what is defined nowhere else"""
PAPER = "Safaai et al. 2026"
"""source of the quantities of both axes"""


@dataclass(frozen=True)
class Column:
    """Description of one column: unit, decimals, meaning, source and range.

    Examples
    --------
    >>> Column("nats", meaning="loss", low=0.0).as_dict()
    {'unit': 'nats', 'digits': 3, 'meaning': 'loss', 'low': 0.0}
    """

    unit: str = ""
    """nats, fraction, images, …; '' for names and pure numbers"""
    digits: int = 3
    """decimals shown; 0 for counts"""
    meaning: str = ""
    """one line, no full stop"""
    source: str = ""
    """where the definition comes from"""
    low: float | None = None
    """smallest possible value, if there is one"""
    high: float | None = None
    """largest possible value, if there is one"""

    def as_dict(self) -> dict[str, Any]:
        """Plain dictionary, without the empty fields."""
        return {key: value for key, value in asdict(self).items() if value not in (None, "") or key in ("unit", "meaning")}

    @classmethod
    def text(cls, meaning: str, source: str = OURS) -> "Column":
        """A column of names or sentences."""
        return cls(meaning=meaning, source=source)

    @classmethod
    def count(cls, meaning: str, unit: str = "", source: str = OURS) -> "Column":
        """A column of whole numbers from 0."""
        return cls(unit, 0, meaning, source, low=0)

    @classmethod
    def fraction(cls, meaning: str, source: str = OURS, digits: int = 3) -> "Column":
        """A column of fractions."""
        return cls("fraction", digits, meaning, source)

    @classmethod
    def correlation(cls, meaning: str, source: str = OURS) -> "Column":
        """A column of numbers from −1 to 1, such as a correlation or a modularity."""
        return cls("", 3, meaning, source, -1.0, 1.0)


@dataclass(frozen=True)
class Quantity(Column):
    """Description of a number per channel; `name` is its column and its score.

    Examples
    --------
    >>> Quantity(unit="fraction", low=0.0, high=1.0, name="support", title="peer support").range
    '[0, 1]'
    """

    name: str = ""
    title: str = ""
    """what people call it"""
    symbol: str = ""
    """as the paper writes it"""
    axis: Literal["local", "target"] = "local"
    """which of the two questions it answers"""
    formula: str = ""
    """in one line"""
    computed: str = ""
    """what it is computed from"""
    readout: str = ""
    """what a sample is"""
    keeps: Keeps = "high"
    """which end a pruner keeps"""
    reads: str = ""
    """a low and a high value in words"""

    @property
    def range(self) -> str:
        """The possible values, as an interval."""
        low = "(−∞" if self.low is None else f"[{self.low:g}"
        high = "∞)" if self.high is None else f"{self.high:g}]"
        return f"{low}, {high}"


@dataclass(frozen=True)
class Schema:
    """Name and columns of one table; it stands beside the function that fills the table, and `tables.fill` applies it.

    Examples
    --------
    >>> curve = Schema("hull_curve", "site n", {"size": Column.count("members of the hull", "members")})
    >>> curve.name, curve.names
    ('hull_curve', ('site', 'n', 'size'))
    """

    name: str
    """of the table: its file without ending, its key among the tables of a function, its name in the report"""
    common: str = ""
    """columns with the meaning they have in every table (`tables.COLUMNS`), separated by spaces"""
    columns: Mapping[str, Column] = field(default_factory=dict)
    """the table's own columns; NAME_se, NAME_low and NAME_high are described by NAME"""

    @property
    def names(self) -> tuple[str, ...]:
        """All columns, the common ones first."""
        return (*self.common.split(), *self.columns)
