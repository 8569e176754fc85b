import pytest

from channelscope.scores.score import REGISTRY
from channelscope.tables.quantities import COLUMNS, HEADLINE, QUANTITIES


@pytest.mark.parametrize("quantity", QUANTITIES.values(), ids=lambda quantity: quantity.name)
def test_every_quantity_can_be_read_by_a_stranger(quantity):
    for fact in ("title", "symbol", "unit", "meaning", "formula", "computed", "readout", "reads", "source"):
        assert getattr(quantity, fact), fact
    assert quantity.axis in ("local", "target")
    assert quantity.keeps in ("high", "low")
    assert quantity.range.startswith("[0")


@pytest.mark.parametrize("name", [name for name in QUANTITIES if name in REGISTRY])
def test_quantities_and_scores_agree(name):
    score, quantity = REGISTRY[name], QUANTITIES[name]
    assert quantity.keeps == score.keeps
    assert quantity.axis == score.family
    if score.unit:
        assert quantity.unit == score.unit


def test_the_headline_has_two_quantities_of_each_axis():
    assert [QUANTITIES[name].axis for name in HEADLINE] == ["local", "local", "target", "target"]
    assert [QUANTITIES[name].keeps for name in HEADLINE] == ["high", "low", "high", "high"]
    assert tuple(QUANTITIES)[:4] == HEADLINE


@pytest.mark.parametrize("name", COLUMNS)
def test_every_column_has_a_meaning_and_a_source(name):
    assert COLUMNS[name].meaning
    assert not COLUMNS[name].meaning.endswith(".")
    assert COLUMNS[name].source


def test_units_are_text_and_decimals_are_numbers():
    for column in COLUMNS.values():
        assert isinstance(column.unit, str)
        assert isinstance(column.digits, int)
    assert [(COLUMNS[name].unit, COLUMNS[name].digits) for name in ("channels", "n")] == [("channels", 0), ("", 0)]


def test_ranges_are_printed_as_intervals():
    assert QUANTITIES["support"].range == "[0, 1]"
    assert QUANTITIES["capture"].range == "[0, ∞)"
