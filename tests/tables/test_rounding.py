import math
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from channelscope.tables.rounding import format_interval, format_number, format_percent


def number(text: str) -> float:
    """What a reader takes a printed number to be."""
    return float(text.replace("−", "-").replace(",", ""))


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0.23, 2, "0.23"),
        (-0.23, 2, "−0.23"),
        (0.0, 2, "0.00"),
        (-0.0, 2, "0.00"),
        (0.004, 2, "0.004"),
        (-0.0004, 2, "−0.0004"),
        (0.000_04, 3, "4e−5"),
        (3.2e-9, 3, "3e−9"),
        (5000, 3, "5,000"),
        (-5000, 3, "−5,000"),
        (12345.678, 1, "12,345.7"),
        (math.nan, 3, "undefined"),
        (math.inf, 3, "∞"),
        (-math.inf, 3, "−∞"),
    ],
)
def test_numbers_as_people_read_them(value, digits, text):
    assert format_number(value, digits) == text


@pytest.mark.parametrize(("value", "text"), [(np.int64(1234), "1,234"), (np.float32(0.5), "0.500"), (np.float64(math.nan), "undefined")])
def test_numpy_numbers_read_the_same(value, text):
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("fraction", "text"),
    [
        (1.0, "100.0 %"),
        (0.9996, "99.9 %"),
        (0.99999999, "99.9 %"),
        (0.0, "0.0 %"),
        (0.0004, "0.04 %"),
        (0.5, "50.0 %"),
        (math.nan, "undefined"),
    ],
)
def test_all_and_none_are_printed_only_when_true(fraction, text):
    assert format_percent(fraction) == text


def test_a_percentage_without_decimals_cannot_claim_all_either():
    assert format_percent(0.999, 0) == "99.9 %"
    assert format_percent(1.0, 0) == "100 %"


def test_a_correlation_of_almost_one_is_not_one():
    assert format_number(0.9999, 2, top=1) == "0.99"
    assert format_number(-0.9999, 2, top=1) == "−0.99"
    assert format_number(1.0, 2, top=1) == "1.00"


def test_a_plain_number_may_round_to_one():
    assert format_number(0.9999, 2) == "1.00"


@given(st.floats(-1, 1), st.integers(1, 5))
def test_rounding_never_lies_about_zero_sign_or_the_top(value, digits):
    said = number(format_number(value, digits, top=1))
    assert (said == 0) == (value == 0)
    assert (abs(said) == 1) == (abs(value) == 1)
    assert said * value >= 0


@given(st.floats(-1e9, 1e9), st.integers(0, 6))
def test_the_printed_number_is_within_one_last_digit(value, digits):
    said = number(format_number(value, digits))
    assert abs(Decimal(said) - Decimal(value)) <= Decimal(10) ** -digits


def test_a_number_comes_with_how_sure_it_is():
    assert format_interval(0.23, 0.18, 0.28, 19, "layers") == "0.23 [0.18, 0.28] (n = 19 layers)"
    assert format_interval(0.23, 0.18, 0.28) == "0.23 [0.18, 0.28]"
    assert format_interval(-0.5, -0.6, 0.004, 5000, "images") == "−0.50 [−0.60, 0.004] (n = 5,000 images)"


def test_a_missing_interval_is_said():
    assert format_interval(0.23, math.nan, math.nan, 1, "layers") == "0.23 [no interval] (n = 1 layer)"
    assert format_interval(0.23, 0.1, math.nan, 4) == "0.23 [no interval] (n = 4)"


def test_an_undefined_number_has_no_interval():
    assert format_interval(math.nan, math.nan, math.nan, 0, "layers") == "undefined (n = 0 layers)"
