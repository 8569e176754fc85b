"""Shown: how a result looks in a terminal and in a notebook."""

from collections.abc import Iterable
from html import escape
from typing import SupportsFloat

LINES = 15
"""lines of the longest text"""

Facts = tuple[str, Iterable[tuple[str, str]]]
"""a heading, and pairs of a name and what is said of it"""


class Shown:
    """A result that is shown as a heading with at most fourteen facts below it: as text, and as a table in a notebook.

    Examples
    --------
    >>> class Pair(Shown):
    ...     def facts(self):
    ...         return "Pair(2 numbers)", [("first", "0.5"), ("second", "0.25")]
    >>> Pair()
    Pair(2 numbers)
      first: 0.5
      second: 0.25
    >>> Pair()._repr_html_()
    '<table><caption>Pair(2 numbers)</caption><tr><th>first</th><td>0.5</td></tr><tr><th>second</th><td>0.25</td></tr></table>'
    """

    __slots__ = ()

    def facts(self) -> Facts:
        """Heading and facts."""
        raise NotImplementedError

    def __repr__(self) -> str:
        """The heading and the facts, a line each, at most fifteen."""
        heading, rows = shortened(self.facts())
        return "\n".join([heading, *(f"  {name}: {said}" if said else f"  {name}" for name, said in rows)])

    def _repr_html_(self) -> str:
        """The same as a table."""
        heading, rows = shortened(self.facts())
        body = "".join(f"<tr><th>{escape(name)}</th><td>{escape(said)}</td></tr>" for name, said in rows)
        return f"<table><caption>{escape(heading)}</caption>{body}</table>"


def shortened(facts: Facts, lines: int = LINES) -> tuple[str, list[tuple[str, str]]]:
    """Heading and facts that fit into some lines; the last one says how many were left out.

    Parameters
    ----------
    facts
        Heading, and pairs of a name and what is said of it.
    lines
        Lines of the text, the heading included.

    Returns
    -------
    tuple
        The heading, and at most `lines` − 1 pairs.

    Examples
    --------
    >>> shortened(("four", [("a", "1"), ("b", "2"), ("c", "3"), ("d", "4")]), 4)
    ('four', [('a', '1'), ('b', '2'), ('… 2 more', '')])
    >>> shortened(("two", [("a", "1"), ("b", "2")]), 3)
    ('two', [('a', '1'), ('b', '2')])
    """
    heading, rows = facts[0], list(facts[1])
    room = lines - 1
    return heading, rows if len(rows) <= room else [*rows[: room - 1], (f"… {len(rows) - room + 1} more", "")]


def spread(values: Iterable[SupportsFloat]) -> str:
    """Smallest and largest of some numbers, nan left out.

    Parameters
    ----------
    values
        The numbers.

    Returns
    -------
    str
        Three digits of each.

    Examples
    --------
    >>> spread([0.25, float("nan"), 2.0]), spread([float("nan")])
    ('0.25 … 2', 'all undefined')
    """
    known = [value for value in map(float, values) if value == value]
    return f"{min(known):.3g} … {max(known):.3g}" if known else "all undefined"
