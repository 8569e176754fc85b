"""Numbers as people read them, rounded so that they cannot mislead."""

import math
from numbers import Integral

MINUS = "\u2212"

TINIEST_PLAIN = -4
"""decimal exponent below which a number is written in powers of ten"""


def format_number(value: float, digits: int = 3, top: float | None = None) -> str:
    """A number with `digits` decimals; more where fewer would say zero, fewer steps where rounding would say the top.

    nan is "undefined", infinity is "∞", and whole numbers (type int, or digits=0) carry thousands separators.
    A value that is not zero never prints as zero, and one below `top` (1 for a fraction or a correlation) in size never as `top`.
    """
    if math.isnan(value):
        return "undefined"
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    size = abs(value)
    if isinstance(value, Integral):
        text = f"{size:,}"
    elif top is not None and size < top and float(f"{size:.{digits}f}") >= top:
        text = _truncated(size, max(digits, 1))
    elif size and float(f"{size:.{digits}f}") == 0:
        text = _tiny(size)
    else:
        text = f"{size:,.{digits}f}"
    return MINUS + text if value < 0 else text


def _truncated(size: float, digits: int) -> str:
    return f"{math.floor(size * 10**digits) / 10**digits:.{digits}f}"


def _tiny(size: float) -> str:
    """One significant digit: 0.0004, or 4e−7 when the zeros would have to be counted."""
    mantissa, exponent = f"{size:.0e}".split("e")
    if int(exponent) >= TINIEST_PLAIN:
        return f"{size:.{-int(exponent)}f}"
    return f"{mantissa}e{MINUS}{-int(exponent)}"


def format_percent(fraction: float, digits: int = 1) -> str:
    """A fraction in percent: 0.9996 is "99.9 %", for 100 % is printed only when it is true."""
    if math.isnan(fraction):
        return "undefined"
    return f"{format_number(100 * fraction, digits, top=100.0)} %"


def format_interval(
    value: float, low: float, high: float, n: int | None = None, of: str = "", digits: int = 2, top: float | None = None
) -> str:
    """A number with how sure it is: "0.23 [0.18, 0.28] (n = 19 layers)".

    Parameters
    ----------
    of
        What n counts, in the plural; without an interval the text says so rather than leave it out.
    """
    text = format_number(value, digits, top)
    if math.isnan(value):
        bounds = ""
    elif math.isnan(low) or math.isnan(high):
        bounds = " [no interval]"
    else:
        bounds = f" [{format_number(low, digits, top)}, {format_number(high, digits, top)}]"
    if n is None:
        return text + bounds
    unit = of[:-1] if n == 1 and of.endswith("s") else of
    return f"{text}{bounds} (n = {n:,}{' ' + unit if unit else ''})"
