"""What the report says, case by case."""

import pandas as pd
import pytest

from channelscope.report import text
from report.folders import FACTS, pairs

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("value", "digits", "expected"),
    [
        (0.256, 2, "0.26"),
        (-0.256, 2, "−0.26"),
        (0.9999, 2, ">0.99"),
        (1.0, 2, "1.00"),
        (1.004, 2, "1.00"),
        (-0.001, 2, "0.00"),
        (NAN, 2, "undefined"),
        (INF, 2, "∞"),
        (-INF, 2, "−∞"),
        (3.14159, 3, "3.142"),
    ],
)
def test_numbers_are_shown_honestly(value, digits, expected):
    assert text.shown(value, digits) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.5, "50.0 %"), (1.0, "100.0 %"), (0.99999, ">99.9 %"), (0.00001, "<0.1 %"), (0.0, "0.0 %"), (NAN, "undefined")],
)
def test_hundred_percent_is_printed_only_when_true(value, expected):
    assert text.share(value) == expected


def test_interval():
    assert text.interval(0.2, 0.1, 0.3) == "0.20 [0.10, 0.30]"
    assert text.interval(0.2, NAN, NAN) == "0.20 (no interval)"


def row(rho, low, high, n=19):
    return {"local": "capture", "target": "relevance", "rho": rho, "low": low, "high": high, "n": n}


@pytest.mark.parametrize(
    ("rho", "low", "high", "words"),
    [
        (0.05, 0.02, 0.08, "hardly aligned"),
        (0.21, 0.12, 0.30, "weakly aligned"),
        (-0.4, -0.5, -0.3, "moderately opposed"),
        (0.9, 0.8, 0.95, "strongly aligned"),
        (0.05, -0.02, 0.12, "no consistent alignment"),
    ],
)
def test_strength_and_direction_in_words(rho, low, high, words):
    sentence = text.aligned(row(rho, low, high))
    assert words in sentence
    assert text.interval(rho, low, high) in sentence
    assert "19 layers" in sentence


def test_an_interval_over_zero_is_never_called_aligned():
    assert "aligned" not in text.aligned(row(0.3, -0.01, 0.6)).replace("alignment", "")


def test_one_layer_and_none():
    assert "1 layer." in text.aligned(row(0.2, NAN, NAN, n=1))
    assert "cannot be compared" in text.aligned(row(NAN, NAN, NAN, n=0))


def test_answer_tells_before_and_after():
    frame = pd.DataFrame(pairs(0.1, -0.1, 0.3, "initialization") + pairs(0.25, 0.15, 0.35))
    said = text.answer(frame, FACTS)
    assert "weakly aligned within layers: mean Spearman 0.25 [0.15, 0.35]" in said
    assert said.endswith("At initialization it was 0.10 [−0.10, 0.30].")
    assert text.verdict(frame, FACTS) == "The two axes are weakly aligned"


def test_answer_of_one_stage_says_nothing_of_another():
    said = text.answer(pd.DataFrame(pairs(0.25, 0.15, 0.35)), FACTS | {"stages": ["trained"]})
    assert "initialization" not in said


def test_verdict_when_zero_is_included():
    assert text.verdict(pd.DataFrame(pairs(0.1, -0.1, 0.3)), FACTS) == "The two axes are not aligned"


def test_groupings_are_counted_against_chance():
    frame = pd.DataFrame({"stage": "trained", "ari": [0.1, 0.3, NAN], "p": [0.2, 0.01, NAN]})
    said = text.grouped(frame, "trained")
    assert "in 1 of 2 layers" in said
    assert "0.1 would by chance" in said
    assert "0.20" in said


def test_groupings_without_layers():
    assert "enough channels" in text.grouped(pd.DataFrame({"stage": ["trained"]}), "trained")


def test_what_was_measured_names_split_and_n():
    said = text.measured(FACTS)
    assert "120 calibration images" in said
    assert "test accuracy 90.0 % [85.0 %, 94.0 %] on 60 images" in said
    assert "accuracy" not in text.measured(FACTS | {"labeled": False})
