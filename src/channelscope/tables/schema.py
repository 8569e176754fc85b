"""Column and Quantity: the description of a table's column and of a quantity per channel."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from channelscope.ranking import Keeps


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
