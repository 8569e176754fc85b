"""Numbers as text, rounded so that no value looks like zero or like its maximum unless it is."""

import math
from numbers import Integral

MINUS = "\u2212"

TINIEST_PLAIN = -4
"""decimal exponent below which a number is written in powers of ten"""


def format_number(value: float, digits: int = 3, top: float | None = None) -> str:
    """A number as text with `digits` decimals.

    A value that is not zero never prints as zero: it has more decimals or an exponent. A value below `top` never prints as
    `top`: it is truncated instead of rounded. Whole numbers have thousands separators.

    Parameters
    ----------
    value
        nan is "undefined", infinity is "∞".
    digits
        Decimals; 0 for counts.
    top
        The maximum, 1 for a fraction or a correlation.

    Returns
    -------
    str
        With a minus sign (U+2212) for negative numbers.

    Examples
    --------
    >>> format_number(0.12345), format_number(0.00004), format_number(0.9999, top=1.0), format_number(12345)
    ('0.123', '4e−5', '0.999', '12,345')
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
    """A fraction in percent; 100 % is printed only when it is true.

    Parameters
    ----------
    fraction
        0..1; nan is "undefined".
    digits
        Decimals.

    Returns
    -------
    str
        Such as "99.9 %".

    Examples
    --------
    >>> format_percent(0.9996), format_percent(1.0)
    ('99.9 %', '100.0 %')
    """
    if math.isnan(fraction):
        return "undefined"
    return f"{format_number(100 * fraction, digits, top=100.0)} %"


def format_interval(
    value: float, low: float, high: float, n: int | None = None, of: str = "", digits: int = 2, top: float | None = None
) -> str:
    """A number with its interval and sample size as text.

    Parameters
    ----------
    value
        The estimate; nan is "undefined".
    low, high
        Ends of the interval; nan for "[no interval]".
    n
        Number of independent units; None to leave it out.
    of
        What n counts, in the plural.
    digits, top
        As for `format_number`.

    Returns
    -------
    str
        Such as "0.23 [0.18, 0.28] (n = 19 layers)".

    Examples
    --------
    >>> format_interval(0.234, 0.18, 0.281, 19, "layers")
    '0.23 [0.18, 0.28] (n = 19 layers)'
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
